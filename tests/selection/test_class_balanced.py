"""Thresholds move with the answers as the rule says, only their ratios count, and the rare pairs get their share."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from statistics import fmean
from typing import Any

import pytest

from streamal.errors import ConfigError
from streamal.messages import Outcome, OutcomeKind, Prediction, Reason
from streamal.selection.class_balanced import ClassBalanced, leading
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import steered_rate
from streamal.selection.utility import log_margin
from streamal.selection.window import TopRanks

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
USUAL: Prediction = {"usual": 0.8, "rare": 0.2}
RARE: Prediction = {"usual": 0.2, "rare": 0.8}


def strategy(step: float = 0.1) -> ClassBalanced:
    def no_model() -> Any:
        pytest.fail("it looked at the model")

    return ClassBalanced(StrategySpec(RATE, WINDOW, {"step": step}, no_model))


def answered(
    prediction: Prediction,
    label: str | None,
    *,
    reason: Reason = "uncertainty",
    wanted: bool | None = True,
    kind: OutcomeKind = "learned",
) -> Outcome:
    return Outcome(
        kind, 0, 0, "0", {}, label, 1.0, prediction, 0.0, 0.5, reason, wanted, "class_balanced", 0, 0.0, 0.0, None
    )  # fmt: skip


def steps(rule: ClassBalanced, prediction: Prediction) -> float:
    """Return how many steps a pair's threshold lies below where it started."""
    return rule._steps.get(leading(prediction), 0.0)


def with_priors(step: float = 0.1) -> ClassBalanced:
    """Return a strategy that exploration has told about a usual and a rare class."""
    rule = strategy(step)
    for label in ("usual", "rare", "usual", "usual"):
        rule.resolved(answered({}, label, reason="exploration", wanted=False))
    return rule


@pytest.mark.parametrize(
    ("prediction", "label", "lowered"),
    [
        (USUAL, "usual", 2),
        (USUAL, "rare", 0),
        (RARE, "rare", 1),
        (RARE, "usual", 1),
        (USUAL, "third", 0),
    ],
)
def test_an_answer_the_rule_wanted_lowers_its_pair(prediction: Prediction, label: str, lowered: int) -> None:
    """By a step if the model was right, and by one if the label is the majority of the pair."""
    rule = with_priors()
    rule.resolved(answered(prediction, label))
    assert steps(rule, prediction) == lowered
    assert sum(rule._steps.values()) == lowered


def test_an_answer_it_did_not_want_raises_its_pair_up_to_where_it_started() -> None:
    rule = with_priors()
    rule.resolved(answered(USUAL, "usual"))
    for wanted, expected in ((False, 1.0), (None, 0.0), (False, 0.0)):
        rule.resolved(answered(USUAL, "rare", wanted=wanted))
        assert steps(rule, USUAL) == pytest.approx(expected, abs=0.01)
    rule.resolved(answered(USUAL, "usual", wanted=False))
    assert steps(rule, USUAL) == 0.0


def test_without_a_majority_only_right_predictions_count() -> None:
    rule = strategy()
    for label in ("usual", "rare"):
        rule.resolved(answered(USUAL, label))
    assert steps(rule, USUAL) == pytest.approx(1.0, abs=0.01)


def test_only_exploration_says_which_class_is_usual() -> None:
    rule = with_priors()
    for _ in range(50):
        rule.resolved(answered({}, "rare"))
    rule.resolved(answered(USUAL, "usual"))
    assert steps(rule, USUAL) == 2
    for _ in range(50):
        rule.resolved(answered({}, "rare", reason="exploration"))
    before = steps(rule, USUAL)
    rule.resolved(answered(USUAL, "usual"))
    assert steps(rule, USUAL) == pytest.approx(before + 1.0, abs=0.01)


def test_only_what_is_learned_moves_anything() -> None:
    rule = with_priors()
    for kind in ("expired", "cancelled", "abstained", "invalid", "corrected"):
        rule.resolved(answered(USUAL, "usual", kind=kind))
    assert not rule._steps


def test_thresholds_are_the_powers_of_the_step_relative_to_the_lowest() -> None:
    rule = with_priors(0.1)
    for _ in range(3):
        rule.resolved(answered(USUAL, "usual"))
    rule.resolved(answered(RARE, "rare"))
    lowest, other = rule.threshold(leading(USUAL)), rule.threshold(leading(RARE))
    assert lowest == 1.0
    assert other == pytest.approx(0.9 ** (1 - 6), rel=0.01)
    assert rule.threshold(("rare", "third")) == pytest.approx(0.9**-6, rel=0.01)


