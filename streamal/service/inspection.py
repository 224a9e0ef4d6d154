"""Looking at a stream from outside, worker or not: where it stands, what waits for an answer, why something was asked.

Everything is read from the log, so it works while the service is down, and it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamal.messages import LabelRequest, Outcome, decode_outcome, parse_request_id
from streamal.service.ledgers import Pointers, Topics, decode_metadata
from streamal.transport.log import Log, Reader, Record, TopicPartition


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a partition stands: what was seen, asked and allowed, what waits, and how many records lie ahead."""

    partition: int
    seen: int
    asked: int
    allowed: float
    pending: int
    lag: int


class Inspection:
    """Reads one stream; `group` is the group of its workers."""

    def __init__(self, log: Log, topics: Topics, group: str, rate: float) -> None:
        self._log = log
        self._topics = topics
        self._group = group
        self._rate = rate
        self._reader = log.reader()
        self._partitions = log.partitions(topics.instances)

    def standings(self) -> list[Standing]:
        """Return where each partition stands."""
        waiting = self.waiting()
        found = []
        for p in range(self._partitions):
            place = TopicPartition(self._topics.instances, p)
            first, end = self._log.bounds(place)
            ledger, _, position = self._left(p)
            budget: dict[str, Any] = ledger.get("budget", {"seen": 0, "asked": 0, "refunded": 0})
            allowed = self._rate * budget["seen"] + budget["refunded"]
            pending = sum(request.partition == p for request in waiting)
            lag = max(0, end - (first if position is None else position))
            found.append(Standing(p, budget["seen"], budget["asked"], allowed, pending, lag))
        return found

    def waiting(self) -> list[LabelRequest]:
        """Return the requests that wait for an answer, oldest first within a partition."""
        requests: dict[str, LabelRequest] = {}
        for p in range(self._partitions):
            low = self._left(p)[1].requests_low
            for record in self._records(self._topics.label_requests, p, low):
                request = LabelRequest.decode(record.value or b"")
                requests[request.request_id] = request
        if requests:
            since = min(request.model_version for request in requests.values())
            for outcome in self._outcomes(since):
                requests.pop(outcome.request_id, None)
        return list(requests.values())

    def request(self, request_id: str) -> tuple[LabelRequest | None, Outcome | None]:
        """Return a request and what became of it, as far as they are kept.

        Raises:
            BadRecord: the id has not the form of one.
        """
        partition, _ = parse_request_id(request_id)
        if partition >= self._partitions:
            return None, None
        for record in self._records(self._topics.label_requests, partition, 0):
            request = LabelRequest.decode(record.value or b"")
            if request.request_id == request_id:
                outcomes = self._outcomes(request.model_version)
                return request, next((o for o in outcomes if o.request_id == request_id), None)
        return None, None

    def labels(self) -> list[str]:
        """Return the classes among the outcomes, in the order they first came."""
        found: dict[str, None] = {}
        for outcome in self._outcomes(0):
            if isinstance(outcome.label, str):
                found.setdefault(outcome.label)
        return list(found)

    def _outcomes(self, start: int) -> Iterator[Outcome]:
        for record in self._records(self._topics.outcomes, 0, start):
            outcome = decode_outcome(record.value or b"")
            if isinstance(outcome, Outcome):
                yield outcome

    def _records(self, topic: str, partition: int, start: int) -> Iterator[Record]:
        place = TopicPartition(topic, partition)
        first, end = self._log.bounds(place)
        return self._reader.read(place, max(first, start), end)

    def _left(self, partition: int) -> tuple[dict[str, Any], Pointers, int | None]:
        place = TopicPartition(self._topics.instances, partition)
        position = self._log.positions(self._group, [place]).get(place)
        if position is None:
            return {}, Pointers(), None
        ledger, pointers = decode_metadata(position.metadata)
        return ledger, pointers, position.offset


def last(log: Log, reader: Reader, place: TopicPartition, count: int) -> Iterator[Record]:
    """Yield about the last `count` records of a partition."""
    first, end = log.bounds(place)
    return reader.read(place, max(first, end - count), end)
