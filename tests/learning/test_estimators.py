from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.naive_bayes import GaussianNB
from river.proba import Gaussian

from streamal.learning.estimators import (
    DENSITY_FLOOR,
    PRIOR_EXAMPLES,
    FlooredSplitter,
    LeanGaussian,
    LeanGaussianNB,
    densities,
)

floats = st.floats(-1e4, 1e4)
steps = st.integers(-80_000, 80_000).map(lambda number: number / 8)
rows = st.dictionaries(st.sampled_from([f"f{index}" for index in range(30)]), steps, max_size=30)
examples = st.lists(st.tuples(rows, st.integers(0, 3)), min_size=1, max_size=20)


def naive_bayes(learned: Sequence[tuple[Mapping[str, float], int]], asked: Mapping[str, float]) -> dict[int, float]:
    """Return the probabilities of the classes, worked out from all examples at once."""
    logs = {}
    for label in {label for _, label in learned}:
        own = [features for features, found in learned if found == label]
        logs[label] = math.log(len(own) / len(learned))
        for name, value in asked.items():
            values = [features[name] for features, _ in learned if name in features]
            within = [features[name] for features in own if name in features]
            spread = pvariance(values) if values else 0.0
            density = 0.0
            if within and spread:
                scatter = sum((value - fmean(within)) ** 2 for value in within)
                variance = (scatter + PRIOR_EXAMPLES * spread) / (len(within) + PRIOR_EXAMPLES)
                density = math.exp(-((value - fmean(within)) ** 2) / (2 * variance)) * math.sqrt(spread / variance)
            logs[label] += math.log(DENSITY_FLOOR + density / math.sqrt(math.tau))
    top = max(logs.values())
    total = sum(math.exp(found - top) for found in logs.values())
    return {label: math.exp(found - top) / total for label, found in logs.items()}


@given(st.lists(st.tuples(floats, st.floats(0.1, 9.0)), max_size=20), floats)
def test_the_lean_gaussian_is_rivers(learned: list[tuple[float, float]], asked: float) -> None:
    lean, river = LeanGaussian(), Gaussian()
    for value, weight in learned:
        lean.update(value, weight)
        river.update(value, weight)
    assert (lean.mean, lean.n_samples, lean.cdf(asked)) == (river.mu, river.n_samples, river.cdf(asked))


@given(examples, rows)
def test_naive_bayes_starts_from_the_spread_over_all_classes(
    learned: list[tuple[dict[str, float], int]], asked: dict[str, float]
) -> None:
    model = LeanGaussianNB()
    for features, label in learned:
        model.learn_one(features, label)
        model.predict_proba_one(asked)  # what is kept between two predictions must not outlive an example
    again = pickle.loads(pickle.dumps(model))
    assert model.predict_proba_one(asked) == again.predict_proba_one(asked)
    assert model.predict_proba_one(asked) == pytest.approx(naive_bayes(learned, asked), abs=1e-9)


def test_with_many_examples_naive_bayes_is_rivers() -> None:
    lean, river = LeanGaussianNB(), GaussianNB()
    for index in range(4_000):
        label = index % 2
        features = {name: label + math.sin(index * step) for name, step in (("a", 0.7), ("b", 1.1))}
        lean.learn_one(features, label)
        river.learn_one(features, label)
    for value in (-1.0, 0.0, 0.5, 1.0, 2.0):
        asked = {"a": value, "b": 0.5}
        assert lean.predict_proba_one(asked) == pytest.approx(river.predict_proba_one(asked), abs=2e-3)


@pytest.mark.parametrize("unit", [1e-140, 1e-12, 1e-3, 1e3, 1e12, 1e90])
def test_the_unit_of_a_feature_does_not_matter(unit: float) -> None:
    told, other = LeanGaussianNB(), LeanGaussianNB()
    for index in range(60):
        label, value = index % 3, index % 3 + math.sin(index)
        told.learn_one({"a": value, "b": math.cos(index)}, label)
        other.learn_one({"a": value * unit, "b": math.cos(index)}, label)
    found = other.predict_proba_one({"a": 1.5 * unit, "b": 0.1})
    assert found == pytest.approx(told.predict_proba_one({"a": 1.5, "b": 0.1}), rel=1e-6)


def test_a_class_met_once_is_as_wide_as_the_feature_and_one_never_met_has_the_floor() -> None:
    splitter = FlooredSplitter()
    for value in (1.0, 2.0, 3.0):
        splitter.update(value, 0, 1.0)
    splitter.update(2.0, 1, 1.0)
    wide = math.log(DENSITY_FLOOR + math.sqrt(0.5 / (PRIOR_EXAMPLES * 0.5 / (1 + PRIOR_EXAMPLES)) / math.tau))
    assert splitter.cond_log_proba(2.0, 1) == pytest.approx(wide)
    assert splitter.cond_log_proba(2.0, 2) == math.log(DENSITY_FLOOR)
    assert pickle.loads(pickle.dumps(splitter)).cond_log_proba(2.0, 1) == splitter.cond_log_proba(2.0, 1)
    splitter.update(9.0, 1, 1.0)
    assert splitter.cond_log_proba(2.0, 1) < wide


def test_a_feature_that_never_varied_says_nothing() -> None:
    met = {0: LeanGaussian(), 1: LeanGaussian()}
    for found in met.values():
        found.update(7.0)
    assert densities(met) == densities({}) == {}
