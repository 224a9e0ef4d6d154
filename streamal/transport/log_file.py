"""The file of the embedded log: what lies in it, and one connection to it.

Topics, partitions and records, groups with their members and positions, and the slots of writers are tables of one
SQLite file in WAL mode, so that readers never wait for a writer. A partition's records are one range of a clustered
index, and its next offset is kept beside them, so that no offset is ever used twice, whatever is deleted.

The ends of `embedded` open one `LogFile` each and put the rules on top of it.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from streamal.errors import TopicMissing, TransportError
from streamal.transport.log import Headers, Position, TopicPartition

BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for another process's transaction; those of the service take some milliseconds."""
PAUSE: Final = 0.005
"""Seconds between two looks for something new; a look costs some microseconds."""
LAST: Final = 2**63 - 1
"""No offset is larger."""

FORMAT: Final = 1
SCHEMA: Final = """
CREATE TABLE topic (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL CHECK (partitions > 0),
    cleanup TEXT NOT NULL CHECK (cleanup IN ('delete', 'compact', 'keep')));
CREATE TABLE partition (
    topic INTEGER, number INTEGER, next INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, number)) WITHOUT ROWID;
CREATE TABLE record (
    topic INTEGER, partition INTEGER, offset INTEGER, timestamp INTEGER NOT NULL, key BLOB, headers BLOB, value BLOB,
    PRIMARY KEY (topic, partition, offset)) WITHOUT ROWID;
CREATE TABLE consumer_group (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE member (
    consumer_group TEXT, id TEXT, topics TEXT NOT NULL, joined INTEGER NOT NULL, beat REAL NOT NULL,
    PRIMARY KEY (consumer_group, id)) WITHOUT ROWID;
CREATE TABLE position (
    consumer_group TEXT, topic INTEGER, partition INTEGER, offset INTEGER NOT NULL, metadata TEXT NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition)) WITHOUT ROWID;
CREATE TABLE slot (
    name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
"""
LENGTHS: Final = struct.Struct(">Ii")


class StoredRecord(NamedTuple):
    """A record as it lies in the file."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Topic(NamedTuple):
    """A topic's row number and how many partitions it has."""

    id: int
    partitions: int


def pack_headers(headers: Headers) -> bytes | None:
    """Return headers as one blob of lengths and contents, None when there are none.

    >>> pack_headers([("a", b"xy"), ("b", None)]).hex(" ", 1)
    '00 00 00 01 00 00 00 02 61 78 79 00 00 00 01 ff ff ff ff 62'
    """
    parts: list[bytes] = []
    for name, content in headers:
        encoded = name.encode()
        parts += (LENGTHS.pack(len(encoded), -1 if content is None else len(content)), encoded, content or b"")
    return b"".join(parts) or None


@lru_cache(maxsize=256)
def unpack_headers(packed: bytes) -> Headers:
    """Read back what `pack_headers` wrote; most records carry the same few headers, hence the cache.

    >>> unpack_headers(pack_headers([("a", b"xy"), ("b", None)]))
    (('a', b'xy'), ('b', None))

    Raises:
        ValueError: something else wrote it, or the file is damaged.
    """
    headers: list[tuple[str, bytes | None]] = []
    at = 0
    while at < len(packed):
        try:
            name, content = LENGTHS.unpack_from(packed, at)
        except struct.error:
            message = f"headers of {len(packed)} bytes are cut at byte {at}"
            raise ValueError(message) from None
        middle = at + LENGTHS.size + name
        at = middle + max(0, content)
        if at > len(packed):
            message = f"headers of {len(packed)} bytes name {at}"
            raise ValueError(message)
        headers.append((packed[middle - name : middle].decode(), None if content < 0 else packed[middle:at]))
    return tuple(headers)


