"""Putting records into a stream by hand or from a script: for the embedded log, which no Kafka producer reaches.

Instances go round the partitions; an answer goes to the partition of its request, which stands in its request_id. A
file is looked through before anything of it is appended; a pipe cannot be, and is appended batch by batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import BinaryIO, Final

import orjson

from streamal.errors import BadRecord, ConfigError
from streamal.messages import SCHEMA_HEADERS, parse_request_id
from streamal.transport.log import Append, Log, TopicPartition

BATCH: Final = 500


def produce(log: Log, topic: str, file: BinaryIO, *, answers: bool) -> int:
    """Append the JSON lines of a file to a topic and return how many; what they say is checked by the worker, not here.

    Raises:
        ConfigError: a line is no JSON object, or an answer names no request; the message says what was appended.
    """
    partitions = log.partitions(topic)
    begin = sum(log.bounds(TopicPartition(topic, p))[1] for p in range(partitions))
    count = 0
    with closing(log.writer(f"produce-{topic}")) as writer:
        try:
            if file.seekable():
                start = file.tell()
                deque(_values(file, answers=answers), maxlen=0)
                file.seek(start)
            values = _values(file, answers=answers)
            while batch := list(islice(values, BATCH)):
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


def _values(lines: Iterable[bytes], *, answers: bool) -> Iterator[tuple[bytes, int | None]]:
    """Yield the value of each line that is not empty, and for an answer the partition of its request."""
    for number, line in enumerate(lines, start=1):
        if not (value := line.strip()):
            continue
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            message = f"line {number}: expected a JSON object, came something else ({error.msg}, column {error.colno})"
            raise ConfigError(message) from None
        if not isinstance(found, dict):
            message = f"line {number}: expected a JSON object, came {type(found).__name__}"
            raise ConfigError(message)
        yield value, _partition(found.get("request_id"), number) if answers else None


def _partition(request_id: object, number: int) -> int:
    try:
        return parse_request_id(request_id if isinstance(request_id, str) else "")[0]
    except BadRecord:
        message = (
            f'line {number}: expected an answer such as {{"request_id": "0-41", "label": "fraud"}}, and its request_id '
            "is missing or none of ours"
        )
        raise ConfigError(message) from None