def test_the_utility_is_the_log_margin_in_units_of_the_pair_s_threshold() -> None:
    rule = with_priors(0.1)
    for _ in range(5):
        rule.resolved(answered(USUAL, "usual"))
    margin = math.log(0.2 / 0.8)
    assert rule.propose({}, USUAL, STANDING).utility == pytest.approx(margin)
    assert rule.propose({}, RARE, STANDING).utility == pytest.approx(margin * 0.9**10, rel=0.01)


def test_steps_of_0_are_plain_margin_sampling() -> None:
    random, rule, ranks = Random(0), strategy(0.0), TopRanks(WINDOW)
    for _ in range(500):
        best = random.uniform(0.5, 1.0)
        prediction = {"usual": best, "rare": 1.0 - best}
        utility = log_margin(best, 1.0 - best)
        proposal = rule.propose({}, prediction, STANDING)
        assert proposal == (ranks.propensity(utility, STANDING), utility)
        rule.update({}, prediction, proposal, asked=False)
        ranks.add(utility)
        rule.resolved(answered(prediction, "usual"))


def run(rule: ClassBalanced, count: int) -> tuple[Counter[tuple[str, ...]], list[float]]:
    """Run a stream with a rare class, which is predicted as surely as the usual one; returns requests and rates."""
    random, asked, propensities = Random(0), Counter[tuple[str, ...]](), []
    for number in range(count):
        rare = random.random() < 0.1
        share = 1.0 / (1.0 + math.exp(random.gauss(-2.0 if rare else 2.0, 1.5)))
        prediction = {"usual": 1.0 - share, "rare": share}
        proposal = rule.propose({}, prediction, STANDING)
        wanted = random.random() < proposal.propensity
        rule.update({}, prediction, proposal, asked=wanted)
        propensities.append(proposal.propensity)
        explored = number % 100 == 0
        if wanted or explored:
            label = "rare" if rare else "usual"
            reason: Reason = "exploration" if explored else "uncertainty"
            rule.resolved(answered(prediction, label, reason=reason, wanted=wanted))
            asked[leading(prediction)] += wanted
    return asked, propensities


def test_requests_move_to_the_pair_of_the_rare_class_and_the_rate_stays() -> None:
    plain, _ = run(strategy(0.0), 8_000)
    balanced, propensities = run(strategy(0.01), 8_000)
    share, before = (found["rare", "usual"] / found.total() for found in (balanced, plain))
    assert share > 1.3 * before
    assert fmean(propensities) == pytest.approx(steered_rate(STANDING), rel=0.1)


def test_where_the_model_says_nothing_it_asks_at_the_rate() -> None:
    rule = strategy()
    for prediction in ({}, {"a": 0.0}, {"a": 0.0, "b": 0.0}):
        assert rule.propose({}, prediction, STANDING) == Proposal(steered_rate(STANDING), 0.0)


def test_what_is_no_number_counts_as_a_tie() -> None:
    for prediction in ({"a": math.nan, "b": 0.5}, {"a": math.inf, "b": math.inf}, {"a": 0.5, "b": 0.5}):
        assert strategy().propose({}, prediction, STANDING).utility == 0.0
    assert math.isfinite(strategy().propose({}, {"a": math.inf, "b": 0.5}, STANDING).utility)


def test_a_new_owner_rebuilds_the_thresholds_from_the_outcomes() -> None:
    outcomes = [
        answered(
            USUAL if number % 3 else RARE,
            "rare" if number % 4 == 0 else "usual",
            reason="exploration" if number % 20 == 0 else "uncertainty",
            wanted=number % 7 > 0,
        )
        for number in range(3_000)
    ]
    former, heir = strategy(0.01), strategy(0.01)
    for outcome in outcomes:
        former.resolved(outcome)
    for outcome in outcomes[-1_024:]:
        heir.resolved(outcome)
    assert heir.recalls
    for pair in (leading(USUAL), leading(RARE)):
        assert heir.threshold(pair) == pytest.approx(former.threshold(pair), rel=0.25)


def test_memory_is_bounded_however_many_pairs_there_are() -> None:
    random, rule = Random(0), strategy(0.01)
    names = [f"c{i}" for i in range(1_000)]
    for number in range(4_000):
        first, second, label = random.choices(names, k=3)
        reason: Reason = "exploration" if number % 2 else "uncertainty"
        rule.resolved(answered({first: 0.6, second: 0.4}, random.choice([first, label]), reason=reason))
    assert len(rule._steps) <= 2_650
    assert len(rule._priors) <= 230


@pytest.mark.parametrize("step", [-0.01, 0.2, math.nan])
def test_a_step_out_of_bounds_is_explained(step: float) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.parameters\.step = .* expected a number from 0 to 0\.1"):
        strategy(step)
