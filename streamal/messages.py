"""What crosses a topic, and its form on the wire.

Values are UTF-8 JSON; a `schema` header names the version (`streamal/1`), and is taken for 1 when it is absent. Labels
become strings at this border (`canonical_label`), so that `1` and `"1"` are one class. What others write, instances and
answers, is validated in `streamal.decoding` before anything else sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple, get_args

import orjson

from streamal.errors import BadRecord

SCHEMA: Final = b"streamal/1"
SCHEMA_HEADERS: Final = (("schema", SCHEMA),)

MAX_BYTES: Final = 262_144
"""A record larger than this is refused unread; parsing 10 MB takes the loop 0.4 s."""
MAX_FEATURES: Final = 1_000
MAX_NAME: Final = 128
MAX_LABEL: Final = 256
MAX_NUMBER: Final = 1e100
"""Squares of larger numbers overflow and would wreck the scaler's variance for ever."""
MAX_INTEGER: Final = 2**53
"""Larger integers are not exact as floats."""
LETTER_BYTES: Final = 4_096
"""What a dead letter keeps of a value that was too large; a full copy could itself be refused by the log.

Also the longest key that is kept whole, in a dead letter or in an answer that is passed on.
"""
LETTER_HEADERS: Final = 16_384
"""Bytes of original headers, names included, that a dead letter keeps; if there are more, it keeps none."""
MAX_CLASSES: Final = 1_000
"""Classes a model may have met before further ones are refused; answers on their way to it are not counted."""

TEXT: Final = (str,)
COUNT: Final = (int,)
NUMBER: Final = (int, float)
ABSENT: Final = type(None)
SCALARS: Final = frozenset({float, int, str, bool, ABSENT})
DECIDED: Final[Mapping[str, tuple[type, ...]]] = {
    "partition": COUNT,
    "offset": COUNT,
    "instance_id": TEXT,
    "features": (dict,),
    "prediction": (dict,),
    "utility": (*NUMBER, ABSENT),
    "propensity": NUMBER,
    "reason": TEXT,
    "would_select": (bool, ABSENT),
    "strategy": TEXT,
    "model_version": COUNT,
    "requested_at": TEXT,
}
"""The types of what a label request and its outcome have in common, as they come out of JSON."""
ASKED: Final = {**DECIDED, "expires_at": (str, ABSENT), "budget": (dict,)}
RESOLVED: Final = {
    **DECIDED,
    "label": (str, float, int, ABSENT),
    "weight": NUMBER,
    "resolved_at": TEXT,
    "annotator": (str, ABSENT),
}
VOTED: Final[Mapping[str, tuple[type, ...]]] = {
    "annotator": TEXT,
    "kind": TEXT,
    "label": (str, float, int, ABSENT),
    "revision": COUNT,
    "at": TEXT,
}
WITHOUT_ANSWER: Final = {
    "partition": COUNT,
    "offset": COUNT,
    "instance_id": TEXT,
    "features": (dict,),
    "label": (str, ABSENT),
    "probability": (*NUMBER, ABSENT),
    "model_version": COUNT,
}
"""The types of an instance that nobody was asked about."""
MALFORMED: Final = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What reading a value that is not of the expected form may raise."""

Value = float | int | str | bool | None
Features = Mapping[str, Value]
Prediction = Mapping[str, float]
"""P(class) of each known class, `{}` when there is none; for regression the value under the one key `VALUE`."""
Label = str | float
"""A class as a string, or a number for regression."""
Task = Literal["classification", "regression"]

Reason = Literal["uncertainty", "exploration", "cold_start", "coverage", "drift", "rare_class"]
AnswerKind = Literal["label", "skip", "unsure", "invalid", "cancel"]
OutcomeKind = Literal["learned", "abstained", "invalid", "expired", "cancelled", "corrected", "confirmed"]
OUTCOME_KINDS: Final = frozenset(get_args(OutcomeKind))
OPINIONS: Final = frozenset({"label", "unsure", "invalid"})
"""The kinds of answers that say something of the instance; the others are about the request."""
UnlabelledKind = Literal["unlabelled", "pseudo_labelled"]
UNLABELLED_KINDS: Final = frozenset(get_args(UnlabelledKind))
UNLABELLED: Final = b"unlabelled-"
"""What the keys of such records begin with."""


VALUE: Final = ""
"""The one key of a regression's prediction; no class is named so, since labels are never empty."""
REQUEST_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


class Moment(NamedTuple):
    """Number of values, mean and sum of squared deviations of one numeric feature over some instances."""

    size: int
    mean: float
    deviation: float


