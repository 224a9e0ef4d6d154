"""A Parzen window's kernel against its formula, and what its points are when scales, columns and values change."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from streamal.messages import Features
from streamal.selection.parzen import BANDWIDTH, Points
from streamal.selection.vectors import Standardiser


def scaled(rows: list[Features]) -> Standardiser:
    scale = Standardiser()
    for row in rows:
        scale.add(row)
    return scale


def rows_of(count: int, seed: int = 0) -> list[Features]:
    random = np.random.default_rng(seed)
    return [{"x": float(x), "y": float(y) * 100.0} for x, y in random.normal(size=(count, 2))]


def test_the_bandwidth_is_that_of_the_mean_criterion() -> None:
    for size, expected in ((256, 0.249), (128, 0.252)):
        spread = 2.0 * size / ((size - 1) * math.log((size - 1) / (math.sqrt(2.0) * 1e-6) ** 2))
        assert math.sqrt(spread) == pytest.approx(expected, abs=0.0005)
        assert math.sqrt(spread) == pytest.approx(BANDWIDTH, abs=0.005)


def test_the_kernel_is_gaussian_in_the_mean_squared_distance_of_the_columns() -> None:
    rows = rows_of(50)
    scale = scaled(rows)
    points = Points(64, bandwidth=0.5)
    for row in rows:
        points.add(scale.raw(row), scale)
    asked = scale.vector({"x": 0.3, "y": -20.0})
    expected = [math.exp(-float(((scale.vector(row) - asked) ** 2).sum()) / (2 * 0.5**2 * 2)) for row in rows]
    assert points.kernel(asked) == pytest.approx(expected)


def test_exponentials_are_those_of_the_c_library_to_the_last_bit() -> None:
    rows: list[Features] = [{"x": x / 1_000.0} for x in range(-1_024, 1_024)]
    scale, points = scaled(rows), Points(2_048, bandwidth=1.0)
    for row in rows:
        points.add(scale.raw(row), scale)
    vector = scale.vector({"x": 0.1})
    exponents = [-0.5 * float((vector[0] - scale.vector(row)[0]) ** 2) for row in rows]
    assert points.kernel(vector).tolist() == [math.exp(exponent) for exponent in exponents]


def test_columns_that_never_vary_do_not_widen_it() -> None:
    rows: list[Features] = [{"x": x, "constant": 7.0, "word": "same"} for x in (-1.0, 1.0, 0.5, 0.0)]
    plain: list[Features] = [{"x": row["x"]} for row in rows]
    found = []
    for stream in (rows, plain):
        scale, points = scaled(stream), Points(8, bandwidth=1.0)
        for row in stream:
            points.add(scale.raw(row), scale)
        found.append(points.kernel(scale.vector({"x": 0.2, "constant": 7.0})).tolist())
    assert found[0] == found[1]


def test_points_that_came_before_their_scale_was_known_find_their_place() -> None:
    scale, points = Standardiser(), Points(16, bandwidth=1.0)
    rows = rows_of(8)
    for row in rows:
        scale.add(row)
        points.add(scale.raw(row), scale)
    late = Points(16, bandwidth=1.0)
    for row in rows:
        late.add(scale.raw(row), scale)
    asked = scale.vector({"x": 0.0, "y": 0.0})
    assert points.kernel(asked).tolist() == late.kernel(asked).tolist()


def test_a_new_column_and_a_missing_value_stand_at_the_mean() -> None:
    rows: list[Features] = [{"x": -1.0}, {"x": 1.0}, {"x": 1.0, "y": 4.0}, {"x": -1.0, "y": 6.0}]
    scale, points = Standardiser(), Points(8, bandwidth=1.0)
    for row in rows[:2]:
        scale.add(row)
        points.add(scale.raw(row), scale)
    for row in rows[2:]:
        scale.add(row)
    before = points.kernel(scale.vector({"x": 1.0, "y": 5.0}))
    assert before.tolist() == points.kernel(scale.vector({"x": 1.0})).tolist()
    assert before[1] == 1.0 > before[0]
    points.add(scale.raw(rows[2]), scale)
    assert len(points.kernel(scale.vector({"x": 1.0, "y": 5.0}))) == 3


def test_the_oldest_makes_room_and_memory_is_bounded() -> None:
    rows, points = rows_of(64), Points(32, bandwidth=1.0)
    scale = scaled(rows)
    raws = [scale.raw(row) for row in rows]
    sizes = set()
    for number in range(2_048):
        slot = points.add(raws[number % 64], scale)
        if number in (1_000, 2_047):
            sizes.add(len(pickle.dumps(points)) // 100)
    assert slot == 2_047 % 32
    assert len(points) == 32
    assert len(sizes) == 1
    last = scale.vector(rows[2_047 % 64])
    assert points.kernel(last)[2_047 % 32] == 1.0
    assert points.kernel(scale.vector(rows[0]))[0] < 1.0


def test_without_any_number_all_points_are_near() -> None:
    scale, points = Standardiser(), Points(4, bandwidth=1.0)
    assert points.kernel(scale.vector({"word": "a"})).tolist() == []
    points.add(scale.raw({"word": "a"}), scale)
    assert points.kernel(scale.vector({"word": "b"})).tolist() == [1.0]
