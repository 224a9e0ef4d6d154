"""The simulated log itself: all that a worker must be protected from happens there, and only as Kafka does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from simulation.cluster import Cluster, Token
from simulation.memory_log import Direct, MemoryLog, MemoryMembership, Point, Steps

from streamal.errors import CommitRefused, DeadlineMissed, TransportError
from streamal.transport.log import Append, Position, TopicPartition, Transaction

SOURCE, SINK = TopicPartition("source", 0), TopicPartition("sink", 0)


class Manual:
    """A driver that lets nothing happen by itself; an idle call takes a second."""

    beats = True

    def __init__(self) -> None:
        self.now = 0.0

    def reach(self, point: Point) -> None:
        pass

    def idle(self) -> None:
        self.now += 1.0

    def patience(self) -> int:
        return 1

    def take(self, waiting: int) -> int:
        return waiting


class Bench:
    """A cluster with two topics, and the log of a process on it."""

    def __init__(self) -> None:
        self.driver = Manual()
        self.cluster = Cluster(lambda: self.driver.now)
        self.log = MemoryLog(self.cluster, self.driver)
        self.log.create_topics({"source": 2, "sink": 1})

    def join(self) -> MemoryMembership:
        member = self.log.membership("group", ["source"], lambda: None)
        while not member.assignment:
            member.poll(0.0, 10)
        member.poll(0.0, 10)
        return member

    def settle(self) -> None:
        while self.cluster.step():
            pass


@pytest.fixture
def bench() -> Bench:
    return Bench()


def transaction(token: object, offset: int = 7, value: bytes = b"x") -> Transaction:
    def positions(offsets: Sequence[int]) -> Mapping[TopicPartition, Position]:
        return {SOURCE: Position(offset, "ledger")}

    return Transaction([Append("sink", 0, value)], positions, token)


def advance(steps: Steps[object], point: Point) -> None:
    """Take a commit to a point, before what happens there."""
    while next(steps) != point:
        pass


def finish(steps: Steps[object]) -> None:
    """Take a commit to its end."""
    for _ in steps:
        pass


def visible(bench: Bench) -> list[bytes | None]:
    return [record.value for record in bench.cluster.partition(SINK).committed(0, 100)]


def test_a_decided_transaction_is_visible_once_its_markers_are_written(bench: Bench) -> None:
    member, writer = bench.join(), bench.log.writer("slot")
    writer.commit(transaction(member.token()))
    assert visible(bench) == []
    assert bench.log.positions("group", [SOURCE]) == {}
    bench.settle()
    assert visible(bench) == [b"x"]
    assert bench.log.positions("group", [SOURCE]) == {SOURCE: Position(7, "ledger")}
    assert len(bench.cluster.partition(SINK).entries) == 2, "the marker takes an offset"


def test_positions_may_be_visible_before_the_records_of_their_transaction(bench: Bench) -> None:
    member, writer = bench.join(), bench.log.writer("slot")
    writer.commit(transaction(member.token()))
    assert bench.cluster.step(0.99)
    assert member.committed(SOURCE) == Position(7, "ledger")
    assert visible(bench) == []


def test_an_aborted_transaction_is_never_visible(bench: Bench) -> None:
    member = bench.join()
    with pytest.raises(CommitRefused, match="UnknownMemberId"):
        bench.log.writer("slot").commit(transaction(Token("group", "stranger", 1)))
    steps = bench.log.writer("other").steps(transaction(member.token(), value=b"aborted"))
    advance(steps, Point.END)
    steps.throw(TransportError("no answer"))
    with pytest.raises(CommitRefused, match="no answer"):
        finish(steps)
    bench.settle()
    assert visible(bench) == []
    assert bench.cluster.partition(SINK).stable == 4, "two records, each with its marker"
    assert bench.log.positions("group", [SOURCE]) == {}


def test_an_open_transaction_holds_back_what_is_committed_behind_it(bench: Bench) -> None:
    member = bench.join()
    steps = bench.log.writer("slow").steps(transaction(member.token(), value=b"slow"))
    advance(steps, Point.FLUSH)
    bench.log.writer("quick").append([Append("sink", 0, b"quick")])
    bench.settle()
    assert bench.log.bounds(SINK) == (0, 0)
    with pytest.raises(DeadlineMissed):
        list(bench.log.reader().read(SINK, 0, 2))
    bench.driver.now += 60.0
    bench.cluster.expire()
    bench.settle()
    assert [record.value for record in bench.log.reader().read(SINK, 0, 2)] == [b"quick"]


def test_a_new_writer_of_a_slot_ends_what_the_former_one_has_open(bench: Bench) -> None:
    member, former = bench.join(), bench.log.writer("slot")
    steps = former.steps(transaction(member.token()))
    advance(steps, Point.OFFSETS_SENT)
    assert bench.cluster.open_slot("slot") is None, "it waits for the markers of the abort"
    bench.settle()
    later = bench.log.writer("slot")
    with pytest.raises(CommitRefused, match="ProducerFenced"):
        finish(steps)
    later.append([Append("sink", 0, b"later")])
    bench.settle()
    assert visible(bench) == [b"later"]


def test_a_crash_after_the_end_was_asked_for_leaves_it_committed(bench: Bench) -> None:
    member = bench.join()
    steps = bench.log.writer("slot").steps(transaction(member.token()))
    advance(steps, Point.ENDED)
    steps.close()
    bench.settle()
    assert visible(bench) == [b"x"]


def test_a_crash_before_leaves_it_open_until_its_time_is_up(bench: Bench) -> None:
    member = bench.join()
    steps = bench.log.writer("slot").steps(transaction(member.token()))
    advance(steps, Point.END)
    steps.close()
    with pytest.raises(DeadlineMissed):
        member.committed(SOURCE)
    bench.driver.now += 60.0
    bench.cluster.expire()
    bench.settle()
    assert bench.cluster.groups["group"].positions == {}
    assert visible(bench) == []


def test_a_late_answer_to_the_end_is_no_abort(bench: Bench) -> None:
    member, writer = bench.join(), bench.log.writer("slot")
    steps = writer.steps(transaction(member.token()))
    advance(steps, Point.ENDED)
    steps.throw(TransportError("no answer"))
    with pytest.raises(CommitRefused):
        next(steps)
    bench.settle()
    assert visible(bench) == [b"x"]


def test_work_of_a_former_generation_is_refused_and_its_owner_told_later(bench: Bench) -> None:
    zombie = bench.join()
    stale = zombie.token()
    bench.driver.now += 60.0
    other = MemoryLog(bench.cluster, bench.driver).membership("group", ["source"], lambda: None)
    while not other.assignment:
        bench.cluster.expire()
        other.poll(0.0, 10)
    assert len(zombie.assignment) == 2, "nobody has told it yet"
    assert zombie.token() == stale
    with pytest.raises(CommitRefused, match="UnknownMemberId"):
        bench.log.writer("slot").commit(transaction(stale))
    zombie.beat()
    assert not zombie.assignment
    with pytest.raises(TransportError, match="start afresh"):
        zombie.poll(0.0, 10)


def test_a_rebalance_takes_several_polls_and_changes_the_generation_first(bench: Bench) -> None:
    first = bench.join()
    token = first.token()
    second = MemoryLog(bench.cluster, bench.driver).membership("group", ["source"], lambda: None)
    second.poll(0.0, 10)
    first.beat()
    seen: list[tuple[object, int]] = []
    for _ in range(12):
        first.poll(0.0, 10)
        second.poll(0.0, 10)
        seen.append((first.token() == token, len(first.assignment)))
    distinct = list(dict.fromkeys(seen))
    assert distinct[0][0] is True
    assert (False, 0) in distinct, "a new generation without an assignment yet"
    assert distinct[-1] == (False, 1)
    with pytest.raises(CommitRefused, match="IllegalGeneration"):
        bench.log.writer("slot").commit(transaction(token))


def test_a_send_that_failed_before_the_buffer_refuses_its_transaction(bench: Bench) -> None:
    member, writer = bench.join(), bench.log.writer("slot")
    steps = writer.steps(transaction(member.token()))
    advance(steps, Point.SEND)
    assert steps.throw(TransportError("too large")) == Point.FLUSH, "the client goes on as if nothing had happened"
    assert next(steps) == Point.ABORT
    with pytest.raises(CommitRefused, match="too large"):
        next(steps)


def test_a_producer_keeps_positions_that_it_could_not_send(bench: Bench) -> None:
    """The fault of the client that a writer guards against by never using it again after an error."""
    member, writer = bench.join(), bench.log.writer("slot")
    producer = writer._producer
    assert producer is not None
    producer.add_offsets({SOURCE: Position(9, "of the aborted one")})
    elsewhere = {TopicPartition("source", 1): Position(1, "")}
    writer.commit(Transaction([Append("sink", 0, b"x")], lambda _: elsewhere, member.token()))
    bench.settle()
    assert bench.log.positions("group", [SOURCE]) == {SOURCE: Position(9, "of the aborted one")}


def test_a_writer_that_met_an_error_is_used_no_more(bench: Bench) -> None:
    member, writer = bench.join(), bench.log.writer("slot")
    with pytest.raises(CommitRefused, match="UnknownMemberId"):
        writer.commit(transaction(Token("group", "stranger", 1)))
    bench.settle()
    with pytest.raises(CommitRefused, match="has met an error"):
        writer.commit(transaction(member.token()))


def test_driven_directly_nothing_is_left_undone() -> None:
    cluster = Cluster(lambda: 0.0)
    log = MemoryLog(cluster, Direct(cluster))
    log.create_topics({"sink": 1})
    log.writer("slot").append([Append("sink", 0, b"x")])
    assert cluster.unmarked == []
