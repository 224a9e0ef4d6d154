"""Propensities are those of the paper's draw with a b that meets the rate, and mistakes raise b as they do there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from statistics import fmean
from typing import Any

import pytest

from streamal.errors import ConfigError
from streamal.messages import Outcome, OutcomeKind, Prediction
from streamal.selection.selective_sampling import LEAST_MARGIN, SelectiveSampling, margin_from_chance
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
AT_RATE = Standing(rate=RATE, cap=23.0, epsilon=0.0, level=-RATE)
"""The steered rate is the rate."""


def strategy(parameters: Mapping[str, Any] = {}) -> SelectiveSampling:
    def no_model() -> Any:
        pytest.fail("it looked at the model")

    return SelectiveSampling(StrategySpec(RATE, 256, parameters, no_model))


def sure(best: float, classes: int = 2) -> Prediction:
    return {"best": best} | {f"other{i}": (1.0 - best) / (classes - 1) for i in range(classes - 1)}


def see(chosen: SelectiveSampling, prediction: Prediction, standing: Standing = AT_RATE) -> float:
    proposal = chosen.propose({}, prediction, standing)
    chosen.update({}, prediction, proposal, asked=False)
    return proposal.propensity


def answered(prediction: Prediction, label: str | None, kind: OutcomeKind = "learned") -> Outcome:
    return Outcome(
        kind, 0, 0, "0", {}, label, 1.0, prediction, 0.0, 0.5, "uncertainty", True, "selective_sampling", 0, 0.0, 0.0,
        None,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("b", [0.01, 0.2, 3.0])
def test_the_propensity_is_that_of_the_paper(b: float, classes: int) -> None:
    rule = strategy()
    rule.restore({"b": b})
    for best in (1.0 / classes + 0.01, 0.7, 0.95, 1.0):
        margin = best - 1.0 / classes
        expected = max(b / (b + margin), spill(AT_RATE))
        assert rule.propose({}, sure(best, classes), AT_RATE).propensity == pytest.approx(expected)


@pytest.mark.parametrize("shape", [lambda r: r.uniform(0.5, 1.0), lambda r: 1.0 - r.random() ** 8 / 2, lambda r: 0.9])
def test_b_is_calibrated_to_the_rate_and_steered(shape: Any) -> None:
    def mean(level: float) -> float:
        standing = Standing(rate=RATE, cap=23.0, level=level)
        random, rule = Random(0), strategy()
        return fmean([see(rule, sure(shape(random)), standing) for _ in range(8_000)][2_000:])

    assert mean(0.0) == pytest.approx(steered_rate(Standing(RATE, 23.0)), rel=0.1)
    assert 0.4 * mean(0.0) < mean(-5.0) < 0.7 * mean(0.0)
    assert 1.4 * mean(0.0) < mean(5.0) < 2.2 * mean(0.0)


def test_sure_predictions_are_asked_about_as_well_though_less() -> None:
    random, rule = Random(0), strategy()
    for _ in range(5_000):
        see(rule, sure(random.uniform(0.5, 1.0)))
    found = [rule.propose({}, sure(best), AT_RATE) for best in (0.5, 0.6, 0.75, 1.0)]
    propensities = [proposal.propensity for proposal in found]
    assert propensities == sorted(propensities, reverse=True)
    assert propensities[0] > 0.9
    assert propensities[-1] > RATE / 4
    assert [proposal.utility for proposal in found] == pytest.approx([-LEAST_MARGIN, -0.1, -0.25, -0.5])


def test_ties_share_the_rate_however_many_there_are() -> None:
    rule = strategy()
    for _ in range(3_000):
        see(rule, sure(0.5))
    assert rule.propose({}, sure(0.5), AT_RATE).propensity == pytest.approx(RATE, rel=0.01)


def test_with_nothing_to_choose_between_it_asks_at_the_rate_and_learns_nothing_about_b() -> None:
    rule = strategy()
    before = rule.state()
    for prediction in ({}, {"a": 0.0}, {"a": 1.0}, {"a": 0.0, "b": 0.0}):
        assert see(rule, prediction) == pytest.approx(RATE)
    assert rule.state() == before


def test_what_is_no_number_counts_as_a_tie() -> None:
    assert margin_from_chance({"a": math.nan, "b": 0.9}) == LEAST_MARGIN
    assert margin_from_chance({"a": math.inf, "b": 0.9}) == 1.0


def test_mistakes_raise_b_by_their_root_if_it_adapts() -> None:
    plain, adaptive = strategy(), strategy({"adaptive": True})
    for rule in (plain, adaptive):
        for label in ("other0", "best", "other0", "other0"):
            rule.resolved(answered(sure(0.8), label))
        rule.resolved(answered(sure(0.8), None, "expired"))
        rule.restore(rule.state() | {"b": 0.1})
    assert plain.propose({}, sure(0.8), AT_RATE).propensity == pytest.approx(0.1 / (0.1 + 0.3))
    assert adaptive.propose({}, sure(0.8), AT_RATE).propensity == pytest.approx(0.2 / (0.2 + 0.3))
    assert (plain.state()["mistakes"], adaptive.state()["mistakes"]) == (0, 3)


def test_calibration_takes_back_what_mistakes_have_raised() -> None:
    rule = strategy({"adaptive": True})
    for number in range(6_000):
        see(rule, sure(0.8))
        if number % 10 == 0:
            rule.resolved(answered(sure(0.8), "other0"))
    assert rule.propose({}, sure(0.8), AT_RATE).propensity == pytest.approx(RATE, rel=0.02)


def test_two_numbers_are_all_it_keeps_however_long_the_stream() -> None:
    random, rule = Random(0), strategy({"adaptive": True})
    predictions = [sure(random.uniform(0.5, 1.0)) for _ in range(100)]
    for number in range(20_000):
        prediction = predictions[number % 100]
        rule.update({}, prediction, Proposal(0.0, 0.0), asked=False)
        if number % 10 == 0:
            rule.resolved(answered(prediction, "other0"))
    assert rule.state().keys() == {"b", "mistakes"}
    assert rule.state()["mistakes"] == 2_000
    assert 1e-4 < rule.state()["b"] < 1.0


def test_a_parameter_that_is_no_switch_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.parameters\.adaptive = 1: expected true or false"):
        strategy({"adaptive": 1})
