"""Each peer decides as the library it comes from, instance by instance, and behind our ledger never overspends."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import islice
from random import Random
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from river import active
from river.base import Classifier

from benchmarks.label_efficiency.peers import (
    EVIDENCE,
    PEERS,
    Draws,
    Neighbours,
    OnLedger,
    Peer,
    Setting,
    Vector,
    quantile,
    vector,
)
from benchmarks.measure import STREAM
from streamal.evaluate.stream import read
from streamal.learning import presets
from streamal.messages import Prediction
from streamal.selection.strategy import Standing

ROWS = 3_000
TAUGHT_EVERY = 15
CLASSES = ("up", "down")
WIDTH = 6
SEED = 3
RATE = 0.1
WITHOUT_CHANCE = (
    "VariableUncertainty",
    "FixedUncertainty",
    "StreamProbabilisticAL",
    "CognitiveDualQueryStrategyFixUn",
    "CognitiveDualQueryStrategyVarUn",
    "PeriodicSampling",
)
LIBRARY = [name.removeprefix("skactiveml.") for name in PEERS if name.startswith("skactiveml.")]
by_name = pytest.mark.parametrize("name", PEERS)


@cache
def stream() -> list[tuple[Vector, Prediction]]:
    """Return instances, each with what a model says that learns every fifteenth label."""
    model = presets.build("logistic_regression", parameters={}, scaling="labelled", seed=0)
    found = []
    for number, row in enumerate(islice(read(STREAM, label="direction"), ROWS)):
        found.append((vector(row.features), model.predict([row.features])[0]))
        if number % TAUGHT_EVERY == 0:
            model.learn(row.features, row.label)
    return found


def new(name: str, rate: float = RATE) -> Peer:
    return PEERS[name](Setting(rate, SEED, len(CLASSES), WIDTH))


def decisions(peer: Peer, rows: int = ROWS) -> list[bool]:
    """Let a peer decide as it is shipped."""
    found = []
    for features, prediction in stream()[:rows]:
        utility = peer.utility(features, prediction)
        found.append(peer.wants(utility))
        peer.note(features, utility, asked=found[-1])
    return found


def differences(ours: list[bool], theirs: list[bool]) -> list[int]:
    return [number for number, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]


@pytest.fixture(scope="module")
def load() -> Callable[[str], Any]:
    """scikit-activeml's modules; skips where it is not installed, fails there when `STREAMAL_REQUIRE_ALL=1`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("skactiveml.stream")
        except ImportError:
            if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
                raise
            pytest.skip("scikit-activeml is not installed: uv sync --group benchmarks")
    return lambda name: importlib.import_module(f"skactiveml.{name}")


def told_by_library(load: Callable[[str], Any], name: str) -> list[bool]:
    """Let the library decide; its classifier says what it is told to say."""

    class Told(load("base").SkactivemlClassifier):  # type: ignore[misc]
        chances: list[float]

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            return self

        def predict_proba(self, X: Any, **_: Any) -> Any:
            return np.array([self.chances])

    options: dict[str, Any] = {"classes": [0, 1]} if "Fix" in name else {}
    probabilistic = name == "StreamProbabilisticAL"
    if probabilistic:
        options["metric"] = "rbf"
    strategy = getattr(load("stream"), name)(budget=RATE, random_state=SEED, **options)
    blind = name in ("PeriodicSampling", "StreamRandomSampling")
    model, found = Told(classes=[0, 1]), []
    asked: deque[Vector] = deque(maxlen=EVIDENCE)
    for features, prediction in stream():
        model.chances = [prediction.get(label, 0.0) if prediction else 0.5 for label in CLASSES]
        given: dict[str, Any] = {} if blind else {"clf": model}
        if probabilistic:
            # It only counts labels. Without one it gets an unlabelled instance, as it takes no empty set.
            given |= {"X": np.array(asked or [features]), "y": np.full(max(1, len(asked)), 0.0 if asked else math.nan)}
        chosen, utilities = strategy.query(features[None, :], **given, return_utilities=True)
        told = {"budget_manager_param_dict": {"utilities": utilities}} if probabilistic else {}
        strategy.update(features[None, :], chosen, **told)
        found.append(len(chosen) > 0)
        if found[-1]:
            asked.append(features)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARY)
