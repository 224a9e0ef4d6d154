"""A model as signed bytes: a cache that spares folding the log from its beginning, never the truth.

River has no other form than pickle, and whoever can write a pickle that is loaded can run code. So the signature
(HMAC-SHA256 over everything) is checked before anything is parsed. Behind it, for whoever has the key, stand three more
walls: only the opcodes that this process would write, only the globals on the model's own list
(`streamal.learning.allowed`), and no class left changed. The list is checked when a model is written, too, so that what
was saved can be loaded.

Whatever does not match (signature, versions, config) is refused with its reason, and the caller folds from the log.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import pickle
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final, NamedTuple

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning.allowed import Allowed
from streamal.learning.drift import WatchedModel
from streamal.learning.model import Model
from streamal.learning.online import PROTOCOL, FactoryModel, OnlineModel

FORMAT: Final = "streamal-snapshot/3"
MAGIC: Final = b"SALS"
SIGNATURE_BYTES: Final = hashlib.sha256().digest_size
LENGTH_BYTES: Final = 4
MIN_KEY: Final = 16
"""Bytes; a shorter key could be guessed."""

FIXED: Final = re.compile(
    rb"(?:[()01NRabestu}\]\x81\x85-\x89\x8f-\x94]|[Kh].|M..|[Jj].{4}|[G\x95].{8}|\x80\x05)++", re.DOTALL
)
"""A stretch of opcodes of protocol 5 with arguments of fixed sizes. Those of older protocols are not among them, nor
are persistent ids, registered extensions, buffers out of band, and memo entries at a place of the writer's choice.
"""
SIZED: Final[Mapping[bytes, int]] = {
    **dict.fromkeys((b"\x8a", b"\x8c", b"C"), 1),
    **dict.fromkeys((b"\x8b", b"B", b"X"), 4),
    **dict.fromkeys((b"\x8d", b"\x8e", b"\x96"), 8),
}
"""Opcodes of long integers, strings and bytes, with the width of the length that follows them."""
STOP: Final = b"."
ABSENT: Final = object()


class Snapshot(NamedTuple):
    """A model, its version, and the fingerprint of the record of `outcomes` that it folded last."""

    model: Model
    version: int
    last: str


class Verified(NamedTuple):
    """What a signed snapshot says of itself, and the model in it, not parsed yet."""

    version: int
    last: str
    payload: memoryview


def write(model: Model, allowed: Allowed) -> bytes:
    """Return a model as a pickle that names nothing but what is allowed.

    Raises:
        ModelError: the model holds something that cannot be pickled, such as a lambda in a factory's pipeline, or that
            would not be let through when it is read.
    """
    payload = io.BytesIO()
    try:
        AllowListPickler(payload, allowed).dump(model)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        message = (
            f"the model cannot be written as a snapshot: {error}; a factory's pipeline must hold no local function "
            "and no bound method, and classes of River and of its own package only"
        )
        raise ModelError(message) from error
    return payload.getvalue()


def seal(payload: bytes, *, version: int, last: str, config_hash: str, key: bytes) -> bytes:
    """Return a written model as a snapshot: magic, length of the header, header (JSON), pickle, signature.

    `key` is a secret of 16 bytes or more; `config_hash` stands for every setting the model depends on, `last` for the
    record that was folded last.
    """
    header = json.dumps({**expected_header(config_hash), "model_version": version, "last": last}).encode()
    content = b"".join([MAGIC, len(header).to_bytes(LENGTH_BYTES), header, payload])
    return content + sign(content, key)


def verify(blob: bytes, *, config_hash: str, key: bytes) -> Verified:
    """Return what a snapshot holds, once it is known who wrote it and with what.

    Raises:
        SnapshotRefused: unsigned, altered, cut off, of other versions or another config.
    """
    content, signature = memoryview(blob)[:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]
    if not hmac.compare_digest(sign(content, key), signature) or bytes(content[: len(MAGIC)]) != MAGIC:
        message = "the signature does not fit: it was altered, cut off, or signed with another key (snapshot.key_file)"
        raise SnapshotRefused(message)
    start = len(MAGIC) + LENGTH_BYTES
    end = start + int.from_bytes(content[len(MAGIC) : start])
    header = read_header(bytes(content[start:end]))
    check_header(header, expected_header(config_hash))
    return Verified(header["model_version"], header["last"], content[end:])


def load(blob: bytes, *, config_hash: str, key: bytes, allowed: Allowed) -> Snapshot:
    """Return what was written and sealed; `allowed` lists the globals it may name.

    Raises:
        SnapshotRefused: as `verify`, or it holds what is no part of a model.
    """
    found = verify(blob, config_hash=config_hash, key=key)
    return Snapshot(read(found.payload, allowed), found.version, found.last)


def sign(content: bytes | memoryview, key: bytes) -> bytes:
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
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "River": version("river"),
        "streamal": version("streamal"),
        "config": config_hash,
    }


def read_header(content: bytes) -> dict[str, Any]:
    """Return the header, which must be a JSON object with the version and the last record of the fold."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not (isinstance(found, dict) and type(found.get("model_version")) is int and type(found.get("last")) is str):
        message = "its header is not that of a snapshot: something else was signed with this key"
        raise SnapshotRefused(message)
    return found


