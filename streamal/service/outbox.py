"""What one transaction will hold: outputs as bytes, the positions behind them, and the audit of how they came about.

Facts become records here and nowhere else. The loop collects into an outbox; `seal` freezes it into a `Transaction`,
whose ledgers get the places of their records as soon as the writer knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from streamal.decoding import received
from streamal.events import (
    AnswerForwarded,
    Event,
    ExampleSkipped,
    InstancesDecided,
    LabelRequested,
    RecordRefused,
    recorded,
)
from streamal.lane import Lane
from streamal.messages import LETTER_BYTES, SCHEMA_HEADERS, DeadLetter, describe
from streamal.service.audit import Audit
from streamal.service.ledgers import Inheritance, Pointers, RequestIndex, Topics, encode_metadata
from streamal.transport.log import Append, Position, Record, TopicPartition, Transaction


@dataclass(slots=True)
class Span:
    """The offsets of one partition that a transaction covers: from the first to before the next one."""

    first: int
    next: int


@dataclass(slots=True)
class Placed:
    """The places of a transaction's own requests and outcomes, known once the writer has appended them."""

    requests: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    pointers: dict[int, Pointers] = field(default_factory=dict)


@dataclass(slots=True)
class Holding:
    """What the loop keeps of an owned partition: its lane, where it stands, and where its records lie.

    `position` and `answers` are the next offsets to take in. `takeover`, `plan` and `orders` are what the next audit
    record has to say of a new owner and of another plan; None once it is said. `adopted` holds the places of requests
    that a torn transaction left, by instance offset; `skips` the stretches to leave out first.
    """

    lane: Lane
    position: int
    answers: int
    pointers: Pointers
    index: RequestIndex
    takeover: Mapping[str, Any] | None
    plan: Mapping[str, Any] | None
    orders: Sequence[Mapping[str, Any]] | None
    adopted: dict[int, int]
    skips: Sequence[Mapping[str, Any]]

    @classmethod
    def take_over(
        cls,
        lane: Lane,
        found: Inheritance,
        answers: int,
        model_version: int,
        made_with: Mapping[str, str],
        skips: Sequence[Mapping[str, Any]],
    ) -> Holding:
        """Begin with what the former owner left; `skips` are the stretches to leave out before anything else."""
        takeover = {
            "position": found.position,
            "answers": answers,
            "plan": lane.plan.as_json(),
            "ledger_before": found.handover.ledger,
            "model_version": model_version,
            "warmed_from": lane.warmed_from,
            "torn": found.torn.as_json(),
            "made_with": made_with,
            "skips": skips,
        }
        return cls(
            lane,
            found.position,
            answers,
            found.pointers,
            found.index,
            takeover,
            None,
            None,
            dict(found.torn.requests),
            skips,
        )

    def settle(self, placed: Placed, partition: int) -> None:
        """Take in the places of the records of a transaction that went through."""
        for offset, place in placed.requests.get(partition, ()):
            self.index.add(offset, place)
        self.pointers = placed.pointers.get(partition, self.pointers)


