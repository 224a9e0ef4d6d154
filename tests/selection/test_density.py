"""Local density factors are those of the paper, and who has no neighbours is asked about last."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Features, Prediction
from streamal.selection.density import ALONE, Density, Neighbours, all_but_first
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
NOTHING = Constant({})


def nothing() -> Constant:
    return NOTHING


def strategy(**parameters: object) -> Density:
    return Density(StrategySpec(RATE, WINDOW, parameters, nothing))


def see(chosen: Density, features: Features, prediction: Prediction, standing: Standing = STANDING) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(features, prediction, standing)
    chosen.update(features, prediction, proposal, asked=False)
    return proposal


def sure(best: float) -> Prediction:
    return {"a": best, "b": 1.0 - best}


def crowd(count: int, seed: int = 0) -> list[dict[str, float]]:
    random = Random(seed)
    return [{"x": random.gauss(0.0, 1.0), "y": random.gauss(0.0, 1.0)} for _ in range(count)]


points = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), max_size=25)


@given(met=points, size=st.integers(1, 6))
def test_the_density_counts_those_it_is_nearer_to_than_any_before(met: list[tuple[int, int]], size: int) -> None:
    neighbours = Neighbours(size)
    for number, here in enumerate(met):
        expected = 0
        for i in range(max(0, number - size), number):
            others = met[max(0, i - size) : i] + met[i + 1 : number]
            expected += all(math.dist(here, met[i]) < math.dist(other, met[i]) for other in others)
        vector = np.array(here, dtype=float)
        assert neighbours.density(vector) == expected == neighbours.density(vector)
        neighbours.add(vector)


def test_a_new_column_finds_the_remembered_at_the_mean() -> None:
    neighbours = Neighbours(3)
    neighbours.add(np.zeros(0))
    neighbours.add(np.array([3.0]))
    assert neighbours.density(np.array([0.0, 2.0])) == 1
    assert neighbours.density(np.array([0.0, 4.0])) == 0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6).filter(lambda found: sum(found) > 0.1))
def test_the_rest_is_what_the_first_leaves(weights: list[float]) -> None:
    prediction = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    rest, second = all_but_first(prediction)
    first = max(prediction.values())
    assert rest == pytest.approx(1.0 - first, abs=1e-12)
    assert rest + second == pytest.approx(1.0 - (first - second), abs=1e-12)


def test_the_utility_is_what_the_margin_leaves() -> None:
    assert strategy().doubt({"a": 0.5, "b": 0.3, "c": 0.2}) == pytest.approx(1.0 - (0.5 - 0.3))
    assert math.isnan(strategy().doubt({}))


def test_doubt_keeps_its_order_where_the_margin_has_rounded_to_one() -> None:
    doubts = [strategy().doubt({"a": 1.0, "b": 10.0**-exponent}) for exponent in range(20, 300)]
    assert doubts == sorted(doubts, reverse=True)
    assert len(set(doubts)) == len(doubts)


def test_an_outlier_has_no_neighbours_and_the_middle_has() -> None:
    chosen = strategy()
    for features in crowd(300):
        see(chosen, features, sure(0.7))
    outlier = chosen.propose({"x": 40.0, "y": -40.0}, sure(0.5), STANDING)
    assert outlier == Proposal(spill(STANDING), ALONE)
    found = [chosen.propose(features, sure(0.5), STANDING) for features in crowd(100, seed=9)]
    assert set(found) == {Proposal(1.0, 1.0), outlier}
    assert fmean(proposal.utility == 1.0 for proposal in found) > 0.4


def test_the_least_sure_of_those_with_neighbours_are_asked_about() -> None:
    random, chosen = Random(0), strategy()
    found = [see(chosen, features, sure(random.uniform(0.5, 1.0))) for features in crowd(3_000)][WINDOW:]
    rate = steered_rate(STANDING) + (1.0 - steered_rate(STANDING)) * spill(STANDING)
    assert fmean(proposal.propensity for proposal in found) == pytest.approx(rate, rel=0.1)
    dense = sorted(proposal.utility for proposal in found if proposal.utility != ALONE)
    wanted = [proposal.utility for proposal in found if proposal.propensity == 1.0]
    assert fmean(wanted) == pytest.approx(fmean(dense[-len(wanted) :]), abs=0.03)
    assert 0.3 < len(dense) / len(found) < 0.8


def test_what_too_few_dense_ones_leave_is_asked_at_random() -> None:
    """Three of four stand where nothing was before, so fewer have neighbours than a rate of one half asks for."""
    random, chosen, half = Random(0), strategy(), Standing(rate=0.5, cap=23.0)
    found = []
    for number in range(4_000):
        far = number % 4 > 0
        at = 2.0**number if far and number < 300 else random.uniform(-1e6, 1e6) if far else random.gauss(0.0, 1e-3)
        found.append((see(chosen, {"x": at, "y": random.uniform(-1e6, 1e6) if far else 0.0}, sure(0.6), half), far))
    alone = [proposal.propensity for proposal, _ in found[500:] if proposal.utility == ALONE]
    others = [proposal.propensity for proposal, _ in found[500:] if proposal.utility != ALONE]
    assert fmean(alone) < fmean(others)
    asked = fmean(proposal.propensity for proposal, _ in found[500:])
    assert asked == pytest.approx(steered_rate(half), rel=0.1)


@pytest.mark.parametrize("features", [{}, {"city": "Oslo"}, {"x": 1.0}, {"x": None}], ids=str)
def test_where_there_is_nothing_to_measure_it_asks_at_random(features: Features) -> None:
    random, chosen = Random(0), strategy()
    for _ in range(200):
        proposal = see(chosen, features, sure(random.random()))
    assert proposal.propensity == pytest.approx(steered_rate(STANDING))
    assert proposal.utility == ALONE


def test_where_the_model_says_nothing_it_asks_at_the_rate_and_ranks_nothing() -> None:
    chosen = strategy()
    for prediction in ({}, {"a": 0.0}, {"a": 0.0, "b": 0.0}, {"a": math.nan, "b": 0.5}, {"a": -math.inf, "b": 0.5}):
        for features in crowd(30):
            assert see(chosen, features, prediction) == Proposal(steered_rate(STANDING), math.inf)
    assert chosen.propose({"x": 99.0, "y": 99.0}, sure(0.9), STANDING).propensity == steered_rate(STANDING)


def test_fewer_neighbours_leave_more_alone() -> None:
    def alone(neighbours: int) -> float:
        chosen = strategy(neighbours=neighbours)
        return fmean(see(chosen, features, sure(0.6)).utility == ALONE for features in crowd(1_500))

    assert alone(2) > alone(10) > alone(100) + 0.03


@pytest.mark.parametrize("value", [0, 1_001, 2.5, True, "many"])
def test_a_parameter_out_of_bounds_is_explained(value: object) -> None:
    with pytest.raises(ConfigError, match=r"strategy.parameters.neighbours = .* a whole number from 1 to 1000"):
        strategy(neighbours=value)