def test_a_peer_decides_as_scikit_activeml(load: Callable[[str], Any], name: str) -> None:
    ours = decisions(new(f"skactiveml.{name}"))
    assert differences(ours, told_by_library(load, name)) == []
    assert sum(ours) > 0.3 * RATE * ROWS


def test_the_sampler_decides_as_rivers() -> None:
    class Told(Classifier):
        chances: Prediction

        def learn_one(self, x: Any, y: Any) -> None:
            raise AssertionError

        def predict_proba_one(self, x: Any, **_: Any) -> Any:
            return self.chances

    told, theirs = Told(), []
    sampler = active.EntropySampler(told, seed=SEED)
    for _, prediction in stream():
        told.chances = prediction
        theirs.append(sampler.predict_proba_one({})[1])
    ours = decisions(new("river.EntropySampler"))
    assert differences(ours, theirs) == []
    assert 100 < sum(ours) < ROWS - 100


@by_name
def test_looking_changes_nothing(name: str) -> None:
    quiet, nosy = new(name), new(name)
    expected = decisions(quiet, 400)
    found = []
    for number, (features, prediction) in enumerate(stream()[:400]):
        for other, said in stream()[number + 1 : number + 4]:
            nosy.wants(nosy.utility(other, said))
        utility = nosy.utility(features, prediction)
        assert len({nosy.wants(utility) for _ in range(3)}) == 1
        found.append(nosy.wants(utility))
        nosy.note(features, utility, asked=found[-1])
    assert found == expected


@by_name
def test_the_seed_decides_where_there_is_chance(name: str) -> None:
    def found(seed: int) -> list[bool]:
        return decisions(PEERS[name](Setting(RATE, seed, len(CLASSES), WIDTH)), 800)

    assert found(1) == found(1)
    assert (found(1) == found(2)) == (name.partition(".")[2] in WITHOUT_CHANCE)


def test_as_shipped_the_usual_estimate_overspends() -> None:
    for name in ("skactiveml.Split", "skactiveml.VariableUncertainty"):
        assert sum(decisions(new(name, 0.02))) > 1.1 * 0.02 * ROWS
    assert sum(decisions(new("skactiveml.PeriodicSampling", 0.02))) == 0.02 * ROWS


def test_on_our_ledger_a_peer_goes_on_as_if_nobody_refused() -> None:
    shipped, refused = new("skactiveml.Split"), OnLedger(new("skactiveml.Split"))
    standing = Standing(rate=RATE, cap=23.0)
    wanted = []
    for features, prediction in stream()[:500]:
        row = dict(zip("abcdef", features.tolist(), strict=True))
        proposal = refused.propose(row, prediction, standing)
        refused.update(row, prediction, proposal, asked=False)
        wanted.append(proposal.propensity == 1.0)
    assert wanted == decisions(shipped, 500)


def test_normal_variables_are_those_of_the_generator() -> None:
    draws, found = Draws(5), []
    for number in range(2_000):
        found.append(draws.normal())
        if number < 20:
            state = np.random.RandomState(5)
            state.random_sample(number)
            assert found[-1] == state.normal()
        draws.skip()
    assert fmean(found) == pytest.approx(0.0, abs=0.1)
    assert stdev(found) == pytest.approx(1.0, abs=0.1)


def test_neighbours_are_found_in_a_window_that_slides() -> None:
    random = Random(4)
    window = Neighbours(5, 2)
    points: list[Vector] = []
    nearest: list[float] = []
    for _ in range(60):
        point = np.array([random.random(), random.random()])
        expected = [math.dist(point, other) for other in points]
        distances = window.distances(point)
        assert distances == pytest.approx(expected, abs=1e-7)
        assert window.closer(distances).tolist() == [d < n for d, n in zip(expected, nearest, strict=True)]
        nearest = [min(pair) for pair in zip(expected, nearest, strict=True)]
        window.add(point, distances)
        points, nearest = [*points, point][-5:], [*nearest, min(expected, default=math.inf)][-5:]
        if len(points) == 5 and random.random() < 0.3:
            window.drop(2)
            del points[2], nearest[2]


def test_quantiles_are_numpys() -> None:
    random = Random(1)
    for size in range(1, 101):
        ranked = sorted(random.random() for _ in range(size))
        for share in (0.0, 0.8, 0.9, 0.95, 0.99, 1.0):
            assert quantile(ranked, share) == np.quantile(ranked, share)
