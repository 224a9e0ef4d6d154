from __future__ import annotations

import copy
import math
import os
import pickle
import random
import subprocess
import sys
from types import ModuleType
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from river import (
    anomaly,
    base,
    compose,
    dummy,
    ensemble,
    feature_extraction,
    linear_model,
    naive_bayes,
    neighbors,
    preprocessing,
    stats,
)

from streamal.errors import ConfigError, ModelError
from streamal.learning import online
from streamal.learning.moments import MomentAccumulator
from streamal.learning.online import BIND_AFTER, MAX_OBSERVED, FactoryModel, OnlineModel
from streamal.learning.presets import PRESETS, build, from_factory
from streamal.messages import MAX_NUMBER, VALUE, Features, Label, Moment

KINDS = list(PRESETS)
CLASSIFIERS = [
    kind for kind in KINDS if not kind.endswith(("_regression", "_regressor")) or kind.startswith("logistic")
]
valid = st.dictionaries(
    st.sampled_from(["a", "b", "c", "z"]),
    st.none() | st.booleans() | st.floats(-MAX_NUMBER, MAX_NUMBER) | st.integers(-(2**53), 2**53) | st.text(max_size=3),
)
Example = tuple[Features, Label]


def make_stream(seed: int, length: int, *, task: str = "classification") -> list[Example]:
    """Two separable classes, or a number, by `a` and the word `c`; with a missing value now and then."""
    rng = random.Random(seed)
    stream: list[Example] = []
    for _ in range(length):
        a, word = rng.gauss(0, 1), rng.choice(["red", "green"])
        score = a + (2.0 if word == "red" else -2.0)
        features: Features = {"a": a, "b": rng.gauss(30, 9) if rng.random() < 0.9 else None, "c": word, "d": a > 1}
        stream.append((features, score if task == "regression" else "yes" if score > 0 else "no"))
    return stream


def train(model: OnlineModel, stream: list[Example]) -> None:
    gathered = MomentAccumulator()
    for start in range(0, len(stream), 50):
        part = stream[start : start + 50]
        gathered.add([features for features, _ in part])
        model.merge(gathered.take())
        for features, label in part:
            model.learn(features, label)


def make(kind: str, **parameters: Any) -> OnlineModel:
    model = build(kind, parameters=parameters, seed=7)
    assert isinstance(model, OnlineModel)
    return model


@pytest.fixture(scope="module")
def trained() -> dict[str, OnlineModel]:
    models = {kind: make(kind) for kind in KINDS}
    for model in models.values():
        train(model, make_stream(1, 400, task=model.task))
    return models


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_every_classifier_learns(kind: str, trained: dict[str, OnlineModel]) -> None:
    stream = make_stream(2, 300)
    predictions = trained[kind].predict([features for features, _ in stream])
    assert all(sum(found.values()) == pytest.approx(1.0) for found in predictions)
    hits = sum(
        max(found, key=found.__getitem__) == label for found, (_, label) in zip(predictions, stream, strict=True)
    )
    assert hits > 0.85 * len(stream)