class Instance(NamedTuple):
    """What arrives: `offset` is its identity within the partition, `timestamp` the log's, in seconds since 1970."""

    offset: int
    timestamp: float
    id: str
    features: Features
    display: Any = None
    label: str | float | None = None
    cost: float = 1.0


class Received(NamedTuple):
    """A record as it came, free of any client's types; `timestamp` in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Answer(NamedTuple):
    """What an annotator said to a label request; `received` is the record as it came, to be forwarded or refused.

    `revision` counts an annotator's changes of mind: a later one than the request's last corrects it. `cancel`, or a
    tombstone with the request's id as its key, takes the question back.
    """

    request_id: str
    kind: AnswerKind
    label: Label | None
    annotator: str | None
    received: Received
    revision: int = 0


class OfRequest:
    """What is about one request, which is named by the instance that it is about."""

    __slots__ = ()

    partition: int
    offset: int

    @property
    def request_id(self) -> str:
        """`<partition>-<instance offset>`: deterministic, so a repeated delivery can be told from a new request."""
        return f"{self.partition}-{self.offset}"

    @property
    def key(self) -> str:
        """The key of its record, in whatever topic."""
        return self.request_id


@dataclass(frozen=True, slots=True)
class Vote(OfRequest):
    """One annotator's opinion on a request that waits for several; `at` is when it was matched, in seconds since 1970.

    `kind` is one of `OPINIONS`, and `label` None unless it is `label`. On `outcomes` a vote is a record of its own
    until the request ends; then its outcome holds all of them.
    """

    partition: int
    offset: int
    annotator: str
    kind: AnswerKind
    label: Label | None
    revision: int
    at: float

    def as_json(self) -> dict[str, Any]:
        """Return who said what, and when, as a JSON object."""
        return {
            "annotator": self.annotator,
            "kind": self.kind,
            "label": self.label,
            "revision": self.revision,
            "at": to_iso(self.at),
        }

    def encode(self) -> bytes:
        """Return the value of the record on `outcomes`."""
        return orjson.dumps(
            {
                "kind": "vote",
                "request_id": self.request_id,
                "partition": self.partition,
                "offset": self.offset,
                "vote": self.as_json(),
            }
        )


@dataclass(frozen=True, slots=True)
class LabelRequest(OfRequest):
    """The question put to the annotators, with all that decided it.

    `propensity` is the probability of having been asked, as executed; `would_select` says, for a request of the
    exploration arm, whether the strategy would have asked anyhow: None where that is known only at the end of a window,
    and where a limit or a full queue holds the strategy back.
    `budget` holds `seen`, `asked` (this request included) and `allowed` of the partition when it was made: so `seen`
    says when that was, even where the instance came some time before. Times are in seconds since 1970.

    The features of a `synthetic` one were made, not met: the instance that `offset` names is only the nearest real one.
    `answers` is how many annotators have to answer it.
    """

    partition: int
    offset: int
    instance_id: str
    features: Features
    display: Any
    prediction: Prediction
    utility: float
    propensity: float
    reason: Reason
    would_select: bool | None
    strategy: str
    model_version: int
    requested_at: float
    expires_at: float | None
    budget: Mapping[str, float]
    synthetic: bool = False
    answers: int = 1

    def encode(self) -> bytes:
        """Return the value of the record on `label-requests`."""
        return orjson.dumps(
            {
                "request_id": self.request_id,
                "instance_id": self.instance_id,
                "features": self.features,
                "display": self.display,
                "prediction": describe(self.prediction),
                "utility": self.utility,
                "propensity": self.propensity,
                "reason": self.reason,
                "would_select": self.would_select,
                "strategy": self.strategy,
                "model_version": self.model_version,
                "partition": self.partition,
                "offset": self.offset,
                "requested_at": to_iso(self.requested_at),
                "expires_at": None if self.expires_at is None else to_iso(self.expires_at),
                "budget": self.budget,
                **({"synthetic": True} if self.synthetic else {}),
                **({"answers": self.answers} if self.answers > 1 else {}),
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> LabelRequest:
        """Read back what `encode` wrote.

        Raises:
            ValueError: something else wrote it.
        """
        try:
            return cls._of(_loaded(value, ASKED))
        except MALFORMED as error:
            raise ValueError(f"this is no label request ({type(error).__name__})") from None

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> LabelRequest:
        return cls(
            partition=found["partition"],
            offset=found["offset"],
            instance_id=found["instance_id"],
            features=found["features"],
            display=found["display"],
            prediction=read_prediction(found["prediction"]),
            utility=math.inf if found["utility"] is None else found["utility"],
            propensity=found["propensity"],
            reason=found["reason"],
            would_select=found["would_select"],
            strategy=found["strategy"],
            model_version=found["model_version"],
            requested_at=from_iso(found["requested_at"]),
            expires_at=None if found["expires_at"] is None else from_iso(found["expires_at"]),
            budget=found["budget"],
            synthetic=found.get("synthetic", False),
            answers=found.get("answers", 1),
        )


@dataclass(frozen=True, slots=True)
class Outcome(OfRequest):
    """What became of a label request; one that `teaches` is a labelled example, and the model learns it.

    `corrected` follows an earlier outcome of the same request: its label is the later revision of the answer, None
    where it was taken back. What was learned before stays learned; the model learns the corrected example as well.
    Where several annotators were asked, `label` is what most of `votes` say and `annotator` is None; `confirmed` then
    follows an outcome whose label stands although one of them said something else later.
    `prediction`, `model_version`, `utility` and `propensity` are those of the moment of asking. A `synthetic` one is
    learned like any other, and says nothing about the stream.
    """

    kind: OutcomeKind
    partition: int
    offset: int
    instance_id: str
    features: Features
    label: Label | None
    weight: float
    prediction: Prediction
    utility: float
    propensity: float
    reason: Reason
    would_select: bool | None
    strategy: str
    model_version: int
    requested_at: float
    resolved_at: float
    annotator: str | None
    revision: int = 0
    synthetic: bool = False
    votes: tuple[Vote, ...] = ()

    @property
    def teaches(self) -> bool:
        """Whether the model learns it."""
        return self.kind == "learned" or (self.kind == "corrected" and self.label is not None)

    def encode(self) -> bytes:
        """Return the value of the record on `outcomes`."""
        return orjson.dumps(
            {
                "kind": self.kind,
                "request_id": self.request_id,
                "instance_id": self.instance_id,
                "partition": self.partition,
                "offset": self.offset,
                "features": self.features,
                "label": self.label,
                "weight": self.weight,
                "prediction": describe(self.prediction),
                "utility": self.utility,
                "propensity": self.propensity,
                "reason": self.reason,
                "would_select": self.would_select,
                "strategy": self.strategy,
                "model_version": self.model_version,
                "requested_at": to_iso(self.requested_at),
                "resolved_at": to_iso(self.resolved_at),
                "annotator": self.annotator,
                "revision": self.revision,
                **({"synthetic": True} if self.synthetic else {}),
                **({"votes": [vote.as_json() for vote in self.votes]} if self.votes else {}),
            }
        )


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """An instance that was decided and that nobody was asked about, for what learns without answers.

    `label` is a pseudo-label: the served model's own most probable class, of that `probability`, where self-training is
    on and it was sure enough; None otherwise. No annotator has said it, so it is no outcome of a request, and counts as
    none. `model_version` is that of the decision.
    """

    partition: int
    offset: int
    instance_id: str
    features: Features
    model_version: int
    label: str | None = None
    probability: float | None = None

    @property
    def key(self) -> str:
        """The key of the record on `outcomes`."""
        return f"{UNLABELLED.decode()}{self.partition}-{self.offset}"

    @property
    def kind(self) -> UnlabelledKind:
        """Whether the model named a class itself."""
        return "unlabelled" if self.label is None else "pseudo_labelled"

    def encode(self) -> bytes:
        """Return the value of the record on `outcomes`."""
        return orjson.dumps(
            {
                "kind": self.kind,
                "instance_id": self.instance_id,
                "partition": self.partition,
                "offset": self.offset,
                "features": self.features,
                "label": self.label,
                "probability": self.probability,
                "model_version": self.model_version,
            }
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """The mergeable moments of the numeric features of `count` instances of a partition, labelled or not."""

    partition: int
    count: int
    moments: Mapping[str, Moment]

    @property
    def key(self) -> str:
        """The key of the record on `outcomes`."""
        return f"moments-{self.partition}"

    def encode(self) -> bytes:
        """Return the value of the record on `outcomes`."""
        moments = {name: list(moment) for name, moment in self.moments.items()}
        return orjson.dumps({"kind": "moments", "partition": self.partition, "count": self.count, "moments": moments})


Recorded = Outcome | Vote | Unlabelled | Moments
"""What a record of `outcomes` holds."""


def decode_outcome(value: bytes) -> Recorded:
    """Read back a record of `outcomes`; floats come back bit for bit.

    >>> decode_outcome(Moments(0, 2, {"x": Moment(2, 0.1, 0.02)}).encode()).moments["x"].mean
    0.1

    Raises:
        ValueError: something else wrote it.
    """
    try:
        found = orjson.loads(value)
        if found["kind"] == "moments":
            return _moments(found)
        if found["kind"] == "vote":
            return _vote(found["partition"], found["offset"], found["vote"])
        if found["kind"] in UNLABELLED_KINDS:
            return _unlabelled(_checked(found, WITHOUT_ANSWER))
        return _outcome(_checked(found, RESOLVED))
    except MALFORMED as error:
        raise ValueError(f"this is no outcome ({type(error).__name__})") from None


def _loaded(value: bytes, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    return _checked(orjson.loads(value), types)


def _check_types(found: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    for name, expected in types.items():
        if type(found[name]) not in expected:
            raise TypeError(name)


def _checked(found: dict[str, Any], types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return an object of JSON whose fields have the types they should have."""
    _check_types(found, types)
    if min(found["partition"], found["offset"], found["model_version"]) < 0:
        raise ValueError("offset")
    if not SCALARS.issuperset(map(type, found["features"].values())):
        raise TypeError("features")
    if type(found.get("synthetic", False)) is not bool:
        raise TypeError("synthetic")
    if type(found.get("answers", 1)) is not int:
        raise TypeError("answers")
    return found


