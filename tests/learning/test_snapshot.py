from __future__ import annotations

import builtins
import hashlib
import hmac
import os
import pickle
import random
import subprocess
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import compose, linear_model
from river.utils.math import softmax

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning.estimators import LeanGaussianNB
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel, OnlineModel
from streamal.learning.presets import PRESETS, build
from streamal.learning.snapshot import LENGTH_BYTES, MAGIC, SIGNATURE_BYTES, AllowListUnpickler, dump, load
from streamal.messages import Features, Moment

KEY = b"0123456789abcdef0123456789abcdef"


def instance(rng: random.Random) -> Features:
    return {"a": rng.gauss(0, 1), "b": rng.gauss(5, 3), "c": rng.choice(["u", "v", "w"]), "d": rng.random() < 0.5}


def train(model: Model, rng: random.Random, count: int) -> None:
    for index in range(count):
        features = instance(rng)
        value = features["a"]
        assert isinstance(value, float)
        if index % 50 == 0:
            model.merge({"a": Moment(50, value / 9, 50.0), "b": Moment(50, 5.0, 450.0)})
        model.learn(features, value if model.task == "regression" else "pqr"[(value > -0.5) + (value > 0.5)])


def resigned(payload: bytes) -> bytes:
    """A snapshot with a true header and signature around any payload."""
    header = dump(build("gaussian_nb", parameters={}, seed=1), model_version=1, config_hash="c", key=KEY)
    start = len(MAGIC) + LENGTH_BYTES
    end = start + int.from_bytes(header[len(MAGIC) : start])
    content = header[:end] + payload
    return content + hmac.digest(KEY, content, hashlib.sha256)


@pytest.mark.parametrize("kind", PRESETS)
def test_learning_on_from_a_snapshot_equals_learning_without_a_break(kind: str) -> None:
    model = build(kind, parameters={}, seed=5)
    rng = random.Random(1)
    train(model, rng, 300)
    blob = dump(model, model_version=42, config_hash="c", key=KEY, last="5eed")
    loaded, model_version, last = load(blob, config_hash="c", key=KEY)
    assert (model_version, last) == (42, "5eed")
    state = rng.getstate()
    train(model, rng, 300)
    rng.setstate(state)
    train(loaded, rng, 300)
    asked = [instance(rng) for _ in range(50)]
    assert repr(loaded.predict(asked)) == repr(model.predict(asked))


@given(position=st.integers(0), flip=st.integers(1, 255))
def test_any_altered_byte_is_refused(position: int, flip: int) -> None:
    blob = bytearray(resigned(b"anything"))
    blob[position % len(blob)] ^= flip
    with pytest.raises(SnapshotRefused, match="signature does not fit"):
        load(bytes(blob), config_hash="c", key=KEY)


@pytest.mark.parametrize("length", [0, 1, SIGNATURE_BYTES, 100])
def test_a_snapshot_cut_off_is_refused(length: int) -> None:
    blob = dump(build("gaussian_nb", parameters={}, seed=1), model_version=1, config_hash="c", key=KEY)
    with pytest.raises(SnapshotRefused, match="signature does not fit"):
        load(blob[:length], config_hash="c", key=KEY)


def test_another_key_or_config_or_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = dump(build("gaussian_nb", parameters={}, seed=1), model_version=1, config_hash="c", key=KEY)
    with pytest.raises(SnapshotRefused, match="another key"):
        load(blob, config_hash="c", key=KEY[::-1])
    with pytest.raises(SnapshotRefused, match="made with config 'c', this is 'd'"):
        load(blob, config_hash="d", key=KEY)
    monkeypatch.setattr("streamal.learning.snapshot.version", lambda package: f"{package} of tomorrow")
    with pytest.raises(SnapshotRefused, match="this is 'river of tomorrow'"):
        load(blob, config_hash="c", key=KEY)


def test_a_guessable_key_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        dump(build("gaussian_nb", parameters={}, seed=1), model_version=1, config_hash="c", key=b"secret")


class Reduce:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def attacks(victim: Path) -> dict[str, object]:
    touch = f"touch {victim}"
    return {
        "os.system": Reduce(os.system, touch),
        "subprocess": Reduce(subprocess.Popen, ["touch", str(victim)]),
        "eval": Reduce(builtins.eval, f"open({str(victim)!r}, 'w')"),
        "exec": Reduce(builtins.exec, f"open({str(victim)!r}, 'w')"),
        "open": Reduce(builtins.open, str(victim), "w"),
        "import": Reduce(builtins.__import__, "antigravity"),
        "getattr": Reduce(getattr, OnlineModel, "copy"),
        "nested in a list": [1, {"x": (Reduce(os.system, touch),)}],
        "in a model": FactoryModel(Reduce(os.system, touch), task="regression", weighted=False),
        "partial": Reduce(partial, os.system, touch),
        "defaultdict": Reduce(defaultdict, os.system),
        "a function of River": Reduce(softmax, {"a": 1.0}),
        "the unpickler itself": Reduce(AllowListUnpickler, b"", ("os",)),
        "pickle": Reduce(pickle.loads, pickle.dumps(Reduce(os.system, touch))),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_a_malicious_pickle_is_refused_before_it_runs_though_signed(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    payload = pickle.dumps(attacks(victim)[name], 5)
    with pytest.raises(SnapshotRefused, match="is no part of a model"):
        load(resigned(payload), config_hash="c", key=KEY)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("river.base.base", "sys.modules"),
        ("river.base.base", "sys"),
        ("river.datasets.base", "zipfile"),
        ("river.datasets.phishing", "Phishing"),
        ("river.tree.base", "Queue"),
        ("streamal.learning.online", "pickle.loads"),
        ("streamal.learning.online", "Literal"),
        ("streamal.learning.presets", "call_factory"),
        ("streamal.cli", "main"),
        ("riverbed", "Anything"),
        ("builtins", "getattr"),
        ("functools", "reduce"),
    ],
)
def test_names_reached_through_a_models_modules_are_refused(module: str, name: str) -> None:
    payload = b"\x80\x05\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
    with pytest.raises(SnapshotRefused, match="is no part of a model"):
        load(resigned(payload + b"\x93."), config_hash="c", key=KEY)


@pytest.mark.parametrize("payload", [b"", b"\x80\x05", b"not a pickle", pickle.dumps({"no": "model"})])
def test_content_that_is_no_model_is_refused(payload: bytes) -> None:
    with pytest.raises(SnapshotRefused, match=r"cannot be read|must hold a model"):
        load(resigned(payload), config_hash="c", key=KEY)


class Users(LeanGaussianNB):
    """Stands for an estimator of a package that is not River."""


def test_classes_of_a_factory_are_loaded_when_its_package_is_trusted() -> None:
    model = FactoryModel(Users(), task="classification", weighted=False)
    model.learn({"a": 1.0}, "p")
    blob = dump(model, model_version=3, config_hash="c", key=KEY)
    with pytest.raises(SnapshotRefused, match="is no part of a model"):
        load(blob, config_hash="c", key=KEY)
    loaded, model_version, _ = load(blob, config_hash="c", key=KEY, trusted=[__name__])
    assert (loaded.predict([{"a": 1.0}]), model_version) == ([{"p": 1.0}], 3)


def test_a_model_with_a_local_function_cannot_be_dumped() -> None:
    pipeline = compose.FuncTransformer(lambda x: x) | linear_model.LinearRegression()
    with pytest.raises(ModelError, match="must hold no local function"):
        dump(FactoryModel(pipeline, task="regression", weighted=False), model_version=1, config_hash="c", key=KEY)
