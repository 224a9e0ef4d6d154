"""Putting records into a stream by hand or from a script: for the embedded log, which no Kafka producer reaches.

Instances go round the partitions; an answer goes to the partition of its request, which stands in its request_id. A
file is looked through before anything of it is appended; a pipe cannot be, and its lines are appended as they come,
those that come together all or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from io import BufferedReader
from itertools import islice
from typing import Final
from uuid import uuid4

import orjson

from streamal.errors import BadRecord, ConfigError
from streamal.messages import SCHEMA_HEADERS, parse_request_id
from streamal.transport.log import Append, Log, TopicPartition

BATCH: Final = 500
CHUNK: Final = 1 << 16
"""Bytes that are taken from a pipe at once, at most: what the system keeps in one."""


def produce(log: Log, topic: str, file: BufferedReader, *, answers: bool) -> int:
    """Append the JSON lines of a file to a topic and return how many; what they say is checked by the worker, not here.

    Raises:
        ConfigError: a line is no JSON object, or an answer names no request; the message says what was appended.
    """
    partitions = log.partitions(topic)
    begin = sum(log.bounds(TopicPartition(topic, p))[1] for p in range(partitions))
    values = partial(_values, partitions=partitions, answers=answers)
    count = 0
    # a slot of its own: another one that runs beside it must not fence it
    with closing(log.writer(f"produce-{topic}-{uuid4().hex}")) as writer:
        try:
            if file.seekable():
                start = file.tell()
                deque(values(file, 1), maxlen=0)
                file.seek(start)
            number = 1
            for lines in _batches(file):
                batch = list(values(lines, number))
                number += len(lines)
                if not batch:
                    continue
                writer.append(
                    [
                        Append(
                            topic, (begin + count + i) % partitions if to is None else to, value, None, SCHEMA_HEADERS
                        )
                        for i, (value, to) in enumerate(batch)
                    ]
                )
                count += len(batch)
        except ConfigError as error:
            done = f"the first {count:,} records were appended, the rest was not" if count else "nothing was appended"
            message = f"{file.name}, {error}; {done}"
            raise ConfigError(message) from None
    return count


def _batches(file: BufferedReader) -> Iterator[Sequence[bytes]]:
    """Yield the lines, at most `BATCH` at once; of a pipe those that are there, without waiting for more."""
    for come in (file,) if file.seekable() else _arrivals(file):
        lines = iter(come)
        while batch := list(islice(lines, BATCH)):
            yield batch


def _arrivals(pipe: BufferedReader) -> Iterator[list[bytes]]:
    """Yield the lines that have come whole, each time some came, and at the end what is left without a line's end."""
    begun: list[bytes] = []
    while found := pipe.read1(CHUNK):
        first, *others = found.split(b"\n")
        begun.append(first)
        if others:
            yield [b"".join(begun), *others[:-1]]
            begun = others[-1:]
    yield [b"".join(begun)]


def _values(
    lines: Iterable[bytes], start: int, *, partitions: int, answers: bool
) -> Iterator[tuple[bytes, int | None]]:
    """Yield the value of each line that is not empty, and for an answer the partition of its request."""
    for number, line in enumerate(lines, start):
        if not (value := line.strip()):
            continue
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            hint = ""
            if not value.startswith(b"{"):
                hint = "; CSV is what `streamal simulate` reads"
            elif error.doc.startswith(("NaN", "Infinity"), error.pos):
                hint = "; NaN and Infinity are no JSON: leave the feature out or send null"
            message = (
                f"line {number}: expected one JSON object per line, came something else ({error.msg}, column "
                f"{error.colno}){hint}"
            )
            raise ConfigError(message) from None
        if not isinstance(found, dict):
            message = f"line {number}: expected one JSON object per line, came {type(found).__name__}"
            raise ConfigError(message)
        yield value, _partition(found.get("request_id"), number, partitions) if answers else None


def _partition(request_id: object, number: int, partitions: int) -> int:
    try:
        partition, _ = parse_request_id(request_id if isinstance(request_id, str) else "")
    except BadRecord:
        message = (
            f'line {number}: expected an answer such as {{"request_id": "0-41", "label": "fraud"}}, and its request_id '
            "is missing or none of ours"
        )
        raise ConfigError(message) from None
    if partition >= partitions:
        message = (
            f"line {number}: expected the request_id of a label request of this stream, which has {partitions} "
            f"partitions, came {request_id}; it may be that of another stream"
        )
        raise ConfigError(message)
    return partition
