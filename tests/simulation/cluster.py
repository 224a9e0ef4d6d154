"""The broker's side of the log in memory: partitions, transactions and groups as Apache Kafka keeps them.

A transaction leaves records at once and ends by a marker in each of its partitions, which takes an offset and is
written some time after the end was decided (`step`). Below a partition's last stable offset nothing is undecided. A
group's positions that belong to a transaction are pending until its marker. The methods are the requests that a client
can make; each is carried out at once and raises `TransportError` where a broker would refuse it. Time is `clock`'s:
sessions and transactions end when `expire` is called late enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from streamal.errors import TopicMissing, TransportError
from streamal.transport.log import Append, Headers, Position, TopicPartition

REBALANCE_TIMEOUT: Final = 120.0
LOOK_EVERY: Final = 0.02


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it lies in a partition."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Token(NamedTuple):
    """A member of a group in one generation; -1 before it has joined."""

    group: str
    member: str
    generation: int


@dataclass(eq=False, slots=True)
class Txn:
    """One transaction of a slot: where it has written, and whether its end was decided."""

    epoch: int
    begun: float
    state: Literal["open", "committed", "aborted"] = "open"
    unmarked: list[TopicPartition | str] = field(default_factory=list)
    """Partitions, and groups by name, that still wait for the marker."""
    positions: dict[str, dict[TopicPartition, Position]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Slot:
    """What the coordinator knows of a transactional id; it has one transaction at a time."""

    epoch: int = 0
    txn: Txn | None = None


class Partition:
    """Entries by offset: a record with its transaction (None: outside of any), or None for a marker."""

    def __init__(self) -> None:
        self.entries: list[tuple[StoredRecord, Txn | None] | None] = []
        self._undecided: dict[Txn, int] = {}

    @property
    def stable(self) -> int:
        """The last stable offset: the first record of the oldest open transaction, or the end."""
        return min(self._undecided.values(), default=len(self.entries))

    @property
    def end(self) -> int:
        """The offset after the last committed record."""
        for entry in reversed(self.entries):
            if entry is not None and (entry[1] is None or entry[1].state == "committed"):
                return entry[0].offset + 1
        return 0

    def append(self, place: TopicPartition, append: Append, timestamp: int, txn: Txn | None) -> int:
        """Append a record; returns its offset."""
        offset = len(self.entries)
        if txn is not None:
            self._undecided.setdefault(txn, offset)
        record = StoredRecord(*place, offset, timestamp, append.key, append.value, tuple(append.headers))
        self.entries.append((record, txn))
        return offset

    def mark(self, txn: Txn) -> None:
        """Write the marker that ends a transaction here."""
        self.entries.append(None)
        self._undecided.pop(txn, None)

    def committed(self, start: int, stop: int) -> list[StoredRecord]:
        """Return the committed records between two offsets, as far as the log is stable."""
        found = []
        for entry in self.entries[start : min(stop, self.stable)]:
            if entry is not None and (entry[1] is None or entry[1].state == "committed"):
                found.append(entry[0])
        return found


@dataclass(slots=True)
class Member:
    """A member as the group's coordinator sees it; `joined` says whether it waits for the round of joins to end."""

    beaten: float
    joined: bool = True


