"""The replay: the same sampler before the same records once more, and what comes of it beside what lies in the log.

The audit says of each transaction what it covered, when, with which model, and where the partition's own records lay
before it; of a new owner what it inherited. That is enough to put the same clerk to work: it fills an outbox, which is
sealed like the worker's, and each request, outcome, dead letter, prediction, ledger and audit record must come out byte
for byte as it was written. Answers that were passed on to another partition are not compared.

A transaction that a later owner did again (at-least-once delivery, or a torn one) is counted and left out: its requests
and outcomes are named by the takeover that adopted them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

import orjson

from streamal.decoding import AnswerDecoder, InstanceDecoder
from streamal.errors import LogDamaged
from streamal.events import LabelRequested, RequestResolved
from streamal.lane import SamplingPlan
from streamal.learning.fold import CHECKPOINT_EVERY, Fold
from streamal.learning.model import Model
from streamal.messages import from_iso, to_iso
from streamal.sampler import SelectiveSampler
from streamal.service.audit import Audit, audit_of
from streamal.service.clerk import Clerk
from streamal.service.ledgers import Heritage, Pointers, Topics, Torn, decode_metadata
from streamal.service.outbox import Holding, Outbox, Placed
from streamal.service.own_records import is_own, outcome_of
from streamal.transport.log import Append, Headers, Log, Record, TopicPartition

AT_ONCE: Final = 1_000
MOST_DIFFERENCES: Final = 20
"""Per partition, after which its replay ends: one difference usually brings many."""
MODELS_KEPT: Final = 32
"""Models kept at earlier versions, so that a takeover by a worker that was behind needs no fold from the beginning."""
PATIENCE: Final = 5.0
"""Seconds for which a record may be missing at the end of a topic: on Kafka a transaction shows topic by topic."""
PAUSE: Final = 0.05


@dataclass(slots=True)
class PartitionReport:
    """What the replay of one partition found.

    Instances from `first` up to `next` were replayed. `repeated` counts transactions that a later owner did again, as
    it happens with at-least-once delivery, `torn` takeovers that had to repair a torn transaction. `unverifiable` says
    what could not be replayed and why, `differences` where the log says otherwise than the replay.
    """

    partition: int
    first: int | None = None
    next: int | None = None
    transactions: int = 0
    takeovers: int = 0
    instances: int = 0
    requests: int = 0
    outcomes: int = 0
    learned: int = 0
    letters: int = 0
    repeated: int = 0
    torn: int = 0
    asked: int = 0
    allowed: float = 0.0
    unverifiable: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is verified: a log, and what its decisions were made with; `group` holds the positions and the ledgers."""

    log: Log
    topics: Topics
    group: str
    build_model: Callable[[], Model]
    instances: InstanceDecoder
    answers: AnswerDecoder
    made_with: Mapping[str, str]


class Stretch(NamedTuple):
    """Which transactions to verify, by the time they were made, in seconds since 1970."""

    since: float = float("-inf")
    until: float = float("inf")

    @classmethod
    def between(cls, since: str | None, until: str | None) -> Stretch:
        """Return the stretch between two ISO 8601 times.

        >>> Stretch.between("2026-11-21T10:00:00Z", None)
        Stretch(since=1795255200.0, until=inf)

        Raises:
            ValueError: one is no such time.
        """
        whole = cls()
        return cls(from_iso(since) if since else whole.since, from_iso(until) if until else whole.until)


WHOLE: Final = Stretch()


