"""The border: from the bytes that others wrote to instances and answers, letting nothing harmful through.

One NaN makes a linear model predict NaN for ever, and one label of another type breaks a tree; so every record is
checked in full before anything else sees it. A refused one raises `BadRecord` with a reason, becomes a dead letter,
and changes nothing: it does not count as seen, and the model never hears of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, get_args

import orjson

from streamal.errors import BadRecord
from streamal.messages import (
    MAX_BYTES,
    MAX_FEATURES,
    MAX_INTEGER,
    MAX_NAME,
    MAX_NUMBER,
    REQUEST_ID,
    SCALARS,
    SCHEMA,
    Answer,
    AnswerKind,
    Features,
    Instance,
    Label,
    Received,
    Task,
    Value,
    canonical_label,
    parse_request_id,
)
from streamal.transport.log import Record

NAME: Final = re.compile(rf"[\w .:/-]{{1,{MAX_NAME}}}")
REQUEST_KEY: Final = re.compile(REQUEST_ID.pattern.encode())
KNOWN_NAMES: Final = 10_000
MAX_ID: Final = 256
MAX_REVISION: Final = 1_000_000
MAX_DEPTH: Final = 100
"""Levels of a display; the writer of JSON refuses at 254, and the label request around it takes some."""
FLOATS: Final = frozenset({float})
KINDS: Final[tuple[AnswerKind, ...]] = get_args(AnswerKind)
TYPES: Final[Mapping[str, tuple[type, ...]]] = {"number": (int, float), "string": (str,), "boolean": (bool,)}
CALLED: Final[Mapping[type, str]] = {
    str: "text",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    list: "a list",
    dict: "an object",
    type(None): "nothing",
}
"""What a value of JSON is called."""
MISSING: Final = object()


def received(record: Record) -> Received:
    """Return a record free of its client's types."""
    return Received(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers)
    )


