"""Looking at a stream from outside, worker or not: where it stands, what waits for an answer, why something was asked.

Everything is read from the log, so it works while the service is down, and it changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from streamal.errors import LedgerLost
from streamal.messages import VALUE, LabelRequest, Outcome, Prediction, parse_request_id, to_iso
from streamal.selection.budget import Budget, BudgetPlan
from streamal.service.ledgers import Pointers, Topics, decode_metadata, lost
from streamal.service.own_records import outcome_of, request_of
from streamal.transport.log import Log, Reader, Record, TopicPartition

FOLLOW_EVERY: Final = 0.4
"""Seconds for one round over all partitions of a topic that is followed."""
LOOK_BACK: Final = 4
"""How much further back each next attempt at the last records begins."""


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
            budget = Budget(BudgetPlan(self._rate))
            if ledger:
                budget.restore(ledger["budget"])
            pending = sum(request.partition == p for request in waiting)
            lag = max(0, end - (first if position is None else position))
            found.append(Standing(p, budget.seen, budget.asked, budget.allowed, pending, lag))
        return found

    def waiting(self) -> list[LabelRequest]:
        """Return the requests that wait for an answer, oldest first within a partition."""
        requests: dict[str, LabelRequest] = {}
        for p in range(self._partitions):
            low = self._left(p)[1].requests_low
            for record in self._records(self._topics.label_requests, p, low):
                request = request_of(record)
                requests[request.request_id] = request
        if requests:
            since = min(request.model_version for request in requests.values())
            for outcome in self._outcomes(since):
                requests.pop(outcome.request_id, None)
        return list(requests.values())

    def request(self, request_id: str) -> tuple[LabelRequest | None, Outcome | None]:
        """Return a request and what became of it last, as far as they are kept.

        Raises:
            BadRecord: the id has not the form of one.
        """
        partition, _ = parse_request_id(request_id)
        if partition >= self._partitions:
            return None, None
        for record in self._records(self._topics.label_requests, partition, 0):
            request = request_of(record)
            if request.request_id == request_id:
                outcomes = self._outcomes(request.model_version)
                return request, next(iter(deque((o for o in outcomes if o.request_id == request_id), maxlen=1)), None)
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
            outcome = outcome_of(record)
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
        try:
            ledger, pointers = decode_metadata(position.metadata)
        except ValueError as error:
            raise LedgerLost(lost(place, f"its metadata is unreadable ({error})")) from None
        return ledger, pointers, position.offset


def tail(log: Log, topic: str, number: int, *, follow: bool) -> Iterator[str]:
    """Yield the last `number` records of each partition as JSON lines, and go on with what comes if wanted."""
    readers = {}
    for p in range(log.partitions(topic)):
        place = TopicPartition(topic, p)
        readers[p] = log.reader()
        first, end = log.bounds(place)
        for record in _last(readers[p], place, first, end, number):
            yield as_line(record)
        readers[p].follow(place, end)
    while follow:
        for reader in readers.values():
            for record in reader.poll(FOLLOW_EVERY / len(readers)):
                yield as_line(record)


def _last(reader: Reader, place: TopicPartition, first: int, end: int, number: int) -> list[Record]:
    """Look back until there are enough records: Kafka's transaction markers take offsets too."""
    found: list[Record] = []
    start, back = end, number
    while len(found) < number and start > first:
        start = max(first, end - back)
        found = list(reader.read(place, start, end))
        back *= LOOK_BACK
    return found[-number:]


def as_line(record: Record) -> str:
    """Return a record as one JSON object: where it lies, its headers, and its value, parsed where it is JSON."""
    value: Any = None
    if record.value is not None:
        try:
            value = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            value = record.value.decode(errors="replace")
    headers = {name: (content or b"").decode(errors="replace") for name, content in record.headers}
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return orjson.dumps({**place, "timestamp": record.timestamp, "headers": headers, "value": value}).decode()


WHY: Final[dict[str, str]] = {
    "uncertainty": "the strategy found its label worth the budget",
    "exploration": "it was drawn at random for the unbiased arm, whatever the model thought",
    "cold_start": "the model knew nothing yet, and the loan allows a few labels in advance",
    "coverage": "nothing like it had been asked about before",
    "drift": "the stream had changed",
    "rare_class": "it may be of a rare class",
}


def in_words(request: LabelRequest, outcome: Outcome | None) -> str:
    """Say in sentences why a request was made and what became of it."""
    spent = request.budget
    lines = [
        f"Request {request.request_id} about instance {request.instance_id}, made {to_iso(request.requested_at)}.",
        f"Why: {WHY[request.reason]} ({request.reason}, strategy {request.strategy}).",
        f"The model (version {request.model_version}) said: {_guess(request.prediction)}.",
        f"Utility {request.utility:.4g}. {_chance(request)}",
        f"Budget then: {spent['asked']:g} asked of {spent['allowed']:g} allowed on {spent['seen']:g} instances seen.",
    ]
    if outcome is None:
        lines.append("No outcome yet: it waits for an answer, or its answer is not committed.")
    else:
        said = "" if outcome.label is None else f" as {outcome.label}"
        by = f" by {outcome.annotator}" if outcome.annotator else ""
        lines.append(f"Outcome: {outcome.kind}{said}{by}, {to_iso(outcome.resolved_at)}.")
    return "\n".join(lines)


def _guess(prediction: Prediction) -> str:
    if VALUE in prediction:
        return f"{prediction[VALUE]:.6g}"
    return ", ".join(f"{name} {p:.1%}" for name, p in prediction.items()) or "nothing yet"


def _chance(request: LabelRequest) -> str:
    if request.propensity >= 1.0:
        return "It was certain to be asked."
    drawn = request.reason == "exploration" and request.would_select
    anyhow = "; the strategy would have asked anyhow" if drawn else ""
    return f"It had a chance of {request.propensity:.3g} of being asked{anyhow}."
