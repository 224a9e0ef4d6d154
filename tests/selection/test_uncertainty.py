"""The bars of the uncertainty rules are where the literature puts them; propensities are what a draw would give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from statistics import fmean
from typing import Any

import pytest

from streamal.errors import ConfigError
from streamal.messages import Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate
from streamal.selection.uncertainty import FixedUncertainty, RandomisedUncertainty, Split, VariableUncertainty

RATE = 0.1
STANDING = Standing(rate=RATE, cap=23.0)
LITERATURE = {"spill": False}


def spec(parameters: Mapping[str, Any] = LITERATURE) -> StrategySpec:
    def no_model() -> Any:
        pytest.fail("an uncertainty rule looked at the model")

    return StrategySpec(RATE, 256, parameters, no_model)


def sure(best: float, classes: int = 2) -> Prediction:
    return {"best": best} | {f"other{i}": (1.0 - best) / (classes - 1) for i in range(classes - 1)}


def wanted(strategy: FixedUncertainty, prediction: Prediction, standing: Standing = STANDING) -> float:
    return strategy.propose({}, prediction, standing).propensity


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_fixed_bar_depends_on_rate_and_classes(classes: int) -> None:
    bar = 1.0 / classes + RATE * (1.0 - 1.0 / classes)
    rule = FixedUncertainty(spec())
    assert wanted(rule, sure(bar - 1e-9, classes)) == 1.0
    assert wanted(rule, sure(bar + 1e-9, classes)) == 0.0


def test_the_moving_bar_follows_the_rule_of_the_paper() -> None:
    """Simulate Zliobaite's rule beside it, for one that asks whenever it wants to."""
    random, rule, theta = Random(0), VariableUncertainty(spec()), 1.0
    for _ in range(2_000):
        best = random.uniform(0.5, 1.0)
        wants = best < theta
        assert wanted(rule, sure(best)) == float(wants)
        rule.update({}, sure(best), Proposal(float(wants), 1.0 - best), asked=wants)
        theta *= 0.99 if wants else 1.01
        assert rule.state()["theta"] == pytest.approx(theta)


def test_a_refused_wish_leaves_the_bar_where_it_is() -> None:
    rule = VariableUncertainty(spec())
    rule.update({}, sure(0.6), Proposal(1.0, 0.4), asked=False)
    assert rule.state() == {"theta": 1.0}
    rule.update({}, {}, Proposal(1.0, 1.0), asked=True)
    assert rule.state() == {"theta": 1.0}


def test_the_bar_stays_finite_and_positive() -> None:
    rule = VariableUncertainty(spec({"step": 0.9}))
    for _ in range(2_000):
        rule.update({}, sure(0.99), Proposal(0.0, 0.0), asked=False)
    assert math.isfinite(rule.state()["theta"])
    for _ in range(10_000):
        rule.update({}, sure(0.5), Proposal(1.0, 0.5), asked=True)
        rule.update({}, {"a": math.nan, "b": 0.1}, Proposal(1.0, math.nan), asked=True)
    assert rule.state()["theta"] > 0.0
    assert wanted(RandomisedUncertainty(spec()), sure(0.5)) <= 1.0


def test_the_randomised_bar_falls_with_each_request_and_rises_with_what_is_passed_over() -> None:
    rule = RandomisedUncertainty(spec())
    rule.update({}, sure(0.95), Proposal(0.5, 0.05), asked=True)
    assert rule.state()["theta"] == pytest.approx(0.99)
    theta, chance = 0.99, wanted(rule, sure(0.6))
    rule.update({}, sure(0.6), Proposal(chance, 0.4), asked=False)
    assert rule.state()["theta"] == pytest.approx(theta * (1.0 + 0.01 * (1.0 - chance)))


@pytest.mark.parametrize("best", [0.5, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("theta", [0.3, 1.0, 4.0])
def test_the_randomised_bar_s_propensity_is_that_of_its_draw(best: float, theta: float) -> None:
    rule, random = RandomisedUncertainty(spec()), Random(1)
    rule.restore({"theta": theta})
    drawn = fmean(best < theta * random.gauss(1.0, 1.0) for _ in range(20_000))
    assert wanted(rule, sure(best)) == pytest.approx(drawn, abs=0.015)


def test_split_mixes_random_and_moving_bar() -> None:
    rule = Split(spec({"random": 0.25, "spill": False}))
    rule.restore({"theta": 0.8})
    assert wanted(rule, sure(0.9)) == pytest.approx(0.25 * RATE)
    assert wanted(rule, sure(0.7)) == pytest.approx(0.25 * RATE + 0.75)


@pytest.mark.parametrize("rule", [FixedUncertainty, VariableUncertainty, RandomisedUncertainty, Split])
def test_where_the_model_says_nothing_it_is_asked_at_the_rate(rule: type[FixedUncertainty]) -> None:
    for prediction in ({}, {"a": 0.0}, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0, "c": 0.0}):
        assert rule(spec()).propose({}, prediction, STANDING) == Proposal(steered_rate(STANDING), 1.0)


@pytest.mark.parametrize("rule", [FixedUncertainty, VariableUncertainty])
def test_what_is_no_number_is_wanted(rule: type[FixedUncertainty]) -> None:
    assert wanted(rule(spec()), {"a": math.nan, "b": 0.9}) == wanted(rule(spec()), {"a": 0.99, "b": math.nan}) == 1.0
    assert wanted(rule(spec()), {"a": 0.9, "b": math.nan, "c": 0.1}) == 1.0


def test_unused_allowance_is_spilled_unless_that_is_turned_off() -> None:
    full = Standing(rate=RATE, cap=23.0, level=20.0)
    assert wanted(FixedUncertainty(spec({})), sure(1.0), full) == spill(full) > RATE
    assert wanted(FixedUncertainty(spec()), sure(1.0), full) == 0.0
    assert wanted(FixedUncertainty(spec({})), sure(0.5), full) == 1.0


def test_the_utility_is_the_least_confidence() -> None:
    assert FixedUncertainty(spec()).propose({}, sure(0.75), STANDING).utility == 0.25


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        (VariableUncertainty, {"step": 0.0}),
        (VariableUncertainty, {"step": 1.0}),
        (VariableUncertainty, {"step": math.nan}),
        (Split, {"random": -0.1}),
        (Split, {"random": 1.1}),
    ],
)
def test_a_parameter_out_of_bounds_is_explained(rule: type[FixedUncertainty], parameters: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"strategy.parameters.{next(iter(parameters))} = .* expected a number"):
        rule(spec(parameters))
