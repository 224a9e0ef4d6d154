"""Putting records into a stream by hand or from a script: for the embedded log, which no Kafka producer reaches.

Instances go round the partitions; an answer goes to the partition of its request, which stands in its request_id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import orjson

from streamal.errors import ConfigError
from streamal.messages import SCHEMA_HEADERS, parse_request_id
from streamal.transport.log import Append, Log, TopicPartition

BATCH: Final = 500


def produce(log: Log, topic: str, lines: Iterable[bytes], *, answers: bool) -> int:
    """Append JSON lines to a topic and return how many; what they say is checked by the worker, not here.

    Raises:
        ConfigError: a line is no JSON object, or an answer names no request; the lines before its batch are appended.
    """
    writer = log.writer(f"produce-{topic}")
    partitions = log.partitions(topic)
    begin = sum(log.bounds(TopicPartition(topic, p))[1] for p in range(partitions))
    count = 0
    try:
        values = _values(lines)
        while batch := list(islice(values, BATCH)):
            writer.append(
                [
                    Append(
                        topic,
                        _partition(value, number) if answers else (begin + count + i) % partitions,
                        value,
                        None,
                        SCHEMA_HEADERS,
                    )
                    for i, (number, value) in enumerate(batch)
                ]
            )
            count += len(batch)
    finally:
        writer.close()
    return count


def _values(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        if not (value := line.strip()):
            continue
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            message = f"line {number}: expected a JSON object, came something else: {error}"
            raise ConfigError(message) from None
        if not isinstance(found, dict):
            message = f"line {number}: expected a JSON object, came {type(found).__name__}"
            raise ConfigError(message)
        yield number, value


def _partition(answer: bytes, number: int) -> int:
    request_id = orjson.loads(answer).get("request_id")
    if not isinstance(request_id, str):
        message = f'line {number}: expected an answer such as {{"request_id": "0-41", "label": "fraud"}}'
        raise ConfigError(message)
    return parse_request_id(request_id)[0]
