"""A calibrated chance averages the rate whatever the rule, and the unused allowance moves its odds."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from statistics import fmean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamal.selection.calibration import LEAST_FACTOR, MOST_FACTOR, Calibration, odds_moved
from streamal.selection.strategy import Standing
from streamal.selection.threshold import spill, steered_rate

chances = st.floats(0.0, 1.0)
rates = st.floats(0.001, 0.999)
RULES: dict[str, Callable[[float, float], float]] = {
    "falls off": lambda factor, margin: factor / (factor + margin),
    "cut at 1": lambda factor, margin: min(1.0, factor / (0.01 + margin) ** 2),
    "same for all": lambda factor, margin: min(1.0, factor),
}


@given(chance=st.floats(0.001, 0.999), before=rates, after=rates)
def test_the_odds_move_as_those_of_the_rate_do(chance: float, before: float, after: float) -> None:
    def odds(share: float) -> float:
        return share / (1.0 - share)

    moved = odds(odds_moved(chance, before, after)) / odds(chance)
    assert moved == pytest.approx(odds(after) / odds(before), rel=1e-6)


@given(chance=chances, before=rates, after=st.floats(0.0, 20.0))
@example(chance=1.0, before=0.5, after=5e-324)
def test_what_comes_out_is_a_chance(chance: float, before: float, after: float) -> None:
    assert 0.0 <= odds_moved(chance, before, after) <= 1.0


def test_nothing_is_asked_at_a_rate_of_0_and_everything_at_1() -> None:
    for chance in (0.0, 0.3, 1.0):
        assert odds_moved(chance, 0.1, 0.0) == 0.0
        assert odds_moved(chance, 0.1, 1.0) == 1.0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_the_mean_chance_is_the_rate(rule: Callable[[float, float], float], rate: float) -> None:
    random, scale, found = Random(0), Calibration(rate), []
    for _ in range(40_000):
        chance = rule(scale.factor, random.random() ** 3)
        found.append(chance)
        scale.adapt(chance)
    assert fmean(found[-20_000:]) == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("level", [-4.0, 0.0, 4.0])
def test_equal_chances_are_all_the_steered_rate(level: float) -> None:
    standing = Standing(rate=0.1, cap=23.0, level=level)
    assert Calibration(0.1).propensity(0.1, standing) == pytest.approx(steered_rate(standing))


def test_unused_allowance_is_spilled_where_the_rule_never_asks() -> None:
    standing = Standing(rate=0.1, cap=23.0, level=15.0)
    assert Calibration(0.1).propensity(0.0, standing) == spill(standing) > 0.1


def test_the_factor_stays_finite_and_positive() -> None:
    for chance, bound in ((0.0, MOST_FACTOR), (1.0, LEAST_FACTOR)):
        scale = Calibration(1.0)
        for _ in range(2_000):
            scale.adapt(chance)
        assert scale.factor == bound