def _moments(found: Mapping[str, Any]) -> Moments:
    moments = {name: Moment(*moment) for name, moment in found["moments"].items()}
    numbers = [number for moment in moments.values() for number in moment]
    if not all(type(number) in NUMBER for number in (found["partition"], found["count"], *numbers)):
        raise TypeError("moments")
    return Moments(found["partition"], found["count"], moments)


def _vote(partition: int, offset: int, found: Mapping[str, Any]) -> Vote:
    _check_types(found, VOTED)
    if not all(type(number) is int and number >= 0 for number in (partition, offset)):
        raise TypeError("offset")
    if found["kind"] not in OPINIONS or (found["label"] is None) is (found["kind"] == "label"):
        raise ValueError("kind")
    return Vote(
        partition=partition,
        offset=offset,
        annotator=found["annotator"],
        kind=found["kind"],
        label=found["label"],
        revision=found["revision"],
        at=from_iso(found["at"]),
    )


def _unlabelled(found: Mapping[str, Any]) -> Unlabelled:
    record = Unlabelled(
        partition=found["partition"],
        offset=found["offset"],
        instance_id=found["instance_id"],
        features=found["features"],
        model_version=found["model_version"],
        label=found["label"],
        probability=found["probability"],
    )
    if found["kind"] != record.kind or (record.label is None) != (record.probability is None):
        raise ValueError("label")
    return record


