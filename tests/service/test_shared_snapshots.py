"""Snapshots in a compacted topic: whole or not at all, whatever compaction, a crash or a second writer left."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from broker import Broker
from hypothesis import given
from hypothesis import strategies as st

from streamal.errors import SnapshotRefused
from streamal.service import shared_snapshots
from streamal.service.shared_snapshots import CHUNK_BYTES, MOST_CHUNKS, SnapshotTopic, put_together, taken_apart
from streamal.transport.embedded import EmbeddedLog
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Append, Headers, Log, TopicPartition

PLACE = TopicPartition("snapshots", 0)
MANY = 2 * CHUNK_BYTES + 17


@dataclass(frozen=True)
class Lying:
    """A record as it lies in the topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    topic: str = PLACE.topic
    partition: int = 0
    offset: int = 0
    timestamp: int = 0


def lying(appends: Sequence[Append]) -> list[Lying]:
    return [Lying(append.key, append.value, append.headers) for append in appends]


def blob(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


def compacted(records: Sequence[Lying]) -> list[Lying]:
    """Return what is left when only the last record of each key is kept."""
    last = {record.key: number for number, record in enumerate(records)}
    return [record for number, record in enumerate(records) if last[record.key] == number]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_snapshots, "CHUNK_BYTES", 4)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, MANY])
def test_what_was_taken_apart_is_put_together(size: int) -> None:
    appends = taken_apart(blob(size), PLACE)
    assert all(len(append.value or b"") <= CHUNK_BYTES for append in appends)
    assert put_together(lying(appends)) == blob(size)


def test_an_empty_topic_holds_none() -> None:
    assert put_together([]) is None


def test_the_last_whole_one_counts() -> None:
    first, second = lying(taken_apart(blob(MANY), PLACE)), lying(taken_apart(blob(MANY, 1), PLACE))
    assert put_together(first + second) == blob(MANY, 1)
    assert put_together(first + second[:-1]) == blob(MANY)
    assert put_together(compacted(first + second)) == blob(MANY, 1)


@pytest.mark.usefixtures("small_chunks")
def test_a_cut_or_compacted_one_is_refused() -> None:
    whole = lying(taken_apart(blob(13), PLACE))
    for missing in range(len(whole)):
        with pytest.raises(SnapshotRefused, match=r"not there|without a manifest"):
            put_together(whole[:missing] + whole[missing + 1 :])
    with pytest.raises(SnapshotRefused, match="without a manifest"):
        put_together(compacted(whole[:-1]))


@pytest.mark.usefixtures("small_chunks")
def test_no_order_and_no_compaction_of_two_gives_a_mixture() -> None:
    first, second = lying(taken_apart(blob(9), PLACE)), lying(taken_apart(blob(11, 1), PLACE))
    count = len(first) + len(second)
    whole = 0
    for places in itertools.combinations(range(count), len(first)):
        firsts, seconds = iter(first), iter(second)
        merged = [next(firsts) if number in places else next(seconds) for number in range(count)]
        for records in (merged, compacted(merged), *(compacted(merged[:end]) for end in range(count))):
            try:
                found = put_together(records)
            except SnapshotRefused:
                continue
            assert found in (None, blob(9), blob(11, 1))
            whole += found is not None
    assert whole > 50


@given(records=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=5), st.booleans()), max_size=12))
def test_what_others_write_is_never_taken_for_one(records: list[tuple[int, bytes, bool]]) -> None:
    found = [
        Lying(b"model/manifest" if manifest else f"model/{number}".encode(), value, [("snapshot", value)])
        for number, value, manifest in records
    ]
    try:
        assert put_together(found) is None
    except SnapshotRefused:
        pass


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"{}",
        {"chunks": -1},
        {"chunks": "1"},
        {"chunks": 10**15},
        {"chunks": None},
        {"chunks": 1.0},
        {"sha256": 3},
        b'{"chunks":1,"bytes":10,"sha256":"\\ud800"}',
        {"sha256": "0" * 64},
        {"bytes": 3},
        {"bytes": None},
    ],
)
def test_a_hostile_manifest_is_refused(manifest: Any) -> None:
    good = lying(taken_apart(blob(10), PLACE))
    value = manifest if isinstance(manifest, bytes) else orjson.dumps(orjson.loads(good[-1].value or b"") | manifest)
    with pytest.raises(SnapshotRefused, match="the next one will be whole"):
        put_together([*good[:-1], Lying(good[-1].key, value, good[-1].headers)])


def test_memory_is_bounded_whatever_is_written() -> None:
    strangers = [Lying(f"model/{number}".encode(), b"x") for number in (MOST_CHUNKS, 9_999, 10**9)]
    strangers += [Lying(b"other", b"x"), Lying(None, b"x"), Lying(b"model/\xb2", b"x"), Lying(b"model/-1", b"x")]
    assert put_together(strangers) is None


def embedded(path: Path) -> Log:
    log = EmbeddedLog(path)
    log.create_topics({PLACE.topic: 1}, compacted=[PLACE.topic])
    return log


def check_topic(topic: SnapshotTopic, other: SnapshotTopic, watcher: Log) -> None:
    """Write, read and replace snapshots through two workers' views of one topic."""
    assert topic.read() is None
    topic.write(blob(MANY))
    assert other.read() == blob(MANY)
    other.write(blob(100, 2))
    assert topic.read() == blob(100, 2)
    records = list(watcher.reader().read(PLACE, *watcher.bounds(PLACE)))
    digest = hashlib.sha256(blob(100, 2)).hexdigest()
    assert [record.key for record in records][-2:] == [b"model/0", b"model/manifest"]
    assert orjson.loads(records[-1].value or b"") == {"chunks": 1, "bytes": 100, "sha256": digest}


def test_the_topic_on_the_embedded_log(tmp_path: Path) -> None:
    opened = partial(embedded, tmp_path / "log.db")
    log = opened()
    check_topic(SnapshotTopic(opened, PLACE.topic, "w0"), SnapshotTopic(opened, PLACE.topic, "w1"), log)
    log.close()


def test_a_topic_that_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    topic = SnapshotTopic(lambda: EmbeddedLog(tmp_path / "log.db"), PLACE.topic, "w0")
    with pytest.raises(SnapshotRefused, match="`streamal topics create` makes it"):
        topic.read()


@pytest.mark.kafka
def test_the_topic_on_kafka(broker: Broker) -> None:
    opened = partial(KafkaLog, broker.bootstrap)
    log = opened()
    name = "shared-snapshots"
    log.create_topics({name: 1}, compacted=[name])
    place = TopicPartition(name, 0)
    one, other = SnapshotTopic(opened, name, "one-snapshots"), SnapshotTopic(opened, name, "other-snapshots")
    assert one.read() is None
    one.write(blob(40 * CHUNK_BYTES))
    assert other.read() == blob(40 * CHUNK_BYTES)
    other.write(blob(100, 2))
    assert one.read() == blob(100, 2)
    writer = log.writer("torn")
    writer.append(
        [Append(*place, append.value, append.key, append.headers) for append in taken_apart(blob(MANY), place)][:-1]
    )
    writer.close()
    with pytest.raises(SnapshotRefused, match=r"not there|partly of another|without a manifest"):
        put_together(compacted(list(map(as_lying, log.reader().read(place, *log.bounds(place))))))
    assert one.read() == blob(100, 2)
    log.close()


def as_lying(record: Any) -> Lying:
    return Lying(record.key, record.value, tuple(record.headers))