class LogFile:
    """One connection to the file, used by one thread at a time; SQLite's errors leave it as `TransportError`.

    `durable` says whether a transaction reaches the disk before it returns. Without, it outlives the process, but a
    power cut may undo the last ones.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self._topics: dict[str, Topic] = {}
        self._seen = 0
        try:
            self._connection = sqlite3.connect(path, BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        synchronous: Literal["FULL", "NORMAL"] = "FULL" if durable else "NORMAL"
        self.ask(f"PRAGMA synchronous = {synchronous}")

    def prepare(self) -> None:
        """Make the file a log, unless it is one; several processes may do so at once."""
        self._switch_to_wal()
        with self.transaction():
            [(found,)] = self.ask("PRAGMA user_version")
            if found not in (0, FORMAT):
                message = (
                    f"{self.path} has log format {found}, this version of streamal reads {FORMAT}: "
                    "use the version that wrote it, or another file"
                )
                raise TransportError(message)
            if not found:
                for statement in SCHEMA.split(";"):
                    self.ask(statement)
                self.ask(f"PRAGMA user_version = {FORMAT}")

    def _switch_to_wal(self) -> None:
        """Set the journal mode; SQLite's own waiting does not cover two processes that switch a new file at once."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise self._trouble(error) from error
                time.sleep(PAUSE)
            else:
                return

    def _trouble(self, error: sqlite3.Error) -> TransportError:
        return TransportError(
            f"the log file {self.path} did not do what was asked: {error}; another process may hold it, the disk may "
            "be full, or it is no streamal log: look at the file and its directory, then start again"
        )

    def ask(self, sql: str, *parameters: object) -> list[Any]:
        """Execute a statement and return all its rows."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def change(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Execute a statement once per row of parameters and return how many rows of the table it changed."""
        try:
            return self._connection.executemany(sql, rows).rowcount
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock, and commit at the end or roll back after any exception, as Ctrl+C raises anywhere."""
        try:
            self.ask("BEGIN IMMEDIATE")
            yield
            self.ask("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.rollback()
            raise

    def look(self) -> None:
        """Remember the state of the file, before reading it: `wait` returns when another connection has changed it."""
        self._seen = self._version()

    def wait(self, deadline: float) -> None:
        """Wait for a change since `look`, until a time of the monotonic clock at the latest."""
        while self._version() == self._seen and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(PAUSE, left))

    def _version(self) -> int:
        return int(self.ask("PRAGMA data_version")[0][0])

    def topic(self, name: str) -> Topic:
        """Return a topic, which never changes once it exists."""
        if found := self._topics.get(name):
            return found
        if not (rows := self.ask("SELECT id, partitions FROM topic WHERE name = ?", name)):
            message = (
                f"topic {name!r} does not exist in the log file {self.path}: it was not created yet, or another "
                "file is meant; `streamal topics create` creates it"
            )
            raise TopicMissing(message)
        return self._topics.setdefault(name, Topic(*rows[0]))

    def first(self, partition: TopicPartition) -> int:
        """Return the first offset that is kept."""
        sql = "SELECT offset FROM record WHERE topic = ? AND partition = ? ORDER BY offset LIMIT 1"
        rows = self.ask(sql, self.topic(partition.topic).id, partition.partition)
        return int(rows[0][0]) if rows else self.end(partition)

    def end(self, partition: TopicPartition) -> int:
        """Return the offset the next record will get."""
        ends = self.ends(partition.topic)
        if not 0 <= partition.partition < len(ends):
            message = (
                f"topic {partition.topic!r} in {self.path} has the partitions 0 to {len(ends) - 1}, asked for was "
                f"{partition.partition}: compare the configured number of partitions with the log's"
            )
            raise TopicMissing(message)
        return ends[partition.partition]

    def ends(self, topic: str) -> list[int]:
        """Return `end` of each partition of a topic."""
        sql = "SELECT next FROM partition WHERE topic = ? ORDER BY number"
        return [end for (end,) in self.ask(sql, self.topic(topic).id)]

    def fetch(self, partition: TopicPartition, start: int, stop: int, limit: int) -> list[StoredRecord]:
        """Return the first `limit` records with `start <= offset < stop`."""
        name, number = partition
        rows = self.ask(
            "SELECT offset, timestamp, key, value, headers FROM record"
            " WHERE topic = ? AND partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
            *(self.topic(name).id, number, start, stop, limit),
        )
        try:
            return [
                StoredRecord(name, number, offset, timestamp, key, value, unpack_headers(headers) if headers else ())
                for offset, timestamp, key, value, headers in rows
            ]
        except ValueError as error:
            message = f"{self.path}: a record of {name}-{number} from offset {start} on is damaged: {error}; restore it"
            raise TransportError(message) from None

    def position(self, group: str, partition: TopicPartition) -> Position | None:
        """Return a group's position in a partition."""
        sql = "SELECT offset, metadata FROM position WHERE consumer_group = ? AND topic = ? AND partition = ?"
        rows = self.ask(sql, group, self.topic(partition.topic).id, partition.partition)
        return Position(*rows[0]) if rows else None

    def place(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        """Set a group's positions."""
        rows = [
            (group, self.topic(partition.topic).id, partition.partition, position.offset, position.metadata)
            for partition, position in positions.items()
        ]
        self.change("INSERT OR REPLACE INTO position VALUES (?, ?, ?, ?, ?)", rows)

    def generation(self, group: str) -> int:
        """Return a group's generation, 0 before its first member."""
        rows = self.ask("SELECT generation FROM consumer_group WHERE name = ?", group)
        return int(rows[0][0]) if rows else 0

    def raise_generation(self, group: str) -> int:
        """Begin a group's next generation, which fences the commits of all earlier ones."""
        sql = "INSERT INTO consumer_group VALUES (?, 1) ON CONFLICT DO UPDATE SET generation = generation + 1"
        self.ask(sql, group)
        return self.generation(group)

    def compact(self, topic: int, number: int) -> None:
        """Keep the last record of each key, and those without one."""
        self.ask(
            "DELETE FROM record WHERE topic = ?1 AND partition = ?2 AND key IS NOT NULL AND offset NOT IN"
            " (SELECT max(offset) FROM record WHERE topic = ?1 AND partition = ?2 GROUP BY key)",
            *(topic, number),
        )

    def forget(self, topic: int, number: int, before: int) -> None:
        """Delete up to the first record that is no older than `before` (ms), or that a group has yet to read."""
        self.ask(
            "DELETE FROM record WHERE topic = ?1 AND partition = ?2 AND offset < min("
            " ifnull((SELECT offset FROM record WHERE topic = ?1 AND partition = ?2 AND timestamp >= ?3"
            " ORDER BY offset LIMIT 1), ?4),"
            " ifnull((SELECT min(offset) FROM position WHERE topic = ?1 AND partition = ?2), ?4))",
            *(topic, number, before, LAST),
        )

    def close(self) -> None:
        """Release the connection; a transaction in flight is rolled back. Idempotent."""
        self._connection.close()
