"""What a log must offer: partitions that are appended to, groups that share them, and commits that are all or nothing.

A `Log` opens the three ends a worker holds:

- a `Membership` of a consumer group, which polls the partitions it was assigned;
- a `Writer`, whose `commit` appends records and moves the group's positions as one transaction;
- a `Reader`, outside any group, which reads a stretch of one partition or follows it.

All reads see committed records only. Values are bytes: no end ever decodes them. The process that holds the ends is
synchronous; `Membership` and `Reader` belong to one thread, and `Writer` to one thread, which may be another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streamal.transport.rights import Right

Headers = Sequence[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(Protocol):
    """A record as it lies in the log; `timestamp` is in milliseconds since 1970 (UTC), as the log recorded it."""

    @property
    def topic(self) -> str: ...  # noqa: D102
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Headers: ...  # noqa: D102


class Append(NamedTuple):
    """A record to be appended; a `None` value is a tombstone."""

    topic: str
    partition: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


class Position(NamedTuple):
    """Where a group goes on in a partition (`offset`: the next record to read), with the metadata stored beside it."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """All that becomes visible at once, or not at all.

    `positions` is called in the writer's thread after the appends have got their offsets, with those offsets in the
    order of `appends`; it returns the group's new positions. `token` is `Membership.token()` taken when the
    records behind this transaction were polled: a transaction whose token is out of date is refused.
    """

    appends: Sequence[Append]
    positions: Callable[[Sequence[int]], Mapping[TopicPartition, Position]]
    token: object


class Membership(Protocol):
    """One member of a consumer group; partitions with the same number of all its topics go to the same member."""

    @property
    def epoch(self) -> Hashable:
        """Changes whenever the assignment may have changed; state is keyed on it."""

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """What this member owns now; empty while the group settles, or when there are more members than partitions."""

    def poll(self, timeout: float, limit: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return up to about `limit` records in offset order per partition, after at most about `timeout` seconds.

        Called every turn of the loop; it also keeps the membership alive. If `epoch` has changed afterwards the caller
        must discard the result, reload its positions and `seek` every owned partition.

        Raises:
            TransportError: the membership is lost for good; the process must end.
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue reading an owned partition at `offset`."""

    def committed(self, partition: TopicPartition) -> Position | None:
        """Return the group's position in an owned partition; waits for commits that are still in flight elsewhere."""

    def token(self) -> object:
        """Return what fences a commit: taken right after a poll, handed to the `Transaction` made of its records.

        A token taken before the first assignment is refused by every commit.
        """

    def confirm(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Store the positions of a transaction that went through, where the writer could not (at-least-once delivery).

        Called in the membership's thread once per finished transaction, in their order; does nothing under
        exactly-once.

        Raises:
            CommitRefused: the partitions went to another member meanwhile, which will repeat the transaction;
            retriable.
        """

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return how many committed records of each owned partition lie ahead of this member; may be seconds old."""

    @property
    def lag_known_at(self) -> float:
        """When the ends that `lag` counts to were last heard of, by the monotonic clock; stands still in an outage."""

    def close(self) -> None:
        """Leave the group at once, so that the others need not wait for the session to end. Idempotent."""


class Writer(Protocol):
    """Appends records; one thread at a time."""

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        """Carry out a transaction and return its positions; returns only when it is durable.

        Raises:
            CommitRefused: nothing of it is visible. If not `retriable`, the writer must not be used again and the
                process must end.
            TransportError: the log could not be reached; the process must end.
        """

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        """Append outside any group, as one transaction where the log has them; return the offsets in order."""

    def close(self) -> None:
        """Release the writer; a transaction in flight is aborted. Idempotent."""


class Reader(Protocol):
    """Reads partitions without a group."""

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[Record]:
        """Yield the committed records with `start <= offset < stop`; waits until the log has passed `stop`.

        Raises:
            DeadlineMissed: the log did not pass `stop` in time.
        """

    def follow(self, partition: TopicPartition, start: int) -> None:
        """Let `poll` return what is committed to this partition at `start` and after; replaces the former one."""

    def poll(self, timeout: float) -> Sequence[Record]:
        """Return what has come on the followed partition, after at most about `timeout` seconds."""

    def close(self) -> None:
        """Release the reader. Idempotent."""


class Log(Protocol):
    """A place where topics live."""

    def create_topics(
        self,
        partitions: Mapping[str, int],
        *,
        compacted: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> Sequence[str]:
        """Create the topics that do not exist yet and return their names; those that exist are left as they are.

        Of a `compacted` topic the last record of each key is kept for ever, of a `kept` one every record; of all others
        what the log's retention says.
        """

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has.

        Raises:
            TopicMissing: it does not exist.
        """

    def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that is kept and the offset after the last committed record."""

    def positions(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Return a group's positions from outside it, for those partitions that have one."""

    def set_positions(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        """Set a group's positions from outside it, to recover from their loss.

        Raises:
            CommitRefused: the group has members; nothing is set.
        """

    def missing_rights(self, rights: Collection[Right]) -> Sequence[Right]:
        """Return those of these rights that this process does not have, as far as the log can tell; sends nothing.

        Called once, before the group is joined. A log that lets everybody do everything returns none.
        """

    def membership(self, group: str, topics: Sequence[str], on_revoke: Callable[[], object]) -> Membership:
        """Join a group on co-partitioned topics.

        `on_revoke` is called, in whatever thread, before partitions are given up: it must wait for the commit in
        flight, mark what is collected as dropped, and must not touch the membership.
        """

    def writer(self, slot: str) -> Writer:
        """Open the writer of a slot: a stable name of this process. A former writer of the same slot is fenced."""

    def reader(self) -> Reader:
        """Open a reader."""

    def close(self) -> None:
        """Close what is still open. Idempotent."""
