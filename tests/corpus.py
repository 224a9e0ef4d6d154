"""Bad input: what others may write to `instances` and `answers`, and the reason each is refused with.

The decoders' tests go through it record by record, and a story sends it through a whole worker. All of it supposes the
`INSTANCE` format, the classes `CLASSES`, and the default bounds. Values that must never be quoted contain `SECRET`.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal, NamedTuple

SECRET: Final = "s3cr3t"
CLASSES: Final = ("ok", "fraud")
INSTANCE: Final[dict[str, Any]] = {
    "label": "truth",
    "types": {"amount": "number", "city": "string", "night": "boolean"},
    "cost": "price",
}
"""Keyword arguments of `InstanceFormat`, and keys of the config's section `[instance]`."""

Header = tuple[str, bytes | None]


class BadInput(NamedTuple):
    """A record that is refused whatever came before it."""

    name: str
    topic: Literal["instances", "answers"]
    reason: str
    value: bytes | None
    headers: tuple[Header, ...] = ()
    key: bytes | None = b"key"


class BadAnswer(NamedTuple):
    """An answer that is refused because of what became of its request before.

    To set it up: take a request that waits, send `before` (or, if `expire`, let its time run out), await the outcome,
    then send `answer`. Both are answers without their `request_id`.
    """

    name: str
    reason: str
    answer: dict[str, Any]
    before: dict[str, Any] | None = None
    expire: bool = False


def instance(**parts: Any) -> bytes:
    """Return a valid instance; `parts` replace or, as None, remove its fields, `features` being merged."""
    features = {"amount": 12.5, "price": 1.0, "note": SECRET} | parts.pop("features", {})
    fields = {"id": SECRET, "features": features} | parts
    return json.dumps(fields).encode()


def answer(request_id: str = "0-3", **parts: Any) -> bytes:
    """Return a valid answer; `parts` replace or add fields."""
    return json.dumps({"request_id": request_id, "label": "ok", "annotator": SECRET} | parts).encode()


def without(value: bytes, *names: str) -> bytes:
    """Return an object without some of its fields."""
    found = {name: part for name, part in json.loads(value).items() if name not in names}
    return json.dumps(found).encode()


def spliced(feature: str) -> bytes:
    """Return an instance with raw JSON as the value of one feature."""
    return b'{"features": {"price": 1.0, "x": ' + feature.encode() + b"}}"


DEEP: Final = b"[" * 2_000 + b"]" * 2_000
LARGE: Final = b'{"features": {"note": "' + b"x" * 300_000 + b'"}}'
NESTED: Final[Any] = json.loads("[" * 400 + "]" * 400)