class Cursor:
    """Reads one partition in pieces, with a reader of its own, since fetches run ahead."""

    def __init__(self, log: Log, place: TopicPartition) -> None:
        self._log = log
        self.place = place
        self._reader = log.reader()
        self._patience = PATIENCE
        self.first = log.bounds(place)[0]
        self.aim(0)

    def aim(self, start: int) -> None:
        """Read from this offset on, or from the first one that is kept."""
        self._ahead: Record | None = None
        self._stop = max(self.first, start)
        self._records: Iterator[Record] = iter(())

    def until(self, stop: int) -> Iterator[Record]:
        """Yield the records before an offset that were not read yet."""
        while (record := self._peek()) is not None and record.offset < stop:
            self._ahead = None
            yield record

    def next(self) -> Record | None:
        """Return the next record; waits for one that must come, and returns None when it does not."""
        deadline = monotonic() + self._patience
        while (record := self._peek()) is None and monotonic() < deadline:
            sleep(PAUSE)
        if record is None:
            self._patience = 0.0
        self._ahead = None
        return record

    def _peek(self) -> Record | None:
        try:
            if self._ahead is None:
                self._ahead = next(self._records, None)
            if self._ahead is None and (end := self._log.bounds(self.place)[1]) > self._stop:
                self._records, self._stop = iter(self._reader.read(self.place, self._stop, end)), end
                self._ahead = next(self._records, None)
        except LogDamaged:
            # What comes behind was left out by order, or is missed by the comparison; the client is of no use now.
            self._reader.close()
            self._reader, self._records = self._log.reader(), iter(())
        return self._ahead

    def close(self) -> None:
        """Release the reader."""
        self._reader.close()


class Models:
    """The model at any version, from copies along the way; the partitions share them."""

    def __init__(self, subject: Subject) -> None:
        self._reader = subject.log.reader()
        self._outcomes = TopicPartition(subject.topics.outcomes, 0)
        self._spacing = 2 * CHECKPOINT_EVERY
        self._kept: list[tuple[int, Model]] = [(0, subject.build_model())]

    def at(self, version: int) -> Fold:
        """Return a fold that stands at a version."""
        found, model = self._kept[bisect_right(self._kept, version, key=lambda kept: kept[0]) - 1]
        fold = Fold(model.copy(), found)
        for record in self._reader.read(self._outcomes, found, version):
            fold.fold([(record.offset, outcome_of(record))])
            self.keep(fold)
        fold.version = version
        return fold

    def keep(self, fold: Fold) -> None:
        """Keep a copy if the last one lies far enough back; every second one goes when there are too many."""
        if fold.version - self._kept[-1][0] < self._spacing:
            return
        self._kept.append((fold.version, fold.model.copy()))
        if len(self._kept) > MODELS_KEPT:
            del self._kept[1::2]
            self._spacing *= 2


class Takeover(NamedTuple):
    """Where a new owner began: the place of its first audit record, and the next instance and answer."""

    place: int
    position: int
    answers: int


@dataclass(slots=True)
class Owner:
    """One owner of the partition, made anew: its sampler, and what it holds."""

    sampler: SelectiveSampler
    fold: Fold
    clerk: Clerk
    holding: Holding