class Outbox:
    """Collects one transaction; `now` is its time, in seconds since 1970, `size` that of all values, in bytes."""

    def __init__(self, topics: Topics, model_version: int, now: float, control_version: int = 0) -> None:
        self._topics = topics
        self._version = model_version
        self._control = control_version
        self.now = now
        self.appends: list[Append] = []
        self.size = 0
        self._requests: list[tuple[int, int, int]] = []
        self._adopted: list[tuple[int, int]] = []
        self._replanned: set[int] = set()
        self._outcomes: list[tuple[int, int]] = []
        self._spans: dict[TopicPartition, Span] = {}
        self.instances = 0
        self.events: list[Event] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.appends and not self._spans and not self._replanned

    def replan(self, partition: int, holding: Holding, orders: Sequence[Mapping[str, Any]]) -> None:
        """Say that from here on a partition is sampled by its lane's new plan, even if nothing else happens to it."""
        self._replanned.add(partition)
        holding.plan, holding.orders = holding.lane.plan.as_json(), orders

    def cover(self, partition: TopicPartition, first: int, following: int) -> None:
        """Move the position of a partition."""
        span = self._spans.setdefault(partition, Span(first, following))
        span.next = following

    def collect(self, events: Sequence[Event]) -> None:
        """Turn facts into records, and keep them for the observer."""
        self.events += events
        for event in events:
            if (record := recorded(event)) is not None:
                self._outcomes.append((len(self.appends), record.partition))
                self._append(self._topics.outcomes, 0, record.encode(), record.key)
            match event:
                case InstancesDecided():
                    self.instances += event.count
                    if self._topics.predictions:
                        self._predict(event)
                case LabelRequested(request, adopted=True):
                    self._adopted.append((request.partition, request.offset))
                case LabelRequested(request):
                    self._requests.append((len(self.appends), request.partition, request.offset))
                    self._append(self._topics.label_requests, request.partition, request.encode(), request.key)
                case RecordRefused(letter):
                    self.refuse(letter, letter.received.partition)
                case AnswerForwarded():
                    # A longer key could make a record that the log refuses; the partition does not depend on it.
                    key = event.key if event.key is not None and len(event.key) <= LETTER_BYTES else None
                    self._put(Append(self._topics.answers, event.partition, event.value, key, SCHEMA_HEADERS))
                case _:
                    pass

    def report(self, skipped: ExampleSkipped, record: Record) -> None:
        """Put an example aside that the model could not learn; `record` is what lies of it in `outcomes`."""
        message = f"the model raised {skipped.error} and was restored"
        self.refuse(DeadLetter(received(record), "learning_failed", message), skipped.outcome.partition)

    def refuse(self, letter: DeadLetter, partition: int) -> None:
        """Put a refused record aside, on the partition of whoever refuses it."""
        value, headers = letter.encode()
        self._put(Append(self._topics.dead_letters, partition, value, letter.key, headers))

    def seal(self, holdings: Mapping[int, Holding], token: object, placed: Placed) -> Transaction:
        """Freeze what was collected; `placed` is filled in by the writer's thread, before the commit returns."""
        owned = {p: holding for p, holding in holdings.items() if self._touched(p)}
        ledgers = {p: holding.lane.ledger() for p, holding in owned.items()}
        known = {p: holding.index.low(holding.lane.pending) for p, holding in owned.items()}
        new = [*((p, offset) for _, p, offset in self._requests), *self._adopted]
        waiting = {(p, offset) for p, offset in new if owned[p].lane.pending.get(offset) is not None}
        pointers = {p: holding.pointers for p, holding in owned.items()}
        adopted = [(p, offset, owned[p].adopted.pop(offset)) for p, offset in self._adopted]
        for p, ledger in ledgers.items():
            self._audit(p, ledger, owned[p])
        spans = {partition: span.next for partition, span in self._spans.items()}
        spans |= {TopicPartition(self._topics.instances, p): holding.position for p, holding in owned.items()}

        def positions(offsets: Sequence[int]) -> dict[TopicPartition, Position]:
            for p, instance, made_at in adopted:
                placed.requests.setdefault(p, []).append((instance, made_at))
            for at, p, instance in self._requests:
                placed.requests.setdefault(p, []).append((instance, offsets[at]))
            ends = {p: offsets[at] + 1 for at, p in self._outcomes}
            found = {partition: Position(offset, "") for partition, offset in spans.items()}
            for p, ledger in ledgers.items():
                own = dict(placed.requests.get(p, ()))
                end = max([pointers[p].requests_end, *(place + 1 for place in own.values())])
                fresh = min((place for offset, place in own.items() if (p, offset) in waiting), default=end)
                low = fresh if (before := known[p]) is None else min(before, fresh)
                placed.pointers[p] = Pointers(low, end, max(ends.get(p, 0), self._version, pointers[p].outcomes_end))
                place = TopicPartition(self._topics.instances, p)
                found[place] = Position(spans[place], encode_metadata(ledger, placed.pointers[p]))
            return found

        return Transaction(self.appends, positions, token)

    def _touched(self, partition: int) -> bool:
        return (
            partition in self._replanned
            or any(place.partition == partition for place in self._spans)
            or any(p == partition for _, p in self._outcomes)
        )

    def _audit(self, partition: int, ledger: Mapping[str, Any], holding: Holding) -> None:
        instances = self._spans.get(TopicPartition(self._topics.instances, partition))
        answers = self._spans.get(TopicPartition(self._topics.answers, partition))
        record = Audit(
            partition=partition,
            instances=(instances.first, instances.next) if instances else (holding.position, holding.position),
            answers=(answers.first, answers.next) if answers else (holding.answers, holding.answers),
            model_version=self._version,
            control_version=self._control,
            at=self.now,
            pointers=holding.pointers,
            takeover=holding.takeover,
            plan=holding.plan,
            orders=holding.orders,
            ledger_after=ledger,
        )
        holding.takeover = holding.plan = holding.orders = None
        self._append(self._topics.decisions, partition, record.encode(), str(partition))

    def _predict(self, event: InstancesDecided) -> None:
        for offset, prediction in zip(event.offsets, event.predictions, strict=True):
            value = {"partition": event.partition, "offset": offset, "prediction": describe(prediction)}
            value["model_version"] = self._version
            self._append(self._topics.predictions, event.partition, orjson.dumps(value), f"{event.partition}-{offset}")

    def _append(self, topic: str, partition: int, value: bytes, key: str) -> None:
        self._put(Append(topic, partition, value, key.encode(), SCHEMA_HEADERS))

    def _put(self, append: Append) -> None:
        self.appends.append(append)
        self.size += len(append.value or b"")