BROKEN: Final[tuple[tuple[str, str, bytes | None], ...]] = (
    ("tombstone", "tombstone", None),
    ("empty", "decode_error", b""),
    ("blank", "decode_error", b"  \n"),
    ("plain text", "decode_error", SECRET.encode()),
    ("cut off", "decode_error", b'{"request_id": "0-3", "features": {"amount"'),
    ("trailing comma", "decode_error", b'{"features": {"amount": 1,}}'),
    ("single quotes", "decode_error", b"{'features': {}}"),
    ("two objects", "decode_error", b"{}{}"),
    ("not UTF-8", "decode_error", b'{"features": {"note": "\xff\xfe"}}'),
    ("UTF-16", "decode_error", '{"features": {}}'.encode("utf-16")),
    ("byte order mark", "decode_error", b'\xef\xbb\xbf{"features": {}}'),
    ("lone surrogate", "decode_error", b'{"features": {"note": "\\ud800"}}'),
    ("control character", "decode_error", b'{"features": {"note": "a\x00b"}}'),
    ("compressed", "decode_error", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    ("too deep", "too_deep", b'{"features": ' + DEEP + b"}"),
    ("too large", "too_large", LARGE),
    ("a list", "not_an_object", b"[]"),
    ("a number", "not_an_object", b"42"),
    ("a string", "not_an_object", json.dumps(SECRET).encode()),
    ("null", "not_an_object", b"null"),
)
"""What both topics refuse: name, reason, value."""

INSTANCES: Final = (
    BadInput("another schema", "instances", "schema_version", instance(), (("schema", b"streamal/2"),)),
    BadInput("null schema", "instances", "schema_version", instance(), (("schema", None),)),
    BadInput("NaN", "instances", "non_finite", spliced("NaN")),
    BadInput("Infinity", "instances", "non_finite", spliced("Infinity")),
    BadInput("-Infinity", "instances", "non_finite", spliced("-Infinity")),
    BadInput("overflowing float", "instances", "non_finite", spliced("1e999")),
    BadInput("5,000 digits", "instances", "non_finite", spliced("9" * 5_000)),
    BadInput("square overflows", "instances", "out_of_range", spliced("1e101")),
    BadInput("negative square overflows", "instances", "out_of_range", spliced("-1.7e308")),
    BadInput("out of range among others", "instances", "out_of_range", instance(features={"x": 1e101})),
    BadInput("inexact integer", "instances", "out_of_range", instance(features={"x": 2**53 + 1})),
    BadInput("inexact negative integer", "instances", "out_of_range", instance(features={"x": -(2**63)})),
    BadInput("no features", "instances", "missing_features", without(instance(), "features")),
    BadInput("features null", "instances", "missing_features", b'{"features": null}'),
    BadInput("features a list", "instances", "missing_features", b'{"features": [1.0, 2.0]}'),
    BadInput("features a string", "instances", "missing_features", b'{"features": "s3cr3t"}'),
    BadInput("feature a list", "instances", "bad_feature_type", instance(features={"x": [1.0]})),
    BadInput("feature an object", "instances", "bad_feature_type", instance(features={"x": {"y": SECRET}})),
    BadInput("too many", "instances", "too_many_features", instance(features={f"x{i}": 0.0 for i in range(1_001)})),
    BadInput("empty name", "instances", "bad_feature_name", instance(features={"": 1.0})),
    BadInput("long name", "instances", "bad_feature_name", instance(features={SECRET * 22: 1.0})),
    BadInput("line break in name", "instances", "bad_feature_name", instance(features={f"{SECRET}\n": 1.0})),
    BadInput("NUL in name", "instances", "bad_feature_name", instance(features={f"{SECRET}\0": 1.0})),
    BadInput("markup in name", "instances", "bad_feature_name", instance(features={f"<b>{SECRET}": 1.0})),
    BadInput("string for number", "instances", "type_mismatch", instance(features={"amount": SECRET})),
    BadInput("boolean for number", "instances", "type_mismatch", instance(features={"amount": True})),
    BadInput("number for string", "instances", "type_mismatch", instance(features={"city": 7})),
    BadInput("number for boolean", "instances", "type_mismatch", instance(features={"night": 1})),
    BadInput("id a float", "instances", "bad_id", instance(id=1.5)),
    BadInput("id a boolean", "instances", "bad_id", instance(id=True)),
    BadInput("id an object", "instances", "bad_id", instance(id={"x": SECRET})),
    BadInput("long id", "instances", "bad_id", instance(id=SECRET * 50)),
    BadInput("label a list", "instances", "bad_label", instance(truth=[SECRET])),
    BadInput("label empty", "instances", "bad_label", instance(truth="")),
    BadInput("label of no class", "instances", "unknown_class", instance(truth=SECRET)),
    BadInput("no cost", "instances", "bad_cost", instance(features={"price": None})),
    BadInput("negative cost", "instances", "bad_cost", instance(features={"price": -0.5})),
    BadInput("cost a string", "instances", "bad_cost", instance(features={"price": SECRET})),
    BadInput("cost a boolean", "instances", "bad_cost", instance(features={"price": True})),
    BadInput("display too deep to be asked about", "instances", "too_deep", instance(display=NESTED)),
)

ANSWERS: Final = (
    BadInput("another schema", "answers", "schema_version", answer(), (("schema", b"streamal/9"),)),
    BadInput("label NaN", "answers", "non_finite", b'{"request_id": "0-3", "label": NaN}'),
    BadInput("no request id", "answers", "missing_request_id", without(answer(), "request_id")),
    BadInput("request id a number", "answers", "bad_request_id", answer(request_id=3)),  # type: ignore[arg-type]
    BadInput("request id null", "answers", "bad_request_id", b'{"request_id": null, "label": "ok"}'),
    BadInput("request id empty", "answers", "bad_request_id", answer("")),
    BadInput("request id a word", "answers", "bad_request_id", answer(SECRET)),
    BadInput("request id without offset", "answers", "bad_request_id", answer("0-")),
    BadInput("request id negative", "answers", "bad_request_id", answer("0--3")),
    BadInput("request id with a rest", "answers", "bad_request_id", answer("0-3-1")),
    BadInput("request id with a line break", "answers", "bad_request_id", answer("0-3\n")),
    BadInput("request id huge", "answers", "bad_request_id", answer("0-" + "9" * 30)),
    BadInput("unknown kind", "answers", "bad_kind", answer(kind=SECRET)),
    BadInput("kind null", "answers", "bad_kind", answer(kind=None)),
    BadInput("kind a list", "answers", "bad_kind", answer(kind=["label"])),
    BadInput("annotator a number", "answers", "bad_annotator", answer(annotator=7)),
    BadInput("long annotator", "answers", "bad_annotator", answer(annotator=SECRET * 50)),
    BadInput("revision a text", "answers", "bad_revision", answer(revision="2")),
    BadInput("revision negative", "answers", "bad_revision", answer(revision=-1)),
    BadInput("revision true", "answers", "bad_revision", answer(revision=True)),
    BadInput("no label", "answers", "missing_label", without(answer(), "label")),
    BadInput("label null", "answers", "missing_label", answer(label=None)),
    BadInput("label a list", "answers", "bad_label", answer(label=[SECRET])),
    BadInput("label an object", "answers", "bad_label", answer(label={"class": SECRET})),
    BadInput("label empty", "answers", "bad_label", answer(label="")),
    BadInput("label blank", "answers", "bad_label", answer(label=" \t")),
    BadInput("label long", "answers", "bad_label", answer(label=SECRET * 50)),
    BadInput("label of no class", "answers", "unknown_class", answer(label=SECRET)),
    BadInput("label of another case", "answers", "unknown_class", answer(label="OK")),
)

BAD_INPUT: Final = (
    *(BadInput(name, "instances", reason, value) for name, reason, value in BROKEN),
    *INSTANCES,
    *(BadInput(name, "answers", reason, value) for name, reason, value in BROKEN),
    *ANSWERS,
)

UNMATCHED: Final = (
    BadInput("a request that was never made", "answers", "unknown", answer("0-999999999")),
    BadInput("a partition that does not exist", "answers", "unknown", answer("999-0")),
)
"""Well formed answers that no request waits for; to be sent to partition 0."""

BAD_ANSWERS: Final = (
    BadAnswer("the same again", "duplicate", {"label": "ok"}, {"label": "ok"}),
    BadAnswer("another label", "conflict", {"label": "fraud"}, {"label": "ok"}),
    BadAnswer("a label after unsure", "conflict", {"label": "ok"}, {"kind": "unsure"}),
    BadAnswer("a label after invalid", "conflict", {"label": "ok"}, {"kind": "invalid"}),
    BadAnswer("unsure again", "duplicate", {"kind": "unsure"}, {"kind": "unsure"}),
    BadAnswer("skipped too late", "duplicate", {"kind": "skip"}, {"label": "ok"}),
    BadAnswer("a label after expiry", "expired", {"label": "ok"}, expire=True),
    BadAnswer("unsure after expiry", "expired", {"kind": "unsure"}, expire=True),
)
