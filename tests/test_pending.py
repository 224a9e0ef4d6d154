"""Requests leave by an answer or by expiry, and are remembered for a while."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from streamal.messages import Features, LabelRequest, Outcome
from streamal.pending import REMEMBERED, PendingRequests, sketch

FIRST = LabelRequest(
    partition=0,
    offset=0,
    instance_id="",
    features={},
    display=None,
    prediction={},
    utility=0.0,
    propensity=1.0,
    reason="exploration",
    would_select=False,
    strategy="random",
    model_version=0,
    requested_at=0.0,
    expires_at=None,
    budget={},
)

LEARNED = Outcome(
    kind="learned",
    partition=0,
    offset=0,
    instance_id="",
    features={},
    label="a",
    weight=1.0,
    prediction={},
    utility=0.0,
    propensity=1.0,
    reason="exploration",
    would_select=False,
    strategy="random",
    model_version=0,
    requested_at=0.0,
    resolved_at=1.0,
    annotator=None,
)


def waiting(*offsets: int, expiry: float | None = None) -> PendingRequests:
    pending = PendingRequests()
    for offset in offsets:
        pending.add(replace(FIRST, offset=offset, expires_at=None if expiry is None else offset + expiry))
    return pending


def test_requests_wait_in_the_order_they_were_made() -> None:
    pending = waiting(3, 5, 9)
    assert [request.offset for request in pending] == [3, 5, 9]
    assert (len(pending), pending.get(5), pending.get(4)) == (3, replace(FIRST, offset=5), None)


def test_the_oldest_is_the_first_that_still_waits() -> None:
    pending = waiting(3, 5, 9)
    pending.remove(replace(LEARNED, offset=5))
    assert pending.oldest == replace(FIRST, offset=3)
    pending.remove(replace(LEARNED, offset=3))
    assert pending.oldest == replace(FIRST, offset=9)
    pending.remove(replace(LEARNED, offset=9, kind="expired", label=None))
    assert pending.oldest is None


def test_what_was_asked_later_about_an_earlier_instance_is_the_younger_request() -> None:
    pending = waiting(30, 12, 19, expiry=10.0)
    assert [request.offset for request in pending] == [30, 12, 19]
    assert pending.oldest == pending.get(30)
    made = [(30, 100.0), (12, 500.0), (19, 500.0)]
    pending = waiting()
    for offset, at in made:
        pending.add(replace(FIRST, offset=offset, requested_at=at, expires_at=at + 60.0))
    assert [request.offset for request in pending.expired(200.0)] == [30]
    assert [request.offset for request in pending.expired(560.0)] == [30, 12, 19]


def test_the_latest_comes_first() -> None:
    pending = waiting(30, 12, 19)
    for offset in (4, 2):
        pending.remove(replace(LEARNED, offset=offset))
    assert [found.offset for found in pending.latest()] == [19, 12, 30, 2, 4]


def test_how_a_request_ended_is_remembered() -> None:
    pending = waiting(3, 5)
    ended = replace(LEARNED, offset=3)
    pending.remove(ended)
    assert (pending.gone(3), pending.gone(5), pending.gone(4)) == (ended, None, None)


def test_memory_of_what_is_gone_is_bounded() -> None:
    pending = waiting()
    for offset in range(REMEMBERED + 3):
        pending.remove(replace(LEARNED, offset=offset))
    assert [pending.gone(offset) is None for offset in (0, 2, 3, REMEMBERED + 2)] == [True, True, False, False]


def test_requests_expire_when_their_time_is_up_and_stay_until_removed() -> None:
    pending = waiting(3, 5, 9, expiry=10.0)
    assert [request.offset for request in pending.expired(12.999)] == []
    assert [request.offset for request in pending.expired(15.0)] == [3, 5]
    assert [request.offset for request in pending.expired(15.0)] == [3, 5]
    pending.remove(replace(LEARNED, offset=3, kind="expired", label=None))
    assert [request.offset for request in pending.expired(15.0)] == [5]


def test_requests_without_expiry_wait_for_ever() -> None:
    assert waiting(3, 5).expired(1e18) == []


def test_a_request_without_expiry_does_not_hold_up_those_made_after_one_was_set() -> None:
    pending = waiting(3)
    pending.add(replace(FIRST, offset=5, expires_at=10.0))
    assert [request.offset for request in pending.expired(10.0)] == [5]


def about(offset: int, **features: float | str | None) -> LabelRequest:
    return replace(FIRST, offset=offset, features=features)


def test_an_instance_is_like_one_that_waits_until_the_last_such_one_has_left() -> None:
    pending = PendingRequests(digits=3)
    assert not pending.like({"x": 1.0})
    for request in (about(1, x=1.234, city="Oslo"), about(2, city="Oslo", x=1.231), about(2, city="Oslo", x=1.231)):
        pending.add(request)
    near: Features = {"x": 1.2299999, "city": "Oslo"}
    assert pending.like(near)
    others: list[Features] = [
        {"x": 1.24, "city": "Oslo"},
        {"x": 1.23, "city": "Rome"},
        {"x": 1.23},
    ]
    assert not any(map(pending.like, others))
    pending.remove(replace(LEARNED, offset=2))
    assert pending.like(near)
    pending.remove(replace(LEARNED, offset=1))
    pending.remove(replace(LEARNED, offset=1))
    assert not pending.like(near)


def test_without_digits_nothing_is_alike() -> None:
    pending = PendingRequests()
    pending.add(about(1, x=1.0))
    assert not pending.like({"x": 1.0})


@given(st.dictionaries(st.text(max_size=3), st.floats(-1e100, 1e100) | st.text(max_size=3) | st.none() | st.booleans()))
def test_an_instance_is_like_itself_whatever_the_order_and_type_of_its_numbers(
    features: Features,
) -> None:
    turned = dict(reversed(list(features.items())))
    assert sketch(features, 15) == sketch(turned, 15)
    assert sketch({**features, "number": 3}, 4) == sketch({"number": 3.0, **features}, 4)
    assert sketch({**features, "number": 3}, 4) != sketch({**features, "number": None}, 4)
