"""The committee's votes, powers and threshold move as the paper says, and the votes are ranked, not taken at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from statistics import fmean
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant, Partition, Settled, stream

from streamal.errors import ConfigError
from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.learning.model import Model
from streamal.messages import Features, Outcome, Prediction
from streamal.selection.budget import BudgetPlan
from streamal.selection.registry import check
from streamal.selection.reinforced import LEAST_POWER, LEAST_THRESHOLD, MOST_MEMBERS, TIE, Reinforced, rewarded
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import steered_rate
from streamal.service.ledgers import Pointers, encode_metadata

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
SURE: Prediction = {"a": 0.8, "b": 0.2}


class Committee(Constant):
    """Members as certain as the features say, one number each."""

    def __init__(self) -> None:
        super().__init__(SURE)

    def members(self, features: Features) -> list[Prediction]:
        return [{"a": cast(float, share)} for share in features.values()]


MODEL = Committee()


def reinforced(parameters: Mapping[str, Any] | None = None, window: int = WINDOW) -> Reinforced:
    return Reinforced(StrategySpec(RATE, window, parameters or {}, model))


def model() -> Model:
    return MODEL


def certain(*shares: float) -> dict[str, float]:
    return {f"m{i}": share for i, share in enumerate(shares)}


def see(strategy: Reinforced, *shares: float) -> Proposal:
    proposal = strategy.propose(certain(*shares), SURE, STANDING)
    strategy.update(certain(*shares), SURE, proposal, asked=False)
    return proposal


def answered(features: Features, label: str | None, kind: Any = "learned", prediction: Prediction = SURE) -> Outcome:
    """Return the outcome of a request about which the model said "a"."""
    return Outcome(
        kind=kind,
        partition=0,
        offset=0,
        instance_id="0",
        features=features,
        label=label,
        weight=1.0,
        prediction=prediction,
        utility=1.0,
        propensity=0.5,
        reason="uncertainty",
        would_select=True,
        strategy="reinforced",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def state(strategy: Reinforced) -> tuple[float, list[float]]:
    found = strategy.state()
    return found["threshold"], found["powers"]


@pytest.mark.parametrize("penalty", [-1.0, -0.2])
def test_powers_and_threshold_move_as_in_the_paper(penalty: float) -> None:
    """Simulate the rule beside it: only a majority is rewarded, and of its members only those in favour."""
    strategy, random, eta = reinforced({"step": 0.05, "penalty": penalty}), Random(0), 0.05
    powers, threshold, majorities = [1.0 / 3.0] * 3, 0.9, 0
    for _ in range(300):
        shares = [random.uniform(0.4, 1.0) for _ in range(3)]
        label = random.choice(["a", "b"])
        strategy.resolved(answered(certain(*shares), label))
        voters = [share < threshold for share in shares]
        if sum(power for power, voted in zip(powers, voters, strict=True) if voted) > 0.5 * sum(powers):
            majorities += 1
            reward = 1.0 if label == "b" else penalty
            powers = [p * math.exp(eta * reward) if voted else p for p, voted in zip(powers, voters, strict=True)]
            powers = [max(LEAST_POWER * sum(powers) / 3.0, power) for power in powers]
            powers = [power / sum(powers) for power in powers]
            threshold = min(1.0, threshold * (1.0 + eta * (1.0 - 2.0 ** (reward / penalty))))
        found = state(strategy)
        assert found[0] == pytest.approx(threshold, rel=1e-3)
        assert found[1] == pytest.approx(powers, abs=1e-3) or not majorities
    assert 50 < majorities < 300
    assert max(powers) > 1.1 * min(powers)


def test_an_error_raises_the_threshold_half_as_much_as_a_needless_question_lowers_it() -> None:
    wrong, right = reinforced({"step": 0.1}), reinforced({"step": 0.1})
    wrong.resolved(answered(certain(0.5), "b"))
    right.resolved(answered(certain(0.5), "a"))
    assert state(wrong)[0] == pytest.approx(0.9 * 1.05)
    assert state(right)[0] == pytest.approx(0.9 * 0.9)


@pytest.mark.parametrize(
    ("shares", "kind"),
    [((0.95, 0.95, 0.5), "learned"), ((0.5, 0.5, 0.5), "abstained"), ((0.5, 0.5, 0.5), "corrected")],
)
def test_without_a_majority_or_an_answer_nothing_moves(shares: Sequence[float], kind: str) -> None:
    strategy = reinforced()
    before = strategy.state()
    strategy.resolved(answered(certain(*shares), "b", kind))
    assert strategy.state() == before


def test_a_model_that_said_nothing_was_not_wrong() -> None:
    strategy = reinforced()
    strategy.resolved(answered(certain(0.5), "b", prediction={}))
    assert state(strategy) == (0.9, [])


def test_half_of_the_powers_is_no_majority() -> None:
    strategy = reinforced()
    strategy.resolved(answered(certain(0.95, 0.5), "b"))
    assert strategy.state()["powers"] == []


@given(
    powers=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8),
    factor=st.floats(1e-6, 1e6),
    voters=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_powers_stay_shares_and_nobody_is_silenced(powers: list[float], factor: float, voters: list[bool]) -> None:
    found = rewarded(powers, voters[: len(powers)], factor)
    assert sum(found) == pytest.approx(1.0, abs=1e-5)
    assert min(found) >= LEAST_POWER / len(powers) / (1.0 + LEAST_POWER) - 1e-6


def test_the_utility_is_the_powers_in_favour_and_then_the_uncertainty() -> None:
    strategy = reinforced()
    strategy.restore({"threshold": 0.8, "powers": [0.5, 0.3, 0.2]})
    found = strategy.propose(certain(0.7, 0.9, 0.6), SURE, STANDING).utility
    assert found == pytest.approx(0.7 + TIE * (0.5 * 0.3 + 0.3 * 0.1 + 0.2 * 0.4))
    assert found > strategy.propose(certain(0.5, 0.85, 0.85), SURE, STANDING).utility


def test_the_highest_ranks_are_asked_at_the_rate() -> None:
    strategy, random, found = reinforced(), Random(0), list[tuple[float, float]]()
    for _ in range(3_000):
        proposal = see(strategy, *(random.uniform(0.5, 1.0) for _ in range(3)))
        found.append((proposal.utility, proposal.propensity))
    settled = found[WINDOW:]
    assert fmean(propensity for _, propensity in settled) == pytest.approx(steered_rate(STANDING), rel=0.15)
    settled.sort(reverse=True)
    assert sum(p for _, p in settled[: len(settled) // 5]) > 0.9 * sum(p for _, p in settled)


def test_equal_votes_are_asked_about_at_exactly_the_rate() -> None:
    strategy = reinforced()
    for _ in range(2 * WINDOW):
        proposal = see(strategy, 0.6, 0.7, 0.95)
    assert proposal.propensity == pytest.approx(steered_rate(STANDING))


def test_the_window_is_scored_by_the_committee_as_it_stands_now() -> None:
    """Where the threshold has moved, an instance ranks as if it had stood there all the time."""
    random = Random(1)
    seen = [[random.uniform(0.5, 1.0) for _ in range(3)] for _ in range(2 * WINDOW)]
    moved, always = reinforced(), reinforced()
    for shares in seen:
        see(moved, *shares)
    later = {"threshold": 0.7, "powers": [0.6, 0.3, 0.1]}
    always.restore(later)
    for shares in seen:
        see(always, *shares)
    moved.restore(later)
    for shares in seen:
        assert moved.propose(certain(*shares), SURE, STANDING) == always.propose(certain(*shares), SURE, STANDING)


def test_answers_score_the_window_anew() -> None:
    strategy, features = reinforced({"step": 0.5}), certain(0.85, 0.85)
    for _ in range(WINDOW):
        see(strategy, 0.84, 0.84)
    assert strategy.propose(features, SURE, STANDING).propensity == 0.0
    strategy.resolved(answered(features, "a"))
    see(strategy, 0.99, 0.99)
    assert state(strategy)[0] < 0.84
    assert strategy.propose(certain(0.3, 0.3), SURE, STANDING).propensity == 1.0


def test_a_single_model_is_a_committee_of_one() -> None:
    strategy = Reinforced(
        StrategySpec(RATE, WINDOW, {}, lambda: presets.build("knn", parameters={}, scaling="all", seed=0))
    )
    assert strategy.propose({"x": 1.0}, {"a": 0.6, "b": 0.4}, STANDING).utility == pytest.approx(1.0 + TIE * 0.4)


@pytest.mark.parametrize("prediction", [{}, {"a": 0.0}, {"a": 0.0, "b": 0.0}])
def test_where_the_model_says_nothing_it_is_asked_at_the_rate(prediction: Prediction) -> None:
    strategy = reinforced()
    proposal = strategy.propose(certain(0.9), prediction, STANDING)
    assert proposal.propensity == steered_rate(STANDING)
    assert math.isfinite(proposal.utility)
    strategy.update(certain(0.9), prediction, proposal, asked=True)
    assert see(strategy, 0.9).propensity == pytest.approx(steered_rate(STANDING)), "the window is empty"


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -1.0, 2.0])
def test_members_that_say_something_odd_break_nothing(odd: float) -> None:
    strategy = reinforced()
    for shares in ((odd, 0.9), (odd, odd), (0.5, 0.9, odd), (0.9,), (0.9,) * 40):
        proposal = see(strategy, *shares)
        strategy.resolved(answered(certain(*shares), "b"))
        assert 0.0 <= proposal.propensity <= 1.0
        assert math.isfinite(proposal.utility)
    assert 0.0 < state(strategy)[0] <= 1.0
    orjson.loads(orjson.dumps(strategy.state()))


def test_the_threshold_stays_between_its_bounds() -> None:
    strategy = reinforced({"step": 0.9})
    for _ in range(100):
        strategy.resolved(answered(certain(0.0), "a"))
    assert state(strategy)[0] == LEAST_THRESHOLD
    for _ in range(100):
        strategy.resolved(answered(certain(0.0), "b"))
    assert state(strategy)[0] == 1.0


@pytest.mark.parametrize(
    "parameters",
    [{"step": 0.0}, {"step": 1.0}, {"threshold": 0.0}, {"threshold": 1.1}, {"penalty": 0.0}, {"penalty": -11.0}],
    ids=str,
)
def test_a_parameter_out_of_bounds_is_explained(parameters: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"strategy.parameters.{next(iter(parameters))} = .* expected a number"):
        reinforced(parameters)


def test_it_is_refused_for_a_single_model() -> None:
    with pytest.raises(ConfigError, match="needs a model with several members"):
        check("reinforced", {}, "classification", ensemble=False)


def test_the_ledger_stays_small_with_the_most_members() -> None:
    partition = Partition(SamplingPlan(BudgetPlan(0.123456789), "reinforced"), Settled())
    partition.run(stream(200))
    ledger = partition.lane.ledger()
    strategy = reinforced({"step": 0.3, "threshold": 1.0})
    random = Random(0)
    for _ in range(500):
        strategy.resolved(answered(certain(*(random.random() for _ in range(2 * MOST_MEMBERS))), random.choice("ab")))
    ledger["strategy"] = strategy.state()
    assert len(ledger["strategy"]["powers"]) == MOST_MEMBERS
    assert sum(ledger["strategy"]["powers"]) == pytest.approx(1.0, abs=1e-4)
    ledger["budget"] |= {"seen": 10**12 + 1, "asked": 10**11 + 1, "refunded": 10**10 + 1, "clock": 1_795_255_200.123}
    assert len(encode_metadata(ledger, Pointers(10**12, 10**12, 10**12)).encode()) < 1_024
