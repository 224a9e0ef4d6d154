"""What only the embedded log can show: real processes on one file, deaths by the clock, retention, and its errors."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamal.errors import CommitRefused, DeadlineMissed, TopicMissing, TransportError
from streamal.transport import embedded, log_file
from streamal.transport.embedded import EmbeddedLog, EmbeddedMembership
from streamal.transport.log import Append, Headers, Position, Record, TopicPartition, Transaction
from streamal.transport.log_file import LogFile, pack_headers, unpack_headers

PATIENCE = 60.0


class Clock:
    """A wall clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Events(list[str]):
    """What happened to whom, in order."""

    def revoke(self, who: str) -> Callable[[], None]:
        return lambda: self.append(who)


def ignore() -> None:
    """Stand for a worker with nothing in flight."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "log.db"


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(path, session_timeout=6.0, retention=100.0, clock=clock)) as opened:
        opened.create_topics({"in": 2, "out": 2, "state": 1, "wide": 3}, compacted=["state"])
        yield opened


def moving(partition: TopicPartition, offset: int) -> Callable[[Sequence[int]], Mapping[TopicPartition, Position]]:
    return lambda _: {partition: Position(offset, "ledger")}


def values(log: EmbeddedLog, topic: str, partition: int = 0) -> list[bytes | None]:
    where = TopicPartition(topic, partition)
    with closing(log.reader()) as reader:
        return [record.value for record in reader.read(where, *log.bounds(where))]


def joined(log: EmbeddedLog, on_revoke: Callable[[], object] = ignore) -> EmbeddedMembership:
    member = log.membership("group", ["in"], on_revoke)
    assert member.poll(0, 1) == {}
    return member


def test_an_interrupted_transaction_holds_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.db"
    with closing(LogFile(path, durable=False)) as interrupted, closing(LogFile(path, durable=False)) as other:
        interrupted.prepare()
        ask = interrupted.ask

        def ask_and_be_interrupted(sql: str) -> None:
            ask(sql)
            raise KeyboardInterrupt

        monkeypatch.setattr(interrupted, "ask", ask_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt), interrupted.transaction():
            pytest.fail("it was interrupted before")
        with other.transaction():
            other.ask("SELECT 1 FROM topic")


def test_a_member_starts_at_its_position_or_else_at_the_first_record(log: EmbeddedLog) -> None:
    log.writer("feeder").append([Append("in", number % 2, b"%d" % number) for number in range(6)])
    member = joined(log)
    log.writer("worker").commit(Transaction([], moving(TopicPartition("in", 0), 2), member.token()))
    member.close()
    polled = joined(log).poll(0, 100)
    offsets = {partition.partition: [record.offset for record in found] for partition, found in polled.items()}
    assert offsets == {0: [2], 1: [0, 1, 2]}


def test_no_partition_starves_behind_a_long_one(log: EmbeddedLog) -> None:
    log.writer("feeder").append([Append("wide", 0, b"x")] * 500 + [Append("wide", 2, b"x")] * 10)
    member = log.membership("group", ["wide"], ignore)
    member.poll(0, 1)
    polled = member.poll(0, 100)
    assert {partition.partition: len(records) for partition, records in polled.items()} == {0: 90, 2: 10}
    assert {partition.partition: ahead for partition, ahead in member.lag().items()} == {0: 410, 1: 0, 2: 0}


def test_a_limit_below_the_number_of_partitions_still_serves_each(log: EmbeddedLog) -> None:
    log.writer("feeder").append([Append("wide", number % 3, b"x") for number in range(30)])
    member = log.membership("group", ["wide"], ignore)
    member.poll(0, 1)
    assert sorted(partition.partition for partition in member.poll(0, 1)) == [0, 1, 2]


def test_a_waiting_poll_returns_what_another_thread_appends(log: EmbeddedLog) -> None:
    member, writer = joined(log), log.writer("feeder")
    with ThreadPoolExecutor(1) as pool:
        polled = pool.submit(member.poll, PATIENCE, 10)
        writer.append([Append("in", 0, b"x")])
        assert [record.value for record in polled.result()[TopicPartition("in", 0)]] == [b"x"]


def test_a_commit_of_an_older_generation_may_be_tried_again(log: EmbeddedLog) -> None:
    first, writer = joined(log), log.writer("worker")
    stale = first.token()
    joined(log)
    with pytest.raises(CommitRefused, match="generation 2, the commit was made in 1") as refused:
        writer.commit(Transaction([Append("out", 0, b"stale")], moving(TopicPartition("in", 0), 1), stale))
    assert refused.value.retriable
    first.poll(0, 1)
    writer.commit(Transaction([Append("out", 0, b"fresh")], moving(TopicPartition("in", 0), 1), first.token()))
    assert values(log, "out") == [b"fresh"]


def test_a_token_of_another_transport_is_refused(log: EmbeddedLog) -> None:
    with pytest.raises(CommitRefused, match=r"Membership\.token"):
        log.writer("worker").commit(Transaction([], lambda _: {}, object()))


def test_a_silent_member_is_expelled_and_joins_again(log: EmbeddedLog, clock: Clock) -> None:
    events = Events()
    first, second = joined(log, events.revoke("first")), joined(log, events.revoke("second"))
    first.poll(0, 1)
    assert events == ["first"]
    assert len(first.assignment) == len(second.assignment) == 1
    stale, epoch = first.token(), first.epoch
    for _ in range(4):
        clock.now += 2.0
        second.poll(0, 1)
    assert events == ["first", "second"]
    assert len(second.assignment) == 2
    with pytest.raises(CommitRefused):
        log.writer("first").commit(Transaction([], lambda _: {}, stale))
    first.poll(0, 1)
    assert events == ["first", "second", "first"]
    assert first.epoch != epoch
    second.poll(0, 1)
    assert sorted(first.assignment | second.assignment) == [TopicPartition("in", 0), TopicPartition("in", 1)]
    assert not first.assignment & second.assignment


def test_a_member_that_only_commits_is_not_expelled(log: EmbeddedLog, clock: Clock) -> None:
    first, second = joined(log), joined(log)
    first.poll(0, 1)
    writer = log.writer("first")
    for _ in range(6):
        clock.now += 2.0
        writer.commit(Transaction([], lambda _: {}, first.token()))
        second.poll(0, 1)
    assert len(second.assignment) == 1


def test_a_dead_member_does_not_outlive_a_clock_that_is_set_back(log: EmbeddedLog, clock: Clock) -> None:
    second = [joined(log), joined(log)][1]
    clock.now -= 3600.0
    second.poll(0, 1)
    assert len(second.assignment) == 2


def test_on_revoke_may_wait_for_a_commit(log: EmbeddedLog) -> None:
    """It would deadlock if it were called with the write lock held."""
    writer = log.writer("worker")
    member = joined(log, lambda: writer.append([Append("out", 0, b"in flight")]))
    joined(log)
    member.poll(0, 1)
    assert values(log, "out") == [b"in flight"]


def test_members_of_one_group_must_read_the_same_topics(log: EmbeddedLog) -> None:
    joined(log)
    with pytest.raises(TransportError, match="reads in, this member wants in, out"):
        log.membership("group", ["out", "in"], ignore).poll(0, 1)


def test_topics_of_a_group_must_have_as_many_partitions(log: EmbeddedLog) -> None:
    with pytest.raises(TopicMissing, match="'in': 2, 'wide': 3"):
        log.membership("group", ["in", "wide"], ignore)


def test_only_an_owned_partition_can_be_sought(log: EmbeddedLog) -> None:
    with pytest.raises(TransportError, match="in-7 is not assigned"):
        joined(log).seek(TopicPartition("in", 7), 0)


def test_retention_deletes_what_is_old_and_read_and_never_uses_an_offset_again(log: EmbeddedLog, clock: Clock) -> None:
    writer, member = log.writer("worker"), joined(log)
    writer.append([Append(topic, 0, b"old") for topic in ("in", "out") for _ in range(4)])
    writer.commit(Transaction([], moving(TopicPartition("in", 0), 3), member.token()))
    clock.now += 70.0
    writer.append([Append("in", 0, b"young")])
    clock.now += 70.0
    assert writer.append([Append("out", 0, b"new")]) == [4]
    assert log.bounds(TopicPartition("in", 0)) == (3, 5)
    assert values(log, "in") == [b"old", b"young"]
    assert values(log, "out") == [b"new"]
    clock.now += 200.0
    assert writer.append([Append("wide", 0, b"x")]) == [0]
    assert log.bounds(TopicPartition("out", 0)) == (5, 5)
    assert writer.append([Append("out", 0, b"next")]) == [5]


def test_a_kept_topic_loses_nothing(log: EmbeddedLog, clock: Clock) -> None:
    log.create_topics({"ever": 1}, kept=["ever"])
    writer = log.writer("worker")
    writer.append([Append("ever", 0, b"old")])
    clock.now += 1000.0
    writer.append([Append("ever", 0, b"new")])
    assert values(log, "ever") == [b"old", b"new"]


def test_compaction_keeps_the_last_record_of_each_key(log: EmbeddedLog, clock: Clock) -> None:
    writer = log.writer("worker")
    made = [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (None, b"none"), (None, b"none"), (b"b", None), (b"", b"empty")]
    writer.append([Append("state", 0, value, key) for key, value in made])
    clock.now += 1000.0
    writer.append([Append("state", 0, b"3", b"a")])
    with closing(log.reader()) as reader:
        found = list(reader.read(TopicPartition("state", 0), 0, 8))
    rest = [(5, b"b", None), (6, b"", b"empty"), (7, b"a", b"3")]
    expected = [(2, b"a", b"2"), (3, None, b"none"), (4, None, b"none"), *rest]
    assert [(record.offset, record.key, record.value) for record in found] == expected


def test_a_member_passes_a_gap_at_the_end(log: EmbeddedLog, clock: Clock) -> None:
    log.writer("feeder").append([Append("in", 0, b"x")] * 3)
    member = joined(log)
    clock.now += 1000.0
    log.writer("feeder").append([Append("out", 0, b"x")])
    assert member.poll(0, 10) == {}
    assert member.lag()[TopicPartition("in", 0)] == 0
    log.writer("feeder").append([Append("in", 0, b"y")])
    assert [record.offset for record in member.poll(0, 10)[TopicPartition("in", 0)]] == [3]


def test_everything_survives_a_restart(log: EmbeddedLog, path: Path, clock: Clock) -> None:
    member = joined(log)
    position = {TopicPartition("in", 1): Position(1, "ledger")}
    log.writer("worker").commit(Transaction([Append("out", 0, b"kept")], lambda _: position, member.token()))
    log.close()
    with closing(EmbeddedLog(path, clock=clock)) as again:
        assert again.create_topics({"in": 9}) == []
        assert again.partitions("in") == 2
        assert again.positions("group", [TopicPartition("in", 0), TopicPartition("in", 1)]) == position
        assert again.writer("worker").append([Append("out", 0, b"more")]) == [1]
        assert values(again, "out") == [b"kept", b"more"]
        assert joined(again).epoch == 3


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    barrier = Barrier(6)

    def open_and_append(path: Path) -> None:
        barrier.wait()
        with closing(EmbeddedLog(path)) as opened:
            opened.create_topics({"in": 1})
            opened.writer(str(id(opened))).append([Append("in", 0, b"x")])

    with ThreadPoolExecutor(6) as pool:
        for attempt in range(40):  # SQLite refuses one in ten when the journal mode is set without trying again
            path = tmp_path / f"{attempt}.db"
            list(pool.map(open_and_append, [path] * 6))
            with closing(EmbeddedLog(path)) as opened:
                assert values(opened, "in") == [b"x"] * 6


def test_a_file_that_is_no_log_is_refused_by_name(tmp_path: Path) -> None:
    stranger = tmp_path / "letter.txt"
    stranger.write_text("Dear reader, " * 100)
    with pytest.raises(TransportError, match=r"letter\.txt .*not a database"):
        EmbeddedLog(stranger)
    assert stranger.read_text().startswith("Dear reader")


def test_a_file_of_another_format_is_refused(log: EmbeddedLog, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(TransportError, match="log format 7"):
        EmbeddedLog(path)


def test_a_missing_topic_comes_with_the_file_and_the_cure(log: EmbeddedLog, path: Path) -> None:
    with pytest.raises(TopicMissing, match=r"'absent'.*log\.db.*`streamal topics create`"):
        log.writer("worker").append([Append("out", 0, b"x"), Append("absent", 0, b"x")])
    with pytest.raises(TopicMissing, match="partitions 0 to 1, asked for was -1"):
        log.writer("worker").append([Append("out", 0, b"x"), Append("out", -1, b"x")])
    assert values(log, "out") == []


def test_a_topic_needs_a_partition(log: EmbeddedLog) -> None:
    with pytest.raises(TransportError, match="partitions > 0"):
        log.create_topics({"good": 1, "bad": 0})
    with pytest.raises(TopicMissing):
        log.partitions("good")


def test_a_file_that_others_hold_is_waited_for_and_then_named(
    log: EmbeddedLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "BUSY_TIMEOUT", 0.05)
    writer = log.writer("worker")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransportError, match=r"log\.db .*database is locked"):
            writer.append([Append("out", 0, b"x")])
        other.execute("COMMIT")
    assert writer.append([Append("out", 0, b"x")]) == [0]


def test_a_log_that_never_comes_so_far_misses_the_deadline(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "READ_TIMEOUT", 0.05)
    log.writer("feeder").append([Append("in", 0, b"x")])
    with pytest.raises(DeadlineMissed, match=r"in-0 .* ends at offset 1, 2 was expected"):
        list(log.reader().read(TopicPartition("in", 0), 0, 2))


def test_a_reader_that_follows_nothing_gets_nothing(log: EmbeddedLog) -> None:
    assert log.reader().poll(0) == ()
    with pytest.raises(TopicMissing):
        log.reader().follow(TopicPartition("in", 2), 0)


def test_a_closed_end_says_so(log: EmbeddedLog) -> None:
    writer = log.writer("worker")
    writer.close()
    with pytest.raises(TransportError, match="closed"):
        writer.append([Append("in", 0, b"x")])


@given(st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=40)), max_size=5))
def test_headers_survive_packing(headers: Headers) -> None:
    packed = pack_headers(headers)
    assert (packed is None) == (not headers)
    assert list(unpack_headers(packed or b"")) == headers


class Copier:
    """A worker that copies `in` to `out`, and keeps what it collected until it is told to commit."""

    def __init__(self, log: EmbeddedLog, slot: str) -> None:
        self.log = log
        self.writer = log.writer(slot)
        self.join()

    def join(self) -> None:
        self.membership = self.log.membership("group", ["in"], ignore)
        self.restart()

    def restart(self) -> None:
        self.epoch = self.membership.epoch
        self.collected: list[Record] = []
        self.token: object = self.membership.token()
        for partition in self.membership.assignment:
            position = self.membership.committed(partition)
            self.membership.seek(partition, position.offset if position else 0)

    def poll(self) -> None:
        polled = self.membership.poll(0, 4)
        if self.membership.epoch != self.epoch:
            self.restart()
            return
        self.token = self.membership.token()
        self.collected += [record for records in polled.values() for record in records]

    def commit(self) -> None:
        appends = [Append("out", record.partition, b"%d" % record.offset) for record in self.collected]
        positions = {TopicPartition("in", made.partition): Position(made.offset + 1, "") for made in self.collected}
        try:
            self.writer.commit(Transaction(appends, lambda _: positions, self.token))
        except CommitRefused as refused:
            if not refused.retriable:
                raise
            self.restart()
        else:
            self.collected = []

    def leave(self) -> None:
        self.membership.close()
        self.join()


TURNS = st.sampled_from(["feed", "poll", "poll", "poll", "commit", "commit", "leave", "freeze"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TURNS, st.integers(0, 1)), max_size=50))
def test_whatever_the_members_do_each_record_is_copied_once(turns: list[tuple[str, int]]) -> None:
    clock = Clock()
    with TemporaryDirectory() as directory, closing(EmbeddedLog(Path(directory, "log.db"), clock=clock)) as log:
        log.create_topics({"in": 2, "out": 2})
        feeder, copiers = log.writer("feeder"), [Copier(log, "first"), Copier(log, "second")]
        for turn, who in turns:
            match turn:
                case "feed":
                    feeder.append([Append("in", number % 2, b"x") for number in range(5)])
                case "poll":
                    copiers[who].poll()
                case "commit":
                    copiers[who].commit()
                case "leave":
                    copiers[who].leave()
                case "freeze":
                    clock.now += 3.5  # two of these without a poll between them, and the member is dead
        last, other = copiers
        other.membership.close()
        last.poll()
        while last.collected or any(last.membership.lag().values()):
            last.commit()
            last.poll()
        for number in range(2):
            end = log.bounds(TopicPartition("in", number))[1]
            assert values(log, "out", number) == [b"%d" % offset for offset in range(end)]


WORKER = """
import sys
from pathlib import Path

