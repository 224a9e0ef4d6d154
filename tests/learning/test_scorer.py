"""The generated scorers against the estimators' own predictions, to the last bit."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from river.compose import FuncTransformer
from river.linear_model import LogisticRegression
from river.multiclass import OneVsRestClassifier
from river.preprocessing import StandardScaler

from streamal.learning.online import BIND_AFTER, OnlineModel
from streamal.learning.presets import build
from streamal.learning.scaling import bounded
from streamal.learning.scorer import MAX_TERMS, Scorer, compile_linear, make_scorer
from streamal.messages import Features, Moment, Prediction

NAMES = "abcd"
numbers = st.floats(-1e100, 1e100) | st.floats(-10, 10) | st.integers(-(2**53), 2**53)
numeric = st.fixed_dictionaries(dict.fromkeys(NAMES, st.floats(-100, 100)))
usual = numeric | st.dictionaries(st.sampled_from(NAMES), st.floats(-1e3, 1e3))
odd = st.dictionaries(
    st.sampled_from("abcdz"), numbers | st.none() | st.booleans() | st.sampled_from(["u", "v", ""]), max_size=5
)
examples = st.lists(st.tuples(usual | odd, st.sampled_from("pqr")), min_size=1, max_size=12)
moments = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Moment, st.integers(1, 9), st.floats(-9, 9), st.floats(0, 99)), max_size=4
)


def model(kind: str) -> OnlineModel:
    built = build(kind, parameters={}, seed=1)
    assert isinstance(built, OnlineModel)
    return built


def bound(built: OnlineModel, instance: Features) -> Scorer:
    """The generated scorer for the layout of an instance; for no features there is none."""
    scorer = make_scorer(built.estimator, built._scaling, tuple(instance), tuple(built._labels), built.predict_one)
    assert (scorer is None) == (not instance)
    return scorer or built.predict


def same(found: Prediction, expected: Prediction) -> bool:
    return repr(found) == repr(expected)


@pytest.mark.parametrize("kind", ["logistic_regression", "gaussian_nb", "linear_regression", "text_logistic"])
@given(learned=examples, merged=moments, asked=st.lists(usual | odd, min_size=1, max_size=6))
@example(
    learned=[({"a": 1e100}, "p"), ({"a": -1e100}, "q")] * 20, merged={"a": Moment(9, 0.0, 1e-9)}, asked=[{"a": 3.0}]
)
@example(
    learned=[({"a": 1.0, "b": True}, "p"), ({"a": 2.0, "b": False}, "q")] * 9,
    merged={"a": Moment(9, 1.0, 9.0)},
    asked=[{"a": 2.0, "b": True}, {"b": True, "a": 2.0}, {"a": 2.0, "b": None}, {"a": 2.0}],
)
@example(
    learned=[({"a": "u", "b": 1.0}, "p"), ({"a": 3.0, "b": 2.0}, "q")] * 9,
    merged={"a": Moment(9, 1.0, 0.0), "b": Moment(9, 1.0, 9.0)},
    asked=[{"a": "u", "b": 2.0}, {"a": 3.0, "b": 2.0}],
)
def test_batches_are_predicted_as_one_by_one(
    kind: str, learned: list[tuple[Features, str]], merged: dict[str, Moment], asked: list[Features]
) -> None:
    built = model(kind)
    built.merge(merged)
    for features, label in learned:
        built.learn(features, "pqr".index(label) * 1.0 if built.task == "regression" else label)
    for found, features in zip(bound(built, asked[0])(asked), asked, strict=True):
        assert same(found, built.predict_one(features))


@pytest.mark.parametrize("score", [-31.0, -30.0, -29.9, 29.9, 30.0, 30.5, 31.0, float("nan"), float("inf")])
def test_the_sigmoid_is_cut_off_where_river_cuts_it_off(score: float) -> None:
    built = model("logistic_regression")
    built.merge({"a": Moment(9, 0.0, 9.0)})
    for label in ("p", "q"):
        built.learn({"a": 1.0}, label)
    for member in built.estimator.classifiers.values():
        member.intercept = score
        assert same(bound(built, {"a": 0.0})([{"a": 0.0}])[0], built.predict_one({"a": 0.0}))


@given(learned=st.lists(st.tuples(numeric, st.sampled_from("pqr")), min_size=1, max_size=30), asked=numeric)
def test_logistic_regression_is_rivers_pipeline_to_the_last_bit(
    learned: list[tuple[dict[str, float], str]], asked: dict[str, float]
) -> None:
    built = build("logistic_regression", parameters={}, scaling="labelled", seed=1)
    bounds = FuncTransformer(lambda scaled: {name: bounded(value) for name, value in scaled.items()})
    river = StandardScaler() | bounds | OneVsRestClassifier(LogisticRegression())
    for features, label in learned:
        built.learn(features, label)
        river.learn_one(features, label)
    expected = river.predict_proba_one(asked)
    assert all(same(found, expected) for found in built.predict([asked] * BIND_AFTER))


@pytest.mark.parametrize("kind", ["logistic_regression", "gaussian_nb"])
@pytest.mark.parametrize("shape", [(1, 1), (60, 2), (3, 40), (300, 9)])
def test_any_number_of_features_and_classes(kind: str, shape: tuple[int, int]) -> None:
    features, classes = shape
    rng = random.Random(3)
    built = model(kind)
    built.merge({f"f{index}": Moment(10, 0.5, 1.0) for index in range(features)})
    batch = [{f"f{index}": rng.random() for index in range(features)} for _ in range(2 * classes)]
    for index, row in enumerate(batch):
        built.learn(row, f"class {index % classes}")
    found = built.predict(batch * BIND_AFTER)
    assert all(same(one, built.predict_one(row)) for one, row in zip(found, batch, strict=False))
    layout, labels = tuple(batch[0]), tuple(f"class {index}" for index in range(classes))
    scaling = None if kind == "gaussian_nb" else built._scaling
    scorer = make_scorer(built.estimator, scaling, layout, labels, built.predict_one)
    assert (scorer is None) == (features * classes > MAX_TERMS)


@pytest.mark.parametrize("change", ["learn", "merge"])
def test_a_bound_scorer_is_dropped_when_the_model_changes(change: Literal["learn", "merge"]) -> None:
    built = model("logistic_regression")
    built.merge({"a": Moment(9, 0.0, 9.0)})
    built.learn({"a": 1.0}, "p")
    built.learn({"a": -1.0}, "q")
    batch: list[Features] = [{"a": 2.0}] * BIND_AFTER
    before = built.predict(batch)
    if change == "learn":
        built.learn({"a": 2.0}, "q")
    else:
        built.merge({"a": Moment(9, 1.0, 90.0)})
    after = built.predict(batch)
    assert before[0] != after[0] == built.predict_one({"a": 2.0})


def test_names_are_never_source() -> None:
    built = model("logistic_regression")
    name = "x']; raise SystemExit('"
    built.merge({name: Moment(9, 0.0, 9.0)})
    built.learn({name: 1.0}, "p\n'")
    assert built.predict([{name: 1.0}] * BIND_AFTER)[0] == {"p\n'": 1.0}


def test_a_stream_without_a_steady_layout_compiles_nothing() -> None:
    built = model("logistic_regression")
    built.merge({name: Moment(9, 0.0, 9.0) for name in NAMES})
    built.learn(dict.fromkeys(NAMES, 1.0), "p")
    compiled = compile_linear.cache_info().misses
    for count in range(1, 60):
        built.predict([{f"{count}-{index}": 1.0 for index in range(count)}])
        built.predict([{f"{count}-{row}-{index}": 1.0 for index in range(count)} for row in range(2 * BIND_AFTER)])
    assert compile_linear.cache_info().misses == compiled
