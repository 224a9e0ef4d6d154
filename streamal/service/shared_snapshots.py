"""Snapshots in the topic `snapshots`, so that a new worker need not fold the log from its beginning.

The topic is compacted: a snapshot lies there in chunks, under keys that the next one takes over, and behind them in the
same transaction the manifest with their number, size and hash. Each chunk names the snapshot it is part of, so that
what compaction, a crash or a second writer left of two is never taken for one. All that is here is a matter of bytes;
who signed them is checked like that of a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final

import orjson

from streamal.errors import SnapshotRefused, TopicMissing
from streamal.messages import SCHEMA_HEADERS
from streamal.transport.log import Append, Log, Record, TopicPartition

CHUNK_BYTES: Final = 512 * 1024
"""Half of what a broker takes by default, whatever it adds."""
MOST_CHUNKS: Final = 2_000
"""A gigabyte; chunks beyond are not kept while the topic is read, whoever wrote them."""
CHUNK_KEY: Final = re.compile(rb"model/([0-9]{1,4})")
MANIFEST_KEY: Final = b"model/manifest"
PART_OF: Final = "snapshot"

Chunks = dict[int, tuple[bytes, bytes]]
"""By number: the snapshot it is part of, and its bytes."""


class SnapshotTopic:
    """The topic on a log; `open_log` opens one for each use, since a log belongs to one thread.

    `slot` is that of a writer of its own: one that waits for a large snapshot must not hold up a commit.
    """

    def __init__(self, open_log: Callable[[], Log], topic: str, slot: str) -> None:
        self._open_log = open_log
        self._place = TopicPartition(topic, 0)
        self._slot = slot
        self.name = f"the topic '{topic}'"

    def read(self) -> bytes | None:
        """Return the last snapshot that lies there whole, or None if the topic is empty."""
        with closing(self._open_log()) as log, closing(log.reader()) as reader:
            try:
                log.partitions(self._place.topic)
            except TopicMissing as missing:
                message = f"{missing}; `streamal topics create` makes it, compacted"
                raise SnapshotRefused(message) from None
            return put_together(reader.read(self._place, *log.bounds(self._place)))

    def write(self, blob: bytes) -> None:
        """Append the chunks and their manifest as one transaction."""
        with closing(self._open_log()) as log, closing(log.writer(self._slot)) as writer:
            writer.append(taken_apart(blob, self._place))


def taken_apart(blob: bytes, place: TopicPartition) -> list[Append]:
    """Return a snapshot as records, its manifest last."""
    digest = hashlib.sha256(blob).hexdigest()
    headers = (*SCHEMA_HEADERS, (PART_OF, digest.encode()))
    chunks = [blob[start : start + CHUNK_BYTES] for start in range(0, len(blob), CHUNK_BYTES)]
    manifest = orjson.dumps({"chunks": len(chunks), "bytes": len(blob), "sha256": digest})
    found = [Append(*place, chunk, f"model/{number}".encode(), headers) for number, chunk in enumerate(chunks)]
    return [*found, Append(*place, manifest, MANIFEST_KEY, headers)]


def put_together(records: Iterable[Record]) -> bytes | None:
    """Return the last snapshot whose chunks lie before their manifest, or None if there is nothing.

    Raises:
        SnapshotRefused: there is something, but no whole snapshot.
    """
    chunks: Chunks = {}
    newest, refused = None, ""
    for record in records:
        value = record.value or b""
        if record.key == MANIFEST_KEY:
            try:
                newest, refused = whole(value, chunks), ""
            except SnapshotRefused as error:
                refused = str(error)
        elif (found := CHUNK_KEY.fullmatch(record.key or b"")) and (number := int(found[1])) < MOST_CHUNKS:
            chunks[number] = (dict(record.headers).get(PART_OF) or b"", value)
    if newest is None and (chunks or refused):
        message = refused or "there are chunks without a manifest, as a writer without transactions leaves them"
        raise SnapshotRefused(message)
    return newest


def whole(manifest: bytes, chunks: Chunks) -> bytes:
    """Return the snapshot of a manifest, made of the chunks that lie before it.

    Raises:
        SnapshotRefused: one is missing, or part of another snapshot; or it is no manifest.
    """
    try:
        found = orjson.loads(manifest)
        count, digest = found["chunks"], found["sha256"].encode()
        parts = [chunks[number] for number in range(count)] if count <= MOST_CHUNKS else []
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError, UnicodeEncodeError) as error:
        message = f"its manifest names chunks that are not there ({type(error).__name__}); the next one will be whole"
        raise SnapshotRefused(message) from None
    blob = b"".join(part for part_of, part in parts if part_of == digest)
    if len(blob) != found.get("bytes") or hashlib.sha256(blob).hexdigest().encode() != digest:
        message = "its chunks are not those of its manifest, but partly of another; the next one will be whole"
        raise SnapshotRefused(message)
    return blob