class Replay:
    """The replay of one partition, one audit record at a time."""

    def __init__(self, subject: Subject, models: Models, partition: int, count: int) -> None:
        self._subject = subject
        self._models = models
        self._partition = partition
        self._count = count
        self._report = PartitionReport(partition)
        self._owner: Owner | None = None
        self._last: Audit | None = None
        topics, log = subject.topics, subject.log
        self._reader = log.reader()

        def cursor(topic: str, number: int = partition) -> Cursor:
            return Cursor(log, TopicPartition(topic, number))

        self._instances = cursor(topics.instances)
        self._answers = cursor(topics.answers)
        self._outcomes = cursor(topics.outcomes, 0)
        self._written = {
            topics.label_requests: cursor(topics.label_requests),
            topics.outcomes: cursor(topics.outcomes, 0),
        }
        self._predictions = cursor(topics.predictions) if topics.predictions else None
        self._torn: dict[str, set[int]] = {topic: set() for topic in self._written}
        self._letters = self._read_letters()
        self._answered = (0, 0)

    def run(self, stretch: Stretch, progress: Callable[[], object]) -> PartitionReport:
        """Replay the stretch, from the last takeover before it on."""
        decisions = TopicPartition(self._subject.topics.decisions, self._partition)
        first, end = self._subject.log.bounds(decisions)
        takeovers, begin = self._survey(decisions, first, end, stretch.since)
        for record in self._reader.read(decisions, begin, end):
            audit = audit_of(record)
            if audit.at > stretch.until or len(self._report.differences) >= MOST_DIFFERENCES:
                break
            if superseded(audit, record.offset, takeovers):
                self._report.repeated += 1
            else:
                self._step(audit, compared=audit.at >= stretch.since)
            progress()
        else:
            self._compare_position(decisions, end)
        self._compare_letters()
        for cursor in (self._instances, self._answers, self._outcomes, *self._written.values()):
            cursor.close()
        self._reader.close()
        return self._report

    def _survey(self, decisions: TopicPartition, first: int, end: int, since: float) -> tuple[list[Takeover], int]:
        """Return all takeovers, and the place of that which the first transaction to be compared belongs to."""
        takeovers: list[Takeover] = []
        begin = None
        for record in self._reader.read(decisions, first, end):
            audit = audit_of(record)
            if audit.takeover is not None:
                takeovers.append(Takeover(record.offset, audit.takeover["position"], audit.takeover["answers"]))
            if begin is None and audit.at >= since:
                begin = takeovers[-1].place if takeovers else first
        return takeovers, end if begin is None else begin

    def _step(self, audit: Audit, *, compared: bool) -> None:
        if audit.takeover is not None:
            self._owner = self._take_over(audit, audit.takeover)
        if self._owner is None:
            if self._last is None and not self._report.unverifiable:
                self._report.unverifiable.append("what lies before the first takeover that is kept")
            return
        self._transaction(self._owner, audit, compared=compared)
        self._last = audit

    def _take_over(self, audit: Audit, takeover: Mapping[str, Any]) -> Owner | None:
        """Begin as the owner did: with what its predecessor left, and the model of that moment."""
        position, ledger, torn = takeover["position"], takeover["ledger_before"], Torn.from_json(takeover["torn"])
        topics, subject = self._subject.topics, self._subject
        last, self._last = self._last, None
        self._report.torn += bool(torn)
        self._torn[topics.label_requests].update(torn.requests.values())
        self._torn[topics.outcomes].update(torn.outcomes)
        self._note(takeover["made_with"])
        if last is not None:
            self._compare_takeover(audit, takeover, last)
        if (missing := self._missing(audit, takeover)) is not None:
            self._report.unverifiable.append(f"instances from {position} to the next takeover: {missing}")
            return None
        self._report.takeovers += 1
        fold = self._models.at(takeover["model_version"])
        sampler = SelectiveSampler([SamplingPlan.from_json(takeover["plan"])] * self._count, fold)
        heritage = Heritage(subject.log, self._reader, topics, subject.instances, sampler.warmup)
        warmed_from = position if takeover["warmed_from"] is None else takeover["warmed_from"]
        found = heritage.rebuild(self._partition, position, ledger, audit.pointers, torn, warmed_from)
        lane = sampler.open(self._partition, found.handover)
        holding = Holding.take_over(
            lane, found, takeover["answers"], fold.version, takeover["made_with"], takeover["skips"]
        )
        self._instances.aim(position)
        self._answers.aim(takeover["answers"])
        self._outcomes.aim(fold.version)
        self._written[topics.label_requests].aim(audit.pointers.requests_end)
        self._written[topics.outcomes].aim(audit.pointers.outcomes_end)
        return Owner(sampler, fold, Clerk(topics.instances, sampler, subject.instances, subject.answers), holding)

    def _note(self, made_with: Mapping[str, str]) -> None:
        """Take note of another config or another River: it may explain differences."""
        for name in ("config", "river"):
            then, now = made_with.get(name), self._subject.made_with[name]
            note = f"decisions were made with {name} {then}, this is {now}: verify with the {name} of that time"
            if then != now and note not in self._report.notes:
                self._report.notes.append(note)

    def _compare_takeover(self, audit: Audit, takeover: Mapping[str, Any], last: Audit) -> None:
        """Check that an owner began where the one before had ended, and that nobody else has written since."""
        for what, then, now in (
            ("instance", last.instances[1], takeover["position"]),
            ("answer", last.answers[1], takeover["answers"]),
        ):
            if then != now:
                self._differ(audit, f"its owner began at {what} {now}, and the one before had ended at {then}")
        if takeover["ledger_before"] != last.ledger_after:
            self._differ(audit, "its owner began with another ledger than the one before had left")
        topics, pointers = self._subject.topics, audit.pointers
        for topic, stop in ((topics.label_requests, pointers.requests_end), (topics.outcomes, pointers.outcomes_end)):
            for found in self._unclaimed(self._written[topic], stop):
                self._differ(audit, found)

    def _missing(self, audit: Audit, takeover: Mapping[str, Any]) -> str | None:
        """Say which records that the replay needs are no longer kept."""
        needed = takeover["position"] if takeover["warmed_from"] is None else takeover["warmed_from"]
        topics = self._subject.topics
        for topic, cursor, first in (
            (topics.outcomes, self._outcomes, 0),
            (topics.instances, self._instances, needed),
            (topics.answers, self._answers, takeover["answers"]),
            (topics.label_requests, self._written[topics.label_requests], audit.pointers.requests_low),
        ):
            if cursor.first > first:
                return f"{topic} is kept from offset {cursor.first} on, and is needed from {first} on"
        return None

    def _transaction(self, owner: Owner, audit: Audit, *, compared: bool) -> None:
        """Make one transaction anew and compare what it wrote; without comparing, only go on."""
        before = len(self._report.differences)
        self._learn(owner, audit)
        holding, p = owner.holding, self._partition
        outbox = Outbox(self._subject.topics, audit.model_version, audit.at, audit.control_version)
        if audit.plan is not None and owner.sampler.replan([SamplingPlan.from_json(audit.plan)] * self._count):
            outbox.replan(p, holding, audit.orders or ())
        if holding.skips:
            owner.clerk.skip(outbox, holding)
            self._instances.aim(holding.position)
            self._answers.aim(holding.answers)
        for answer in self._answers.until(audit.answers[1]):
            owner.clerk.match(outbox, holding, answer)
        outbox.collect(owner.sampler.tick(audit.at))
        instances = self._instances.until(audit.instances[1])
        while batch := list(islice(instances, AT_ONCE)):
            owner.clerk.decide(outbox, holding, batch)
        placed = Placed()
        transaction = outbox.seal({p: holding}, None, placed)
        if not any(append.topic == self._subject.topics.decisions for append in transaction.appends):
            self._differ(audit, "nothing happens in this transaction, so no worker has made it")
        transaction.positions([self._place(append, audit) for append in transaction.appends])
        holding.settle(placed, p)
        if compared:
            self._count_up(outbox, holding, audit)
        else:
            del self._report.differences[before:]

    def _learn(self, owner: Owner, audit: Audit) -> None:
        """Fold the outcomes up to the version that decided."""
        if audit.model_version < owner.fold.version:
            self._differ(audit, f"the model went back from version {owner.fold.version}")
        records = self._outcomes.until(audit.model_version)
        while batch := list(islice(records, AT_ONCE)):
            owner.sampler.fold([(record.offset, outcome_of(record)) for record in batch])
            self._models.keep(owner.fold)
        if audit.model_version > owner.fold.version:
            self._differ(audit, f"outcomes end at {owner.fold.version}, before the version that decided")

    def _place(self, append: Append, audit: Audit) -> int:
        """Find the record that an append became, compare it, and return its offset."""
        topics = self._subject.topics
        if append.topic == topics.decisions:
            self._compare(audit, "the audit record", append.value, audit.encode())
        elif append.topic == topics.dead_letters:
            self._match_letter(append, audit)
        elif append.topic == topics.predictions and self._predictions is not None:
            self._match_prediction(self._predictions, append, audit)
        elif append.topic in self._written:
            cursor, what = self._written[append.topic], f"{append.topic} {(append.key or b'').decode()}"
            while (record := cursor.next()) is not None and not self._own(record):
                pass
            if record is None:
                self._differ(audit, f"{what} is missing")
                return 0
            self._compare(audit, f"{what} at offset {record.offset}", append.value, record.value)
            return record.offset
        return 0

    def _own(self, record: Record) -> bool:
        """Say whether a record is one of this partition, and no torn transaction left it."""
        if record.offset in self._torn[record.topic]:
            return False
        if record.topic == self._subject.topics.outcomes and record.key is not None:
            return is_own(record, self._partition)
        return of_partition(record.value, self._partition)

    def _unclaimed(self, cursor: Cursor, stop: int) -> list[str]:
        """Tell of the records of this partition before an offset that no transaction has made."""
        return [
            f"{record.topic} {(record.key or b'').decode()} at offset {record.offset} belongs to no transaction"
            for record in cursor.until(stop)
            if self._own(record)
        ]

    def _match_prediction(self, predictions: Cursor, append: Append, audit: Audit) -> None:
        """Compare a prediction, if those of its time are kept."""
        wanted = int((append.key or b"-0").rpartition(b"-")[2])
        while (record := predictions.next()) is not None:
            found = int((record.key or b"-0").rpartition(b"-")[2])
            if found >= wanted:
                break
        if record is not None and found == wanted:
            self._compare(audit, f"the prediction of instance {wanted}", append.value, record.value)
        elif record is None or predictions.first == 0:
            self._differ(audit, f"the prediction of instance {wanted} is missing")

    def _read_letters(self) -> dict[tuple[str, int], list[bytes]]:
        """Return digests of the dead letters by the place of what was refused."""
        place = TopicPartition(self._subject.topics.dead_letters, self._partition)
        found: dict[tuple[str, int], list[bytes]] = {}
        for record in self._reader.read(place, *self._subject.log.bounds(place)):
            headers = {name: content or b"" for name, content in record.headers}
            try:
                about = headers["__streamal.errors.topic"].decode(), int(headers["__streamal.errors.offset"])
            except (KeyError, ValueError):
                self._report.differences.append(f"{place.topic}, offset {record.offset}, is no dead letter")
            else:
                found.setdefault(about, []).append(digest(record.value, record.headers))
        return found

    def _match_letter(self, append: Append, audit: Audit) -> None:
        headers = dict(append.headers)
        topic = (headers["__streamal.errors.topic"] or b"").decode()
        offset = int(headers["__streamal.errors.offset"] or 0)
        found = self._letters.get((topic, offset), [])
        if (wanted := digest(append.value, append.headers)) in found:
            found.remove(wanted)
        else:
            said = "says something else" if found else "is missing"
            self._differ(audit, f"the dead letter about {topic}, offset {offset}, {said}")

    def _compare_letters(self) -> None:
        """Look for letters about what was replayed and not refused; a transaction done again has left its own."""
        topics, report = self._subject.topics, self._report
        if report.unverifiable or report.repeated:
            return
        spans = {topics.instances: (report.first or 0, report.next or 0), topics.answers: self._answered}
        for (topic, offset), left in self._letters.items():
            first, following = spans.get(topic, (0, 0))
            if left and first <= offset < following and len(report.differences) < MOST_DIFFERENCES:
                report.differences.append(f"a dead letter about {topic}, offset {offset}, that nobody had to write")

    def _compare_position(self, decisions: TopicPartition, end: int) -> None:
        """Compare what the group holds now with the last transaction, unless the service has gone on."""
        last, owner, log, topics = self._last, self._owner, self._subject.log, self._subject.topics
        instances = TopicPartition(topics.instances, self._partition)
        answers = TopicPartition(topics.answers, self._partition)
        written = [(cursor, log.bounds(cursor.place)[1]) for cursor in self._written.values()]
        positions = log.positions(self._subject.group, [instances, answers])
        if last is None or owner is None or instances not in positions:
            return
        position, found = (
            positions[instances],
            [line for cursor, stop in written for line in self._unclaimed(cursor, stop)],
        )
        if position.offset != last.instances[1]:
            found.append(f"the group stands at instance {position.offset}, not behind the last decision")
        elif not holds(position.metadata, last.ledger_after, owner.holding.pointers):
            found.append("the ledger beside the group's position is another one")
        if answers in positions and positions[answers].offset != last.answers[1]:
            found.append(f"the group stands at answer {positions[answers].offset}, not behind the last one matched")
        deadline = monotonic() + PATIENCE
        while found and monotonic() < deadline:
            if log.bounds(decisions)[1] > end:
                return  # on Kafka the records of one transaction show topic by topic
            sleep(PAUSE)
        for line in found:
            self._differ(last, line)

    def _count_up(self, outbox: Outbox, holding: Holding, audit: Audit) -> None:
        report, topics = self._report, self._subject.topics
        report.first = audit.instances[0] if report.first is None else report.first
        report.next = audit.instances[1]
        self._answered = (self._answered[0] if report.transactions else audit.answers[0], audit.answers[1])
        report.transactions += 1
        report.instances += outbox.instances
        report.asked, report.allowed = holding.lane.asked, round(holding.lane.allowed, 9)
        report.letters += sum(append.topic == topics.dead_letters for append in outbox.appends)
        loan = holding.lane.plan.budget.loan
        for event in outbox.events:
            if isinstance(event, LabelRequested):
                report.requests += 1
                spent = event.request.budget
                if spent["asked"] > max(loan, spent["allowed"] + 1.0 if loan else spent["allowed"]) + 1e-9:
                    self._differ(audit, f"request {event.request.request_id} was beyond the budget")
            elif isinstance(event, RequestResolved):
                report.outcomes += 1
                report.learned += event.outcome.teaches

    def _compare(self, audit: Audit, what: str, expected: bytes | None, found: bytes | None) -> None:
        if expected != found:
            self._differ(audit, f"{what} differs: {contrast(expected or b'null', found or b'null')}")

    def _differ(self, audit: Audit, what: str) -> None:
        first, following = audit.instances
        self._report.differences.append(f"instances [{first}, {following}), decided at {to_iso(audit.at)}: {what}")


