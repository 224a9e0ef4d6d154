"""What only a real Kafka can show: fencing, lost members, refused transactions, and the faults of kafka-python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count
from time import monotonic

import pytest
from broker import Broker, free_port
from kafka import KafkaAdminClient, KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import ACL, ACLOperation, ACLPermissionType, MemberToRemove, ResourcePattern, ResourceType

from streamal.errors import CommitRefused, ConfigError, DeadlineMissed, TopicMissing, TransportError
from streamal.transport import kafka as adapter
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Append, Membership, Position, Record, TopicPartition, Transaction

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

PATIENCE = 30.0
names = (f"t{number}" for number in count())


def ignore() -> None:
    """Stand for a worker with nothing in flight."""


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with closing(KafkaLog(broker.bootstrap, session_timeout=3.0, start_deadline=PATIENCE)) as opened:
        yield opened


@pytest.fixture
def admin(broker: Broker) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as client:
        yield client


@pytest.fixture
def topic(log: KafkaLog) -> str:
    """A new topic with two partitions and three records in each."""
    name = next(names)
    log.create_topics({name: 2})
    with closing(log.writer(name)) as writer:
        writer.append([Append(name, p, b"%d" % n) for n in range(3) for p in range(2)])
    return name


def poll_until(done: Callable[[], bool], *members: Membership) -> None:
    """Poll the members in turn, as their processes would."""
    deadline = monotonic() + PATIENCE
    while not done():
        assert monotonic() < deadline, f"the group did not settle: {[(m.epoch, m.assignment) for m in members]}"
        for member in members:
            member.poll(0.05, 100)


def collect(expected: int, member: Membership) -> list[Record]:
    """Return the next records of a member that owns its partitions already."""
    got: list[Record] = []
    deadline = monotonic() + PATIENCE
    while len(got) < expected and monotonic() < deadline:
        got += [record for records in member.poll(0.05, 100).values() for record in records]
    return got


def joined(log: KafkaLog, topic: str, on_revoke: Callable[[], None] = ignore) -> Membership:
    member = log.membership(f"group-{topic}", [topic], on_revoke)
    poll_until(lambda: bool(member.assignment), member)
    return member


def moving(
    topic: str, offset: int, metadata: str = "ledger"
) -> Callable[[Sequence[int]], Mapping[TopicPartition, Position]]:
    return lambda _: {TopicPartition(topic, 0): Position(offset, metadata)}


def visible(log: KafkaLog, topic: str, partition: int = 0) -> list[bytes | None]:
    """All committed values of a partition; waits for what is still open, so an abort has been seen to end."""
    where = TopicPartition(topic, partition)
    with closing(log.writer(f"flush-{topic}")) as writer:
        stop = writer.append([Append(topic, partition, b"END")])[0]
    with closing(log.reader()) as reader:
        return [record.value for record in reader.read(where, log.bounds(where)[0], stop)]


def expel(admin: KafkaAdminClient, topic: str) -> None:
    """Remove all members of the group, as the end of their sessions would."""
    members = admin.describe_groups([f"group-{topic}"])[f"group-{topic}"]["members"]
    admin.remove_group_members(f"group-{topic}", [MemberToRemove(member_id=m["member_id"]) for m in members])


@pytest.mark.kafka
def test_a_commit_with_the_token_of_a_former_generation_is_refused_and_invisible(log: KafkaLog, topic: str) -> None:
    first = joined(log, topic)
    stale = first.token()
    second = log.membership(f"group-{topic}", [topic], ignore)
    poll_until(lambda: len(first.assignment) == len(second.assignment) == 1, first, second)
    writer = log.writer(f"{topic}-zombie")
    with pytest.raises(CommitRefused, match="expelled") as refused:
        writer.commit(Transaction([Append(topic, 0, b"zombie")], moving(topic, 3), stale))
    assert not refused.value.retriable
    assert visible(log, topic) == [b"0", b"1", b"2"]
    assert log.positions(f"group-{topic}", [TopicPartition(topic, 0)]) == {}


@pytest.mark.kafka
def test_offsets_of_a_refused_commit_never_come_back_with_a_later_one(log: KafkaLog, topic: str) -> None:
    member = joined(log, topic)
    stale = member.token()
    other = log.membership(f"group-{topic}", [topic], ignore)
    poll_until(lambda: len(member.assignment) == len(other.assignment) == 1, member, other)
    other.close()
    poll_until(lambda: len(member.assignment) == 2, member)
    writer = log.writer(topic)
    with pytest.raises(CommitRefused, match="expelled"):
        writer.commit(Transaction([], moving(topic, 111, "aborted"), stale))
    for attempt in (
        lambda: writer.commit(Transaction([], moving(topic, 1), member.token())),
        lambda: writer.append([Append(topic, 0, b"x")]),
    ):
        with pytest.raises(CommitRefused, match="end the process"):
            attempt()
    kept = {TopicPartition(topic, 1): Position(2, "kept")}
    log.writer(topic).commit(Transaction([], lambda _: kept, member.token()))
    # The coordinator shows positions a moment after it has confirmed their transaction.
    deadline = monotonic() + PATIENCE
    while not (found := log.positions(f"group-{topic}", [TopicPartition(topic, p) for p in range(2)])):
        assert monotonic() < deadline, "the positions did not come"
    assert found == kept


@pytest.mark.kafka
def test_a_second_writer_of_the_slot_fences_the_first(log: KafkaLog, topic: str) -> None:
    former, later = log.writer("same"), log.writer("same")
    with pytest.raises(CommitRefused, match="fenced"):
        former.append([Append(topic, 0, b"former")])
    later.append([Append(topic, 0, b"later")])
    assert visible(log, topic) == [b"0", b"1", b"2", b"later"]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("value", "metadata", "match"),
    [
        (b"x", "é" * 2048, "4096 bytes"),
        (b"x" * 2_000_000, "", "larger than"),
    ],
)
def test_what_the_broker_would_refuse_leaves_nothing_behind(
    log: KafkaLog, topic: str, value: bytes, metadata: str, match: str
) -> None:
    member, writer = joined(log, topic), log.writer(topic)
    appends = [Append(topic, 0, b"before"), Append(topic, 1, value)]
    with pytest.raises(CommitRefused, match=match):
        writer.commit(Transaction(appends, moving(topic, 3, metadata), member.token()))
    with pytest.raises(CommitRefused, match="end the process"):
        writer.append([Append(topic, 0, b"again")])
    assert visible(log, topic, 0) == visible(log, topic, 1) == [b"0", b"1", b"2"]
    assert member.committed(TopicPartition(topic, 0)) is None


@pytest.mark.kafka
def test_a_record_that_fails_before_it_is_sent_takes_the_whole_transaction_with_it(
    log: KafkaLog, topic: str, admin: KafkaAdminClient
) -> None:
    forbidden = f"{topic}-forbidden"
    log.create_topics({forbidden: 1})
    everything = ResourcePattern(ResourceType.TOPIC, forbidden)
    admin.create_acls([ACL("User:ANONYMOUS", "*", ACLOperation.ALL, ACLPermissionType.DENY, everything)])
    for bad, reason in ((Append(topic, 7, b"x"), "partition 7"), (Append(forbidden, 0, b"x"), "lacks a right")):
        with pytest.raises(CommitRefused, match=reason):
            log.writer(topic).append([Append(topic, 0, b"x"), bad])
    assert visible(log, topic) == [b"0", b"1", b"2"]


@pytest.mark.kafka
def test_a_failing_callback_leaves_nothing_behind(log: KafkaLog, topic: str) -> None:
    member = joined(log, topic)

    def fail(offsets: Sequence[int]) -> Mapping[TopicPartition, Position]:
        raise ZeroDivisionError

    writer = log.writer(topic)
    with pytest.raises(ZeroDivisionError):
        writer.commit(Transaction([Append(topic, 0, b"x")], fail, member.token()))
    with pytest.raises(CommitRefused, match="end the process"):
        writer.append([Append(topic, 0, b"again")])
    assert visible(log, topic) == [b"0", b"1", b"2"]


@pytest.mark.kafka
def test_a_token_from_before_the_join_is_refused_because_it_would_not_fence(log: KafkaLog, topic: str) -> None:
    member, writer = log.membership(f"group-{topic}", [topic], ignore), log.writer(topic)
    for token in (member.token(), f"group-{topic}"):
        with pytest.raises(CommitRefused, match="before the member had joined"):
            writer.commit(Transaction([], moving(topic, 1), token))


@pytest.mark.kafka
def test_a_slow_commit_is_followed_by_a_new_producer(
    log: KafkaLog, topic: str, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = log.writer(topic)

    def epoch() -> int:
        found: int = admin.describe_transactions([f"streamal-{topic}"])[f"streamal-{topic}"].producer_epoch
        return found

    first = epoch()
    writer.append([Append(topic, 0, b"quick")])
    writer.append([Append(topic, 0, b"quick")])
    assert epoch() == first
    monkeypatch.setattr(adapter, "SLOW_COMMIT", 0.0)
    writer.append([Append(topic, 0, b"slow")])
    writer.append([Append(topic, 0, b"next")])
    assert epoch() == first + 1
    assert visible(log, topic)[3:] == [b"quick", b"quick", b"slow", b"next"]


@pytest.mark.kafka
def test_every_owned_partition_goes_back_to_its_committed_position_after_a_rebalance(log: KafkaLog, topic: str) -> None:
    held: list[int] = []
    first = joined(log, topic, lambda: held.append(len(first.assignment)))
    assert [len(collect(6, first)), set(first.lag().values())] == [6, {0}]
    log.writer(topic).commit(Transaction([], moving(topic, 2), first.token()))
    second = log.membership(f"group-{topic}", [topic], ignore)
    poll_until(lambda: len(first.assignment) == len(second.assignment) == 1, first, second)
    assert held == [2]
    second.close()
    poll_until(lambda: len(first.assignment) == 2, first)
    again = collect(4, first)
    assert sorted((r.partition, r.offset) for r in again) == [(0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.kafka
def test_an_expelled_member_ends_with_an_error_and_stays_ended(
    log: KafkaLog, topic: str, admin: KafkaAdminClient
) -> None:
    member = joined(log, topic)
    expel(admin, topic)
    with pytest.raises(TransportError, match="start afresh"):
        poll_until(lambda: False, member)
    assert not member.assignment
    with pytest.raises(TransportError, match="start afresh"):
        member.poll(0.0, 1)


@pytest.mark.kafka
@pytest.mark.parametrize("offset", [99, 0])
def test_an_offset_out_of_the_log_is_an_error_and_no_silent_reset(
    log: KafkaLog, topic: str, admin: KafkaAdminClient, offset: int
) -> None:
    admin.delete_records({KafkaPartition(topic, 0): 2})
    member = joined(log, topic)
    member.seek(TopicPartition(topic, 0), offset)
    with pytest.raises(TransportError, match="not in the log"):
        poll_until(lambda: False, member)
    with pytest.raises(TransportError, match="not in the log"):
        member.poll(0.0, 1)
    with closing(log.reader()) as reader, pytest.raises(TransportError, match="not in the log"):
        list(reader.read(TopicPartition(topic, 0), offset, 100))
    assert log.bounds(TopicPartition(topic, 0))[0] == 2


@pytest.mark.kafka
def test_partitions_added_to_a_running_group_are_taken_up(log: KafkaLog, topic: str, admin: KafkaAdminClient) -> None:
    member = joined(log, topic)
    for partitions in (3, 4, 5):
        admin.create_partitions({topic: partitions})
        consumer: KafkaConsumer = vars(member)["_consumer"]
        deadline = monotonic() + PATIENCE
        while len(member.assignment) < partitions:
            assert monotonic() < deadline, "the join was lost"
            consumer._cluster.request_update()
            member.poll(0.005, 10)


@pytest.mark.kafka
def test_a_join_that_is_done_between_two_polls_is_not_repeated(log: KafkaLog, topic: str) -> None:
    first = joined(log, topic)
    second = log.membership(f"group-{topic}", [topic], ignore)
    alone = first.epoch
    deadline = monotonic() + PATIENCE
    while first.epoch == alone:
        assert monotonic() < deadline, "the first member was not asked to join again"
        second.poll(0.05, 100)
        first.poll(0, 100)
    poll_until(lambda: bool(second.assignment), second)
    generation = second.epoch[0]  # type: ignore[index]
    # The second member has its share, so the first one has told the group, and its own join is done too.
    poll_until(lambda: bool(first.assignment), first)
    poll_until(lambda: bool(second.assignment), second)
    assert first.epoch[0] == second.epoch[0] == generation  # type: ignore[index]


@pytest.mark.kafka
def test_the_watchdog_ends_a_member_that_is_overlooked_but_not_a_spare_one(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = next(names)
    log.create_topics({topic: 1})
    first, spare = (log.membership(f"group-{topic}", [topic], ignore) for _ in range(2))
    poll_until(lambda: len(first.assignment) + len(spare.assignment) == 1, first, spare)
    monkeypatch.setattr(first, "_patience", 0.0)
    monkeypatch.setattr(spare, "_patience", 0.0)
    for _ in range(3):
        first.poll(0.01, 1)
        spare.poll(0.01, 1)
    first.close()
    spare.close()
    overlooked = log.membership(f"group-{topic}", [topic], ignore)
    monkeypatch.setattr(overlooked, "_patience", 0.0)
    with pytest.raises(TransportError, match="partitions to spare"):
        overlooked.poll(0.0, 1)


@pytest.mark.kafka
def test_at_least_once_shows_records_at_once_and_stores_positions_on_confirmation(broker: Broker, topic: str) -> None:
    with closing(KafkaLog(broker.bootstrap, delivery="at_least_once", session_timeout=3.0)) as log:
        member, writer = joined(log, topic), log.writer(topic)
        appends = [Append(topic, 0, b"3", headers=[("empty", None)]), Append(topic, 1, None, key=b"k")]
        positions = writer.commit(
            Transaction(
                appends,
                lambda o: {TopicPartition(topic, p): Position(o[p], "ledger") for p in range(2)},
                member.token(),
            )
        )
        assert positions == {
            TopicPartition(topic, 0): Position(4, "ledger"),
            TopicPartition(topic, 1): Position(4, "ledger"),
        }
        assert member.committed(TopicPartition(topic, 0)) is None
        member.confirm(positions)
        assert log.positions(f"group-{topic}", list(positions)) == positions
        with pytest.raises(CommitRefused, match="larger than"):
            writer.append([Append(topic, 0, b"x" * 2_000_000)])
        with pytest.raises(CommitRefused, match="end the process"):
            writer.append([Append(topic, 0, b"x")])


@pytest.mark.kafka
def test_a_confirmation_by_an_expelled_member_is_refused(broker: Broker, topic: str, admin: KafkaAdminClient) -> None:
    with closing(KafkaLog(broker.bootstrap, delivery="at_least_once", session_timeout=3.0)) as log:
        member = joined(log, topic)
        expel(admin, topic)
        with pytest.raises(CommitRefused, match="positions were not stored") as refused:
            member.confirm({TopicPartition(topic, 0): Position(1, "ledger")})
        assert refused.value.retriable
        assert log.positions(f"group-{topic}", [TopicPartition(topic, 0)]) == {}
        with pytest.raises(TransportError, match="start afresh"):
            poll_until(lambda: False, member)


@pytest.mark.kafka
def test_readings_may_be_nested_and_following_goes_on_after_them(log: KafkaLog, topic: str) -> None:
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with closing(log.reader()) as reader:
        reader.follow(zero, 1)
        got = list(reader.poll(PATIENCE))
        pairs = [(a.offset, b.offset) for a in reader.read(zero, 0, 3) for b in reader.read(one, 1, 3)]
        assert pairs == [(a, b) for a in range(3) for b in (1, 2)]
        log.writer(topic).append([Append(topic, 0, b"late")])
        while not got or got[-1].value != b"late":
            got += reader.poll(PATIENCE)
        assert [record.value for record in got] == [b"1", b"2", b"late"]


@pytest.mark.kafka
def test_a_reader_says_where_it_waits_in_vain(broker: Broker, topic: str) -> None:
    with closing(KafkaLog(broker.bootstrap, start_deadline=0.5)) as log:
        with pytest.raises(DeadlineMissed, match=f"{topic}-0 should pass offset 9 and has stood at 4"):
            list(log.reader().read(TopicPartition(topic, 0), 0, 9))


@pytest.mark.kafka
def test_a_new_topic_is_not_missing_where_one_broker_has_not_heard_of_it(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, unheard = KafkaAdminClient.describe_topics, iter([{"error_code": 3, "partitions": []}])
    monkeypatch.setattr(
        KafkaAdminClient,
        "describe_topics",
        lambda admin, topics: [told] if (told := next(unheard, None)) else describe(admin, topics),
    )
    assert log.partitions(topic) == 2
    with pytest.raises(TopicMissing):
        log.partitions(f"never-{topic}")


def test_topics_of_one_group_must_have_the_same_number_of_partitions(log: KafkaLog, topic: str) -> None:
    other = next(names)
    log.create_topics({other: 3})
    with pytest.raises(TopicMissing, match=f"{topic} 2, {other} 3"):
        log.membership("group", [topic, other], ignore)


def test_an_unreachable_broker_is_named_with_the_cause() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(TransportError, match=f"{address}: Connection refused.*correct transport") as unreachable:
        KafkaLog(address, start_deadline=0.5)
    assert unreachable.value.exit_code == TransportError.exit_code


def test_an_unknown_security_option_is_named_and_no_value_is_shown() -> None:
    with pytest.raises(ConfigError, match="sasl_pasword") as refused:
        KafkaLog("127.0.0.1:1", security={"sasl_pasword": "hunter2"})
    assert "hunter2" not in str(refused.value)
