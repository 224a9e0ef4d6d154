"""What every transport promises, written against `Log` alone.

Assignments settle and commits become visible some time after the call, so conditions are awaited; and offsets only
rise, since a log may put its own marks between the records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from time import monotonic, sleep

import pytest

from streamal.errors import CommitRefused, TopicMissing
from streamal.transport.log import Append, Headers, Log, Membership, Position, Record, TopicPartition, Transaction
from streamal.transport.rights import Right

PATIENCE = 60.0


class Member:
    """A member as a worker holds one: after each change of epoch it drops what it has and seeks what was committed."""

    def __init__(self, log: Log, group: str, *topics: str) -> None:
        self.log = log
        self.revocations = 0
        self.records: list[Record] = []
        self.membership: Membership = log.membership(group, topics, self._revoke)
        self.epoch = self.membership.epoch

    def _revoke(self) -> None:
        self.revocations += 1

    def turn(self) -> None:
        """Poll once."""
        polled = self.membership.poll(0.05, 500)
        if self.membership.epoch != self.epoch:
            self.epoch = self.membership.epoch
            self.records.clear()
            for partition in self.membership.assignment:
                position = self.membership.committed(partition)
                self.membership.seek(partition, position.offset if position else self.log.bounds(partition)[0])
            return
        for records in polled.values():
            self.records += records

    @property
    def numbers(self) -> list[int]:
        return sorted({partition.partition for partition in self.membership.assignment})


def settle(condition: Callable[[], bool], *members: Member) -> None:
    """Give each member its turns until a condition holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "the group did not come to what the test waits for"
        for member in members:
            member.turn()


def receive(member: Member, count: int) -> list[bytes | None]:
    """Poll until the member has so many records, and return their values."""
    settle(lambda: len(member.records) >= count, member)
    return [record.value for record in member.records]


def eventually(look: Callable[[], object], expected: object) -> None:
    deadline = monotonic() + PATIENCE
    while (found := look()) != expected and monotonic() < deadline:
        sleep(0.01)
    assert found == expected


def joined(log: Log, group: str, *topics: str) -> Member:
    """Return the only member of a group, once it owns everything."""
    member = Member(log, group, *topics)
    everything = {TopicPartition(topic, number) for topic in topics for number in range(log.partitions(topic))}
    settle(lambda: member.membership.assignment == everything, member)
    return member


def append(log: Log, name: str, *appends: Append) -> Sequence[int]:
    with closing(log.writer(f"{name}-feeder")) as writer:
        return writer.append(appends)


def read(log: Log, partition: TopicPartition, stop: int) -> list[Record]:
    with closing(log.reader()) as reader:
        return list(reader.read(partition, log.bounds(partition)[0], stop))


def everything(log: Log, name: str, partition: TopicPartition) -> list[bytes | None]:
    """Return all committed values, once whatever was appended before has been committed or has come to nothing."""
    [stop] = append(log, name, Append(partition.topic, partition.partition, b"end"))
    return [record.value for record in read(log, partition, stop)]


def moving(**offsets: int) -> Callable[[Sequence[int]], Mapping[TopicPartition, Position]]:
    """Return the `positions` of a transaction that moves partition 0 of some topics."""
    positions = {TopicPartition(topic, 0): Position(offset, "ledger") for topic, offset in offsets.items()}
    return lambda _: positions


def test_creates_only_the_topics_that_do_not_exist(log: Log, name: str) -> None:
    assert log.create_topics({f"{name}-a": 3}) == [f"{name}-a"]
    created = log.create_topics({f"{name}-a": 5, f"{name}-b": 1}, compacted=frozenset([f"{name}-b"]))
    assert list(created) == [f"{name}-b"]
    assert (log.partitions(f"{name}-a"), log.partitions(f"{name}-b")) == (3, 1)


def test_a_missing_topic_is_named_wherever_it_is_used(log: Log, name: str) -> None:
    missing = f"{name}-absent"
    with pytest.raises(TopicMissing, match=missing):
        log.partitions(missing)
    with pytest.raises(TopicMissing, match=missing):
        log.bounds(TopicPartition(missing, 0))


