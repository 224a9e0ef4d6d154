"""Synthesis finds opposite pairs, bisects to the model's boundary, and asks about what lies nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant, Settled

from streamal.errors import ConfigError
from streamal.messages import Features, Label, Outcome, Prediction
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.pool import doubt, top
from streamal.selection.strategy import Candidate, Standing, StrategySpec
from streamal.selection.synthesis import STEPS, Synthesis, between, opposite, synthesise

RATE = 0.1
MODES = ("nearest", "synthetic")
STANDING = Standing(rate=RATE, cap=23.0, epsilon=0.0, gathered=100)
"""A fifth of what a hundred instances earn is put aside: two labels; there is room for 13 more."""
FULL = Standing(rate=RATE, cap=10.0, epsilon=0.0, gathered=100)
"""There is no room for more than the next window's labels."""


class Wall(Constant):
    """A model with its boundary at one x."""

    def __init__(self, at: float) -> None:
        super().__init__({})
        self.at = at

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        right = [float(row["x"] or 0.0) > self.at for row in batch]
        return [{"left": 1.0 - found, "right": float(found)} for found in right]


def answered(features: Features, label: Label | None, kind: str = "learned") -> Outcome:
    return Outcome(
        kind=kind,  # type: ignore[arg-type]
        partition=0,
        offset=0,
        instance_id="",
        features=features,
        label=label,
        weight=1.0,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="synthesis",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def synthesis(model: Constant | None = None, **parameters: Any) -> Synthesis:
    return Synthesis(StrategySpec(RATE, 64, parameters, lambda: model or Settled()))


@given(
    points=st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abc")), max_size=12),
    count=st.integers(1, 6),
)
def test_pairs_are_opposite_disjoint_and_the_closest_that_are_left(points: list[tuple[float, str]], count: int) -> None:
    found = opposite([np.array([x]) for x, _ in points], [label for _, label in points], count)
    left = set(range(len(points)))
    for a, b in found:
        assert points[a][1] != points[b][1]
        apart = [abs(points[i][0] - points[j][0]) for i, j in combinations(left, 2) if points[i][1] != points[j][1]]
        assert abs(points[a][0] - points[b][0]) == pytest.approx(min(apart))
        left -= {a, b}
    if len(found) < count:
        assert len({points[i][1] for i in left}) <= 1


@given(
    ends=st.tuples(st.floats(-5, 5), st.floats(-5, 5)).filter(lambda ends: abs(ends[0] - ends[1]) > 0.1),
    part=st.floats(0.05, 0.95),
)
def test_bisection_comes_within_a_thousandth_of_the_boundary(ends: tuple[float, float], part: float) -> None:
    at = ends[0] + part * (ends[1] - ends[0])
    pair = [answered({"x": x}, "right" if x > at else "left") for x in ends]
    [made] = synthesise([(pair[0], pair[1])], Wall(at))
    assert float(made["x"] or 0.0) == pytest.approx(at, abs=abs(ends[0] - ends[1]) / 2**STEPS)


def test_where_the_model_is_wrong_about_both_it_ends_at_one_of_them() -> None:
    pair = answered({"x": 0.0}, "left"), answered({"x": 1.0}, "right")
    for wall, end in ((9.0, 1.0), (-9.0, 0.0)):
        [made] = synthesise([pair], Wall(wall))
        assert float(made["x"] or 0.0) == pytest.approx(end, abs=2.0**-STEPS)


def test_numbers_lie_between_and_all_else_is_the_nearer_parents() -> None:
    first: Features = {"x": 0, "flag": True, "city": "Oslo", "gone": 3.0, "none": None}
    second: Features = {"x": 10, "flag": False, "city": "Rome", "none": 7.0, "late": "yes"}
    assert between(first, second, 0.4) == {"x": 4.0, "flag": True, "city": "Oslo", "gone": 3.0, "none": None}
    assert between(first, second, 0.6) == {"x": 6.0, "flag": False, "city": "Rome", "none": 7.0, "late": "yes"}


def window(seed: int = 0, count: int = 100) -> list[Candidate]:
    random = Random(seed)
    rows = [{"x": random.uniform(-3.0, 3.0), "y": random.gauss(0.0, 1.0)} for _ in range(count)]
    return [Candidate(row, {"left": 0.5, "right": 0.5}, random.random()) for row in rows]


def answers(count: int, wall: float, seed: int = 1) -> list[Outcome]:
    rows = [candidate.features for candidate in window(seed, count)]
    return [answered(row, "right" if float(row["x"] or 0.0) > wall else "left") for row in rows]


def test_nearest_asks_about_real_instances_at_the_boundary() -> None:
    pool = window()
    found = synthesis(Wall(0.7)).choose(pool, answers(40, 0.7), 2, STANDING)
    assert len({choice.place for choice in found}) == len(found) == 2
    for choice in found:
        assert choice.synthetic is None
        assert abs(float(pool[choice.place].features["x"] or 0.0) - 0.7) < 0.5
        assert choice.utility == 0.0


def test_synthetic_asks_about_the_point_and_names_the_nearest_instance() -> None:
    near, made = (synthesis(Wall(0.7), mode=mode).choose(window(), answers(40, 0.7), 2, STANDING) for mode in MODES)
    assert [choice.place for choice in near] == [choice.place for choice in made]
    for choice in made:
        assert choice.synthetic is not None
        assert float(choice.synthetic["x"] or 0.0) == pytest.approx(0.7, abs=0.01)
        assert choice.utility == pytest.approx(math.log(1e-300))


def test_one_instance_is_never_asked_about_twice() -> None:
    pool = [Candidate({"x": 0.0, "y": 0.0}, {}, 0.5), Candidate({"x": 50.0, "y": 50.0}, {}, 0.5)]
    known = [
        answered({"x": x, "y": 0.0}, label) for x, label in ((-1, "left"), (1, "right"), (-2, "left"), (2, "right"))
    ]
    found = synthesis(Wall(0.0)).choose(pool, known, 2, STANDING)
    assert sorted(choice.place for choice in found) == [0, 1]


@pytest.mark.parametrize(
    "known",
    [
        [],
        [answered({"x": 1.0}, "left")],
        [answered({"x": 1.0}, "left"), answered({"x": 2.0}, "left")],
        [answered({"x": 1.0}, "left"), answered({"x": 2.0}, None, "expired")],
    ],
    ids=["none", "one", "alike", "no answer"],
)
@pytest.mark.parametrize("mode", MODES)
def test_without_opposite_answers_the_least_sure_are_asked_about(known: list[Outcome], mode: str) -> None:
    random = Random(2)
    pool = [candidate._replace(prediction=sure(random.uniform(0.5, 1.0))) for candidate in window()]
    assert list(synthesis(Wall(0.0), mode=mode).choose(pool, known, 5, FULL)) == top(pool, (), 5)


def sure(best: float) -> Prediction:
    return {"left": best, "right": 1.0 - best}


@pytest.mark.parametrize("mode", MODES)
def test_what_pairs_do_not_reach_the_least_sure_of_the_rest_get(mode: str) -> None:
    random = Random(2)
    pool = [candidate._replace(prediction=sure(random.uniform(0.5, 1.0))) for candidate in window()]
    known = [answered({"x": x, "y": 0.0}, "right" if x > 0.7 else "left") for x in (0.0, 1.0, 2.0)]
    found = synthesis(Wall(0.7), mode=mode).choose(pool, known, 30, FULL)
    made, rest = found[:1], found[1:]
    assert len({choice.place for choice in found}) == 30
    assert [choice.synthetic is not None for choice in found] == [mode == "synthetic"] + [False] * 29
    assert [choice.utility for choice in rest] == sorted((choice.utility for choice in rest), reverse=True)
    others = [doubt(candidate.prediction) for place, candidate in enumerate(pool) if place != made[0].place]
    assert rest[-1].utility == sorted(others, reverse=True)[28]


@pytest.mark.parametrize(("share", "mean"), [(0.0, 0.0), (0.2, 2.0), (0.25, 2.5), (1.0, 10.0)])
def test_it_takes_its_share_of_what_the_window_earned_rounded_by_lot(share: float, mean: float) -> None:
    known = answers(60, 0.0)
    counts = [len(synthesis(Wall(0.0), share=share).choose(window(s, 40), known, 13, STANDING)) for s in range(200)]
    assert set(counts) <= {math.floor(mean), math.ceil(mean)}
    assert sum(counts) / len(counts) == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (10, 2), (15, 2), (16, 3), (20, 7)])
