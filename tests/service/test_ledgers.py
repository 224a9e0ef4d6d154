"""The commit metadata carries the ledger whole or not at all, and a partition without one is not decided on."""

from __future__ import annotations

import zlib
from typing import Any

import orjson
import pytest
from specimens import Constant, Partition, stream

from streamal.lane import SamplingPlan
from streamal.messages import LabelRequest
from streamal.pending import PendingRequests
from streamal.selection.budget import BudgetPlan, Limit
from streamal.service.ledgers import (
    SPARE_PLACES,
    Pointers,
    RequestIndex,
    Topics,
    decode_metadata,
    encode_metadata,
    frame,
    unframe,
)

LEDGER: dict[str, Any] = {"budget": {"seen": 3, "tokens": 0.1}, "strategy": {"name": "größe \u2603"}}
POINTERS = Pointers(1, 2, 3)


def framed(value: object) -> str:
    return frame(orjson.dumps(value).decode())


def test_metadata_is_a_short_readable_text() -> None:
    text = encode_metadata(LEDGER, POINTERS)
    assert '"pointers":[1,2,3]' in text
    assert decode_metadata(text) == (LEDGER, POINTERS)


@pytest.mark.parametrize("garbage", ["", " ", "\0\0\0", ":", "1:2:3", "größe", "}" * 5_000])
def test_garbage_behind_it_is_ignored(garbage: str) -> None:
    assert decode_metadata(encode_metadata(LEDGER, POINTERS) + garbage) == (LEDGER, POINTERS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "2:a3a6bf43:{",
        "2:a3a6bf43:[]",
        "2:00000000:{}",
        "-2:a3a6bf43:{}",
        "x:a3a6bf43:{}",
        ":a3a6bf43:{}",
        "3:a3a6bf43:{}",
        "a3a6bf43:{}",
    ],
)
def test_what_is_cut_or_altered_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unframe(text)


def test_the_length_counts_bytes() -> None:
    text = "\u2603" * 3
    assert frame(text) == f"9:{zlib.crc32(text.encode()):08x}:{text}"
    assert unframe(frame(text) + "\u2603") == text


@pytest.mark.parametrize("found", [{}, {"v": 2, "ledger": {}, "pointers": [0, 0, 0]}, {"v": None}])
def test_another_version_is_refused(found: object) -> None:
    with pytest.raises(ValueError, match=r"version .* instead of 1"):
        decode_metadata(framed(found))


@pytest.mark.parametrize("strategy", ["class_conditional", "split"])
def test_a_full_ledger_goes_through_metadata_and_fits(strategy: str) -> None:
    limits = (Limit("count", 500, 86_400.0), Limit("cost", 40.0, 86_400.0), Limit("count", 50, 3_600.0))
    partition = Partition(SamplingPlan(BudgetPlan(1 / 3, limits=limits), strategy), Constant({"a": 0.7, "b": 0.3}))
    partition.run(stream(777))
    ledger = partition.lane.ledger()
    text = encode_metadata(ledger, Pointers(10**12, 10**12, 10**12))
    assert len(text.encode()) < 1_024
    found, _ = decode_metadata(text)
    assert repr(found) == repr(orjson.loads(orjson.dumps(ledger)))


def test_topics_have_as_many_partitions_as_instances_but_for_those_with_one() -> None:
    found = Topics(predictions="").partitions(4)
    assert "" not in found
    assert {name for name, count in found.items() if count == 1} == {"outcomes", "snapshots", "control"}
    assert {name for name, count in found.items() if count == 4} == {
        "instances",
        "label-requests",
        "answers",
        "decisions",
        "dead-letters",
    }
    assert Topics(predictions="p").partitions(4)["p"] == 4
    assert {"snapshots", "control"} <= set(Topics().used())


def request(offset: int) -> LabelRequest:
    partition = Partition(SamplingPlan(BudgetPlan(1.0), "periodic"), Constant({}))
    partition.run([stream(1)[0]._replace(offset=offset)])
    return LabelRequest.decode(partition.requests[0])


def waiting(*offsets: int) -> PendingRequests:
    pending = PendingRequests()
    for offset in offsets:
        pending.add(request(offset))
    return pending


def test_the_index_knows_where_the_oldest_pending_request_lies() -> None:
    index = RequestIndex()
    assert index.low(waiting()) is None
    assert index.low(waiting(5)) is None
    for offset, place in ((5, 70), (9, 71), (12, 74)):
        index.add(offset, place)
    assert index.low(waiting(5, 9)) == 70
    assert index.low(waiting(12)) == 74
    assert index.low(waiting(13)) is None
    index.add(13, 80)
    assert index.low(waiting(13)) == 80
    assert index.low(waiting()) is None
    index.add(20, 81)
    assert index.low(waiting(20)) == 81


def test_the_lowest_place_counts_and_not_the_lowest_offset() -> None:
    index = RequestIndex()
    for offset, place in ((7, 70), (31, 71), (12, 72), (9, 73), (44, 74)):
        index.add(offset, place)
    assert index.low(waiting(31, 12, 9)) == 71
    assert index.low(waiting(9)) == 73
    assert index.low(waiting(44)) == 74
    assert index.low(waiting(50)) is None


def test_one_request_that_nobody_answers_does_not_make_the_index_grow() -> None:
    index, pending = RequestIndex(), waiting(0)
    for offset in range(5_000):
        index.add(offset, offset)
        assert index.low(pending) == 0
    assert len(index._places) <= 2 * len(pending) + SPARE_PLACES
