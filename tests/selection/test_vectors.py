"""Vectors are in deviations from the mean of the last values, and whatever a feature holds, they are finite."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamal.messages import Features, Value
from streamal.selection.vectors import (
    HORIZON,
    MOST_COLUMNS,
    MOST_DEVIATIONS,
    Standardiser,
    Vector,
    squared_distances,
    widened,
)

values = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=True, allow_infinity=True),
)


def scaled(rows: list[Features]) -> Standardiser:
    scale = Standardiser()
    for row in rows:
        scale.add(row)
    return scale


def test_a_vector_counts_deviations_from_the_mean() -> None:
    random = Random(0)
    rows: list[Features] = [{"x": random.gauss(5.0, 3.0), "y": random.expovariate(0.01)} for _ in range(500)]
    table = np.array([list(row.values()) for row in rows], dtype=float)
    scale, probe = scaled(rows), np.array([4.0, 50.0])
    expected = (probe - table.mean(axis=0)) / table.std(axis=0)
    assert scale.vector({"y": probe[1], "x": probe[0]}) == pytest.approx(expected, rel=1e-9)


def test_a_missing_value_stands_at_the_mean_and_changes_nothing() -> None:
    random = Random(1)
    known: list[Features] = [{"x": random.random(), "y": random.random()} for _ in range(50)]
    gaps: list[Features] = [{"x": None, "y": "unknown"}, {}, {"x": math.nan, "y": math.nan}]
    scale = scaled(known + gaps)
    probe: Features = {"x": 0.3, "y": 0.4}
    assert scale.vector(probe).tolist() == scaled(known).vector(probe).tolist()
    for row in gaps:
        assert scale.vector(row).tolist() == [0.0, 0.0]


def test_strings_are_no_columns_and_booleans_are() -> None:
    scale = scaled([{"city": "7", "night": True}, {"city": "8", "night": False}])
    assert scale.width == 1
    assert scale.vector({"city": 7.0, "night": True}).tolist() == [1.0]


def test_a_column_that_is_met_later_has_a_scale_of_its_own() -> None:
    rows: list[Features] = [{"x": float(i)} for i in range(100)]
    late: list[Features] = [{"late": value, "x": 1.0} for value in (1.0, 3.0)]
    scale = scaled(rows + late)
    assert scale.vector({"late": 3.0})[1] == pytest.approx(1.0)
    assert scale.raw({"late": 3.0, "x": 2.0}).tolist() == [2.0, 3.0]


def test_a_constant_column_says_nothing_also_where_rounding_makes_it_wiggle() -> None:
    random = Random(2)
    scale = scaled([{"x": 0.1, "y": 1e9 + random.choice([0.0, 1e-7])} for _ in range(300)])
    for y in (1e9, 1e9 + 1e-7):
        assert scale.vector({"x": 5.0, "y": y}).tolist() == [0.0, 0.0]


def test_an_outlier_is_not_all_of_a_distance() -> None:
    scale = scaled([{"x": float(i % 2)} for i in range(100)])
    assert scale.vector({"x": 1e9}).tolist() == [MOST_DEVIATIONS]
    assert scale.vector({"x": -math.inf}).tolist() == [-MOST_DEVIATIONS]


def test_the_scale_follows_a_change() -> None:
    random, scale = Random(3), Standardiser()
    for mean, deviation in ((0.0, 1.0), (1_000.0, 50.0)):
        for _ in range(8 * int(HORIZON)):
            scale.add({"x": random.gauss(mean, deviation)})
        low, high = scale.vector({"x": mean})[0], scale.vector({"x": mean + deviation})[0]
        assert low == pytest.approx(0.0, abs=0.15)
        assert high - low == pytest.approx(1.0, rel=0.1)


def test_names_without_end_cost_no_memory() -> None:
    scale = scaled([{f"name{i}": 1.0} for i in range(2_000)])
    assert scale.width == MOST_COLUMNS == len(scale.vector({}))


@given(rows=st.lists(st.dictionaries(st.sampled_from("abcd"), values, max_size=4), max_size=8))
def test_whatever_comes_vectors_are_finite_and_asking_changes_nothing(rows: list[dict[str, Value]]) -> None:
    scale = Standardiser()
    for row in rows:
        first = scale.vector(row).tolist()
        assert first == scale.vector(row).tolist()
        assert all(abs(value) <= MOST_DEVIATIONS for value in first)
        scale.add(row)
        assert np.isfinite(scale.vector(row)).all()


@given(
    points=st.integers(0, 5).flatmap(
        lambda columns: st.lists(st.lists(st.floats(-9, 9), min_size=columns, max_size=columns), min_size=1, max_size=9)
    )
)
def test_distances_do_not_depend_on_how_the_points_lie_in_memory(points: list[list[float]]) -> None:
    table = np.array(points, dtype=float).T
    vector: Vector = table[:, 0]
    found = squared_distances(np.ascontiguousarray(table), vector)
    assert found.tolist() == squared_distances(np.asfortranarray(table), vector).tolist()
    assert found == pytest.approx([math.dist(point, points[0]) ** 2 for point in points])


def test_points_get_new_columns_at_the_end() -> None:
    points = np.array([[1.0, 2.0]])
    assert widened(points, 1, math.nan) is points
    assert widened(np.zeros((0, 0)), 2, 0.0).shape == (2, 0)
    assert widened(points, 3, 5.0).tolist() == [[1.0, 2.0], [5.0, 5.0], [5.0, 5.0]]
