"""The lists of what snapshots may name: every one of them is needed, and none is missing."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
from river import compose, ensemble, feature_extraction, forest, linear_model, naive_bayes, preprocessing, tree
from specimens import dump

from streamal.errors import ModelError
from streamal.learning.allowed import ALLOWED, WATCHED, Recorder, allowed_in
from streamal.learning.drift import WatchedModel
from streamal.learning.fold import Fold
from streamal.learning.online import FactoryModel
from streamal.learning.presets import PRESETS, build, from_factory
from streamal.learning.snapshot import load
from streamal.messages import Features, Label, Moment, Outcome, Value

KEY = b"k" * 32
LOOKS = (0, 1, 10, 300, 1_000, 1_100, 1_999)
"""After how many examples a snapshot is looked into: before, right after and long after the concept changes."""


def stream(kind: str, count: int) -> Iterator[tuple[Features, float]]:
    """Examples whose concept turns round in the middle."""
    rng = random.Random(3)
    for index in range(count):
        a, b = rng.gauss(0, 1), rng.gauss(5, 3)
        features: dict[str, Value] = {"a": a, "b": b}
        if kind != "numbers":
            features |= {"c": rng.choice("uvw"), "d": rng.random() < 0.5, "t": rng.choice(["good words", "bad ones"])}
        if kind == "missing":
            features |= {"a": None if index % 7 == 0 else a}
            if index % 5 == 0:
                del features["b"]
        yield features, -a if index > count / 2 else a


def met(kind: str, on: str, parameters: dict[str, Any]) -> set[str]:
    """Return all that the snapshots of a preset named while it learned a kind of stream."""
    model = build(kind, parameters=parameters, seed=1)
    found = set()
    for index, (features, value) in enumerate(stream(on, max(LOOKS) + 1)):
        label = f"class {abs(value) * 10:.0f}" if on == "many classes" else ("up" if value > 0 else "down")
        if index % 100 == 0:
            model.merge({"a": Moment(50, 0.1, 50.0), "b": Moment(50, 5.0, 450.0)})
        model.learn(features, value if model.task == "regression" else label, 1.0 if index % 3 else 2.5)
        if index in LOOKS:
            recorder = Recorder(pickle.dumps(model, 5))
            recorder.load()
            found |= recorder.found
            loaded = load(
                dump(model, version=1, key=KEY, allowed=ALLOWED[kind]),
                config_hash="c",
                key=KEY,
                allowed=ALLOWED[kind],
            ).model
            assert repr(loaded.predict([features])) == repr(model.predict([features]))
    return found


@pytest.mark.parametrize("kind", PRESETS)
def test_the_list_of_a_preset_is_exact(kind: str) -> None:
    found = set().union(*(met(kind, on, {}) for on in ("numbers", "strings", "missing", "many classes")))
    if kind == "text_logistic":
        found |= met(kind, "strings", {"tfidf": True, "on": "t"})
    assert found == ALLOWED[kind]


def learned(index: int, features: Features, label: Label) -> Outcome:
    return Outcome(
        kind="learned",
        partition=0,
        offset=index,
        instance_id="",
        features=features,
        label=label,
        weight=1.0,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="random",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


@pytest.mark.parametrize("kind", ["gaussian_nb", "hoeffding_adaptive_tree", "linear_regression"])
def test_the_list_of_what_watches_a_model_is_exact(kind: str) -> None:
    fold, found = Fold(WatchedModel(build(kind, parameters={}, seed=1), heard="answers", adapts=True)), set[str]()
    for index, (features, value) in enumerate(stream("numbers", max(LOOKS) + 1)):
        label = value if fold.model.task == "regression" else ("up" if value > 0 else "down")
        fold.fold([(index, learned(index, features, label))])
        if index in LOOKS or index % 50 == 0:
            recorder = Recorder(pickle.dumps(fold.model, 5))
            recorder.load()
            found |= recorder.found
    assert found - ALLOWED[kind] == WATCHED - ALLOWED[kind]
    assert found >= WATCHED


def test_every_preset_has_a_list_without_a_gadget() -> None:
    assert set(ALLOWED) == set(PRESETS)
    named = set().union(*ALLOWED.values(), WATCHED)
    assert len(named) == 54
    own = ("river.", "streamal.learning.")
    assert {name for name in named if not name.startswith(own)} == {
        "builtins:float",
        "builtins:int",
        "collections:Counter",
        "collections:defaultdict",
        "collections:deque",
        "functools:partial",
        "random:Random",
    }


def users() -> dict[str, Any]:
    """Pipelines as users write them."""
    return {
        "scaled": preprocessing.StandardScaler() | linear_model.LinearRegression(),
        "tree": tree.HoeffdingTreeRegressor(grace_period=20),
        "forest": forest.ARFRegressor(n_models=3, seed=1, grace_period=20),
        "bagging": ensemble.BaggingRegressor(tree.HoeffdingTreeRegressor(grace_period=20), n_models=3, seed=1),
        "streaming trees": tree.SGTRegressor(grace_period=20),
        "union": (compose.Select("a") | preprocessing.MinMaxScaler()) + compose.Select("b")
        | linear_model.LinearRegression(),
    }


@pytest.mark.parametrize("name", users())
def test_a_factorys_model_grows_within_the_list_of_the_fresh_one(name: str) -> None:
    model = FactoryModel(users()[name], task="regression", weighted=False)
    allowed = allowed_in(model, "nothing")
    for features, value in stream("numbers", 600):
        model.learn(features, value)
    blob = dump(model, version=1, key=KEY, allowed=allowed)
    assert load(blob, config_hash="c", key=KEY, allowed=allowed).version == 1


def test_a_factorys_list_holds_no_gadget_and_nothing_that_reads_files() -> None:
    models = [
        FactoryModel(
            ensemble.LeveragingBaggingClassifier(naive_bayes.GaussianNB()), task="classification", weighted=False
        ),
        FactoryModel(feature_extraction.TFIDF() | naive_bayes.MultinomialNB(), task="classification", weighted=False),
        *(FactoryModel(estimator, task="regression", weighted=False) for estimator in users().values()),
    ]
    for model in models:
        for name in allowed_in(model, "nothing"):
            module, _, found = name.partition(":")
            assert module.split(".")[0] in {"river", "streamal", "builtins", "collections", "functools", "random"}
            assert not {"datasets", "stream", "evaluate", "checks"} & set(module.split("."))
            assert found not in {"getattr", "eval", "exec", "open", "__import__", "setattr", "reduce"}


def test_the_list_of_a_factory_includes_its_own_package() -> None:
    model = from_factory("fragile:build")
    assert {name for name in allowed_in(model, "fragile") if name.startswith("fragile:")}
    assert not {name for name in allowed_in(model, "other") if name.startswith("fragile:")}


def test_a_model_that_needs_getattr_has_no_snapshot_and_says_why() -> None:
    model = FactoryModel(linear_model.PARegressor(), task="regression", weighted=False)
    with pytest.raises(ModelError, match=r"it holds builtins:getattr, .* no bound method"):
        dump(model, version=1, key=KEY, allowed=allowed_in(model, "nothing"))
