from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamal.learning.moments import COLUMN_ROWS, MAX_NAMES, MomentAccumulator, merge_moments
from streamal.messages import Features, Moment

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
values = st.none() | st.booleans() | st.text(max_size=3) | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9)
rows = st.lists(st.dictionaries(st.sampled_from("abc"), values), max_size=3 * COLUMN_ROWS)


def direct(found: list[float]) -> Moment:
    mean = math.fsum(found) / len(found)
    return Moment(len(found), mean, math.fsum((value - mean) ** 2 for value in found))


def assert_close(found: Moment, expected: Moment, scale: float = 1e6) -> None:
    assert found.size == expected.size
    assert found.mean == pytest.approx(expected.mean, rel=1e-9, abs=1e-9 * scale)
    assert found.deviation == pytest.approx(expected.deviation, rel=1e-9, abs=1e-9 * scale**2)


@given(numbers, numbers)
def test_merging_equals_the_moments_of_all(a: list[float], b: list[float]) -> None:
    assert_close(merge_moments(direct(a), direct(b)), direct(a + b))


@given(numbers, numbers, numbers)
def test_merging_is_associative(a: list[float], b: list[float], c: list[float]) -> None:
    one, two, three = direct(a), direct(b), direct(c)
    assert_close(merge_moments(merge_moments(one, two), three), merge_moments(one, merge_moments(two, three)))


def test_merging_nothing_changes_nothing() -> None:
    nothing, some = Moment(0, 0.0, 0.0), Moment(3, 2.0, 5.0)
    assert merge_moments(nothing, nothing) == nothing
    assert merge_moments(some, nothing) == merge_moments(nothing, some) == some


@given(st.lists(rows, max_size=4))
def test_any_batches_give_the_moments_of_their_numbers(batches: list[list[Features]]) -> None:
    gathered = MomentAccumulator()
    for batch in batches:
        gathered.add(batch)
    assert gathered.count == sum(map(len, batches))
    taken = gathered.take()
    for name in "abc":
        column = [row.get(name) for batch in batches for row in batch]
        found = [float(value) for value in column if isinstance(value, int | float) and not isinstance(value, bool)]
        assert (name in taken) == bool(found)
        if found:
            assert_close(taken[name], direct(found), scale=max(1.0, *map(abs, found)))


@pytest.mark.parametrize("size", [1, COLUMN_ROWS, 500])
def test_a_large_mean_does_not_eat_the_spread(size: int) -> None:
    column = [1e9 + index % 7 for index in range(1_000)]
    gathered = MomentAccumulator()
    for start in range(0, len(column), size):
        gathered.add([{"x": value} for value in column[start : start + size]])
    variance = gathered.take()["x"].deviation / len(column)
    assert variance == pytest.approx(statistics.pvariance([value - 1e9 for value in column]), rel=1e-6)


@pytest.mark.parametrize("size", [1, COLUMN_ROWS])
def test_random_names_do_not_grow_it_without_bound(size: int) -> None:
    gathered = MomentAccumulator()
    for index in range(2 * MAX_NAMES):
        gathered.add([{"x": 1.0, f"name-{index}": 2.0}] * size)
    taken = gathered.take()
    assert len(taken) == MAX_NAMES
    assert taken["x"].size == 2 * MAX_NAMES * size


@given(st.lists(rows, max_size=5), st.integers(1, 40))
def test_the_same_instances_give_the_same_bits_however_they_came(batches: list[list[Features]], size: int) -> None:
    instances = [row for batch in batches for row in batch] * 20
    at_once, piecemeal = MomentAccumulator(), MomentAccumulator()
    at_once.add(instances)
    for start in range(0, len(instances), size):
        piecemeal.add(instances[start : start + size])
    assert at_once.take() == piecemeal.take()


def test_taking_begins_anew() -> None:
    gathered = MomentAccumulator()
    gathered.add([{"x": 5.0}])
    first = gathered.take()
    gathered.add([{"x": 7.0}])
    assert first == {"x": Moment(1, 5.0, 0.0)}
    assert gathered.take() == {"x": Moment(1, 7.0, 0.0)}
    assert (gathered.count, gathered.take()) == (0, {})
