"""A simulated annotator as a process of its own: reads label requests; answers late, wrongly, twice, or not at all.

On Kafka it is what any annotation tool would be: kafka-python, the documented messages, and no import of streamal. On
the embedded log only the client differs. What it says to a request depends on the request's id alone (`replies`), so
that whoever audits the topics afterwards knows what to expect.

Usage: annotator.py kafka BOOTSTRAP REQUESTS ANSWERS TRUTH [LATE], or embedded FILE REQUESTS ANSWERS TRUTH [LATE]; TRUTH
is a JSON file of labels by instance id, and some answers come up to LATE seconds later than others. What the log did
not take is said again. SIGTERM ends it, after everything it meant to say is sent.
"""

from __future__ import annotations

import heapq
import json
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

DELAY: Final = (0.005, 0.08)
"""Seconds from reading a request to the first answer, and again to each further one."""
UNKNOWN: Final = "0-999999999"
"""The id of a request that nobody ever made."""
SILENT: Final = 0.03
TARDY: Final = 0.05
"""Share of the requests whose answers come late."""


class Reply(NamedTuple):
    """One answer: the value's fields, and whether it goes to another partition than the request lay in."""

    fields: Mapping[str, Any]
    misdirected: bool


def replies(request_id: str, truth: str, classes: Sequence[str], annotator: str = "") -> list[Reply]:
    """Return what is said to a request, in this order; the same for the same request, and annotator if one is named.

    One with a name changes their mind now and then.

    >>> replies("0-6", "up", ["down", "up"])
    [Reply(fields={'request_id': '0-6', 'kind': 'invalid'}, misdirected=True)]
    """
    draw = random.Random(request_id + annotator)
    if draw.random() < SILENT:
        return []
    said: list[dict[str, Any]] = []
    if draw.random() < 0.04:
        said.append({"request_id": request_id, "kind": "skip"})
    mood = draw.random()
    label = truth if mood < 0.93 else draw.choice(classes)
    opinion = {"kind": "unsure"} if mood > 0.98 else {"kind": "invalid"} if mood > 0.96 else {"label": label}
    said.append({"request_id": request_id, **opinion})
    if draw.random() < 0.06:
        said.append(said[-1])
    if draw.random() < 0.05:
        said.append({"request_id": request_id, "label": classes[label == classes[0]]})
    if draw.random() < 0.03:
        said.append({"request_id": UNKNOWN, "label": label})
    if annotator:
        said = [fields | {"annotator": annotator} for fields in said]
        if draw.random() < 0.15:
            said.append(said[-1] | {"kind": "label", "label": draw.choice(classes), "revision": draw.randrange(3)})
    return [Reply(fields, draw.random() < 0.12) for fields in said]


class Wire(Protocol):
    """How requests come and answers go."""

    partitions: int

    def requests(self) -> list[bytes]:
        """Return new label requests, after a short wait at most."""

    def answer(self, partition: int, value: bytes) -> None:
        """Send an answer."""

    def close(self) -> None:
        """Send what is not sent yet, and leave."""


class Sent(NamedTuple):
    """An answer on its way to Kafka."""

    producer: Any
    future: Any
    partition: int
    value: bytes


class KafkaWire:
    """kafka-python, as its documentation has it: a consumer of committed records and a plain producer."""

    def __init__(self, bootstrap: str, requests: str, answers: str) -> None:
        from kafka import KafkaConsumer, KafkaProducer, TopicPartition
        from kafka.errors import KafkaError

        self._failed = KafkaError
        self._answers = answers
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest", group_id=None
        )
        numbers = self._consumer.partitions_for_topic(requests)
        self.partitions = len(numbers)
        self._consumer.assign([TopicPartition(requests, number) for number in numbers])
        self._build: Callable[[], Any] = lambda: KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
        self._producer = self._build()
        self._sent: deque[Sent] = deque()

    def requests(self) -> list[bytes]:
        self._look()
        return [record.value for records in self._consumer.poll(timeout_ms=20).values() for record in records]

    def answer(self, partition: int, value: bytes) -> None:
        future = self._producer.send(self._answers, value, partition=partition)
        self._sent.append(Sent(self._producer, future, partition, value))

    def close(self) -> None:
        while self._sent:
            self._producer.flush()
            self._look()
        self._producer.close()
        self._consumer.close()

    def _look(self) -> None:
        """Forget what the broker has taken; say what it has not again, with a new producer: the old one is done."""
        while self._sent and self._sent[0].future.is_done:
            sent = self._sent.popleft()
            if sent.future.failed():
                if sent.producer is self._producer:
                    self._replace()
                self.answer(sent.partition, sent.value)

    def _replace(self) -> None:
        """Build a new producer, as soon as a broker answers."""
        with suppress(self._failed):
            self._producer.close(timeout=1)
        replaced = self._producer
        while self._producer is replaced:
            with suppress(self._failed):
                self._producer = self._build()


class EmbeddedWire:
    """The embedded log, opened beside the workers."""

    def __init__(self, file: str, requests: str, answers: str) -> None:
        from streamal.transport.embedded import EmbeddedLog
        from streamal.transport.log import Append, TopicPartition

        self._log = EmbeddedLog(Path(file))
        self._append = Append
        self._answers = answers
        self._writer = self._log.writer("annotator")
        self.partitions = self._log.partitions(requests)
        self._readers = [self._log.reader() for _ in range(self.partitions)]
        for number, reader in enumerate(self._readers):
            reader.follow(TopicPartition(requests, number), 0)
        self._unsent: list[Any] = []

    def requests(self) -> list[bytes]:
        self._send()
        return [record.value or b"" for reader in self._readers for record in reader.poll(0.02 / self.partitions)]

    def answer(self, partition: int, value: bytes) -> None:
        self._unsent.append(self._append(self._answers, partition, value))

    def close(self) -> None:
        self._send()
        self._log.close()

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._writer.append(unsent)


class Annotator:
    """Answers until it is stopped."""

    def __init__(self, wire: Wire, truth: Mapping[str, str], late: float) -> None:
        self._wire = wire
        self._truth = truth
        self._late = late
        self._classes = sorted(set(truth.values()))
        self._draw = random.Random(0)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self, stopping: threading.Event) -> None:
        """Read and answer; at the end say everything that is still due."""
        while not stopping.is_set():
            for value in self._wire.requests():
                self._plan(json.loads(value))
            self._say(time.monotonic())
        self._say(float("inf"))
        self._wire.close()

    def _plan(self, request: Mapping[str, Any]) -> None:
        at = time.monotonic()
        if self._draw.random() < TARDY:
            at += self._draw.uniform(0.0, self._late)
        for reply in replies(request["request_id"], self._truth[request["instance_id"]], self._classes):
            at += self._draw.uniform(*DELAY)
            self._count += 1
            partition = (request["partition"] + reply.misdirected) % self._wire.partitions
            heapq.heappush(self._due, (at, self._count, partition, json.dumps(reply.fields).encode()))

    def _say(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, partition, value = heapq.heappop(self._due)
            self._wire.answer(partition, value)


def main(kind: str, address: str, requests: str, answers: str, truth: str, late: str = "0") -> None:
    """Run until SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wire: Wire = KafkaWire(address, requests, answers) if kind == "kafka" else EmbeddedWire(address, requests, answers)
    Annotator(wire, json.loads(Path(truth).read_text()), float(late)).run(stopping)


if __name__ == "__main__":
    main(*sys.argv[1:])