def check_header(found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Refuse a header that differs.

    >>> check_header({"River": "0.26.1"}, {"River": "0.27.0"})
    Traceback (most recent call last):
    ...
    streamal.errors.SnapshotRefused: it was made with River 0.26.1, and this is River 0.27.0: the next one will fit; \
to use this one, go back to River 0.26.1
    """
    for name, value in expected.items():
        if (other := found.get(name)) == value:
            continue
        if name == "config":
            message = (
                "it was made for other settings of [model], [drift], strategy.seed or topics.outcomes: the next one "
                "will fit; to use this one, go back to those"
            )
        else:
            message = (
                f"it was made with {name} {other}, and this is {name} {value}: the next one will fit; to use this one, "
                f"go back to {name} {other}"
            )
        raise SnapshotRefused(message)


def read(payload: bytes | memoryview, allowed: Allowed) -> Model:
    """Return the model of a pickle.

    Raises:
        SnapshotRefused: it holds anything that is no part of one.
    """
    payload = bytes(payload)
    check_opcodes(payload)
    unpickler = AllowListUnpickler(payload, allowed)
    try:
        model = unpickler.load()
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        message = f"its content cannot be read: {type(error).__name__}: {error}"
        raise SnapshotRefused(message) from error
    except BaseException as panic:
        # River's parts in Rust panic at a state that is cut, and a panic is no `Exception`.
        if type(panic).__module__ == "pyo3_runtime":
            message = "its content cannot be read: a part of River gave up on it"
            raise SnapshotRefused(message) from None
        raise
    finally:
        changed = unpickler.restore_classes()
    if changed:
        message = f"it would change {', '.join(changed)}, and not only its instances"
        raise SnapshotRefused(message)
    if not isinstance(model, OnlineModel | FactoryModel | WatchedModel):
        message = f"it must hold a model, it holds {type(model).__name__}"
        raise SnapshotRefused(message)
    return model


def check_opcodes(payload: bytes) -> None:
    """Refuse a pickle with an opcode that no snapshot is written with, before any of it is carried out.

    >>> check_opcodes(pickle.dumps([1, "two", 3.0], PROTOCOL))
    >>> check_opcodes(b"(S'true'ios system.")
    Traceback (most recent call last):
    ...
    streamal.errors.SnapshotRefused: its content is no pickle of a model: at byte 1 of 19
    """
    at = 0
    while (opcode := payload[at : at + 1]) != STOP:
        if stretch := FIXED.match(payload, at):
            at = stretch.end()
        elif width := SIZED.get(opcode):
            at = min(at + 1 + width + int.from_bytes(payload[at + 1 : at + 1 + width], "little"), len(payload))
        else:
            message = f"its content is no pickle of a model: at byte {at} of {len(payload)}"
            raise SnapshotRefused(message)


class AllowListPickler(pickle.Pickler):
    """Writes a model, and refuses to name what its unpickler would not find."""

    def __init__(self, file: io.BytesIO, allowed: Allowed) -> None:
        super().__init__(file, PROTOCOL)
        self._allowed = allowed

    def reducer_override(self, found: Any) -> Any:
        """Look at each class and function that is named; everything is written as usual."""
        if isinstance(found, type | FunctionType | BuiltinFunctionType):
            name = f"{found.__module__}:{found.__qualname__}"
            if name not in self._allowed:
                message = f"it holds {name}, which is no part of this model"
                raise pickle.PicklingError(message)
        return NotImplemented


class AllowListUnpickler(pickle.Unpickler):
    """Finds what a model is made of; anything else is refused before it can be called."""

    def __init__(self, payload: bytes, allowed: Allowed) -> None:
        super().__init__(io.BytesIO(payload))
        self._allowed = allowed
        self._classes: dict[type, dict[str, Any]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a class or function of the list."""
        if f"{module_name}:{global_name}" not in self._allowed:
            message = f"it refers to {module_name}.{global_name}, which is no part of this model"
            raise SnapshotRefused(message)
        found = super().find_class(module_name, global_name)
        if isinstance(found, type):
            self._classes.setdefault(found, dict(vars(found)))
        return found

    def restore_classes(self) -> list[str]:
        """Undo what was done to the classes themselves, since a pickle can set attributes of all it names."""
        changed = []
        for found, before in self._classes.items():
            now = dict(vars(found))
            for name in now.keys() | before.keys():
                if now.get(name, ABSENT) is before.get(name, ABSENT):
                    continue
                changed.append(f"{found.__qualname__}.{name}")
                if name in before:
                    setattr(found, name, before[name])
                else:
                    delattr(found, name)
        return changed
