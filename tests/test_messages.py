"""The wire format is a contract with users: these names, these forms."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import orjson
import pytest

from streamal.errors import BadRecord
from streamal.messages import (
    LETTER_BYTES,
    LETTER_HEADERS,
    MAX_BYTES,
    MAX_LABEL,
    VALUE,
    DeadLetter,
    LabelRequest,
    Outcome,
    Prediction,
    Received,
    best_label,
    canonical_label,
    decode_outcome,
    parse_request_id,
)

REQUEST = LabelRequest(
    partition=0,
    offset=41,
    instance_id="tx-1",
    features={"amount": 12.5},
    display={"text": "?"},
    prediction={"ok": 0.52, "fraud": 0.48},
    utility=0.96,
    propensity=1.0,
    reason="uncertainty",
    would_select=True,
    strategy="class_conditional",
    model_version=128,
    requested_at=1_795_255_200.0,
    expires_at=None,
    budget={"seen": 812, "asked": 40, "allowed": 40.6},
)
OUTCOME = Outcome(
    kind="learned",
    partition=0,
    offset=41,
    instance_id="tx-1",
    features={"amount": 12.5},
    label="fraud",
    weight=1.0,
    prediction={VALUE: 1.5},
    utility=0.96,
    propensity=0.25,
    reason="exploration",
    would_select=False,
    strategy="random",
    model_version=128,
    requested_at=1_795_255_200.0,
    resolved_at=1_795_255_201.25,
    annotator=None,
)


def test_a_label_request_on_the_wire() -> None:
    assert orjson.loads(REQUEST.encode()) == {
        "request_id": "0-41",
        "instance_id": "tx-1",
        "features": {"amount": 12.5},
        "display": {"text": "?"},
        "prediction": {"label": "ok", "probabilities": {"ok": 0.52, "fraud": 0.48}},
        "utility": 0.96,
        "propensity": 1.0,
        "reason": "uncertainty",
        "would_select": True,
        "strategy": "class_conditional",
        "model_version": 128,
        "partition": 0,
        "offset": 41,
        "requested_at": "2026-11-21T10:00:00.000Z",
        "expires_at": None,
        "budget": {"seen": 812, "asked": 40, "allowed": 40.6},
    }


def test_an_outcome_on_the_wire() -> None:
    found = orjson.loads(OUTCOME.encode())
    assert (found["kind"], found["request_id"], found["label"]) == ("learned", "0-41", "fraud")
    assert (found["weight"], found["propensity"], found["prediction"]) == (1.0, 0.25, {"value": 1.5})
    assert (found["requested_at"], found["resolved_at"]) == ("2026-11-21T10:00:00.000Z", "2026-11-21T10:00:01.250Z")


def test_only_what_was_synthesised_says_so_on_the_wire() -> None:
    for record, read in ((REQUEST, LabelRequest.decode), (OUTCOME, decode_outcome)):
        made = replace(record, synthetic=True, would_select=None).encode()
        assert "synthetic" not in orjson.loads(record.encode())
        assert orjson.loads(made)["synthetic"] is True
        assert orjson.loads(made)["would_select"] is None
        assert read(made) == replace(record, synthetic=True, would_select=None)
        with pytest.raises(ValueError, match="TypeError"):
            read(made.replace(b'"synthetic":true', b'"synthetic":1'))


def test_a_utility_that_is_no_number_on_the_wire_comes_back_as_the_highest() -> None:
    assert orjson.loads(replace(REQUEST, utility=math.inf).encode())["utility"] is None
    assert LabelRequest.decode(replace(REQUEST, utility=math.inf).encode()).utility == math.inf
    decoded = decode_outcome(replace(OUTCOME, utility=math.inf).encode())
    assert isinstance(decoded, Outcome)
    assert decoded.utility == math.inf


def test_a_dead_letter_says_where_it_lay_and_why() -> None:
    received = Received("answers", 3, 17, 1_500, b"key", b"raw", (("trace", b"t"), ("empty", None)))
    value, headers = DeadLetter(received, "decode_error", "no JSON").encode()
    assert value == b"raw"
    assert headers == [
        ("trace", b"t"),
        ("empty", b""),
        ("__streamal.errors.reason", b"decode_error"),
        ("__streamal.errors.exception", b"BadRecord"),
        ("__streamal.errors.message", b"no JSON"),
        ("__streamal.errors.topic", b"answers"),
        ("__streamal.errors.partition", b"3"),
        ("__streamal.errors.offset", b"17"),
        ("__streamal.errors.timestamp", b"1500"),
    ]


@pytest.mark.parametrize("size", [0, MAX_BYTES])
def test_a_dead_letter_keeps_a_value_of_usual_size(size: int) -> None:
    value, headers = DeadLetter(Received("instances", 0, 0, 0, None, b"x" * size, ()), "r", "m").encode()
    assert value == b"x" * size
    assert "__streamal.errors.sha256" not in dict(headers)


def test_a_dead_letter_cuts_what_the_log_could_refuse() -> None:
    large = b"x" * (MAX_BYTES + 1)
    value, headers = DeadLetter(Received("instances", 0, 0, 0, None, large, ()), "too_large", "m").encode()
    assert value == large[:LETTER_BYTES]
    assert dict(headers)["__streamal.errors.cut"] == b"value"
    assert dict(headers)["__streamal.errors.bytes"] == str(len(large)).encode()
    assert dict(headers)["__streamal.errors.sha256"] == hashlib.sha256(large).hexdigest().encode()


def test_a_dead_letter_cuts_its_key_and_drops_headers_that_are_too_large() -> None:
    headers = (("trace", b"x" * (LETTER_HEADERS // 2)), ("other", b"x" * (LETTER_HEADERS // 2)))
    letter = DeadLetter(Received("answers", 0, 0, 0, b"k" * (LETTER_BYTES + 1), b"{}", headers), "r", "m")
    value, kept = letter.encode()
    assert (value, letter.key) == (b"{}", b"k" * LETTER_BYTES)
    assert {name for name, _ in kept if not name.startswith("__streamal.")} == set()
    assert dict(kept)["__streamal.errors.cut"] == b"key, headers"


def test_a_dead_letter_keeps_a_key_and_headers_of_usual_size() -> None:
    headers = (("t", b"x" * (LETTER_HEADERS - 1)),)
    letter = DeadLetter(Received("answers", 0, 0, 0, b"k" * LETTER_BYTES, b"{}", headers), "r", "m")
    kept = letter.encode()[1]
    assert (letter.key, kept[0]) == (b"k" * LETTER_BYTES, headers[0])
    assert "__streamal.errors.cut" not in dict(kept)
    assert DeadLetter(Received("answers", 0, 0, 0, None, b"{}", ()), "r", "m").key is None


@pytest.mark.parametrize(
    "prediction", [{"ok": math.nan, "fraud": 0.5}, {"ok": math.nan, "b": 0.0, "c": 1.0}, {VALUE: math.nan}]
)
def test_a_prediction_that_is_no_number_comes_back_as_one_and_can_be_told_again(prediction: Prediction) -> None:
    found = LabelRequest.decode(replace(REQUEST, prediction=prediction).encode())
    assert list(found.prediction) == list(prediction)
    assert [math.isnan(number) for number in found.prediction.values()] == [
        math.isnan(number) for number in prediction.values()
    ]
    assert LabelRequest.decode(found.encode()).encode() == found.encode()


def test_a_letter_about_nothing_at_all_can_be_written_by_every_client() -> None:
    assert DeadLetter(Received("instances", 0, 0, 0, None, None, ()), "tombstone", "m").encode()[0] == b""


def test_a_tombstone_stays_one() -> None:
    assert DeadLetter(Received("answers", 0, 0, 0, b"k", None, ()), "tombstone", "m").encode()[0] is None


def test_ties_go_to_the_first_class() -> None:
    assert best_label({"b": 0.5, "a": 0.5}) == "b"
    assert best_label({}) is None


@pytest.mark.parametrize("label", ["x" * MAX_LABEL, "a b", "0", "\u2603", 0, -1, 2**60, 0.5, False])
def test_a_class_is_a_string_whatever_it_was(label: object) -> None:
    found = canonical_label(label, "classification")
    assert isinstance(found, str)
    assert canonical_label(found, "classification") == found


@pytest.mark.parametrize("label", ["", " ", "\n", "x" * (MAX_LABEL + 1), None, [], {}, b"x"])
def test_what_is_no_class_is_refused(label: object) -> None:
    with pytest.raises(BadRecord) as caught:
        canonical_label(label, "classification")
    assert caught.value.reason == "bad_label"


@pytest.mark.parametrize(
    "text", ["", "-", "0-", "-0", "0 - 1", "0-1 ", "0-1\n", "1.0-2", "1" * 10 + "-1", "0-" + "1" * 19]
)
def test_what_is_no_request_id_is_refused(text: str) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_request_id(text)
    assert caught.value.reason == "bad_request_id"
