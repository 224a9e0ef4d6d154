"""A log in memory with Kafka's semantics, of which every I/O point has a name and a driver that is told at each.

The client's side imitates `streamal.transport.kafka` and the client beneath it: a member joins step by step in the
background while its polls return nothing, its generation changes before its assignment, and a zombie goes on until
somebody tells it; a producer keeps the positions of a transaction that it aborted, so a writer uses it no more after
any error. The driver decides what happens at a point: nothing, something elsewhere, a failure, the end of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from enum import StrEnum
from time import sleep
from typing import Final, Literal, Protocol, TypeVar

from simulation.cluster import Cluster, Group, Partition, StoredRecord, Token

from streamal.errors import CommitRefused, DeadlineMissed, TopicMissing, TransportError
from streamal.transport.log import Append, Position, TopicPartition, Transaction
from streamal.transport.rights import Right

DEADLINE: Final = 30.0
"""Seconds of the cluster's clock that a call waits for what others do."""
EVERYTHING: Final = 1_000_000_000

Found = TypeVar("Found")


class Point(StrEnum):
    """The I/O points of a worker, in the order of its life; those with two names stand before and after the effect."""

    RESTORE = "snapshot restore"
    PARTITIONS = "partitions"
    BOUNDS = "bounds"
    READ = "read"
    FOLLOW = "follow"
    OPEN = "writer open"
    OPENED = "writer opened"
    SUBSCRIBE = "membership"
    POLL = "poll"
    JOIN = "join"
    JOINED = "joined"
    SYNC = "sync"
    SYNCED = "synced"
    COMMITTED = "committed"
    SEEK = "seek"
    TOKEN = "token"
    LAG = "lag"
    FOLLOWED = "reader poll"
    CONFIRM = "confirm"
    BEGIN = "begin"
    SEND = "send"
    SENT = "sent"
    FLUSH = "flush"
    OFFSETS = "send offsets"
    OFFSETS_SENT = "offsets sent"
    END = "end"
    ENDED = "ended"
    ABORT = "abort"
    HEARTBEAT = "heartbeat"
    HEARTBEATEN = "heartbeat answered"
    REVOKE = "revoke"
    SAVE = "snapshot save"
    SAVED = "snapshot saved"
    LEAVE = "leave"
    LEFT = "left"
    CLOSE = "close"


Steps = Generator[Point, None, Found]
"""What is done in steps: before each one the I/O point that it stands at is handed out."""


class Driver(Protocol):
    """Who decides what happens at a point, and while a call waits.

    `beats` says whether a poll sends a heartbeat, since nobody calls `MemoryMembership.beat`.
    """

    beats: bool

    def reach(self, point: Point) -> None:
        """Called at each I/O point.

        Raises:
            TransportError: the request or its answer is lost.
        """

    def idle(self) -> None:
        """Called over and over while a call waits for others."""

    def patience(self) -> int:
        """Return how many steps of a rebalance a poll waits for."""

    def take(self, waiting: int) -> int:
        """Return how many of the records that wait in a partition a poll returns."""


class Direct:
    """Drives a log without a schedule: nothing fails, and whatever was decided is carried out at once."""

    beats = True

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def reach(self, point: Point) -> None:
        self._cluster.expire()
        while self._cluster.step():
            pass

    def idle(self) -> None:
        self.reach(Point.POLL)
        sleep(0.001)

    def patience(self) -> int:
        return EVERYTHING

    def take(self, waiting: int) -> int:
        return waiting


class Connection:
    """One process's connection: the cluster and the driver."""

    def __init__(self, cluster: Cluster, driver: Driver) -> None:
        self.cluster = cluster
        self.reach = driver.reach
        self.driver = driver

    def await_(self, true: Callable[[], object], what: str) -> None:
        """Wait until something is true.

        Raises:
            DeadlineMissed: it takes too long.
        """
        deadline = self.cluster.clock() + DEADLINE
        while not true():
            if self.cluster.clock() > deadline:
                message = f"waited {DEADLINE:g} s for {what}"
                raise DeadlineMissed(message)
            self.driver.idle()


