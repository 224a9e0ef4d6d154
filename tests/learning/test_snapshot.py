from __future__ import annotations

import copyreg
import pickle
import random
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malicious import EXTENSION, corpus
from river import compose, linear_model, naive_bayes
from specimens import dump

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning import snapshot
from streamal.learning.allowed import ALLOWED, allowed_in
from streamal.learning.estimators import LeanGaussian
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel, OnlineModel
from streamal.learning.presets import PRESETS, build
from streamal.learning.snapshot import LENGTH_BYTES, MAGIC, SIGNATURE_BYTES, load, sign
from streamal.messages import Features, Moment

KEY = b"0123456789abcdef0123456789abcdef"


FACTORY = ALLOWED["gaussian_nb"] | allowed_in(
    FactoryModel(linear_model.LinearRegression(), task="regression", weighted=False), "nothing"
)
"""As wide as a list gets."""


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


def signed(key: bytes = KEY) -> bytes:
    """A snapshot of a fresh model."""
    model = build("gaussian_nb", parameters={}, seed=1)
    return dump(model, version=1, key=key, allowed=ALLOWED["gaussian_nb"])


def resigned(payload: bytes) -> bytes:
    """A snapshot with a true header and signature around any payload."""
    header = signed()
    start = len(MAGIC) + LENGTH_BYTES
    end = start + int.from_bytes(header[len(MAGIC) : start])
    content = header[:end] + payload
    return content + sign(content, KEY)


@pytest.mark.parametrize("kind", PRESETS)
def test_learning_on_from_a_snapshot_equals_learning_without_a_break(kind: str) -> None:
    model = build(kind, parameters={}, seed=5)
    rng = random.Random(1)
    train(model, rng, 300)
    allowed = ALLOWED[kind]
    blob = dump(model, version=42, key=KEY, allowed=allowed, last="5eed")
    loaded, model_version, last = load(blob, config_hash="c", key=KEY, allowed=allowed)
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
        load(bytes(blob), config_hash="c", key=KEY, allowed=FACTORY)


@pytest.mark.parametrize("length", [0, 1, SIGNATURE_BYTES, 100])
def test_a_snapshot_cut_off_is_refused(length: int) -> None:
    blob = signed()
    with pytest.raises(SnapshotRefused, match="signature does not fit"):
        load(blob[:length], config_hash="c", key=KEY, allowed=FACTORY)


def test_another_key_or_config_is_refused() -> None:
    blob = signed()
    with pytest.raises(SnapshotRefused, match="another key"):
        load(blob, config_hash="c", key=KEY[::-1], allowed=FACTORY)
    with pytest.raises(SnapshotRefused, match=r"other settings of \[model\].*go back to those"):
        load(blob, config_hash="d", key=KEY, allowed=FACTORY)


@pytest.mark.parametrize("name", ["River", "streamal", "Python", "format"])
def test_a_snapshot_of_another_version_is_refused_and_both_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = snapshot.expected_header("c")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(snapshot, "expected_header", lambda config: {**here, name: "99.1"})
        blob = signed()
    said = f"made with {name} 99.1, and this is {name} {here[name]}: the next one will fit; to use this one, go back to"
    with pytest.raises(SnapshotRefused, match=re.escape(said)):
        load(blob, config_hash="c", key=KEY, allowed=FACTORY)


def test_a_guessable_key_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        signed(b"secret")