def test_a_partition_that_does_not_exist_is_refused(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    with pytest.raises(TopicMissing, match=name):
        log.bounds(TopicPartition(name, 2))


@pytest.mark.parametrize(
    ("value", "key", "headers"),
    [
        (b"value", b"key", ()),
        (b"\x00\xff\xfe", b"\x00", ()),
        (b"", b"", ()),
        (None, b"tombstone", ()),
        (b"no key", None, ()),
        (b"value", None, [("b", b"1"), ("a", b""), ("b", b"\x00\xff"), ("naïve", "é".encode())]),
        (bytes(range(256)) * 800, b"large", [("schema", b"streamal/1")]),
    ],
    ids=["plain", "binary", "empty", "tombstone", "no-key", "headers", "large"],
)
def test_what_is_appended_comes_back_unchanged(
    log: Log, name: str, value: bytes | None, key: bytes | None, headers: Headers
) -> None:
    log.create_topics({name: 2})
    [offset] = append(log, name, Append(name, 1, value, key, headers))
    [record] = read(log, TopicPartition(name, 1), offset + 1)
    assert (record.topic, record.partition, record.offset) == (name, 1, offset)
    assert (record.value, record.key) == (value, key)
    assert [tuple(header) for header in record.headers] == list(headers)
    assert 1_600_000_000_000 < record.timestamp < 10_000_000_000_000


def test_offsets_rise_in_the_order_of_the_appends_and_say_where_each_lies(log: Log, name: str) -> None:
    log.create_topics({name: 3})
    appends = [Append(name, number % 3, b"%d" % number) for number in range(30)]
    offsets = append(log, name, *appends)
    for partition in range(3):
        expected = [(offset, made.value) for offset, made in zip(offsets, appends, strict=True) if made[1] == partition]
        found = read(log, TopicPartition(name, partition), expected[-1][0] + 1)
        assert [(record.offset, record.value) for record in found] == expected
        assert sorted({offset for offset, _ in expected}) == [offset for offset, _ in expected]


def test_bounds_enclose_what_was_committed(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    assert log.bounds(TopicPartition(name, 0)) == (0, 0)
    offsets = append(log, name, *[Append(name, 0, b"x")] * 5)
    eventually(lambda: log.bounds(TopicPartition(name, 0))[1] > offsets[-1], expected=True)
    assert log.bounds(TopicPartition(name, 0))[0] == offsets[0]
    assert log.bounds(TopicPartition(name, 1)) == (0, 0)


def test_read_stops_exactly_where_it_is_told_to(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    partition = TopicPartition(name, 0)
    offsets = append(log, name, *[Append(name, 0, b"%d" % number) for number in range(600)])
    with closing(log.reader()) as reader:
        found = [record.offset for record in reader.read(partition, offsets[10], offsets[590])]
        assert found == list(offsets[10:590])
        assert list(reader.read(partition, offsets[10], offsets[10])) == []
        assert [record.value for record in reader.read(partition, offsets[599], offsets[599] + 1)] == [b"599"]


def test_follow_returns_what_comes_and_not_what_was(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    [*_, last] = append(log, name, Append(name, 0, b"old"), Append(name, 0, b"old"))
    with closing(log.reader()) as reader:
        reader.follow(TopicPartition(name, 0), last + 1)
        assert list(reader.poll(0.05)) == []
        append(log, name, Append(name, 1, b"elsewhere"), Append(name, 0, b"first"), Append(name, 0, b"second"))
        found: list[bytes | None] = []
        deadline = monotonic() + PATIENCE
        while len(found) < 2 and monotonic() < deadline:
            found += [record.value for record in reader.poll(0.05)]
        assert found == [b"first", b"second"]
        reader.follow(TopicPartition(name, 0), last)
        while len(found) < 5 and monotonic() < deadline:
            found += [record.value for record in reader.poll(0.05)]
        assert found[2:] == [b"old", b"first", b"second"]


def test_a_commit_makes_appends_and_positions_visible_together(log: Log, name: str) -> None:
    log.create_topics({name: 1, f"{name}-out": 1})
    source, sink = TopicPartition(name, 0), TopicPartition(f"{name}-out", 0)
    member = joined(log, name, name)
    reader = log.reader()
    reader.follow(sink, 0)
    during: list[object] = []

    def positions(offsets: Sequence[int]) -> Mapping[TopicPartition, Position]:
        during.extend([log.positions(name, [source]), list(reader.poll(0.05)), log.bounds(sink)])
        return {source: Position(7, f"metadata of {offsets[0]}")}

    appends = [Append(f"{name}-out", 0, b"one"), Append(f"{name}-out", 0, b"two")]
    moved = log.writer(name).commit(Transaction(appends, positions, member.membership.token()))
    assert during == [{}, [], (0, 0)]
    assert moved == {source: Position(7, "metadata of 0")}
    assert member.membership.committed(source) == moved[source]
    eventually(lambda: log.positions(name, [source, sink]), moved)
    assert log.positions(f"{name}-other", [source]) == {}
    assert everything(log, name, sink) == [b"one", b"two"]


def test_positions_get_the_offsets_in_the_order_of_the_appends(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    member = joined(log, name, name)
    appends = [Append(name, number % 2, b"%d" % number) for number in range(20)]
    got: list[int] = []

    def positions(offsets: Sequence[int]) -> Mapping[TopicPartition, Position]:
        got.extend(offsets)
        return {}

    log.writer(name).commit(Transaction(appends, positions, member.membership.token()))
    for partition in range(2):
        found = read(log, TopicPartition(name, partition), max(got[partition::2]) + 1)
        assert [record.offset for record in found] == got[partition::2]
        assert [record.value for record in found] == [made.value for made in appends[partition::2]]


def test_a_commit_without_appends_moves_the_positions(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    writer = log.writer(name)
    for offset in (3, 5):
        writer.commit(Transaction([], moving(**{name: offset}), member.membership.token()))
    assert member.membership.committed(TopicPartition(name, 0)) == Position(5, "ledger")


def test_a_transaction_whose_positions_fail_never_was(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)

    def positions(offsets: Sequence[int]) -> Mapping[TopicPartition, Position]:
        raise ArithmeticError(str(offsets))

    with pytest.raises(ArithmeticError):
        log.writer(name).commit(Transaction([Append(name, 0, b"lost")], positions, member.membership.token()))
    assert everything(log, name, TopicPartition(name, 0)) == []


def test_long_metadata_of_any_script_survives(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    metadata = '{"é": "漢字 😀"}' * 190
    assert 3_900 < len(metadata.encode()) < 4_096
    source = TopicPartition(name, 0)
    log.writer(name).commit(Transaction([], lambda _: {source: Position(1, metadata)}, member.membership.token()))
    assert member.membership.committed(source) == Position(1, metadata)
    eventually(lambda: log.positions(name, [source]), {source: Position(1, metadata)})


def test_a_partition_without_a_position_has_none(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    assert member.membership.committed(TopicPartition(name, 0)) is None
    assert log.positions(name, [TopicPartition(name, 0)]) == {}


def test_a_token_taken_before_another_joined_is_refused(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    first = joined(log, name, name)
    stale = first.membership.token()
    second = Member(log, name, name)
    settle(lambda: len(first.numbers) == len(second.numbers) == 1, first, second)
    with pytest.raises(CommitRefused):
        log.writer(f"{name}-stale").commit(Transaction([Append(name, 0, b"stale")], moving(**{name: 1}), stale))
    assert log.positions(name, [TopicPartition(name, 0)]) == {}
    assert everything(log, name, TopicPartition(name, 0)) == []
    fresh = Transaction([Append(name, 0, b"fresh")], moving(**{name: 1}), first.membership.token())
    log.writer(f"{name}-fresh").commit(fresh)
    eventually(lambda: log.positions(name, [TopicPartition(name, 0)]), {TopicPartition(name, 0): Position(1, "ledger")})


def test_a_token_taken_before_joining_is_refused(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    token = Member(log, name, name).membership.token()
    with pytest.raises(CommitRefused):
        log.writer(name).commit(Transaction([Append(name, 0, b"early")], moving(**{name: 1}), token))
    assert everything(log, name, TopicPartition(name, 0)) == []


def test_a_token_of_a_member_that_left_is_refused(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    token = member.membership.token()
    member.membership.close()
    with pytest.raises(CommitRefused):
        log.writer(name).commit(Transaction([Append(name, 0, b"late")], moving(**{name: 1}), token))
    assert everything(log, name, TopicPartition(name, 0)) == []


def test_a_writer_of_the_same_slot_fences_the_former_one(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    former = log.writer(name)
    former.commit(Transaction([Append(name, 0, b"before")], moving(**{name: 1}), member.membership.token()))
    later, stranger = log.writer(name), log.writer(f"{name}-other")
    late = Transaction([Append(name, 0, b"fenced")], moving(**{name: 9}), member.membership.token())
    with pytest.raises(CommitRefused, match=name) as refused:
        former.commit(late)
    assert not refused.value.retriable
    with pytest.raises(CommitRefused):
        former.append([Append(name, 0, b"fenced")])
    later.commit(Transaction([Append(name, 0, b"after")], moving(**{name: 2}), member.membership.token()))
    stranger.append([Append(name, 0, b"stranger")])
    assert member.membership.committed(TopicPartition(name, 0)) == Position(2, "ledger")
    assert everything(log, name, TopicPartition(name, 0)) == [b"before", b"after", b"stranger"]


def test_members_share_the_partitions_and_take_over_from_one_that_leaves(log: Log, name: str) -> None:
    topics = [f"{name}-a", f"{name}-b"]
    log.create_topics(dict.fromkeys(topics, 3))
    first = joined(log, name, *topics)
    second = Member(log, name, *topics)
    alone, before = first.epoch, first.revocations
    settle(lambda: sorted(first.numbers + second.numbers) == [0, 1, 2] and bool(second.numbers), first, second)
    assert first.numbers
    assert first.epoch != alone
    assert first.revocations > before
    for member in (first, second):
        own = {TopicPartition(topic, number) for topic in topics for number in member.numbers}
        assert member.membership.assignment == own
    shared = first.epoch
    second.membership.close()
    settle(lambda: first.numbers == [0, 1, 2] and first.epoch != shared, first)
    append(log, name, *[Append(topic, number, b"x") for topic in topics for number in range(3)])
    assert receive(first, 6) == [b"x"] * 6


def test_a_member_more_than_there_are_partitions_stands_by(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    members = [Member(log, name, name) for _ in range(2)]
    settle(lambda: [0] in [member.numbers for member in members], *members)
    [owner] = [member for member in members if member.numbers]
    [idle] = [member for member in members if not member.numbers]
    owner.membership.close()
    settle(lambda: idle.numbers == [0], idle)


def test_two_groups_do_not_share(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    append(log, name, Append(name, 0, b"x"))
    for group in (f"{name}-1", f"{name}-2"):
        member = joined(log, group, name)
        assert receive(member, 1) == [b"x"]


def test_seek_reads_again(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    offsets = append(log, name, *[Append(name, 0, b"%d" % number) for number in range(5)])
    member = joined(log, name, name)
    assert receive(member, 5) == [b"0", b"1", b"2", b"3", b"4"]
    member.membership.seek(TopicPartition(name, 0), offsets[2])
    assert receive(member, 8)[5:] == [b"2", b"3", b"4"]


def test_lag_counts_what_lies_ahead(log: Log, name: str) -> None:
    log.create_topics({name: 2})
    member = joined(log, name, name)
    [*_, last] = append(log, name, *[Append(name, 0, b"x")] * 20)
    member.membership.seek(TopicPartition(name, 0), last + 1)
    settle(lambda: member.membership.lag().get(TopicPartition(name, 0), 99) <= 1, member)
    append(log, name, *[Append(name, 0, b"x")] * 20)
    receive(member, 20)
    settle(lambda: member.membership.lag().get(TopicPartition(name, 0), 99) <= 1, member)
    member.membership.seek(TopicPartition(name, 0), 0)
    assert member.membership.lag()[TopicPartition(name, 0)] >= 40
    assert set(member.membership.lag()) <= member.membership.assignment


def test_a_later_membership_resumes_at_the_committed_positions(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    offsets = append(log, name, *[Append(name, 0, b"%d" % number) for number in range(10)])
    member = joined(log, name, name)
    receive(member, 10)
    log.writer(name).commit(Transaction([], moving(**{name: offsets[6]}), member.membership.token()))
    member.membership.close()
    successor = joined(log, name, name)
    assert receive(successor, 4) == [b"6", b"7", b"8", b"9"]
    assert successor.membership.committed(TopicPartition(name, 0)) == Position(offsets[6], "ledger")


def test_closing_twice_does_no_harm(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    member = joined(log, name, name)
    ends = (member.membership, Member(log, name, name).membership, log.writer(name), log.reader(), log)
    for end in (*ends, *ends):
        end.close()


def test_where_everybody_may_do_everything_no_right_is_missing(log: Log, name: str) -> None:
    log.create_topics({name: 1})
    rights = [
        Right("Read", "topic", name),
        Right("Write", "topic", name),
        Right("Read", "group", name),
        Right("Write", "transactional-id", f"{name}-", prefixed=True),
    ]
    assert not log.missing_rights(rights)
    assert log.bounds(TopicPartition(name, 0)) == (0, 0), "the question has sent something"
