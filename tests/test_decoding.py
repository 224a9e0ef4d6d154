"""What is let in and what is not: every kind of bad input is refused with its reason and leaves no trace."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from corpus import ANSWERS, BAD_INPUT, CLASSES, INSTANCE, INSTANCES, SECRET, BadInput, answer, instance
from hypothesis import given, settings
from hypothesis import strategies as st

from streamal import decoding, messages
from streamal.assemble import instance_decoder
from streamal.decoding import AnswerDecoder, InstanceDecoder, InstanceFormat, received
from streamal.errors import BadRecord
from streamal.messages import MAX_CLASSES, LabelRequest, Received
from streamal.settings import Settings

PLAIN = InstanceFormat()


def record(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...] = (), offset: int = 7) -> Received:
    return Received("instances", 2, offset, 1_500, b"key", value, headers)


def refusal(decoder: InstanceDecoder | AnswerDecoder, value: bytes) -> str:
    with pytest.raises(BadRecord) as caught:
        decoder(record(value))
    return caught.value.reason


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(INSTANCES) + len(ANSWERS) >= 40
    assert len({(case.topic, case.name) for case in BAD_INPUT}) == len(BAD_INPUT)


def test_every_reason_there_is_has_a_case() -> None:
    sources = Path(decoding.__file__).read_text() + Path(messages.__file__).read_text()
    reasons = set(re.findall(r'BadRecord\(\s*"(\w+)"', sources))
    assert reasons == {case.reason for case in BAD_INPUT} | {"label_not_number"}


@pytest.mark.parametrize("case", BAD_INPUT, ids=lambda case: f"{case.topic}: {case.name}")
def test_bad_input_is_refused_with_its_reason_and_quotes_nothing(case: BadInput) -> None:
    form = InstanceFormat(**INSTANCE, classes=CLASSES)
    instances, answers = InstanceDecoder(form), AnswerDecoder("classification", CLASSES)
    expected = instances(record(instance())), answers(record(answer()))
    with pytest.raises(BadRecord) as caught:
        (instances if case.topic == "instances" else answers)(record(case.value, case.headers))
    assert caught.value.reason == case.reason
    assert SECRET not in str(caught.value)
    assert (instances(record(instance())), answers(record(answer()))) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (instance(features={"x": [SECRET]}), "'x' must be a number, a string, a boolean or null, came a list"),
        (instance(features={"x": {SECRET: 1}}), "'x' must be a number, a string, a boolean or null, came an object"),
        (instance(features={"amount": SECRET}), "'amount' is declared as number, came text (instance.types)"),
        (instance(features={"night": 1}), "'night' is declared as boolean, came an integer (instance.types)"),
        (instance(features={"y": "", "x": -1e101}), "'x' lies outside +-1e+100"),
        (instance(features={"y": 2.0, "x": 1e101}), "'x' lies outside +-1e+100"),
        (instance(features={"y": 2, "x": 2**53 + 1}), "'x' is an integer beyond 2**53, not exact; send a string"),
        (instance(id=True), "'id' must be a string or an integer of at most 256 characters, came a boolean"),
        (instance(id=1.5), "'id' must be a string or an integer of at most 256 characters, came a float"),
        (instance(id=SECRET * 50), "'id' must be a string or an integer of at most 256 characters, came a longer one"),
    ],
)
def test_a_refusal_names_what_is_wrong_and_what_came(value: bytes, message: str) -> None:
    with pytest.raises(BadRecord) as caught:
        InstanceDecoder(InstanceFormat(**INSTANCE))(record(value))
    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


def test_an_instance_keeps_what_it_came_with() -> None:
    found = InstanceDecoder(PLAIN)(
        record(b'{"id": "tx-1", "features": {"amount": 12.5, "country": "NL", "night": true}, "display": {"t": "?"}}')
    )
    assert (found.offset, found.timestamp, found.id, found.display) == (7, 1.5, "tx-1", {"t": "?"})
    assert found.features == {"amount": 12.5, "country": "NL", "night": True}
    assert (found.label, found.cost) == (None, 1.0)


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"x": None},
        {"x": None, "y": 1.0},
        {"x": True, "y": False},
        {"x": 2**53, "y": -(2**53)},
        {"x": 1e100, "y": -1e100},
        {"x": 1e-320, "y": -0.0},
        {"x": "", "y": "\u2603\U0001f600"},
        {"__proto__": 1.0, "constructor": 2.0, "__class__": 3.0},
        {"a.b:c/d-e f": 1.0, "größe": 2.0},
        {f"x{i}": float(i) for i in range(1_000)},
    ],
    ids=lambda features: str(features)[:40],
)
def test_unusual_features_are_let_in_unchanged(features: dict[str, object]) -> None:
    found = InstanceDecoder(PLAIN)(record(json.dumps({"features": features}).encode()))
    assert found.features == features
    assert list(map(type, found.features.values())) == list(map(type, features.values()))


@pytest.mark.parametrize(("given_id", "expected"), [("", "2-7"), ('"id": null, ', "2-7"), ('"id": 41, ', "41")])
def test_an_absent_id_becomes_the_position(given_id: str, expected: str) -> None:
    found = InstanceDecoder(PLAIN)(record(f'{{{given_id}"features": {{}}}}'.encode()))
    assert found.id == expected


def test_dotted_paths_reach_into_the_object() -> None:
    form = InstanceFormat(id="meta.key", features="body.columns", display="body.text", label="meta.truth")
    value = b'{"meta": {"key": "k", "truth": 1}, "body": {"columns": {"x": 1.0}, "text": "t"}}'
    found = InstanceDecoder(form)(record(value))
    assert (found.id, found.features, found.display, found.label) == ("k", {"x": 1.0}, "t", "1")
    bare = InstanceDecoder(form)(record(b'{"meta": "none", "body": {"columns": {}}}'))
    assert (bare.id, bare.display, bare.label) == ("2-7", None, None)


def test_the_whole_object_can_be_the_features() -> None:
    form = InstanceFormat(features="", label="truth")
    found = InstanceDecoder(form)(record(b'{"id": "a", "x": 1.0, "city": "Oslo", "truth": "ok", "display": "d"}'))
    assert (found.features, found.id, found.label) == ({"x": 1.0, "city": "Oslo"}, "a", "ok")


def test_declared_types_take_missing_and_null_features() -> None:
    form = InstanceFormat(types={"n": "number", "s": "string", "b": "boolean"})
    for features in ({}, {"n": None, "s": None, "b": None}, {"n": 1, "s": "1", "b": True}, {"n": 1.5, "other": "x"}):
        assert InstanceDecoder(form)(record(json.dumps({"features": features}).encode())).features == features


def test_the_cost_is_constant_or_a_feature() -> None:
    assert InstanceDecoder(InstanceFormat(cost=2.5))(record(b'{"features": {}}')).cost == 2.5
    by_feature = InstanceDecoder(InstanceFormat(cost="minutes"))
    assert by_feature(record(b'{"features": {"minutes": 3}}')).cost == 3.0
    assert by_feature(record(b'{"features": {"minutes": 0.0}}')).cost == 0.0


@pytest.mark.parametrize(
    ("label", "expected"),
    [("true", "true"), ("1", "1"), ("1.0", "1"), ("-0.0", "0"), ("0.5", "0.5"), ('"1"', "1"), ("null", None)],
)
def test_a_replayed_label_becomes_a_class(label: str, expected: str | None) -> None:
    found = InstanceDecoder(InstanceFormat(label="y"))(record(f'{{"features": {{}}, "y": {label}}}'.encode()))
    assert found.label == expected


def test_a_regression_label_is_a_finite_number() -> None:
    decoder = AnswerDecoder("regression")
    assert decoder(record(answer(label=3))).label == 3.0
    assert refusal(decoder, answer(label="3")) == "label_not_number"
    assert refusal(decoder, answer(label=True)) == "label_not_number"
    assert refusal(decoder, answer(label=1e101)) == "out_of_range"
    replayed = InstanceDecoder(InstanceFormat(label="y", task="regression"))
    assert replayed(record(b'{"features": {}, "y": 2}')).label == 2.0
    assert refusal(replayed, b'{"features": {}, "y": "two"}') == "label_not_number"


def test_bounds_of_size_are_those_of_the_format() -> None:
    decoder = InstanceDecoder(InstanceFormat(max_bytes=40, max_features=2))
    assert decoder(record(b'{"features": {"x": 1.0, "y": 2.0}}')).features == {"x": 1.0, "y": 2.0}
    assert refusal(decoder, b'{"features": {"x": 1, "y": 2, "z": 3}}') == "too_many_features"
    assert refusal(decoder, b'{"features": {"x": 1.0, "y": 2.00000000}}') == "too_large"
    assert refusal(AnswerDecoder("classification", max_bytes=40), answer()) == "too_large"


def test_a_name_that_was_met_before_does_not_vouch_for_others() -> None:
    decoder = InstanceDecoder(PLAIN)
    decoder(record(b'{"features": {"x": 1.0}}'))
    assert refusal(decoder, b'{"features": {"x": 1.0, "<y>": 1.0}}') == "bad_feature_name"
    assert refusal(decoder, b'{"features": {"<y>": 1.0}}') == "bad_feature_name"


def test_known_headers_pass_and_foreign_ones_are_left_alone() -> None:
    headers = (("schema", b"streamal/1"), ("trace", None))
    found = AnswerDecoder("classification")(record(answer(), headers))
    assert found.received == received(record(answer(), headers))


@pytest.mark.parametrize("kind", ["skip", "unsure", "invalid"])
def test_an_answer_of_another_kind_carries_no_label(kind: str) -> None:
    found = AnswerDecoder("classification", CLASSES)(record(answer(kind=kind, label=["ignored"])))
    assert (found.kind, found.label, found.annotator) == (kind, None, SECRET)


def test_an_answer_may_say_more_than_we_read() -> None:
    found = AnswerDecoder("classification")(record(answer("3-41", answered_at="2026-11-21T10:00:00Z", revision=2)))
    assert (found.request_id, found.kind, found.label) == ("3-41", "label", "ok")


def test_replayed_labels_are_held_to_the_classes_of_the_model() -> None:
    chosen = Settings.model_validate({"instance": {"label": "y"}, "model": {"classes": list(CLASSES)}})
    decoder = instance_decoder(chosen, "classification")
    assert decoder(record(b'{"features": {}, "y": "fraud"}')).label == "fraud"
    assert refusal(decoder, b'{"features": {}, "y": "other"}') == "unknown_class"


def test_answers_to_nothing_do_not_use_up_the_classes() -> None:
    decoder = AnswerDecoder("classification")
    for number in range(MAX_CLASSES):
        decoder(record(answer(label=number)))
    assert decoder(record(answer(label="one more"))).label == "one more"


def test_listed_classes_leave_the_numbers_of_a_regression_alone() -> None:
    assert AnswerDecoder("regression", CLASSES)(record(answer(label=3))).label == 3.0


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(value: bytes) -> None:
    for decoder in (InstanceDecoder(PLAIN), AnswerDecoder("classification")):
        try:
            decoder(record(value))
        except BadRecord as refused:
            assert refused.reason  # noqa: PT017  # being let in is fine as well


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.fixed_dictionaries({}, optional={name: ANYTHING for name in ("id", "features", "display", "label")}))
def test_whatever_is_let_in_can_be_asked_about(found: dict[str, object]) -> None:
    try:
        taken = InstanceDecoder(InstanceFormat(label="label"))(record(json.dumps(found).encode()))
    except BadRecord:
        return
    request = LabelRequest(
        partition=2,
        offset=taken.offset,
        instance_id=taken.id,
        features=taken.features,
        display=taken.display,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="random",
        model_version=0,
        requested_at=0.0,
        expires_at=None,
        budget={},
    )
    assert LabelRequest.decode(request.encode()) == request