def _outcome(found: Mapping[str, Any]) -> Outcome:
    if found["kind"] not in OUTCOME_KINDS:
        raise ValueError("kind")
    return Outcome(
        kind=found["kind"],
        partition=found["partition"],
        offset=found["offset"],
        instance_id=found["instance_id"],
        features=found["features"],
        label=found["label"],
        weight=found["weight"],
        prediction=read_prediction(found["prediction"]),
        utility=math.inf if found["utility"] is None else found["utility"],
        propensity=found["propensity"],
        reason=found["reason"],
        would_select=found["would_select"],
        strategy=found["strategy"],
        model_version=found["model_version"],
        requested_at=from_iso(found["requested_at"]),
        resolved_at=from_iso(found["resolved_at"]),
        annotator=found["annotator"],
        revision=found.get("revision", 0),
        synthetic=found.get("synthetic", False),
        votes=tuple(_vote(found["partition"], found["offset"], vote) for vote in found.get("votes", ())),
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record as it came, with why and where it lay; features and labels are never quoted in `message`.

    The whole letter is bounded, since the log would refuse a larger one: value, key and headers.
    """

    received: Received
    reason: str
    message: str

    @property
    def key(self) -> bytes | None:
        """The key of the record on `dead-letters`, cut if it was too long."""
        key = self.received.key
        return key if key is None else key[:LETTER_BYTES]

    def encode(self) -> tuple[bytes | None, list[tuple[str, bytes]]]:
        """Return value and headers of the record on `dead-letters`; a value that was too large is cut, with its hash.

        Original headers are kept unless they are too large. A null header becomes empty, and so does the null value of
        a record without a key, since not every client can write those. The header `__streamal.errors.cut` names what is
        not whole: value, key, headers.
        """
        value = b"" if self.received.value is self.key is None else self.received.value
        headers = [(name, content or b"") for name, content in self.received.headers]
        cut = []
        context: dict[str, object] = {
            "reason": self.reason,
            "exception": BadRecord.__name__,
            "message": self.message,
            "topic": self.received.topic,
            "partition": self.received.partition,
            "offset": self.received.offset,
            "timestamp": self.received.timestamp,
        }
        if value is not None and len(value) > MAX_BYTES:
            context["bytes"] = len(value)
            context["sha256"] = sha256(value).hexdigest()
            value = value[:LETTER_BYTES]
            cut.append("value")
        if self.key != self.received.key:
            cut.append("key")
        if sum(len(name.encode()) + len(content) for name, content in headers) > LETTER_HEADERS:
            headers.clear()
            cut.append("headers")
        if cut:
            context["cut"] = ", ".join(cut)
        headers += [(f"__streamal.errors.{name}", str(content).encode()) for name, content in context.items()]
        return value, headers


def describe(prediction: Prediction) -> Mapping[str, Any]:
    """Return the form of a prediction on the wire.

    >>> describe({"ok": 0.25, "fraud": 0.75})
    {'label': 'fraud', 'probabilities': {'ok': 0.25, 'fraud': 0.75}}
    >>> describe({})
    {'label': None, 'probabilities': {}}
    >>> describe({VALUE: 1.5})
    {'value': 1.5}
    """
    if VALUE in prediction:
        return {"value": prediction[VALUE]}
    return {"label": best_label(prediction), "probabilities": prediction}


def read_prediction(found: Mapping[str, Any]) -> Prediction:
    """Return a prediction from its form on the wire, where null stands for what is no number.

    >>> read_prediction(describe({"ok": 1.0})), read_prediction(describe({VALUE: 1.5}))
    ({'ok': 1.0}, {'': 1.5})
    >>> read_prediction({"value": None})
    {'': nan}
    """
    numbers = {VALUE: found["value"]} if "value" in found else found.get("probabilities", {})
    if not all(type(number) in (*NUMBER, ABSENT) for number in numbers.values()):
        raise TypeError("prediction")
    return {name: math.nan if number is None else number for name, number in numbers.items()}


def best_label(prediction: Prediction) -> str | None:
    """Return the most probable class, the first one on a tie, or None before anything was learned.

    >>> best_label({"a": 0.5, "b": 0.5})
    'a'
    """
    if len(prediction) == 2:  # twice as fast, and called for every instance
        (first, p), (second, q) = prediction.items()
        return second if q > p else first
    return max(prediction, key=prediction.__getitem__) if prediction else None


@lru_cache(maxsize=256)
def to_iso(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC, to the millisecond.

    >>> to_iso(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    moment = datetime.fromtimestamp(whole, UTC).replace(microsecond=milliseconds * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(maxsize=256)
def from_iso(text: str) -> float:
    """Return the seconds since 1970 of `to_iso`.

    >>> from_iso("1970-01-01T00:00:00.250Z")
    0.25
    """
    return round(datetime.fromisoformat(text).timestamp(), 3)


def parse_request_id(text: str) -> tuple[int, int]:
    """Return partition and instance offset of a request id.

    >>> parse_request_id("3-41")
    (3, 41)
    >>> parse_request_id("no")
    Traceback (most recent call last):
    ...
    streamal.errors.BadRecord: a request_id has the form <partition>-<offset>, as the label request carries it
    """
    if not (found := REQUEST_ID.fullmatch(text)):
        raise BadRecord(
            "bad_request_id", "a request_id has the form <partition>-<offset>, as the label request carries it"
        )
    return int(found[1]), int(found[2])


def canonical_label(label: object, task: Task) -> Label:
    """Return a label as the model takes it: a class as a string, a regression target as a float.

    >>> [canonical_label(label, "classification") for label in (True, 1, 2.0)]
    ['true', '1', '2']
    >>> canonical_label(3, "regression")
    3.0

    Raises:
        BadRecord: it is no scalar, empty or too long; for regression, no finite number.
    """
    if task == "regression":
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise BadRecord("label_not_number", "a regression label must be a JSON number")
        if abs(label) > MAX_NUMBER:
            raise BadRecord("out_of_range", f"a label must lie within {MAX_NUMBER:g}")
        return float(label)
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer() and abs(label) <= MAX_INTEGER:
        label = int(label)
    if isinstance(label, int | float):
        return str(label)
    if not isinstance(label, str):
        raise BadRecord("bad_label", "a class label must be a string, a number or a boolean")
    if not label.strip() or len(label) > MAX_LABEL:
        raise BadRecord("bad_label", f"a class label must have 1 to {MAX_LABEL} characters")
    return label