class MemoryMembership:
    """A `Membership`, whose `step` is what the client does in the background."""

    def __init__(self, connection: Connection, group: str, on_revoke: Callable[[], object]) -> None:
        self._connection = connection
        self._name = group
        self._on_revoke = on_revoke
        self._doing: Literal["nothing", "revoking", "joining", "waiting", "syncing"] = "joining"
        self._started = False
        self._stepping = False
        self._called = False
        self._settled = True
        self._lost = False
        self._closed = False
        self._identity = ""
        self._generation = -1
        self._owned: frozenset[TopicPartition] = frozenset()
        self._next: dict[TopicPartition, int] = {}

    @property
    def _group(self) -> Group:
        return self._connection.cluster.groups[self._name]

    @property
    def epoch(self) -> Hashable:
        return self._generation, self._identity, self._owned

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return self._owned

    def poll(self, timeout: float, limit: int) -> Mapping[TopicPartition, Sequence[StoredRecord]]:
        self._connection.reach(Point.POLL)
        self._check()
        self._started = True
        if self._connection.driver.beats:
            self.beat()
        if self._called and self._doing == "nothing":
            self._doing, self._called = "revoking", False
        for _ in range(self._connection.driver.patience()):
            if not self.step():
                break
        self._check()
        if not self._settled:
            self._settle()
            return {}
        return self._fetch(limit) if self._doing == "nothing" else {}

    def step(self) -> bool:
        """Go one step on with a rebalance, if there is one; returns whether anything was done."""
        if self._stepping or not self._started or self._closed:
            return False
        self._stepping = True
        try:
            match self._doing:
                case "revoking":
                    self._revoke()
                case "joining":
                    self._join()
                case "waiting":
                    return self._await_joins()
                case "syncing":
                    return self._sync()
                case _:
                    return False
        finally:
            self._stepping = False
        return True

    def beat(self) -> None:
        """Send a heartbeat, which tells this member that it must join again, or that it was removed."""
        if self._doing not in ("nothing", "syncing") or self._closed or not self._identity:
            return
        self._connection.reach(Point.HEARTBEAT)
        try:
            self._called |= self._group.beat(self._identity, self._generation, self._connection.cluster.clock())
        except TransportError:
            self._forget()
        self._connection.reach(Point.HEARTBEATEN)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._connection.reach(Point.SEEK)
        self._check()
        if partition not in self._owned:
            message = f"{partition.topic}-{partition.partition} is not assigned to this member"
            raise TransportError(message)
        self._next[partition] = offset

    def committed(self, partition: TopicPartition) -> Position | None:
        self._connection.reach(Point.COMMITTED)
        self._check()
        cluster = self._connection.cluster
        self._connection.await_(
            lambda: not cluster.unstable(self._name, partition), f"the transaction over {partition} of another member"
        )
        return self._group.positions.get(partition)

    def token(self) -> Token:
        self._connection.reach(Point.TOKEN)
        return Token(self._name, self._identity, self._generation)

    def confirm(self, positions: Mapping[TopicPartition, Position]) -> None:
        self._connection.reach(Point.CONFIRM)

    def lag(self) -> Mapping[TopicPartition, int]:
        self._connection.reach(Point.LAG)
        partition = self._connection.cluster.partition
        return {p: max(0, partition(p).stable - self._next.get(p, 0)) for p in sorted(self._owned)}

    @property
    def lag_known_at(self) -> float:
        return self._connection.cluster.clock()

    def close(self) -> None:
        if self._closed:
            return
        self._connection.reach(Point.LEAVE)
        self._closed = True
        self._group.leave(self._identity, self._connection.cluster.clock())
        self._connection.reach(Point.LEFT)

    def _check(self) -> None:
        if self._closed:
            message = "this membership was closed; join again"
            raise TransportError(message)
        if self._lost:
            message = "the group gave this member's partitions to others while it was silent; it must start afresh"
            raise TransportError(message)

    def _revoke(self) -> None:
        self._connection.reach(Point.REVOKE)
        if self._owned:
            self._on_revoke()
        self._owned = frozenset()
        self._doing = "joining"

    def _join(self) -> None:
        self._connection.reach(Point.JOIN)
        try:
            self._identity = self._group.join(self._identity, self._connection.cluster.clock())
            self._doing = "waiting"
        except TransportError:
            self._forget()
        self._connection.reach(Point.JOINED)

    def _await_joins(self) -> bool:
        try:
            if self._group.joining(self._identity):
                return False
        except TransportError:
            self._forget()
            return True
        self._generation, self._doing = self._group.generation, "syncing"
        return True

    def _sync(self) -> bool:
        self._connection.reach(Point.SYNC)
        try:
            owned = self._group.sync(self._identity, self._generation)
        except TransportError:
            self._doing = "joining"
            return True
        if owned is None:
            return False
        self._owned, self._settled, self._doing = owned, False, "nothing"
        self._connection.reach(Point.SYNCED)
        return True

    def _forget(self) -> None:
        """The group has removed this member: fatal if it owned anything, else it joins as a new one."""
        self._lost = bool(self._owned)
        self._owned, self._identity, self._generation, self._doing = frozenset(), "", -1, "joining"

    def _settle(self) -> None:
        self._settled = True
        for partition in sorted(self._owned):
            position = self.committed(partition)
            self._next[partition] = position.offset if position is not None else 0

    def _fetch(self, limit: int) -> dict[TopicPartition, Sequence[StoredRecord]]:
        """Take from each partition what the driver gives; what remains may be markers only."""
        found: dict[TopicPartition, Sequence[StoredRecord]] = {}
        for place in sorted(self._owned):
            partition, start = self._connection.cluster.partition(place), self._next[place]
            if start >= partition.stable:
                continue
            waiting = partition.committed(start, EVERYTHING)
            taken = waiting[: min(limit, self._connection.driver.take(len(waiting)))]
            if taken:
                found[place] = taken
                self._next[place] = taken[-1].offset + 1
            elif not waiting:
                self._next[place] = partition.stable
        return found


