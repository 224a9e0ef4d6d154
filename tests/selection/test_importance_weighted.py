"""The chance of asking is Vowpal Wabbit's, and the loss in it is estimated without bias from the answers."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamal.messages import Outcome, OutcomeKind, Prediction
from streamal.selection.importance_weighted import (
    LEAST_ODDS,
    MOST_ODDS,
    ImportanceWeighted,
    chance,
    log_odds,
    weight_to_turn,
)
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
AT_RATE = Standing(rate=RATE, cap=23.0, epsilon=0.0, level=-RATE)
"""The steered rate is the rate."""


def strategy() -> ImportanceWeighted:
    def no_model() -> Any:
        pytest.fail("it looked at the model")

    return ImportanceWeighted(StrategySpec(RATE, 256, {}, no_model))


def sure(odds: float) -> Prediction:
    """Return a prediction of such log odds."""
    return {"a": 1.0 / (1.0 + math.exp(-odds)), "b": 1.0 / (1.0 + math.exp(odds))}


def see(chosen: ImportanceWeighted, prediction: Prediction, standing: Standing = AT_RATE) -> float:
    proposal = chosen.propose({}, prediction, standing)
    chosen.update({}, prediction, proposal, asked=False)
    return proposal.propensity


def answered(label: str | None, propensity: float = 0.5, kind: OutcomeKind = "learned") -> Outcome:
    return Outcome(
        kind, 0, 0, "0", {}, label, 1.0, sure(1.0), 0.0, propensity, "uncertainty", True, "importance_weighted", 0, 0.0,
        0.0, None,
    )  # fmt: skip


@given(b=st.floats(1e-6, 10.0), g=st.floats(1e-6, 10.0), loss=st.floats(0.0, 1.0))
def test_the_chance_is_that_of_the_two_branches(b: float, g: float, loss: float) -> None:
    s = math.sqrt(loss) + math.sqrt(loss + g)
    if g <= math.sqrt(b) * s + b:
        expected = 1.0
    else:
        expected = b * ((s + math.sqrt(s * s + 4.0 * g)) / (2.0 * g)) ** 2
    assert chance(b, g, loss) == pytest.approx(expected, rel=1e-9)


@given(b=st.floats(1e-6, 10.0), g=st.floats(1e-6, 5.0), loss=st.floats(0.0, 0.9))
def test_it_falls_with_what_it_takes_to_turn_and_rises_with_the_loss(b: float, g: float, loss: float) -> None:
    assert chance(b, 2.0 * g, loss) <= chance(b, g, loss) <= chance(b, g, loss + 0.1)


@pytest.mark.parametrize("odds", [0.1, 1.0, 4.0, 9.0])
def test_the_weight_that_turns_a_prediction_is_that_of_steps_down_the_log_loss(odds: float) -> None:
    step, at, steps = 1e-3, odds, 0
    while at > 0.0:
        at -= step / (1.0 + math.exp(-at))
        steps += 1
    assert weight_to_turn(odds) == pytest.approx(steps * step, rel=0.01)


def test_the_whole_rule_is_computed_from_what_was_seen_and_answered() -> None:
    rule = strategy()
    rule.restore({"c0": 0.05, "seen": 399, "wrong": 29.0, "weight": 119.0})
    b = 0.05 * (math.log(401.0) + 1e-4) / (400.0 + 1e-4)
    for odds in (0.001, 0.02, 0.5, 3.0, 30.0):
        g = (odds + 1.0 - math.exp(-odds)) / (0.5 / math.sqrt(400.0)) / 400.0
        proposal = rule.propose({}, sure(odds), AT_RATE)
        assert proposal.propensity == pytest.approx(max(chance(b, g, 30.0 / 120.0), spill(AT_RATE)))
        assert proposal.utility == pytest.approx(-odds)


@pytest.mark.parametrize("shape", [lambda r: r.expovariate(0.5), lambda r: math.exp(r.gauss(0.0, 1.5)), lambda r: 3.0])
def test_c0_is_calibrated_to_the_rate_and_steered(shape: Any) -> None:
    def mean(level: float) -> float:
        standing = Standing(rate=RATE, cap=23.0, level=level)
        random, rule, found = Random(0), strategy(), []
        for number in range(8_000):
            found.append(see(rule, sure(shape(random)), standing))
            if number % 10 == 0:
                rule.resolved(answered("b" if random.random() < 0.2 else "a"))
        return fmean(found[4_000:])

    assert mean(0.0) == pytest.approx(steered_rate(Standing(RATE, 23.0)), rel=0.15)
    assert 0.4 * mean(0.0) < mean(-5.0) < 0.8 * mean(0.0)
    assert 1.25 * mean(0.0) < mean(5.0) < 2.2 * mean(0.0)


def test_the_loss_is_not_biased_by_whom_it_asks() -> None:
    """Errors are where the odds are low, which is also where it asks: the plain share of errors is far too high."""
    random, rule, errors, plain = Random(0), strategy(), [], []
    for _ in range(30_000):
        odds = random.expovariate(0.3)
        wrong = random.random() < 1.0 / (1.0 + math.exp(odds))
        errors.append(wrong)
        propensity = see(rule, sure(odds))
        if random.random() < propensity:
            plain.append(wrong)
            rule.resolved(answered("b" if wrong else "a", propensity))
    state = rule.state()
    assert state["wrong"] / state["weight"] == pytest.approx(fmean(errors), rel=0.15)
    assert fmean(plain) > 1.5 * fmean(errors)


def test_only_what_is_learned_counts_as_an_answer() -> None:
    rule = strategy()
    rule.resolved(answered("b", 0.25))
    rule.resolved(answered("a", 0.5))
    for kind in ("expired", "cancelled", "abstained", "invalid", "corrected"):
        rule.resolved(answered("b", 0.5, kind))
    assert (rule.state()["wrong"], rule.state()["weight"]) == (4.0, 6.0)


def test_ties_share_the_rate_however_many_there_are() -> None:
    rule = strategy()
    for _ in range(3_000):
        see(rule, sure(0.0))
    assert rule.propose({}, sure(0.0), AT_RATE).propensity == pytest.approx(RATE, rel=0.02)


def test_with_nothing_to_choose_between_it_asks_at_the_rate_and_learns_nothing_about_c0() -> None:
    rule = strategy()
    for prediction in ({}, {"a": 0.0}, {"a": 1.0}, {"a": 0.0, "b": 0.0}):
        assert see(rule, prediction) == pytest.approx(RATE)
    assert rule.state() == {"c0": 1.0, "seen": 4, "wrong": 0.0, "weight": 0.0}


def test_what_is_no_number_counts_as_a_tie() -> None:
    assert log_odds({"a": math.nan, "b": 0.9}) == log_odds({"a": math.inf, "b": math.inf}) == LEAST_ODDS
    assert log_odds({"a": 1.0, "b": 0.0}) == pytest.approx(690.8, abs=0.1)
    assert log_odds({"a": math.inf, "b": 0.5}) == MOST_ODDS


def test_four_numbers_are_all_it_keeps_however_long_the_stream() -> None:
    random, rule = Random(0), strategy()
    predictions = [sure(random.expovariate(0.3)) for _ in range(100)]
    for number in range(20_000):
        rule.update({}, predictions[number % 100], Proposal(0.0, 0.0), asked=False)
        if number % 10 == 0:
            rule.resolved(answered("b" if number % 50 == 0 else "a"))
    assert rule.state().keys() == {"c0", "seen", "wrong", "weight"}
    assert rule.state()["seen"] == 20_000
    found = fmean(rule.propose({}, prediction, AT_RATE).propensity for prediction in predictions)
    assert found == pytest.approx(RATE, rel=0.15)