class Group:
    """A consumer group: rounds of joins, generations, the range assignment, and positions."""

    def __init__(self, topics: Sequence[str], partitions: int) -> None:
        self.topics = tuple(topics)
        self.partitions = partitions
        self.state: Literal["stable", "joining", "syncing"] = "stable"
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.positions: dict[TopicPartition, Position] = {}
        self.pending: list[Txn] = []
        self._count = 0
        self._since = 0.0

    def join(self, identity: str, now: float) -> str:
        """Join, or join again; returns the member's id. The answer is there once `joining` says no."""
        if not identity:
            self._count += 1
            identity = f"member-{self._count}"
        elif identity not in self.members:
            message = f"UnknownMemberId: {identity} was removed from the group"
            raise TransportError(message)
        self.members[identity] = Member(now)
        if self.state != "joining":
            self._reopen(now, but=identity)
        self._complete(now)
        return identity

    def joining(self, identity: str) -> bool:
        """Whether the round of joins goes on; raises when it went on without this member."""
        self._known(identity)
        return self.state == "joining"

    def sync(self, identity: str, generation: int) -> frozenset[TopicPartition] | None:
        """Return a member's share, None until the leader has dealt them out."""
        self._known(identity)
        if generation != self.generation or self.state == "joining":
            message = "RebalanceInProgress: the group has begun another round of joins"
            raise TransportError(message)
        if next(iter(self.members)) == identity:
            self.state = "stable"
        if self.state == "syncing":
            return None
        index, count = list(self.members).index(identity), len(self.members)
        share, rest = divmod(self.partitions, count)
        start = index * share + min(index, rest)
        numbers = range(start, start + share + (index < rest))
        return frozenset(TopicPartition(topic, number) for topic in self.topics for number in numbers)

    def beat(self, identity: str, generation: int, now: float) -> bool:
        """Renew a session; returns whether the member must join again."""
        self.check(identity, generation)
        self.members[identity].beaten = now
        return self.state == "joining"

    def check(self, identity: str, generation: int) -> None:
        """Refuse a member that was removed, and work of another generation."""
        self._known(identity)
        if generation != self.generation:
            message = f"IllegalGeneration: the group is in generation {self.generation}, not {generation}"
            raise TransportError(message)

    def leave(self, identity: str, now: float) -> None:
        """Remove a member."""
        if self.members.pop(identity, None) is not None:
            self._reopen(now)
            self._complete(now)

    def expire(self, now: float, session_timeout: float) -> None:
        """Remove the members whose session is over, and end a round of joins that all have joined."""
        silent = [i for i, m in self.members.items() if not m.joined and now - m.beaten > session_timeout]
        if self.state == "joining" and now - self._since > REBALANCE_TIMEOUT:
            silent = [identity for identity, member in self.members.items() if not member.joined]
        for identity in silent:
            del self.members[identity]
        if silent and self.state != "joining":
            self._reopen(now)
        self._complete(now)

    def _known(self, identity: str) -> None:
        if identity not in self.members:
            message = f"UnknownMemberId: {identity} was removed from the group"
            raise TransportError(message)

    def _reopen(self, now: float, but: str = "") -> None:
        self.state = "joining"
        self._since = now
        for identity, member in self.members.items():
            member.joined = identity == but

    def _complete(self, now: float) -> None:
        if self.state == "joining" and all(member.joined for member in self.members.values()):
            self.generation += 1
            self.state = "syncing" if self.members else "stable"
            for member in self.members.values():
                member.joined, member.beaten = False, now