def superseded(audit: Audit, place: int, takeovers: Sequence[Takeover]) -> bool:
    """Say whether a transaction never took effect: the next owner went on before its end, and did the work again."""
    follows = bisect_right(takeovers, place, key=lambda takeover: takeover.place)
    if follows == len(takeovers):
        return False
    following = takeovers[follows]
    return audit.instances[1] > following.position or audit.answers[1] > following.answers


def holds(metadata: str, ledger: Mapping[str, Any], pointers: Pointers) -> bool:
    """Say whether commit metadata hold this ledger and these pointers."""
    try:
        return decode_metadata(metadata) == (ledger, pointers)
    except ValueError:
        return False


def of_partition(value: bytes | None, partition: int) -> bool:
    """Say whether an outcome without a key, which no worker writes, speaks of a partition.

    >>> of_partition(b'{"partition": 1}', 1), of_partition(b'{"partition": 1}', 0)
    (True, False)
    """
    return bool(orjson.loads(value or b"{}").get("partition") == partition)


def digest(value: bytes | None, headers: Headers) -> bytes:
    """Return what tells records with the same key apart; a null header counts as an empty one.

    >>> digest(b"x", [("a", None)]) == digest(b"x", [("a", b"")])
    True
    """
    parts = [value or b"", *(part for name, content in headers for part in (name.encode(), content or b""))]
    return sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()[:16]


def contrast(expected: bytes, found: bytes) -> str:
    """Name the fields in which two records differ, and never what they hold: it may be somebody's data.

    >>> contrast(b'{"a": 1, "b": {"c": 2}}', b'{"a": 1, "b": {"c": 3}}')
    'b.c'
    """
    return ", ".join(_unequal(orjson.loads(expected), orjson.loads(found))) or "in its form"


def _unequal(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and "features" not in path:
        for name in sorted(expected.keys() | found.keys()):
            yield from _unequal(expected.get(name), found.get(name), f"{path}.{name}" if path else name)
    elif expected != found:
        yield path or "the whole"