from streamal.errors import CommitRefused
from streamal.transport.embedded import EmbeddedLog
from streamal.transport.log import Append, Position, TopicPartition, Transaction

path, name = sys.argv[1:]
log = EmbeddedLog(Path(path), session_timeout=1.0)
writer, membership, epoch = log.writer(name), log.membership("group", ["in"], lambda: None), 0
while True:
    polled = membership.poll(0.1, 20)
    if membership.epoch != epoch:
        epoch = membership.epoch
        for partition in membership.assignment:
            membership.seek(partition, (membership.committed(partition) or (0,))[0])
        continue
    records = [record for records in polled.values() for record in records]
    appends = [Append("out", r.partition, name.encode(), b"%d" % r.offset) for r in records]
    positions = {TopicPartition("in", r.partition): Position(r.offset + 1, "") for r in records}
    try:
        writer.commit(Transaction(appends, lambda _: positions, membership.token()))
    except CommitRefused as refused:
        assert refused.retriable
"""


@contextmanager
def worker(path: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a copying worker as a process of its own; it ends by a kill, here at the latest."""
    with subprocess.Popen([sys.executable, "-c", WORKER, str(path), name]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_process_is_taken_over_without_loss_or_repetition(path: Path) -> None:
    with ExitStack() as stack:
        log = stack.enter_context(closing(EmbeddedLog(path)))
        log.create_topics({"in": 2, "out": 2})
        feeder, readers = log.writer("feeder"), [log.reader(), log.reader()]
        for number, reader in enumerate(readers):
            reader.follow(TopicPartition("out", number), 0)
        stack.enter_context(worker(path, "survivor"))
        copied: list[list[Record]] = [[], []]

        def feed_until(condition: Callable[[], bool]) -> None:
            deadline = monotonic() + PATIENCE
            while not condition():
                assert monotonic() < deadline, "the workers did not get so far"
                feeder.append([Append("in", number % 2, b"x") for number in range(200)])
                for number, reader in enumerate(readers):
                    copied[number] += reader.poll(0.05)

        def names(number: int, since: int) -> set[bytes | None]:
            return {record.value for record in copied[number][since:]}

        def has_copied(name: str) -> bool:
            return name.encode() in names(0, 0) | names(1, 0)

        def has_taken_over(since: list[int]) -> bool:
            return all(b"survivor" in names(number, since[number]) for number in range(2))

        for victim in ("first", "second", "third"):
            with worker(path, victim) as process:
                feed_until(partial(has_copied, victim))
                process.send_signal(signal.SIGKILL)
                process.wait()
            feed_until(partial(has_taken_over, [len(records) for records in copied]))
        for number in range(2):
            end = log.bounds(TopicPartition("in", number))[1]
            found = [record.key for record in log.reader().read(TopicPartition("out", number), 0, end)]
            assert found == [b"%d" % offset for offset in range(end)]