@pytest.mark.parametrize("kind", ["linear_regression", "hoeffding_tree_regressor"])
def test_every_regressor_learns(kind: str, trained: dict[str, OnlineModel]) -> None:
    stream = make_stream(2, 300, task="regression")
    predictions = trained[kind].predict([features for features, _ in stream])
    error = sum(abs(found[VALUE] - float(label)) for found, (_, label) in zip(predictions, stream, strict=True))
    spread = sum(abs(float(label)) for _, label in stream)
    assert error < 0.5 * spread


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_predicted_before_the_first_example(kind: str) -> None:
    model = make(kind)
    assert model.predict([]) == []
    assert model.predict([{"a": 1.0}, {}]) == [{}, {}]
    model.learn({"a": 1.0}, 1.0 if model.task == "regression" else "only")
    assert list(model.predict([{"a": 2.0}])[0]) == ([VALUE] if model.task == "regression" else ["only"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(valid, min_size=1, max_size=4))
def test_predicting_never_raises_and_changes_nothing(
    kind: str, batch: list[Features], trained: dict[str, OnlineModel]
) -> None:
    model = trained[kind]
    state = pickle.dumps(model)
    before = copy.deepcopy(batch)
    for found in model.predict(batch * BIND_AFTER):
        assert all(isinstance(probability, float) for probability in found.values())
    assert pickle.dumps(model) == state
    assert batch == before


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(stream=st.lists(st.tuples(valid, st.sampled_from(["p", "q"])), max_size=12), asked=valid)
def test_learning_any_valid_example_keeps_it_predicting(
    kind: str, stream: list[tuple[Features, str]], asked: Features
) -> None:
    model = make(kind)
    gathered = MomentAccumulator()
    for features, label in stream:
        gathered.add([features])
        model.merge(gathered.take())
        model.learn(features, float(label == "p") if model.task == "regression" else label)
    assert len(model.predict([asked] * BIND_AFTER)) == BIND_AFTER


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_equal_and_independent(kind: str, trained: dict[str, OnlineModel]) -> None:
    model = trained[kind]
    asked = [features for features, _ in make_stream(3, 20)]
    before = model.predict(asked)
    copied = model.copy()
    assert copied.predict(asked) == before
    train(copied, make_stream(4, 60, task=model.task))
    assert copied.predict(asked) != before
    assert model.predict(asked) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_examples_and_seed_give_the_same_model(kind: str) -> None:
    one, other = make(kind), make(kind)
    for model in (one, other):
        train(model, make_stream(5, 150, task=model.task))
    asked = [features for features, _ in make_stream(6, 30)]
    assert one.predict(asked) == other.predict(asked)


FOLD: Final = """
import random
from streamal.learning.presets import PRESETS, build
from streamal.messages import Moment

for kind in PRESETS:
    rng = random.Random(3)
    model = build(kind, parameters={}, seed=7)
    model.merge({"a": Moment(9, 0.1, 9.5)})
    for index in range(250):
        x = {"a": rng.gauss(0, 1), "b": rng.choice(["red", "green", "blue"]), "c": rng.random() < 0.5}
        value = x["a"] + len(x["b"])
        model.learn(x, value if model.task == "regression" else f"class {round(value) % 5}")
    print(kind, model.predict([x, {"b": "red", "a": 0.3}] * 5))
"""


def test_another_hash_seed_gives_the_same_predictions_to_the_last_bit() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", FOLD],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert printed.pop().count("\n") == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_models_fed_by_moments_say_that_they_scale(kind: str) -> None:
    scaled = kind not in {"gaussian_nb", "hoeffding_tree", "hoeffding_adaptive_tree", "adaptive_forest"}
    assert make(kind).scales == scaled
    assert not build(kind, parameters={}, scaling="labelled", seed=1).scales


def test_labelled_rows_feed_the_scaling_only_when_asked_to() -> None:
    stream = make_stream(1, 100)
    fed, starved = (build("logistic_regression", parameters={}, scaling=rows, seed=1) for rows in ("labelled", "all"))
    for features, label in stream:
        fed.learn(features, label)
        starved.learn(features, label)
    one: Features = {"a": -2.0, "c": "red"}
    other: Features = {"a": 2.0, "c": "red"}
    assert fed.predict([one]) != fed.predict([other])
    assert starved.predict([one]) == starved.predict([other])


def test_a_weight_counts_where_the_estimator_takes_one() -> None:
    plain, heavy = make("logistic_regression"), make("logistic_regression")
    for model, weight in ((plain, 1.0), (heavy, 5.0)):
        model.learn({"on": True}, "p")
        model.learn({"on": True}, "q", weight)
    assert heavy.predict([{"on": True}])[0]["q"] > plain.predict([{"on": True}])[0]["q"]
    unweighted = make("gaussian_nb")
    unweighted.learn({"a": 1.0}, "p", 5.0)
    assert unweighted.predict([{"a": 1.0}]) == [{"p": 1.0}]


def test_far_away_neighbours_still_predict() -> None:
    model = build("knn", parameters={}, seed=0)
    model.merge({"x": Moment(9, 0.0, 9.0)})
    model.learn({"x": 0.0}, "p")
    model.learn({"x": 0.1}, "q")
    assert sum(model.predict([{"x": 1e100}])[0].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("gausian_nb", {}, "did you mean 'gaussian_nb'"),
        ("svm", {}, "must be one of logistic_regression, softmax"),
        ("logistic_regression", {"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ("gaussian_nb", {"depth": 1}, "it accepts: none"),
        ("logistic_regression", {"seed": 1}, "has no parameter 'seed'"),
        ("logistic_regression", {"learning_rate": "fast"}, "must be a number from 0 on"),
        ("logistic_regression", {"learning_rate": True}, "must be a number from 0 on"),
        ("logistic_regression", {"l2": float("nan")}, "must be a number from 0 on"),
        ("hoeffding_tree", {"grace_period": 2.5}, "must be a whole number from 1 on"),
        ("text_logistic", {"tfidf": 1}, "must be true or false"),
        ("text_logistic", {"on": 1}, "must be a string"),
    ],
)
def test_a_wrong_kind_or_parameter_is_named_with_its_cure(kind: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, parameters=parameters, seed=1)


def test_parameters_reach_the_estimator() -> None:
    slow, fast = make("logistic_regression", learning_rate=0.001), make("logistic_regression", learning_rate=0.5)
    for model in (slow, fast):
        model.learn({"on": True}, "p")
        model.learn({"on": True}, "q")
    assert abs(fast.predict([{"on": True}])[0]["p"] - 0.5) > abs(slow.predict([{"on": True}])[0]["p"] - 0.5)


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("factories_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def offer(module: ModuleType, returned: Any) -> str:
    module.__dict__["build"] = lambda: returned
    return f"{module.__name__}:build"


def test_a_binary_classifier_is_made_to_take_any_classes(factories: ModuleType) -> None:
    pipeline = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    model = from_factory(offer(factories, pipeline))
    for value, label in ((1.0, "p"), (2.0, "q"), (3.0, "r")):
        model.learn({"a": value, "gone": None}, label, 2.0)
    found = model.predict([{"a": 2.0}, {"a": 2.0, "unseen": 1.0}])
    assert list(found[0]) == ["p", "q", "r"]
    assert found[0] == found[1]


def test_predicting_changes_nothing_in_a_users_pipeline(factories: ModuleType) -> None:
    model = from_factory(offer(factories, preprocessing.StandardScaler() | naive_bayes.GaussianNB()))
    model.learn({"a": 1.0}, "p")
    model.predict([{"a": 1.0}])
    state = pickle.dumps(model)
    model.predict([{f"name-{index}": 1.0} for index in range(50)])
    assert pickle.dumps(model) == state


def test_a_users_model_with_functions_inside_can_be_copied(factories: ModuleType) -> None:
    pipeline = compose.FuncTransformer(lambda x: {"twice": 2 * x["a"]}) | linear_model.LinearRegression()
    model = from_factory(offer(factories, pipeline))
    assert (model.task, model.predict([{"a": 1.0}])) == ("regression", [{}])
    model.learn({"a": 1.0}, 3.0)
    copied = model.copy()
    model.learn({"a": 1.0}, 3.0)
    assert copied.predict([{"a": 1.0}])[0][VALUE] < model.predict([{"a": 1.0}])[0][VALUE]


class Faulty(dummy.NoChangeClassifier):
    """Says what it is told to say, or raises it."""

    said: Any = None

    def predict_proba_one(self, x: Any, **_: Any) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.mark.parametrize(
    "said",
    [
        RuntimeError(),
        AssertionError(),
        None,
        {"p": None, "q": 0.5},
        {"p": "much", "q": 0.5},
        {"p": math.nan, "q": 0.5},
        {"p": math.inf},
        {"p": 10**400},
    ],
    ids=str,
)
def test_a_users_model_that_fails_to_predict_predicts_nothing(factories: ModuleType, said: Any) -> None:
    faulty = Faulty()
    model = from_factory(offer(factories, faulty))
    model.learn({"a": 1.0}, "p")
    faulty.said = {"p": 1.0}
    assert model.predict([{"a": 1.0}]) == [{"p": 1.0}]
    faulty.said = said
    assert model.predict([{"a": 1.0}]) == [{}]


@pytest.mark.parametrize("value", [None, math.nan, -math.inf])
def test_a_users_regression_that_gives_no_number_predicts_nothing(
    factories: ModuleType, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    monkeypatch.setattr(dummy.StatisticRegressor, "predict_one", lambda *_: value)
    model = from_factory(offer(factories, dummy.StatisticRegressor(stats.Mean())))
    model.learn({"a": 1.0}, 2.0)
    assert model.predict([{"a": 1.0}]) == [{}]


@pytest.mark.parametrize("learned", [{"a": 1.0}, {}, {"a": None}], ids=str)
def test_a_users_model_predicts_once_it_has_learned_whatever_features_it_met(
    factories: ModuleType, learned: Features
) -> None:
    users, preset = from_factory(offer(factories, naive_bayes.GaussianNB())), make("gaussian_nb")
    bagged = from_factory(offer(factories, ensemble.BaggingClassifier(naive_bayes.GaussianNB(), n_models=3, seed=0)))
    assert users.predict([{}]) == bagged.predict([{}]) == [{}]
    assert bagged.members({}) == []
    for label in "babba" * 40:
        for model in (users, preset, bagged):
            model.learn(learned, label)
    assert users.predict([{}]) == preset.predict([{}]) == [pytest.approx({"a": 0.4, "b": 0.6})]
    assert bagged.predict([{}])[0].keys() == {"a", "b"}
    assert [said.keys() for said in bagged.members({})] == [{"a", "b"}] * 3


def test_a_model_names_the_classes_it_has_learned(factories: ModuleType) -> None:
    users = from_factory(offer(factories, naive_bayes.GaussianNB()))
    for model in (users, make("gaussian_nb")):
        assert list(model.classes) == []
        for label in ("q", "p", "q"):
            model.learn({"a": 1.0}, label)
        copied, saved = model.copy(), pickle.loads(pickle.dumps(model))
        model.learn({"a": 1.0}, "r")
        assert [list(found.classes) for found in (model, copied, saved)] == [["q", "p", "r"], ["q", "p"], ["q", "p"]]


def test_a_regression_has_no_classes(factories: ModuleType) -> None:
    for model in (from_factory(offer(factories, linear_model.LinearRegression())), make("linear_regression")):
        model.learn({"a": 1.0}, 3.0)
        assert list(model.classes) == []


@pytest.mark.parametrize(
    "returned", [anomaly.HalfSpaceTrees(), preprocessing.StandardScaler(), None, neighbors.KNNClassifier]
)
def test_what_neither_classifies_nor_predicts_a_number_is_refused(factories: ModuleType, returned: Any) -> None:
    with pytest.raises(ModelError, match="must return a River classifier or regressor"):
        from_factory(offer(factories, returned))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere_to_be_found:build", "cannot be imported"),
        ("streamal.learning.presets:missing", "cannot be imported"),
        ("streamal.learning.presets", "must have the form"),
    ],
)
def test_a_wrong_factory_is_named_with_its_cure(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_factory(path)


def test_parameters_are_handed_to_a_factory_by_name(factories: ModuleType) -> None:
    factories.__dict__["build"] = lambda path, *, l2=0.0: linear_model.LinearRegression(l2=float(l2) / len(path))
    model = from_factory("factories_under_test:build", path="ab", l2=0.5)
    assert isinstance(model, FactoryModel)
    assert model.estimator.l2 == 0.25
    with pytest.raises(ModelError, match=r"failed: ValueError.*; it was called with path = 'ab', l2 = 'much'"):
        from_factory("factories_under_test:build", path="ab", l2="much")


@pytest.mark.parametrize(
    ("build", "parameters", "message"),
    [
        (
            lambda: None,
            {"l2": 1, "depth": 3},
            "takes none, came l2, depth .*; give those that it takes",
        ),
        (lambda rate, l2=0: None, {"lr": 1}, "'factories_under_test:build' takes rate, l2, came lr .*'rate'"),
        (lambda rate: None, {}, "takes rate, came none"),
    ],
)
def test_a_factory_that_does_not_take_the_parameters_is_told(
    factories: ModuleType, build: Any, parameters: dict[str, Any], message: str
) -> None:
    factories.__dict__["build"] = build
    with pytest.raises(ConfigError, match=f"^model.parameters: .*{message}"):
        from_factory("factories_under_test:build", **parameters)


ROWS: Final = [{"a": float(n % 5), "b": n * 1.5} for n in range(30)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_presets_take_no_notice_of_what_has_no_label(kind: str, trained: dict[str, OnlineModel]) -> None:
    model, probes = trained[kind].copy(), [features for features, _ in make_stream(3, 20)]
    assert not model.observes
    model.observe({"a": 1e9, "c": "never seen", "z": 1.0})
    assert model.predict(probes) == trained[kind].predict(probes)


def scaler_of(model: Any) -> preprocessing.StandardScaler:
    assert isinstance(model, FactoryModel)
    found = model.estimator["StandardScaler"]
    assert isinstance(found, preprocessing.StandardScaler)
    return found


def test_a_pipelines_scaler_learns_from_what_has_no_label_and_its_classifier_does_not(factories: ModuleType) -> None:
    pipeline = preprocessing.StandardScaler() | naive_bayes.GaussianNB()
    model = from_factory(offer(factories, pipeline))
    assert model.observes
    alone = preprocessing.StandardScaler()
    for row in ROWS:
        model.observe({**row, "gone": None})
        alone.learn_one(row)
    assert dict(scaler_of(model).means) == dict(alone.means)
    assert dict(scaler_of(model).counts) == {"a": 30, "b": 30}
    assert (list(model.classes), model.predict(ROWS[:1])) == ([], [{}])
    model.learn(ROWS[0], "p")
    assert model.examples == 1
    assert scaler_of(model).counts["a"] == 31, "what has a label is learned once, by River's own update"


def test_what_was_only_observed_is_not_asked_of_the_classifier(factories: ModuleType) -> None:
    model = from_factory(offer(factories, preprocessing.StandardScaler() | linear_model.LogisticRegression()))
    for n, row in enumerate(ROWS):
        model.learn({"a": row["a"]}, "pq"[n % 2])
    model.observe(ROWS[0])
    before = pickle.dumps(model)
    assert model.predict([{"a": 1.0, "b": 5.0}]) == model.predict([{"a": 1.0}])
    assert pickle.dumps(model) == before


def test_in_unions_the_supervised_parts_learn_nothing(factories: ModuleType) -> None:
    numbers = compose.Select("a", "b") | preprocessing.StandardScaler()
    target = feature_extraction.TargetAgg(by="city", how=stats.Mean())
    model = from_factory(offer(factories, (numbers + target) | linear_model.LinearRegression()))
    assert isinstance(model, FactoryModel)
    assert model.observes
    alone = preprocessing.StandardScaler()
    for row in ROWS:
        model.observe({**row, "city": "Oslo"})
        alone.learn_one(row)
    parts = next(iter(model.estimator.steps.values())).transformers.values()
    [scaler] = [part["StandardScaler"] for part in parts if isinstance(part, compose.Pipeline)]
    [aggregate] = [part for part in parts if isinstance(part, feature_extraction.TargetAgg)]
    assert (dict(scaler.counts), dict(scaler.means)) == (dict(alone.counts), dict(alone.means))
    assert [found.n for found in aggregate._groups.values()] == [0.0]


def test_what_an_anomaly_filter_takes_out_does_not_reach_the_steps_behind(factories: ModuleType) -> None:
    class Odd(base.AnomalyDetector):
        """Finds all above 9 odd."""

        def learn_one(self, x: dict[Any, Any]) -> None:
            """Learn nothing."""

        def score_one(self, x: dict[Any, Any]) -> float:
            """Return 1 for what is odd."""
            return float(x["a"] > 9.0)

    pipeline = compose.Pipeline(
        anomaly.ThresholdFilter(Odd(), threshold=0.5), preprocessing.StandardScaler(), naive_bayes.GaussianNB()
    )
    model = from_factory(offer(factories, pipeline))
    for value in (1.0, 100.0, 3.0):
        model.observe({"a": value})
    assert dict(scaler_of(model).means) == {"a": 2.0}


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.LinearRegression(),
        compose.Select("a") | linear_model.LinearRegression(),
        feature_extraction.TargetAgg(by="a", how=stats.Mean()) | linear_model.LinearRegression(),
    ],
    ids=str,
)
def test_a_pipeline_without_such_parts_observes_nothing(factories: ModuleType, estimator: Any) -> None:
    assert not from_factory(offer(factories, estimator)).observes


def test_random_names_of_unlabelled_instances_take_bounded_memory(factories: ModuleType) -> None:
    model = from_factory(offer(factories, preprocessing.StandardScaler() | naive_bayes.GaussianNB()))
    for number in range(3 * MAX_OBSERVED):
        model.observe({f"n{number}": 1.0})
    assert len(scaler_of(model).counts) == MAX_OBSERVED


@pytest.mark.parametrize("kind", ["logistic_regression", "gaussian_nb", "hoeffding_tree"])
def test_random_names_of_examples_take_bounded_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "MAX_LEARNED", 100)
    model, sizes = build(kind, parameters={}, seed=0), []
    for _ in range(2):
        for _ in range(500):
            model.learn({"x": 1.0, f"n{model.examples}": 1.0}, "ab"[model.examples % 2])
        sizes.append(len(pickle.dumps(model)))
    assert sizes[1] < 1.05 * sizes[0]


def test_random_names_of_a_factory_s_examples_take_bounded_memory(
    factories: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "MAX_LEARNED", 100)
    model = from_factory(offer(factories, preprocessing.StandardScaler() | naive_bayes.GaussianNB()))
    for number in range(300):
        model.learn({f"n{number}": 1.0}, "a")
    assert len(scaler_of(model).counts) == 100