class MemoryProducer:
    """The client's transactional producer; like kafka-python's it keeps positions that it could not send."""

    def __init__(self, cluster: Cluster, slot: str, epoch: int) -> None:
        self._cluster = cluster
        self._slot = slot
        self._epoch = epoch
        self._unsent: dict[TopicPartition, Position] = {}

    @property
    def ready(self) -> bool:
        """Whether the former transaction is over."""
        return self._cluster.ready(self._slot, self._epoch)

    def send(self, append: Append) -> int:
        """Append a record and return its offset."""
        return self._cluster.send(self._slot, self._epoch, append)

    def add_offsets(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Take positions into the transaction, which are sent by `send_offsets`."""
        self._unsent.update(positions)

    def send_offsets(self, token: Token) -> None:
        """Send the positions that were added."""
        self._cluster.send_offsets(self._slot, self._epoch, token, self._unsent)
        self._unsent = {}

    def end(self, state: Literal["committed", "aborted"]) -> None:
        """End the transaction."""
        self._cluster.end(self._slot, self._epoch, state)


class MemoryWriter:
    """A `Writer` whose commit can be taken in steps, each of which begins with the I/O point that it stands at."""

    def __init__(self, connection: Connection, slot: str) -> None:
        self.connection = connection
        self._slot = slot
        cluster, epochs = connection.cluster, list[int]()
        connection.reach(Point.OPEN)

        def opened() -> bool:
            epoch = cluster.open_slot(slot)
            epochs.extend([] if epoch is None else [epoch])
            return bool(epochs)

        connection.await_(opened, f"the end of the former transaction of {slot}")
        self._producer: MemoryProducer | None = MemoryProducer(cluster, slot, epochs[0])
        connection.reach(Point.OPENED)

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        return self._carry_out(self.steps(transaction))

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        return self._carry_out(self._transact(lambda p: self._send_all(p, appends))) if appends else []

    def close(self) -> None:
        self.connection.reach(Point.CLOSE)
        producer, self._producer = self._producer, None
        if producer is not None:
            self._abandon(producer)

    def steps(self, transaction: Transaction) -> Steps[Mapping[TopicPartition, Position]]:
        """Carry out a transaction in steps; a failure at a point is thrown in."""
        token = transaction.token
        if not isinstance(token, Token) or token.generation < 0:
            message = "the token was taken before the member had joined its group"
            raise CommitRefused(message)
        found = yield from self._transact(lambda producer: self._commit(producer, transaction, token))
        return found

    def _transact(self, inside: Callable[[MemoryProducer], Steps[Found]]) -> Steps[Found]:
        """Lend the producer to a transaction; it comes back after success only."""
        producer, self._producer = self._producer, None
        if producer is None:
            message = f"the writer {self._slot} was closed or has met an error; end the process"
            raise CommitRefused(message)
        try:
            yield Point.BEGIN
            while not producer.ready:
                yield Point.BEGIN
            found = yield from inside(producer)
            yield Point.END
            producer.end("committed")
            yield Point.ENDED
        except TransportError as error:
            yield Point.ABORT
            self._abandon(producer)
            message = f"the transaction of {self._slot} did not go through: {error}"
            raise CommitRefused(message) from error
        except Exception:
            yield Point.ABORT
            self._abandon(producer)
            raise
        self._producer = producer
        return found

    def _commit(
        self, producer: MemoryProducer, transaction: Transaction, token: Token
    ) -> Steps[Mapping[TopicPartition, Position]]:
        offsets = yield from self._send_all(producer, transaction.appends)
        positions = transaction.positions(offsets)
        if positions:
            producer.add_offsets(positions)
            yield Point.OFFSETS
            producer.send_offsets(token)
            yield Point.OFFSETS_SENT
        return positions

    def _send_all(self, producer: MemoryProducer, appends: Sequence[Append]) -> Steps[list[int]]:
        futures: list[int | TransportError] = []
        for append in appends:
            try:
                yield Point.SEND
            except TransportError as error:  # before it reached the buffer: the transaction goes on
                futures.append(error)
                continue
            futures.append(producer.send(append))
            yield Point.SENT
        yield Point.FLUSH
        return self._offsets(futures)

    def _offsets(self, futures: Sequence[int | TransportError]) -> list[int]:
        """Ask every future: one that failed does not fail its transaction."""
        found = []
        for future in futures:
            if isinstance(future, TransportError):
                raise future
            found.append(future)
        return found

    def _abandon(self, producer: MemoryProducer) -> None:
        try:
            producer.end("aborted")
        except TransportError:
            return  # fenced, or decided already

    def _carry_out(self, steps: Steps[Found]) -> Found:
        while True:
            try:
                point = next(steps)
            except StopIteration as end:
                found: Found = end.value
                return found
            self.connection.reach(point)


class MemoryReader:
    """A `Reader`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._followed: TopicPartition | None = None
        self._next = 0

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[StoredRecord]:
        self._connection.reach(Point.READ)
        found = self._connection.cluster.partition(partition)
        if start < stop:
            self._connection.await_(lambda: found.stable >= stop, f"{partition} to pass {stop}")
        yield from found.committed(start, stop)

    def follow(self, partition: TopicPartition, start: int) -> None:
        self._connection.reach(Point.FOLLOW)
        self._connection.cluster.partition(partition)
        self._followed, self._next = partition, start

    def poll(self, timeout: float) -> Sequence[StoredRecord]:
        self._connection.reach(Point.FOLLOWED)
        if self._followed is None:
            return ()
        partition = self._connection.cluster.partition(self._followed)
        start, self._next = self._next, max(self._next, partition.stable)
        return partition.committed(start, self._next)

    def close(self) -> None:
        self._followed = None


class MemoryLog:
    """A `Log` of one process."""

    def __init__(self, cluster: Cluster, driver: Driver | None = None) -> None:
        self._cluster = cluster
        self._connection = Connection(cluster, driver or Direct(cluster))
        self.memberships: list[MemoryMembership] = []

    def create_topics(
        self,
        partitions: Mapping[str, int],
        *,
        compacted: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> Sequence[str]:
        created = [topic for topic in partitions if topic not in self._cluster.topics]
        self._cluster.topics |= {topic: [Partition() for _ in range(partitions[topic])] for topic in created}
        return created

    def partitions(self, topic: str) -> int:
        self._connection.reach(Point.PARTITIONS)
        self._cluster.partition(TopicPartition(topic, 0))
        return len(self._cluster.topics[topic])

    def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        self._connection.reach(Point.BOUNDS)
        return 0, self._cluster.partition(partition).stable

    def positions(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position]:
        found = self._cluster.groups[group].positions if group in self._cluster.groups else {}
        return {partition: found[partition] for partition in partitions if partition in found}

    def missing_rights(self, rights: Collection[Right]) -> Sequence[Right]:
        return ()

    def set_positions(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        found = self._cluster.groups.setdefault(group, Group(list({p.topic: None for p in positions}), 0))
        if found.members:
            message = f"the group {group} has members; stop them first"
            raise CommitRefused(message)
        found.positions.update(positions)

    def membership(self, group: str, topics: Sequence[str], on_revoke: Callable[[], object]) -> MemoryMembership:
        self._connection.reach(Point.SUBSCRIBE)
        counts = {topic: len(self._cluster.topics.get(topic, [])) for topic in topics}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            message = f"topics of one group need the same number of partitions, found {counts}"
            raise TopicMissing(message)
        found = self._cluster.groups.setdefault(group, Group(topics, counts[topics[0]]))
        found.topics, found.partitions = tuple(topics), counts[topics[0]]
        self.memberships.append(MemoryMembership(self._connection, group, on_revoke))
        return self.memberships[-1]

    def writer(self, slot: str) -> MemoryWriter:
        return MemoryWriter(self._connection, slot)

    def reader(self) -> MemoryReader:
        return MemoryReader(self._connection)

    def close(self) -> None:
        for membership in self.memberships:
            membership.close()