def parse(record: Record, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object of a record's value, after checking its size, schema and form.

    Raises:
        BadRecord: with the reason.
    """
    value = record.value
    if value is None:
        raise BadRecord("tombstone", "the record has no value")
    if len(value) > max_bytes:
        raise BadRecord("too_large", f"{len(value)} bytes; at most {max_bytes} are read (instance.max_bytes)")
    for name, content in record.headers:
        if name == "schema" and content != SCHEMA:
            raise BadRecord("schema_version", f"the schema header must be {SCHEMA.decode()} or absent")
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        _diagnose(value, error)
    if type(found) is not dict:
        raise BadRecord("not_an_object", "the value must be a JSON object")
    return found


def _diagnose(value: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    """Say why JSON was refused: the strict parser names some causes, the lenient one finds the rest."""
    if "infinity" in error.msg:
        raise BadRecord("non_finite", "a number is too large for a double") from None
    if "depth" in error.msg:
        raise BadRecord("too_deep", "objects or lists are nested too deeply") from None

    def refuse(constant: str) -> NoReturn:
        raise BadRecord("non_finite", f"{constant} is not JSON; leave the feature out or send null")

    try:
        json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError):
        pass
    raise BadRecord("decode_error", f"the value is not UTF-8 JSON (at byte {error.pos})") from None


@dataclass(frozen=True, slots=True)
class InstanceFormat:
    """Where in a JSON object the parts of an instance stand; names may be dotted paths.

    `features = ""` takes the whole object without the other named fields. `types` declares features as `number`,
    `string` or `boolean`; a declared one of another type is refused. `cost` is a number, or names the feature that
    holds what the label of this instance costs. `classes` lists the classes a label may have, empty for any.
    """

    id: str = "id"
    features: str = "features"
    display: str = "display"
    label: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    cost: float | str = 1.0
    max_bytes: int = MAX_BYTES
    max_features: int = MAX_FEATURES
    task: Task = "classification"
    classes: Sequence[str] = ()


class InstanceDecoder:
    """Turns records into instances."""

    def __init__(self, form: InstanceFormat) -> None:
        self._form = form
        self._taken = outermost(form.id, form.features, form.display, form.label)
        self._find_id, self._find_features, self._find_display, self._find_label = (
            finder(path) for path in (form.id, form.features, form.display, form.label)
        )
        self._declared = {name: TYPES[kind] for name, kind in form.types.items()}
        self._names: set[str] = set()
        self._classes = frozenset(form.classes)

    def __call__(self, record: Record) -> Instance:
        """Decode one record.

        Raises:
            BadRecord: with the reason.
        """
        found = parse(record, self._form.max_bytes)
        features = self._features(found)
        self._check(features)
        cost = self._form.cost
        return Instance(  # by position: by name it takes twice as long
            record.offset,
            record.timestamp / 1000.0,
            self._id(found, record),
            features,
            self._display(found) if self._find_display else None,
            self._label(found) if self._find_label else None,
            self._cost(features, cost) if isinstance(cost, str) else cost,
        )

    def _features(self, found: dict[str, Any]) -> Features:
        if self._find_features is None:
            return {name: value for name, value in found.items() if name not in self._taken}
        features = self._find_features(found)
        if type(features) is not dict:
            raise BadRecord("missing_features", f"the field '{self._form.features}' must be an object of features")
        return features

    def _id(self, found: dict[str, Any], record: Record) -> str:
        identity = self._find_id(found) if self._find_id else None
        if type(identity) is str and len(identity) <= MAX_ID:
            return identity
        if identity is None:
            return f"{record.partition}-{record.offset}"
        if type(identity) is not int or len(str(identity)) > MAX_ID:
            came = "a longer one" if type(identity) in (str, int) else CALLED[type(identity)]
            message = f"'{self._form.id}' must be a string or an integer of at most {MAX_ID} characters, came {came}"
            raise BadRecord("bad_id", message)
        return str(identity)

    def _display(self, found: dict[str, Any]) -> Any:
        display = self._find_display(found) if self._find_display else None
        if display is not None and not shallow(display, MAX_DEPTH):
            raise BadRecord("too_deep", f"'{self._form.display}' is nested deeper than {MAX_DEPTH} levels")
        return display

    def _label(self, found: dict[str, Any]) -> Label | None:
        label = self._find_label(found) if self._find_label else None
        return None if label is None else _checked(label, self._form.task, self._classes)

    def _check(self, features: Features) -> None:
        if len(features) > self._form.max_features:
            message = f"{len(features)} features; at most {self._form.max_features} are taken (instance.max_features)"
            raise BadRecord("too_many_features", message)
        if not self._names.issuperset(features):
            self._learn_names(features)
        values = features.values()
        # One call in C for the usual instance: if the root of the squares is within the bound, each number is.
        if not (FLOATS.issuperset(map(type, values)) and math.hypot(*values) <= MAX_NUMBER):  # type: ignore[arg-type]
            if not SCALARS.issuperset(map(type, values)):
                name, value = next(item for item in features.items() if type(item[1]) not in SCALARS)
                message = f"'{name}' must be a number, a string, a boolean or null, came {CALLED[type(value)]}"
                raise BadRecord("bad_feature_type", message)
            _check_numbers(features)
        if self._declared:
            self._check_declared(features)

    def _check_declared(self, features: Features) -> None:
        for name, expected in self._declared.items():
            value = features.get(name)
            if value is not None and (type(value) not in expected):
                came = CALLED[type(value)]
                message = f"'{name}' is declared as {self._form.types[name]}, came {came} (instance.types)"
                raise BadRecord("type_mismatch", message)

    def _learn_names(self, features: Features) -> None:
        for name in features:
            if not NAME.fullmatch(name):
                message = f"a feature name must have 1 to {MAX_NAME} letters, digits, spaces or . _ : / -"
                raise BadRecord("bad_feature_name", message)
        if len(self._names) < KNOWN_NAMES:
            self._names.update(features)

    def _cost(self, features: Features, name: str) -> float:
        found = features.get(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or found < 0:
            raise BadRecord("bad_cost", f"the feature '{name}' must hold the label's cost, a number from 0 on")
        return float(found)


def outermost(*paths: str) -> frozenset[str]:
    """Return the keys at which dotted paths begin, those that are no path left out.

    >>> sorted(outermost("tx.id", "tx.text", "values", ""))
    ['tx', 'values']
    """
    return frozenset(path.split(".")[0] for path in paths if path)


def finder(path: str) -> Callable[[Any], Any] | None:
    """Return what finds a dotted path in an object, None where there is nothing; None for no path."""
    first, *rest = path.split(".")
    if not first:
        return None
    if not rest:
        return lambda found: found.get(first)

    def find(found: Any) -> Any:
        for step in (first, *rest):
            if type(found) is not dict:
                return None
            found = found.get(step)
        return found

    return find


def shallow(value: Any, depth: int) -> bool:
    """Say whether objects and lists are nested within so many levels.

    >>> shallow({"a": [1]}, 2), shallow({"a": [[]]}, 2)
    (True, False)
    """
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return True
    return depth > 0 and all(shallow(inner, depth - 1) for inner in value)


def _check_numbers(features: Features) -> None:
    for value in features.values():
        if type(value) is int and abs(value) > MAX_INTEGER:
            message = f"'{_name(features, value)}' is an integer beyond 2**53, not exact; send a string or a float"
            raise BadRecord("out_of_range", message)
        if type(value) is float and not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise BadRecord("out_of_range", f"'{_name(features, value)}' lies outside +-{MAX_NUMBER:g}")


def _name(features: Features, value: Value) -> str:
    return next(name for name, found in features.items() if found is value)


def _kind(found: object) -> AnswerKind:
    for kind in KINDS:
        if found == kind:
            return kind
    raise BadRecord("bad_kind", f"kind must be one of {', '.join(KINDS)}")


def _checked(found: object, task: Task, classes: Set[str]) -> Label:
    """Return a label in its canonical form, a class being one of `classes` unless there are none."""
    label = canonical_label(found, task)
    if classes and isinstance(label, str) and label not in classes:
        raise BadRecord("unknown_class", "the label is none of model.classes")
    return label


class AnswerDecoder:
    """Turns records into answers; `classes` lists the classes allowed, empty for any."""

    def __init__(self, task: Task, classes: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> None:
        self._task = task
        self._classes = frozenset(classes)
        self._max_bytes = max_bytes

    def __call__(self, record: Record) -> Answer:
        """Decode one record; a tombstone whose key is a request's id cancels that request.

        Raises:
            BadRecord: with the reason.
        """
        if record.value is None and record.key is not None and REQUEST_KEY.fullmatch(record.key):
            return Answer(record.key.decode(), "cancel", None, None, received(record))
        found = parse(record, self._max_bytes)
        request_id = found.get("request_id", MISSING)
        if request_id is MISSING:
            raise BadRecord("missing_request_id", "an answer names the request_id of its label request")
        if type(request_id) is not str:
            raise BadRecord("bad_request_id", "a request_id is a string, as the label request carries it")
        parse_request_id(request_id)
        kind = _kind(found.get("kind", "label"))
        annotator = found.get("annotator")
        if annotator is not None and (type(annotator) is not str or len(annotator) > MAX_ID):
            raise BadRecord("bad_annotator", f"annotator must be a string of at most {MAX_ID} characters")
        revision = found.get("revision", 0)
        if type(revision) is not int or not 0 <= revision <= MAX_REVISION:
            raise BadRecord("bad_revision", f"revision must be a whole number from 0 to {MAX_REVISION}")
        label = self._label(found) if kind == "label" else None
        return Answer(request_id, kind, label, annotator, received(record), revision)

    def _label(self, found: dict[str, Any]) -> Label:
        if found.get("label") is None:
            raise BadRecord("missing_label", "an answer of kind label carries a label")
        return _checked(found["label"], self._task, self._classes)
