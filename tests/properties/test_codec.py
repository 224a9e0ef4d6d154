"""What was written is read back the same: floats bit for bit, any text, and metadata with garbage behind it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamal.messages import (
    VALUE,
    LabelRequest,
    Moment,
    Moments,
    Outcome,
    Unlabelled,
    Vote,
    decode_outcome,
    from_iso,
    parse_request_id,
    to_iso,
)
from streamal.service.ledgers import Pointers, decode_metadata, encode_metadata, frame, unframe

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts
features = st.dictionaries(texts, values, max_size=5)
shares = st.floats(0.0, 1.0)
predictions = st.dictionaries(texts.filter(bool), shares, max_size=4) | st.builds(lambda value: {VALUE: value}, finite)
times = st.integers(0, 10**13).map(lambda milliseconds: round(milliseconds / 1000, 3))
utilities = finite | st.just(math.inf)
reasons = st.sampled_from(["uncertainty", "exploration", "cold_start", "coverage", "drift", "rare_class"])
jsons = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
places = {"partition": st.integers(0, 10**9 - 1), "offset": st.integers(0, 10**18 - 1)}
decided: dict[str, st.SearchStrategy[Any]] = {
    "instance_id": texts,
    "features": features,
    "prediction": predictions,
    "utility": utilities,
    "propensity": shares,
    "reason": reasons,
    "would_select": st.none() | st.booleans(),
    "strategy": texts,
    "model_version": st.integers(0, 2**53),
    "requested_at": times,
    "synthetic": st.booleans(),
}
requests = st.builds(
    LabelRequest,
    **places,
    **decided,
    display=jsons,
    expires_at=st.none() | times,
    budget=st.fixed_dictionaries({"seen": st.integers(0, 2**53), "asked": st.integers(0, 2**53), "allowed": finite}),
    answers=st.integers(1, 9),
)
outcomes = st.builds(
    Outcome,
    **places,
    **decided,
    kind=st.sampled_from(["learned", "abstained", "invalid", "expired"]),
    label=st.none() | texts | finite,
    weight=finite,
    resolved_at=times,
    annotator=st.none() | texts,
)
unlabelled = st.builds(
    lambda label, **parts: Unlabelled(**parts, label=label and label[0], probability=label and label[1]),
    **places,
    instance_id=texts,
    features=features,
    model_version=st.integers(0, 2**53),
    label=st.none() | st.tuples(texts.filter(bool), shares),
)
moments = st.builds(
    Moments,
    partition=st.integers(0, 1_000),
    count=st.integers(0, 2**53),
    moments=st.dictionaries(texts, st.builds(Moment, st.integers(0, 2**53), finite, finite), max_size=5),
)


said = st.tuples(st.just("label"), texts | finite) | st.tuples(st.sampled_from(["unsure", "invalid"]), st.none())


@st.composite
def votes(draw: st.DrawFn, place: tuple[int, int] | None = None) -> Vote:
    partition, offset = place or (draw(places["partition"]), draw(places["offset"]))
    kind, label = draw(said)
    return Vote(partition, offset, draw(texts), kind, label, draw(st.integers(0, 99)), draw(times))  # type: ignore[arg-type]


def exact(found: object) -> str:
    """Tell -0.0 from 0.0 and 1 from 1.0, which `==` does not."""
    return repr(found)


@given(requests)
def test_a_label_request_is_read_back_bit_for_bit(request: LabelRequest) -> None:
    assert exact(LabelRequest.decode(request.encode())) == exact(request)


@given(outcomes, st.data())
def test_an_outcome_is_read_back_bit_for_bit(outcome: Outcome, drawn: st.DataObject) -> None:
    found = st.lists(votes((outcome.partition, outcome.offset)), max_size=3)
    outcome = replace(outcome, votes=tuple(drawn.draw(found)))
    assert exact(decode_outcome(outcome.encode())) == exact(outcome)


@given(votes())
def test_a_vote_is_read_back_bit_for_bit(vote: Vote) -> None:
    assert exact(decode_outcome(vote.encode())) == exact(vote)


@given(unlabelled)
def test_an_instance_without_an_answer_is_read_back_bit_for_bit(record: Unlabelled) -> None:
    assert exact(decode_outcome(record.encode())) == exact(record)


@given(moments)
def test_moments_are_read_back_bit_for_bit(record: Moments) -> None:
    assert exact(decode_outcome(record.encode())) == exact(record)


@given(requests)
def test_a_request_id_leads_back_to_its_instance(request: LabelRequest) -> None:
    assert parse_request_id(request.request_id) == (request.partition, request.offset)


@given(times)
def test_a_time_survives_to_the_millisecond(seconds: float) -> None:
    assert from_iso(to_iso(seconds)) == seconds


@given(
    ledger=st.dictionaries(texts, jsons, max_size=5),
    pointers=st.builds(Pointers, *[st.integers(0, 2**53)] * 3),
    garbage=texts,
)
def test_metadata_is_read_back_whatever_comes_behind_it(
    ledger: dict[str, Any], pointers: Pointers, garbage: str
) -> None:
    found = decode_metadata(encode_metadata(ledger, pointers) + garbage)
    assert exact(found) == exact((ledger, pointers))


@given(text=texts, position=st.integers(0), replacement=st.characters(codec="utf-8"))
def test_an_altered_frame_is_refused(text: str, position: int, replacement: str) -> None:
    framed = frame(text)
    position %= len(framed)
    altered = framed[:position] + replacement + framed[position + 1 :]
    assume(altered != framed)
    try:
        found = unframe(altered)
    except ValueError:
        return
    assert found == text  # such as "+" before the length: whatever was altered, the content was not


@given(text=texts, keep=st.integers(0))
def test_a_frame_that_was_cut_is_refused(text: str, keep: int) -> None:
    framed = frame(text)
    with pytest.raises(ValueError, match=r"."):
        unframe(framed[: keep % len(framed)])
