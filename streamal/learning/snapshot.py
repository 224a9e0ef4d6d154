"""A model as signed bytes: a cache that spares folding the log from its beginning, never the truth.

River has no other form than pickle, and whoever can write a pickle that is loaded can run code. So the signature
(HMAC-SHA256 over everything) is checked before anything is parsed, and behind it the unpickler lets through only
classes of River and of the model's own modules, and a short list of plain containers: no function that does anything
but arithmetic.

Whatever does not match (signature, versions, config) is refused with its reason, and the caller folds from the log.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import pickle
import platform
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning.model import Model
from streamal.learning.online import PROTOCOL, FactoryModel, OnlineModel

FORMAT: Final = "streamal-snapshot/2"
MAGIC: Final = b"SALS"
SIGNATURE_BYTES: Final = hashlib.sha256().digest_size
LENGTH_BYTES: Final = 4
MIN_KEY: Final = 16
"""Bytes; a shorter key could be guessed."""

PLAIN: Final = frozenset(
    {
        ("builtins", "float"),
        ("builtins", "int"),
        ("builtins", "set"),
        ("builtins", "frozenset"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("functools", "partial"),
        ("random", "Random"),
        # Functions of River that its estimators hold a reference to.
        ("river.naive_bayes.gaussian", "GaussianNB._make_gaussian"),
        ("river._river_rust.vectordict", "euclidean_distance_tuple"),
        ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_univariate"),
    }
)
PACKAGES: Final = (
    "river",
    "streamal.learning.encoding",
    "streamal.learning.estimators",
    "streamal.learning.online",
    "streamal.learning.scaling",
)
WITH_FILES: Final = ("river.datasets", "river.stream", "river.evaluate", "river.checks")
"""Parts of River that read, download or run things, and are no part of any model."""


class Snapshot(NamedTuple):
    """A model, its version, and the fingerprint of the record of `outcomes` that it folded last."""

    model: Model
    version: int
    last: str


def dump(model: Model, *, model_version: int, config_hash: str, key: bytes, last: str = "") -> bytes:
    """Return the model as signed bytes: magic, length of the header, header (JSON), pickle, signature.

    `key` is a secret of 16 bytes or more; `config_hash` stands for every setting the model depends on,
    `last` for the record that was folded last.

    Raises:
        ModelError: the model holds something that cannot be pickled, such as a lambda in a factory's pipeline.
    """
    header = json.dumps({**expected_header(config_hash), "model_version": model_version, "last": last}).encode()
    try:
        payload = pickle.dumps(model, PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        message = (
            f"the model cannot be written as a snapshot: {error}; a factory's pipeline must hold no local function"
        )
        raise ModelError(message) from error
    content = b"".join([MAGIC, len(header).to_bytes(LENGTH_BYTES), header, payload])
    return content + sign(content, key)


def load(blob: bytes, *, config_hash: str, key: bytes, trusted: Sequence[str] = ()) -> Snapshot:
    """Return what was dumped; `trusted` names further packages whose classes may be loaded, for a factory's models.

    Raises:
        SnapshotRefused: unsigned, altered, cut off, of other versions or another config, or holding what is
            no part of a model.
    """
    content, signature = blob[:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]
    if not hmac.compare_digest(sign(content, key), signature) or not content.startswith(MAGIC):
        message = "the snapshot's signature does not fit: it was altered, cut off, or signed with another key"
        raise SnapshotRefused(message)
    start = len(MAGIC) + LENGTH_BYTES
    end = start + int.from_bytes(content[len(MAGIC) : start])
    header = json.loads(content[start:end])
    check_header(header, expected_header(config_hash))
    return Snapshot(unpickle(content[end:], trusted), header["model_version"], header["last"])


def sign(content: bytes, key: bytes) -> bytes:
    """Return the signature of the content.

    >>> sign(b"content", b"0123456789abcdef").hex()[:8]
    '44b6d57b'
    """
    if len(key) < MIN_KEY:
        message = f"a snapshot key must have at least {MIN_KEY} bytes, got {len(key)}; make one from 32 random bytes"
        raise ConfigError(message)
    return hmac.digest(key, content, "sha256")


def expected_header(config_hash: str) -> dict[str, str]:
    """Return what a snapshot of this very process would carry in its header."""
    return {
        "format": FORMAT,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "river": version("river"),
        "streamal": version("streamal"),
        "config": config_hash,
    }


def check_header(found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Refuse a header that differs.

    >>> check_header({"river": "0.26.1"}, {"river": "0.27.0"})
    Traceback (most recent call last):
    ...
    streamal.errors.SnapshotRefused: the snapshot was made with river '0.26.1', this is '0.27.0'; fold from the log
    """
    for name, value in expected.items():
        if found.get(name) != value:
            message = f"the snapshot was made with {name} {found.get(name)!r}, this is {value!r}; fold from the log"
            raise SnapshotRefused(message)


def unpickle(payload: bytes, trusted: Sequence[str]) -> Model:
    """Load a model, and nothing that is not part of one."""
    try:
        model = AllowListUnpickler(payload, trusted).load()
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        message = f"the snapshot's content cannot be read: {type(error).__name__}: {error}"
        raise SnapshotRefused(message) from error
    if not isinstance(model, OnlineModel | FactoryModel):
        message = f"the snapshot must hold a model, it holds {type(model).__name__}"
        raise SnapshotRefused(message)
    return model


class AllowListUnpickler(pickle.Unpickler):
    """Finds the classes of models; anything else is refused before it can be called."""

    def __init__(self, payload: bytes, trusted: Sequence[str]) -> None:
        super().__init__(io.BytesIO(payload))
        self._packages = (*PACKAGES, *trusted)

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a class or one of the listed functions."""
        if (module_name, global_name) in PLAIN:
            return super().find_class(module_name, global_name)
        if within(module_name, self._packages) and not within(module_name, WITH_FILES) and "." not in global_name:
            found = getattr(import_module(module_name), global_name)
            if isinstance(found, type) and within(found.__module__, self._packages):
                return found
        message = f"the snapshot refers to {module_name}.{global_name}, which is no part of a model"
        raise SnapshotRefused(message)


def within(module_name: str, packages: Sequence[str]) -> bool:
    """Say whether a module is one of these packages or inside one.

    >>> within("river.tree", ["river"]), within("riverbed", ["river"])
    (True, False)
    """
    return any(module_name == package or module_name.startswith(f"{package}.") for package in packages)
