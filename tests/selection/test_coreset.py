"""Distances are those to the nearest asked instance, and the points that are kept cover those that were."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import VALUE, Features, Prediction
from streamal.selection.coreset import Coreset, farthest_first
from streamal.selection.registry import check
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
NOTHING = Constant({})


def nothing() -> Constant:
    return NOTHING


def strategy(**parameters: object) -> Coreset:
    return Coreset(StrategySpec(RATE, WINDOW, parameters, nothing))


def see(chosen: Coreset, features: Features, *, asked: bool, prediction: Prediction | None = None) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(features, prediction or {}, STANDING)
    chosen.update(features, prediction or {}, proposal, asked=asked)
    return proposal


def crowd(count: int, seed: int = 0) -> list[Features]:
    random = Random(seed)
    return [{"x": random.gauss(0.0, 1.0), "y": random.gauss(3.0, 5.0)} for _ in range(count)]


def run(chosen: Coreset, instances: list[Features], seed: int = 1) -> list[tuple[Features, Proposal, bool]]:
    """Ask by the propensity; returns what happened."""
    random, found = Random(seed), []
    for features in instances:
        asked = random.random() < chosen.propose(features, {}, STANDING).propensity
        found.append((features, see(chosen, features, asked=asked), asked))
    return found


def radius(table: np.ndarray[tuple[int, int], np.dtype[np.float64]], taken: list[int]) -> float:
    """Return the largest distance of a point to the nearest taken one."""
    return max(min(math.dist(point, table[:, place]) for place in taken) for point in table.T)


@given(
    points=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8),
    count=st.integers(1, 4),
)
def test_farthest_first_covers_at_most_twice_as_widely_as_the_best(points: list[tuple[int, int]], count: int) -> None:
    table = np.array(points, dtype=float).T
    taken = farthest_first(table, count)
    assert taken == sorted(set(taken))
    assert len(taken) == min(count, len(set(points)))
    assert len(points) - 1 in taken
    best = min(radius(table, list(some)) for some in combinations(range(len(points)), min(count, len(points))))
    assert radius(table, taken) <= 2.0 * best + 1e-9


def test_the_utility_is_the_distance_to_the_nearest_asked_in_deviations() -> None:
    random, chosen, asked = Random(0), strategy(), list[Features]()
    instances = crowd(150)
    for features in instances:
        if ask := random.random() < 0.2:
            asked.append(features)
        see(chosen, features, asked=ask)
    see(chosen, instances[0], asked=True)
    everyone = np.array([list(features.values()) for features in [*instances, instances[0]]], dtype=float)
    points = np.array([list(features.values()) for features in [*asked, instances[0]]], dtype=float)
    for features in crowd(30, seed=5):
        off = (points - np.array(list(features.values()), dtype=float)) / everyone.std(axis=0)
        expected = np.sqrt((off**2).sum(axis=1)).min()
        assert chosen.propose(features, {}, STANDING).utility == pytest.approx(expected)


def test_before_anything_was_asked_it_asks_at_the_rate() -> None:
    chosen = strategy()
    for features in crowd(20):
        assert see(chosen, features, asked=False) == Proposal(steered_rate(STANDING), math.inf)
    see(chosen, {"x": 0.0, "y": 3.0}, asked=True)
    assert chosen.propose({"x": 0.0, "y": 3.0}, {}, STANDING).utility == 0.0
    assert chosen.propose({"x": 1.0, "y": 3.0}, {}, STANDING).utility > 0.0


def test_the_farthest_are_asked_about_at_the_rate() -> None:
    found = run(strategy(), crowd(4_000))[WINDOW:]
    rate = steered_rate(STANDING) + (1.0 - steered_rate(STANDING)) * spill(STANDING)
    assert fmean(asked for _, _, asked in found) == pytest.approx(rate, rel=0.15)
    wanted = fmean(proposal.utility for _, proposal, asked in found if asked)
    assert wanted > 1.5 * fmean(proposal.utility for _, proposal, asked in found if not asked)


def test_a_region_nobody_asked_about_is_found_though_the_model_is_sure() -> None:
    chosen = strategy()
    run(chosen, crowd(500))
    island: Features = {"x": 0.0, "y": 60.0}
    assert chosen.propose(island, {"a": 1.0}, STANDING).propensity == 1.0
    see(chosen, island, asked=True)
    assert chosen.propose({"x": 0.1, "y": 60.1}, {"a": 1.0}, STANDING).propensity == spill(STANDING)


def test_the_prediction_does_not_matter() -> None:
    calm, odd = strategy(), strategy()
    for features in crowd(100):
        first = see(calm, features, asked=True, prediction={"a": 0.5, "b": 0.5})
        assert first == see(odd, features, asked=True, prediction={VALUE: math.nan})
    check("coreset", {}, "regression")


def test_the_points_are_thinned_to_those_that_cover_them() -> None:
    chosen = strategy(points=20)
    for features in crowd(300):
        see(chosen, features, asked=True)
        assert chosen._points.shape[1] < 20
        assert chosen._points.shape == chosen._raw.shape
    corner: Features = {"x": 8.0, "y": 60.0}
    see(chosen, corner, asked=True)
    for features in crowd(300, seed=2):
        see(chosen, features, asked=True)
    assert chosen.propose(corner, {}, STANDING).utility == pytest.approx(0.0, abs=0.05)
    spread = [chosen.propose(features, {}, STANDING).utility for features in crowd(200, seed=3)]
    assert max(spread) < 2.5


@pytest.mark.parametrize("features", [{}, {"city": "Oslo"}, {"x": 1.0}, {"x": None}], ids=str)
def test_where_there_is_nothing_to_measure_it_asks_at_random(features: Features) -> None:
    chosen = strategy(points=10)
    for number in range(200):
        proposal = see(chosen, features, asked=number % 3 == 0)
    assert proposal.propensity == pytest.approx(steered_rate(STANDING))
    assert proposal.utility == 0.0


def test_columns_that_come_and_go_are_tolerated() -> None:
    random, chosen = Random(0), strategy(points=30)
    for number in range(400):
        features: Features = {f"c{random.randrange(number // 40 + 1)}": random.gauss(0.0, 1.0), "x": 1.0}
        proposal = see(chosen, features, asked=number % 2 == 0)
        assert math.isfinite(proposal.utility) or number == 0
    assert chosen._points.shape[0] == 11


def test_a_new_owner_finds_the_points_in_what_is_remembered() -> None:
    former, heir, instances = strategy(), strategy(), crowd(400)
    found = run(former, instances)
    for features, proposal, asked in found:
        if asked:
            heir.update(features, {}, proposal, asked=True)
    for features in instances:
        see(heir, features, asked=False)
    probes = crowd(50, seed=7)
    for features in probes:
        expected = former.propose(features, {}, STANDING).utility
        assert heir.propose(features, {}, STANDING).utility == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("value", [1, 2_001, 2.5, True])
def test_a_parameter_out_of_bounds_is_explained(value: object) -> None:
    with pytest.raises(ConfigError, match=r"strategy.parameters.points = .* a whole number from 2 to 2000"):
        strategy(points=value)