def test_it_takes_what_the_burst_has_no_room_for(count: int, expected: int) -> None:
    assert len(synthesis(Wall(0.0)).choose(window(), answers(60, 0.0), count, STANDING)) == expected


def test_the_default_strategy_gets_the_rest() -> None:
    """A fifth of what a hundred instances have earned is put aside: two labels."""
    one, other = synthesis(share=0.2), ClassConditional(StrategySpec(RATE, 64, {}, Settled))
    rest = Standing(rate=0.8 * RATE, cap=23.0, epsilon=0.0, level=1.5 - 2.0)
    random = Random(4)
    for _ in range(300):
        p = random.random()
        prediction = {"a": p, "b": 1.0 - p}
        whole = Standing(rate=RATE, cap=23.0, epsilon=0.0, level=1.5, gathered=100)
        proposal = one.propose({}, prediction, whole)
        expected = other.propose({}, prediction, rest)
        assert proposal.utility == expected.utility
        assert proposal.propensity == pytest.approx(expected.propensity)
        one.update({}, prediction, proposal, asked=False)
        other.update({}, prediction, expected, asked=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mode": "real"}, r"mode = 'real': expected one of nearest, synthetic"),
        ({"share": 1.5}, r"share = 1.5: expected a number from 0 to 1"),
        ({"pool_window": 1}, r"pool_window = 1: expected a whole number from 50 to 2000"),
    ],
)
def test_a_wrong_parameter_is_explained(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        synthesis(**wrong)
