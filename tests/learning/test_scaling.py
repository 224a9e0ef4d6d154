from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.preprocessing import StandardScaler

from streamal.learning.moments import MomentAccumulator
from streamal.learning.scaling import FARTHEST, MAX_SCALED, Scaling
from streamal.messages import Moment

floats = st.floats(-1e6, 1e6)
rows = st.lists(st.dictionaries(st.sampled_from("abc"), floats), min_size=1, max_size=30)


@given(rows, st.dictionaries(st.sampled_from("abcd"), floats))
def test_learning_and_scaling_are_rivers_to_the_last_bit(seen: list[dict[str, float]], asked: dict[str, float]) -> None:
    scaling, river = Scaling(), StandardScaler()
    for row in seen:
        scaling.learn(row)
        river.learn_one(row)
    expected = {name: max(-FARTHEST, min(FARTHEST, value)) for name, value in river.transform_one(asked).items()}
    assert scaling.scale(asked, asked) == expected


@given(st.lists(rows, min_size=1, max_size=4))
def test_merging_moments_equals_learning_all_rows(batches: list[list[dict[str, float]]]) -> None:
    merged, learned, gathered = Scaling(), Scaling(), MomentAccumulator()
    for batch in batches:
        gathered.add(batch)
        merged.merge(gathered.take())
        for row in batch:
            learned.learn(row)
    for name in "abc":
        one, other = merged.moment(name), learned.moment(name)
        assert (one is None) == (other is None)
        if one and other:
            assert one == pytest.approx(other, rel=1e-6, abs=1e-3)


def test_scaling_stores_no_name_it_is_asked_about() -> None:
    scaling = Scaling()
    scaling.merge({"x": Moment(2, 1.0, 2.0)})
    state = pickle.dumps(scaling)
    scaling.scale({"x": 3.0, "unseen": 1.0}, {"x": 3.0, "unseen": 1.0})
    assert pickle.dumps(scaling) == state


def test_random_names_do_not_grow_it_without_bound() -> None:
    scaling = Scaling()
    for start in range(0, 2 * MAX_SCALED, 1_000):
        scaling.merge({f"name-{index}": Moment(1, 0.0, 0.0) for index in range(start, start + 1_000)})
    assert scaling.moment(f"name-{MAX_SCALED - 1}") is not None
    assert scaling.moment(f"name-{MAX_SCALED}") is None