class Cluster:
    """All topics, groups and transactional ids."""

    def __init__(
        self, clock: Callable[[], float], *, session_timeout: float = 6.0, transaction_timeout: float = 10.0
    ) -> None:
        self.clock = clock
        self.session_timeout = session_timeout
        self.transaction_timeout = transaction_timeout
        self.topics: dict[str, list[Partition]] = {}
        self.groups: dict[str, Group] = {}
        self.slots: dict[str, Slot] = {}
        self.unmarked: list[tuple[Slot, Txn]] = []
        self._look_at = 0.0

    def partition(self, place: TopicPartition) -> Partition:
        """Return a partition."""
        found = self.topics.get(place.topic, [])
        if not 0 <= place.partition < len(found):
            message = f"the topic {place.topic} does not exist, or has no partition {place.partition}"
            raise TopicMissing(message)
        return found[place.partition]

    def append(self, append: Append, txn: Txn | None = None) -> int:
        """Append a record; returns its offset."""
        place = TopicPartition(append.topic, append.partition)
        return self.partition(place).append(place, append, round(self.clock() * 1000), txn)

    def open_slot(self, name: str) -> int | None:
        """Return the epoch of a new writer, None until the former one's transaction is over; it is aborted if open."""
        slot = self.slots.setdefault(name, Slot())
        if slot.txn is not None:
            if slot.txn.state == "open":
                slot.epoch += 1
                self._end(slot, "aborted")
            return None
        slot.epoch += 1
        return slot.epoch

    def ready(self, name: str, epoch: int) -> bool:
        """Whether a writer may begin: the markers of its former transaction are all written."""
        self.check_epoch(name, epoch)
        return self.slots[name].txn is None

    def send(self, name: str, epoch: int, append: Append) -> int:
        """Append a record to the writer's transaction, which begins with the first one; returns its offset.

        A partition knows nothing of a transaction's end until the marker is there, so a late record may precede it.
        """
        place = TopicPartition(append.topic, append.partition)
        self.partition(place)
        txn = self.slots[name].txn
        if txn is None or txn.epoch != epoch or place not in txn.unmarked:
            txn = self._join(name, epoch, place)
        return self.append(append, txn)

    def send_offsets(self, name: str, epoch: int, token: Token, positions: Mapping[TopicPartition, Position]) -> None:
        """Add a group's positions to the writer's transaction; they are pending until it ends."""
        txn = self._join(name, epoch, token.group)
        group = self.groups[token.group]
        self.check_token(token)
        txn.positions.setdefault(token.group, {}).update(positions)
        if txn not in group.pending:
            group.pending.append(txn)

    def end(self, name: str, epoch: int, state: Literal["committed", "aborted"]) -> None:
        """Decide a writer's transaction; from here on it is what it is, whatever becomes of the writer."""
        self.check_epoch(name, epoch)
        slot = self.slots[name]
        if slot.txn is not None and slot.txn.state == "open":
            self._end(slot, state)
        elif slot.txn is not None and slot.txn.state != state:
            message = "InvalidTxnState: the transaction was ended otherwise before"
            raise TransportError(message)

    def check_epoch(self, name: str, epoch: int) -> None:
        """Refuse a writer that was fenced."""
        if self.slots[name].epoch != epoch:
            message = f"ProducerFenced: {name} is in epoch {self.slots[name].epoch}, not {epoch}"
            raise TransportError(message)

    def check_token(self, token: Token) -> None:
        """Refuse the positions of a member that was removed, or of another generation."""
        self.groups[token.group].check(token.member, token.generation)

    def unstable(self, name: str, place: TopicPartition) -> bool:
        """Whether a transaction that moves a group's position is not over yet."""
        return any(place in txn.positions[name] for txn in self.groups[name].pending)

    def step(self, choice: float = 0.0) -> bool:
        """Write one marker of a decided transaction, `choice` of [0, 1) says which; returns whether there was one."""
        if not self.unmarked:
            return False
        slot, txn = self.unmarked[int(choice * len(self.unmarked))]
        where = txn.unmarked.pop(int(choice * len(txn.unmarked)))
        if isinstance(where, str):
            group = self.groups[where]
            if txn in group.pending:
                group.pending.remove(txn)
                if txn.state == "committed":
                    group.positions.update(txn.positions[where])
        else:
            self.partition(where).mark(txn)
        if not txn.unmarked:
            self._over(slot, txn)
        return True

    def expire(self) -> None:
        """End the sessions and transactions whose time is up; looks now and then only."""
        now = self.clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        for group in self.groups.values():
            group.expire(now, self.session_timeout)
        for slot in self.slots.values():
            txn = slot.txn
            if txn is not None and txn.state == "open" and now - txn.begun > self.transaction_timeout:
                slot.epoch += 1
                self._end(slot, "aborted")

    def _join(self, name: str, epoch: int, place: TopicPartition | str) -> Txn:
        """Add a partition or a group to the writer's transaction."""
        self.check_epoch(name, epoch)
        slot = self.slots[name]
        if slot.txn is None:
            slot.txn = Txn(epoch, self.clock())
        if slot.txn.state != "open":
            message = "InvalidTxnState: the transaction has ended"
            raise TransportError(message)
        if place not in slot.txn.unmarked:
            slot.txn.unmarked.append(place)
            if isinstance(place, str):
                slot.txn.positions[place] = {}
        return slot.txn

    def _end(self, slot: Slot, state: Literal["committed", "aborted"]) -> None:
        txn = slot.txn
        assert txn is not None
        txn.state = state
        if txn.unmarked:
            self.unmarked.append((slot, txn))
        else:
            slot.txn = None

    def _over(self, slot: Slot, txn: Txn) -> None:
        self.unmarked.remove((slot, txn))
        slot.txn = None
