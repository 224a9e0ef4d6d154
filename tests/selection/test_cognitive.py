"""The memory forgets by the strength of the paper, and what it has no neighbour in is asked about last."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Prediction
from streamal.selection.cognitive import Cognition, Cognitive
from streamal.selection.density import ALONE
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
NOTHING = Constant({})


def nothing() -> Constant:
    return NOTHING


def strategy(**parameters: object) -> Cognitive:
    return Cognitive(StrategySpec(RATE, WINDOW, parameters, nothing))


def see(chosen: Cognitive, x: float, prediction: Prediction, standing: Standing = STANDING) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose({"x": x}, prediction, standing)
    chosen.update({"x": x}, prediction, proposal, asked=False)
    return proposal


def sure(best: float) -> Prediction:
    return {"a": best, "b": 1.0 - best}


class Remembered:
    """One instance of the paper's cognition window."""

    def __init__(self, x: int, now: int, nearest: float) -> None:
        self.x, self.recalled, self.recalls, self.nearest = x, now, 0, nearest

    def exponent(self, now: int) -> Fraction:
        """Return the logarithm of the strength."""
        return -Fraction(1, self.recalls + 1) * (now - self.recalled)


@given(met=st.lists(st.integers(-40, 40), max_size=60), size=st.integers(1, 6))
def test_recalls_and_forgetting_are_those_of_the_paper(met: list[int], size: int) -> None:
    memory, expected = Cognition(size), list[Remembered]()
    for now, x in enumerate(met, start=1):
        recalled = [one for one in expected if abs(x - one.x) < one.nearest]
        assert memory.density(np.array([float(x)])) == len(recalled)
        nearest = min((abs(x - one.x) for one in expected), default=math.inf)
        for one in recalled:
            one.recalled, one.recalls, one.nearest = now, one.recalls + 1, abs(x - one.x)
        if len(expected) == size:
            expected.remove(min(expected, key=lambda one: one.exponent(now)))
        expected.append(Remembered(x, now, nearest))
        memory.add(np.array([float(x)]))
        assert memory._points[0, : len(expected)].tolist() == [one.x for one in expected]


def test_what_many_gather_around_is_remembered_longer() -> None:
    """Each next one comes closer to the first from one side, so that it is recalled each time."""
    memory = Cognition(5)
    memory.add(np.array([0.0, 0.0]))
    for number in range(1, 40):
        memory.add(np.array([1.0 / number, 0.0]))
    assert 0.0 in memory._points[0]
    for number in range(200):
        memory.add(np.array([0.0, 50.0 + number]))
    assert memory._points[1].min() > 50.0


def test_an_instance_far_from_all_that_is_remembered_is_asked_about_last() -> None:
    random, chosen = Random(0), strategy()
    found = [see(chosen, random.gauss(0.0, 1.0), sure(0.7)) for _ in range(500)][WINDOW:]
    assert chosen.propose({"x": 99.0}, sure(0.5), STANDING) == Proposal(spill(STANDING), ALONE)
    eligible = fmean(proposal.utility != ALONE for proposal in found)
    assert 0.2 < eligible < 0.9
    assert {round(proposal.utility, 9) for proposal in found} == {ALONE, 0.3}


def test_the_utility_is_what_the_first_class_leaves() -> None:
    assert strategy().doubt({"a": 0.5, "b": 0.3, "c": 0.2}) == pytest.approx(0.5)
    assert math.isnan(strategy().doubt({}))


def test_the_rate_is_met_whatever_is_eligible() -> None:
    rate = steered_rate(STANDING) + (1.0 - steered_rate(STANDING)) * spill(STANDING)
    for parameters in ({}, {"density": 3}, {"memory": 1}, {"memory": 60}):
        random, chosen = Random(0), strategy(**parameters)
        found = [see(chosen, random.gauss(0.0, 1.0), sure(random.uniform(0.5, 1.0))) for _ in range(1_500)][WINDOW:]
        assert fmean(proposal.propensity for proposal in found) == pytest.approx(rate, rel=0.15)


def test_a_larger_density_makes_fewer_eligible() -> None:
    def eligible(density: int) -> float:
        random, chosen = Random(0), strategy(density=density)
        return fmean(see(chosen, random.gauss(0.0, 1.0), sure(0.7)).utility != ALONE for _ in range(1_500))

    assert eligible(1) > eligible(2) > eligible(4)


@pytest.mark.parametrize(
    "parameters", [{"memory": 0}, {"memory": 1_001}, {"density": 0}, {"density": 11}, {"memory": 3, "density": 4}]
)
def test_a_parameter_out_of_bounds_is_explained(parameters: dict[str, object]) -> None:
    name = list(parameters)[-1]
    with pytest.raises(ConfigError, match=rf"strategy.parameters.{name} = .* a whole number from 1 to"):
        strategy(**parameters)
