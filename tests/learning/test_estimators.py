from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.naive_bayes import GaussianNB
from river.proba import Gaussian

from streamal.learning.estimators import DENSITY_FLOOR, FlooredSplitter, LeanGaussian, LeanGaussianNB

floats = st.floats(-1e4, 1e4)
rows = st.dictionaries(st.sampled_from([f"f{index}" for index in range(30)]), floats, max_size=30)


@given(st.lists(st.tuples(floats, st.floats(0.1, 9.0)), max_size=20), floats)
def test_the_lean_gaussian_is_rivers(learned: list[tuple[float, float]], asked: float) -> None:
    lean, river = LeanGaussian(), Gaussian()
    for value, weight in learned:
        lean.update(value, weight)
        river.update(value, weight)
    assert (lean.mean, lean.n_samples, lean.cdf(asked)) == (river.mu, river.n_samples, river.cdf(asked))
    assert lean(asked) == pytest.approx(river(asked), rel=1e-9, abs=1e-300)


@given(st.lists(st.tuples(rows, st.integers(0, 3)), min_size=1, max_size=20), rows)
def test_the_lean_naive_bayes_is_rivers(learned: list[tuple[dict[str, float], int]], asked: dict[str, float]) -> None:
    lean, river = LeanGaussianNB(), GaussianNB()
    for features, label in learned:
        lean.learn_one(features, label)
        river.learn_one(features, label)
    assert lean.predict_proba_one(asked) == pytest.approx(river.predict_proba_one(asked), abs=1e-12)


def test_densities_that_overflow_when_multiplied_are_added_as_logarithms() -> None:
    lean, river = LeanGaussianNB(), GaussianNB()
    for label, shift in ((0, 0.0), (1, 1e-140)):
        for spread in (-1e-140, 1e-140):
            features = {f"f{index}": shift + spread for index in range(20)}
            lean.learn_one(features, label)
            river.learn_one(features, label)
    asked = {f"f{index}": 1e-140 for index in range(20)}
    found = lean.predict_proba_one(asked)
    assert found == pytest.approx(river.predict_proba_one(asked), abs=1e-12)
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_class_met_once_or_never_has_the_floor_as_its_density() -> None:
    splitter = FlooredSplitter()
    for value in (1.0, 2.0, 3.0):
        splitter.update(value, 0, 1.0)
    splitter.update(2.0, 1, 1.0)
    assert splitter.cond_log_proba(2.0, 0) == pytest.approx(math.log(DENSITY_FLOOR + 1 / math.sqrt(math.tau)))
    assert splitter.cond_log_proba(2.0, 1) == splitter.cond_log_proba(2.0, 2) == math.log(DENSITY_FLOOR)
