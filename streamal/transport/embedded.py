"""A log in one SQLite file: no server to run, survives restarts, and shared by the processes of one host.

A transaction is exactly one `BEGIN IMMEDIATE`: appends and positions become visible together, and whatever was not
committed never existed.

Consumer groups need no coordinator. Members are rows with a heartbeat; whoever beats removes the rows of the dead. Each
join, leave or removal raises the group's generation, from which every member deals itself its share. Partitions may
therefore change hands at once: a commit whose token carries an older generation is refused in the very transaction that
would have carried it out. Writers are fenced likewise, by an epoch number per slot.

A writer's commit reaches the disk before it returns (`synchronous=FULL`: one fsync). All else, heartbeats and joins
above all, runs with `synchronous=NORMAL`: a power cut may undo the last of those, and then their members are dead
anyhow. The file must lie on a local disk, since WAL shares memory between processes. A process that is frozen in the
midst of a commit holds the write lock, and the others end with a `TransportError` after `BUSY_TIMEOUT` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4
from weakref import WeakSet

from streamal.errors import CommitRefused, DeadlineMissed, TopicMissing, TransportError
from streamal.transport.log import Append, Position, TopicPartition, Transaction
from streamal.transport.log_file import LAST, LogFile, StoredRecord, pack_headers
from streamal.transport.rights import Right

READ_TIMEOUT: Final = 30.0
"""Seconds `read` waits for a log that has not yet come as far as a pointer into it says."""
BEAT: Final = 1.0
"""Seconds between two heartbeats: each is a write, so not one per poll."""
SWEEP: Final = 60.0
"""Seconds between two sweeps of a writer: often enough that each deletes little, so that no commit waits long."""
CHUNK: Final = 256
"""Records a reader takes at once: few, since snapshots are megabytes each, but enough to make a query cost nothing."""


class Token(NamedTuple):
    """What a commit is made for: a member of a group in one generation."""

    group: str
    member: str
    generation: int


def deal(partitions: int, members: int, index: int) -> range:
    """Return the partition numbers of the member at `index`: adjacent ones, the remainder to the first members.

    >>> [list(deal(5, 3, index)) for index in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    share, rest = divmod(partitions, members)
    start = index * share + min(index, rest)
    return range(start, start + share + (index < rest))


class EmbeddedMembership:
    """A member of a group; it joins with its first poll, and again with the next one after it was expelled."""

    def __init__(
        self,
        file: LogFile,
        group: str,
        topics: Sequence[str],
        on_revoke: Callable[[], object],
        session_timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._group = group
        self._topics = tuple(topics)
        self._on_revoke = on_revoke
        self._session_timeout = session_timeout
        self._interval = min(BEAT, session_timeout / 4)
        self._clock = clock
        self._id = uuid4().hex
        self._generation = 0
        self._beaten = 0.0
        self._next: dict[TopicPartition, int] = {}
        self._closed = False

    @property
    def epoch(self) -> int:
        """The group's generation this member has adopted, 0 before it has joined."""
        return self._generation

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """What this member was dealt in its generation."""
        return frozenset(self._next)

    def poll(self, timeout: float, limit: int) -> Mapping[TopicPartition, Sequence[StoredRecord]]:
        """Return what is new, `limit` shared out among the partitions; nothing when the epoch has changed."""
        deadline = time.monotonic() + timeout
        while True:
            self._file.look()
            if self._attend():
                return {}
            if found := self._take(limit):
                return found
            self._file.wait(min(deadline, time.monotonic() + self._interval))
            if time.monotonic() >= deadline:
                return {}

    def _attend(self) -> bool:
        """Beat if it is time, and return whether a new generation had to be adopted.

        `on_revoke` waits for a commit, and a commit for the write lock: it is called outside of any transaction.
        """
        joined = self._generation > 0
        if joined and abs(self._clock() - self._beaten) >= self._interval:
            self._beat()
        if joined and self._generation == self._file.generation(self._group):
            return False
        if joined:
            self._on_revoke()
        self._adopt()
        return True

    def _beat(self) -> None:
        with self._file.transaction():
            self._show_life()

    def _show_life(self) -> bool:
        """Renew the heartbeat, remove the dead, and return whether this member is still one itself."""
        self._beaten = now = self._clock()
        sql = "UPDATE member SET beat = ? WHERE consumer_group = ? AND id = ?"
        alive = self._file.change(sql, [(now, self._group, self._id)])
        # A heartbeat far in the future is dead too: it was made before the wall clock was set back.
        sql = "DELETE FROM member WHERE consumer_group = ? AND abs(? - beat) > ?"
        if self._file.change(sql, [(self._group, now, self._session_timeout)]):
            self._file.raise_generation(self._group)
        return alive > 0

    def _adopt(self) -> None:
        """Join unless already in, and take the share of the current generation, at the committed positions."""
        with self._file.transaction():
            if not self._show_life():
                self._join()
            generation = self._file.generation(self._group)
            sql = "SELECT id FROM member WHERE consumer_group = ? ORDER BY joined"
            members = [member for (member,) in self._file.ask(sql, self._group)]
            numbers = deal(self._file.topic(self._topics[0]).partitions, len(members), members.index(self._id))
            owned = [TopicPartition(topic, number) for topic in self._topics for number in numbers]
            start = {partition: self._start(partition) for partition in owned}
        self._generation, self._next = generation, start

    def _join(self) -> None:
        topics = ", ".join(sorted(self._topics))
        sql = "SELECT DISTINCT topics FROM member WHERE consumer_group = ?"
        for (others,) in self._file.ask(sql, self._group):
            if others != topics:
                message = (
                    f"group {self._group!r} reads {others}, this member wants {topics}: partitions would stay "
                    "unread; stop the other members first, or take another group"
                )
                raise TransportError(message)
        generation = self._file.raise_generation(self._group)
        sql = "INSERT INTO member VALUES (?, ?, ?, ?, ?)"
        self._file.ask(sql, self._group, self._id, topics, generation, self._beaten)

    def _start(self, partition: TopicPartition) -> int:
        position = self._file.position(self._group, partition)
        return self._file.first(partition) if position is None else position.offset

    def _take(self, limit: int) -> dict[TopicPartition, list[StoredRecord]]:
        """Fetch from each partition that has records, the shortest first: what it leaves is shared by the others."""
        waiting = sorted((ahead, partition) for partition, ahead in self.lag().items() if ahead)
        taken: dict[TopicPartition, list[StoredRecord]] = {}
        for index, (ahead, partition) in enumerate(waiting):
            share = max(1, -(-limit // (len(waiting) - index)))
            start = self._next[partition]
            if records := self._file.fetch(partition, start, LAST, share):
                taken[partition] = records
                limit -= len(records)
            # Compaction leaves gaps: the end must be reached even where no record lies before it.
            self._next[partition] = records[-1].offset + 1 if records else start + ahead
        return taken

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue reading an owned partition at `offset`."""
        if partition not in self._next:
            message = (
                f"{partition.topic}-{partition.partition} is not assigned to this member: "
                "seek only what `assignment` holds after the last poll"
            )
            raise TransportError(message)
        self._next[partition] = offset

    def committed(self, partition: TopicPartition) -> Position | None:
        """Return the group's position; nothing is in flight, since adopting a generation ends the earlier ones."""
        return self._file.position(self._group, partition)

    def token(self) -> Token:
        """Return group, member and the generation this member has adopted."""
        return Token(self._group, self._id, self._generation)

    def confirm(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Do nothing: the writer stores positions itself."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return, for each owned partition, the offsets from the next record to the end, gaps included."""
        ends = {topic: self._file.ends(topic) for topic in self._topics} if self._next else {}
        return {
            partition: max(0, ends[partition.topic][partition.partition] - offset)
            for partition, offset in self._next.items()
        }

    @property
    def lag_known_at(self) -> float:
        """Always now: the file is at hand."""
        return time.monotonic()

    def close(self) -> None:
        """Leave the group, so that the others take over with their next poll. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._file.transaction():
                sql = "DELETE FROM member WHERE consumer_group = ? AND id = ?"
                if self._file.change(sql, [(self._group, self._id)]):
                    self._file.raise_generation(self._group)
        finally:
            self._file.close()


class EmbeddedWriter:
    """The writer of a slot; opening it fences the former one."""

    def __init__(self, file: LogFile, slot: str, retention: float | None, clock: Callable[[], float]) -> None:
        self._file = file
        self._slot = slot
        self._retention = retention
        self._clock = clock
        self._swept: float | None = None
        with file.transaction():
            file.ask("INSERT INTO slot VALUES (?, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1", slot)
            self._epoch = self._current_epoch()

    def _current_epoch(self) -> int:
        return int(self._file.ask("SELECT epoch FROM slot WHERE name = ?", self._slot)[0][0])

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        """Append and move the positions of the token's group, both or neither."""
        self._sweep()
        with self._file.transaction():
            self._check_slot()
            group = self._check_token(transaction.token)
            positions = transaction.positions(self._append(transaction.appends))
            self._file.place(group, positions)
        return positions

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        """Append as one transaction."""
        self._sweep()
        with self._file.transaction():
            self._check_slot()
            return self._append(appends)

    def _check_slot(self) -> None:
        if self._current_epoch() != self._epoch:
            message = (
                f"the writer of slot {self._slot!r} was fenced by a newer one: another process runs with this slot; "
                "give each process a slot of its own (transport.slot)"
            )
            raise CommitRefused(message)

    def _check_token(self, token: object) -> str:
        """Return the group of a token that is up to date; a commit shows that its member lives."""
        if not isinstance(token, Token):
            message = (
                f"a commit to {self._file.path} needs a token of one of its memberships, "
                f"got {type(token).__name__}: take it from `Membership.token()`"
            )
            raise CommitRefused(message)
        current = self._file.generation(token.group)
        sql = "UPDATE member SET beat = ? WHERE consumer_group = ? AND id = ?"
        alive = self._file.change(sql, [(self._clock(), token.group, token.member)])
        if token.generation != current or not alive:
            message = (
                f"group {token.group!r} is in generation {current}, the commit was made in {token.generation}: "
                "a member joined, left or died since; drop what was collected, poll, and read again"
            )
            raise CommitRefused(message, retriable=True)
        return token.group

    def _append(self, appends: Sequence[Append]) -> list[int]:
        timestamp = int(self._clock() * 1000)
        ends: dict[TopicPartition, int] = {}
        rows: list[tuple[object, ...]] = []
        offsets: list[int] = []
        for topic, number, value, key, headers in appends:
            partition = TopicPartition(topic, number)
            offset = ends[partition] if partition in ends else self._file.end(partition)
            ends[partition] = offset + 1
            offsets.append(offset)
            rows.append((self._file.topic(topic).id, number, offset, timestamp, key, pack_headers(headers), value))
        self._file.change("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        moved = [(end, self._file.topic(topic).id, number) for (topic, number), end in ends.items()]
        self._file.change("UPDATE partition SET next = ? WHERE topic = ? AND number = ?", moved)
        return offsets

    def _sweep(self) -> None:
        """Now and then delete what is no longer kept; before a transaction, so that a failure refuses the whole."""
        now = self._clock()
        if self._swept is not None and abs(now - self._swept) < SWEEP:
            return
        self._swept = now
        sql = "SELECT topic.id, number, cleanup FROM partition JOIN topic ON topic.id = topic"
        for topic, number, cleanup in self._file.ask(sql):
            if cleanup == "compact":
                self._file.compact(topic, number)
            elif cleanup == "delete" and self._retention is not None:
                self._file.forget(topic, number, int((now - self._retention) * 1000))

    def close(self) -> None:
        """Release the writer. Idempotent."""
        self._file.close()


class EmbeddedReader:
    """Reads partitions without a group."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._followed: TopicPartition | None = None
        self._next = 0

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[StoredRecord]:
        """Yield the records with `start <= offset < stop` that are kept, once the log has passed `stop`."""
        if start < stop:
            self._await_end(partition, stop)
        while start < stop and (records := self._file.fetch(partition, start, stop, CHUNK)):
            yield from records
            start = records[-1].offset + 1

    def _await_end(self, partition: TopicPartition, stop: int) -> None:
        deadline = time.monotonic() + READ_TIMEOUT
        self._file.look()
        while (end := self._file.end(partition)) < stop:
            if time.monotonic() >= deadline:
                message = (
                    f"{partition.topic}-{partition.partition} in {self._file.path} ends at offset {end}, {stop} was "
                    f"expected within {READ_TIMEOUT} s: the file may be an older copy than what points into it"
                )
                raise DeadlineMissed(message)
            self._file.wait(deadline)
            self._file.look()

    def follow(self, partition: TopicPartition, start: int) -> None:
        """From now on `poll` returns what is committed to this partition at `start` and after."""
        self._file.end(partition)  # tells at once when it does not exist
        self._followed, self._next = partition, start

    def poll(self, timeout: float) -> Sequence[StoredRecord]:
        """Return what has come on the followed partition; nothing before `follow`."""
        if self._followed is None:
            return ()
        deadline = time.monotonic() + timeout
        self._file.look()
        while not (records := self._file.fetch(self._followed, self._next, LAST, CHUNK)):
            if time.monotonic() >= deadline:
                return ()
            self._file.wait(deadline)
            self._file.look()
        self._next = records[-1].offset + 1
        return records

    def close(self) -> None:
        """Release the reader. Idempotent."""
        self._file.close()


class EmbeddedLog:
    """A log in the SQLite file at `path`, which is created, directory included, when there is none.

    A member that has neither polled nor committed for `session_timeout` seconds is taken for dead. Records older than
    `retention` seconds are deleted (None keeps all), but none that a group with a position has yet to read; compacted
    topics keep the last record of each key instead. The file does not shrink, its free pages are used again. `clock`
    gives the seconds since 1970 that timestamps, heartbeats and retention go by; processes that share a file must agree
    on it. The methods of the log itself belong to one thread, whatever threads its ends belong to.

    Raises:
        TransportError: the file cannot be opened, is no log, or was written by another version.
    """

    def __init__(
        self,
        path: Path,
        *,
        session_timeout: float = 6.0,
        retention: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._session_timeout = session_timeout
        self._retention = retention
        self._clock = clock
        self._opened: WeakSet[EmbeddedMembership | EmbeddedWriter | EmbeddedReader] = WeakSet()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = LogFile(path, durable=False)
        try:
            self._file.prepare()
        except BaseException:
            self._file.close()
            raise

    def create_topics(
        self,
        partitions: Mapping[str, int],
        *,
        compacted: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> Sequence[str]:
        """Create the topics that do not exist yet and return their names."""
        created: list[str] = []
        with self._file.transaction():
            for name, count in partitions.items():
                cleanup = "compact" if name in compacted else "keep" if name in kept else "delete"
                sql = "INSERT INTO topic (name, partitions, cleanup) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
                if self._file.change(sql, [(name, count, cleanup)]):
                    sql = "INSERT INTO partition (topic, number) SELECT id, ? FROM topic WHERE name = ?"
                    self._file.change(sql, [(number, name) for number in range(count)])
                    created.append(name)
        return created

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has."""
        return self._file.topic(topic).partitions

    def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that is kept and the offset after the last record."""
        end = self._file.end(partition)
        return min(self._file.first(partition), end), end

    def positions(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Return a group's positions from outside it, for those partitions that have one."""
        found = {partition: self._file.position(group, partition) for partition in partitions}
        return {partition: position for partition, position in found.items() if position is not None}

    def set_positions(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        """Set a group's positions from outside it.

        Raises:
            CommitRefused: the group has members that have shown life within the session timeout.
        """
        with self._file.transaction():
            sql = "SELECT count(*) FROM member WHERE consumer_group = ? AND abs(? - beat) <= ?"
            [(members,)] = self._file.ask(sql, group, self._clock(), self._session_timeout)
            if members:
                message = f"the positions of group {group!r} were not set: it has {members} members; stop its workers"
                raise CommitRefused(message)
            self._file.place(group, positions)

    def missing_rights(self, rights: Collection[Right]) -> Sequence[Right]:
        """Return none: who may write the file may do everything."""
        return ()

    def membership(self, group: str, topics: Sequence[str], on_revoke: Callable[[], object]) -> EmbeddedMembership:
        """Open a membership, which joins with its first poll.

        Raises:
            TopicMissing: one of the topics does not exist, or they differ in their number of partitions.
        """
        counts = {topic: self._file.topic(topic).partitions for topic in topics}
        if len(set(counts.values())) != 1:
            message = (
                f"the topics of a group need the same number of partitions, in {self._path} they have {counts}: "
                "partition p of all of them goes to one member; create them in another file"
            )
            raise TopicMissing(message)
        file = LogFile(self._path, durable=False)
        membership = EmbeddedMembership(file, group, topics, on_revoke, self._session_timeout, self._clock)
        self._opened.add(membership)
        return membership

    def writer(self, slot: str) -> EmbeddedWriter:
        """Open the writer of a slot, and fence a former one at once."""
        writer = EmbeddedWriter(LogFile(self._path, durable=True), slot, self._retention, self._clock)
        self._opened.add(writer)
        return writer

    def reader(self) -> EmbeddedReader:
        """Open a reader."""
        reader = EmbeddedReader(LogFile(self._path, durable=False))
        self._opened.add(reader)
        return reader

    def close(self) -> None:
        """Close what is still open. Idempotent."""
        for end in list(self._opened):
            end.close()
        self._file.close()