TOUCHING = (
    "os.system",
    "subprocess.check_output",
    "eval",
    "compile, then exec",
    "pathlib",
    "getattr chain",
    "operator.methodcaller",
    "functools.partial",
    "pickle within a pickle",
    "the state of an allowed class",
    "hostile arguments of an allowed class",
    "setstate of another class",
    "protocol 0",
    "the opcode of instances",
    "the opcode of objects",
    "a registered extension",
)
"""Those whose harm is easily shown by loading them; the others are of their kind, or harm otherwise."""


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", TOUCHING)
def test_the_corpus_would_do_harm(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with suppress(Exception):
        pickle.loads(corpus(canary)[name])
    assert canary.exists()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", corpus(Path("x")))
def test_a_malicious_snapshot_is_refused_before_any_of_it_runs(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    signed = resigned(corpus(canary)[name])
    before = {found: dict(vars(found)) for found in (OnlineModel, LeanGaussian)}
    for allowed in (ALLOWED["gaussian_nb"], FACTORY):
        with pytest.raises(SnapshotRefused, match=r"no part of this model|cannot be read|must hold|no pickle|change"):
            load(signed, config_hash="c", key=KEY, allowed=allowed)
        with pytest.raises(SnapshotRefused, match="signature does not fit"):
            load(signed[:-1] + bytes([signed[-1] ^ 1]), config_hash="c", key=KEY, allowed=allowed)
    assert not canary.exists()
    assert before == {found: dict(vars(found)) for found in before}
    assert "antigravity" not in sys.modules


def test_what_a_pickle_does_to_a_class_is_undone(tmp_path: Path) -> None:
    for name, said in (
        ("an attribute of an allowed class", "would change OnlineModel.copy"),
        ("a model, and an attribute of its class", "would change LeanGaussian.update"),
    ):
        with pytest.raises(SnapshotRefused, match=said):
            load(resigned(corpus(tmp_path)[name]), config_hash="c", key=KEY, allowed=ALLOWED["gaussian_nb"])


@pytest.mark.parametrize("payload", [b"", b"\x80\x05", b"not a pickle", pickle.dumps({"no": "model"}, 5)])
def test_content_that_is_no_model_is_refused(payload: bytes) -> None:
    with pytest.raises(SnapshotRefused, match=r"no pickle|must hold a model"):
        load(resigned(payload), config_hash="c", key=KEY, allowed=FACTORY)


class Users(naive_bayes.GaussianNB):
    """Stands for an estimator of a package that is not River."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # River leaves the constructor untyped


def test_a_factorys_model_is_loaded_by_the_list_made_of_the_fresh_one() -> None:
    model = FactoryModel(Users(), task="classification", weighted=False)
    allowed = allowed_in(model, __name__.partition(".")[0])
    model.learn({"a": 1.0}, "p")
    blob = dump(model, version=3, key=KEY, allowed=allowed)
    loaded, model_version, _ = load(blob, config_hash="c", key=KEY, allowed=allowed)
    assert (loaded.predict([{"a": 1.0}]), model_version) == ([{"p": 1.0}], 3)
    with pytest.raises(SnapshotRefused, match="is no part of this model"):
        load(blob, config_hash="c", key=KEY, allowed=ALLOWED["gaussian_nb"])


def test_what_would_not_be_loaded_is_not_dumped() -> None:
    model = FactoryModel(Users(), task="classification", weighted=False)
    with pytest.raises(ModelError, match=f"it holds {__name__}:Users, which is no part of this model"):
        dump(
            model,
            version=3,
            config_hash="c",
            key=KEY,
            allowed=allowed_in(model, "elsewhere") - {f"{__name__}:Users"},
        )


def test_a_model_with_a_local_function_cannot_be_dumped() -> None:
    model = FactoryModel(
        compose.FuncTransformer(lambda x: x) | linear_model.LinearRegression(), task="regression", weighted=False
    )
    assert allowed_in(model, __name__.partition(".")[0]) == frozenset()
    with pytest.raises(ModelError, match="must hold no local function and no bound method"):
        dump(model, version=1, key=KEY, allowed=FACTORY)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"model_version": "1", "last": ""}', b'{"last": 3}']
)
def test_a_signed_header_of_another_form_is_refused(header: bytes) -> None:
    content = MAGIC + len(header).to_bytes(LENGTH_BYTES) + header + pickle.dumps(1, 5)
    with pytest.raises(SnapshotRefused, match="header is not that of a snapshot"):
        load(content + sign(content, KEY), config_hash="c", key=KEY, allowed=FACTORY)
