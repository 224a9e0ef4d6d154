"""Looking at a stream from outside, worker or not: where it stands, what waits for an answer, why something was asked.

Everything is read from the log, so it works while the service is down, and it changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Final, TypeGuard

import orjson

from streamal.errors import LedgerLost
from streamal.evaluate.agreement import Agreement, agreement
from streamal.evaluate.estimate import COMPARED, REQUESTS, Estimator, why_unknown
from streamal.events import InstancesDecided, LabelRequested, RequestResolved
from streamal.messages import (
    UNLABELLED,
    VALUE,
    LabelRequest,
    Outcome,
    Prediction,
    Recorded,
    Unlabelled,
    Vote,
    parse_request_id,
    to_iso,
)
from streamal.selection.budget import Budget, BudgetPlan, Permit
from streamal.service.ledgers import Pointers, Topics, decode_metadata, lost
from streamal.service.own_records import outcome_of, request_of
from streamal.service.shared_snapshots import CHUNK_KEY, PART_OF
from streamal.transport.log import Log, Reader, Record, TopicPartition
from streamal.web.status import Estimate, Estimates, Improvement

FOLLOW_EVERY: Final = 0.4
"""Seconds for one round over all partitions of a topic that is followed."""
LOOK_BACK: Final = 4
"""How much further back each next attempt at the last records begins."""
FIRST_LOOK: Final = 1_000
"""Requests of each partition that are read first for the estimates."""
ENOUGH: Final = 2 * COMPARED
"""Exploration requests that are looked for: their windows are full if half of them are answered."""
CLASSES_TOLD: Final = 20
"""Classes whose recall is told in words; JSON and metrics have all."""
TOLD_FROM: Final = 0.1
"""Share of the answered requests made before the model had learned anything, from which on it is told."""
NO_BREAK: Final = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a partition stands: what was seen, asked and allowed, what waits, and how many records lie ahead.

    `held` names the permit other than the rate that the strategy's requests lack.
    """

    partition: int
    seen: int
    asked: int
    allowed: float
    pending: int
    lag: int
    held: Permit | None


class Inspection:
    """Reads one stream; `group` is the group of its workers."""

    def __init__(self, log: Log, topics: Topics, group: str) -> None:
        self._log = log
        self._topics = topics
        self._group = group
        self._reader = log.reader()
        self._partitions = log.partitions(topics.instances)

    def standings(self, plans: Sequence[BudgetPlan], price: float = 0.0) -> list[Standing]:
        """Return where each partition stands, by the plans in force; `price` is that of a label."""
        waiting = self.waiting()
        found = []
        for p in range(self._partitions):
            place = TopicPartition(self._topics.instances, p)
            first, end = self._log.bounds(place)
            ledger, _, position = self._left(p)
            budget = Budget(plans[p])
            if ledger:
                budget.restore(ledger["budget"])
            pending = sum(request.partition == p for request in waiting)
            lag = max(0, end - (first if position is None else position))
            held = budget.refusal(price, pending, free=True)
            found.append(Standing(p, budget.seen, budget.asked, budget.allowed, pending, lag, held))
        return found

    def waiting(self, annotator: str | None = None) -> list[LabelRequest]:
        """Return the requests that wait for an answer, by one annotator if named, oldest first within a partition."""
        requests: dict[str, LabelRequest] = {}
        for p in range(self._partitions):
            low = self._left(p)[1].requests_low
            for record in self._records(self._topics.label_requests, p, low):
                request = request_of(record)
                requests[request.request_id] = request
        if requests:
            since = min(request.model_version for request in requests.values())
            for found in self._recorded(since):
                if _settles(found, annotator):
                    requests.pop(found.request_id, None)
        return list(requests.values())

    def endings(self, annotator: str | None = None) -> Callable[[], Sequence[str]]:
        """Return what tells, each time it is called, which requests wait no longer since it was called last."""
        place = TopicPartition(self._topics.outcomes, 0)
        following = self._log.bounds(place)[1]

        def look() -> list[str]:
            nonlocal following
            start, following = following, self._log.bounds(place)[1]
            found = map(outcome_of, self._reader.read(place, start, following))
            return [one.request_id for one in found if _settles(one, annotator)]

        return look

    def estimates(self) -> Estimates:
        """Return what the last answers say of the served model on all instances, of all workers together."""
        estimator, requests = Estimator(), self._last_requests()
        reached: dict[int, int] = {}
        for request in requests:
            p, seen = request.partition, int(request.budget["seen"])
            estimator.observe(LabelRequested(request))
            estimator.observe(_decided(p, max(0, seen - reached.get(p, seen - 1)), request.offset))
            reached[p] = seen
        if requests:
            for outcome in self._outcomes(min(request.model_version for request in requests)):
                estimator.observe(RequestResolved(outcome, 0.0))
        for p, seen in reached.items():
            ledger, _, _ = self._left(p)
            estimator.observe(_decided(p, max(0, ledger["budget"]["seen"] - seen) if ledger else 0))
        return estimator.estimate()

    def agreement(self) -> Agreement:
        """Return what the votes on all requests that have ended say of the annotators."""
        return agreement(self._outcomes(0))

    def _last_requests(self) -> list[LabelRequest]:
        """Return the last requests of all partitions since one and the same time, in the order they were made."""
        number = FIRST_LOOK
        while True:
            since, found = 0.0, []
            for p in range(self._partitions):
                place = TopicPartition(self._topics.label_requests, p)
                last = [request_of(record) for record in _last(self._reader, place, *self._log.bounds(place), number)]
                if len(last) == number:
                    since = max(since, last[0].requested_at)
                found += last
            found = [request for request in found if request.requested_at >= since]
            audits = sum(request.reason == "exploration" for request in found)
            if audits >= ENOUGH or not since or number * self._partitions >= REQUESTS:
                # stable: a partition's lie in the order they were made, and those of a window's end look back
                return sorted(found, key=lambda request: (request.requested_at, request.partition))
            number *= LOOK_BACK

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

    def unasked(self, request_id: str) -> Unlabelled | None:
        """Return what lies in `outcomes` of an instance that nobody was asked about, if it was put there.

        `request_id` is that of the request that was not made.
        """
        key = UNLABELLED + request_id.encode()
        for record in self._records(self._topics.outcomes, 0, 0):
            if record.key == key and isinstance(found := outcome_of(record), Unlabelled):
                return found
        return None

    def absence(self, request_id: str) -> str:
        """Say why a request that was not found is not there, as far as the log can tell."""
        partition, offset = parse_request_id(request_id)
        if partition >= self._partitions:
            return f"there are the partitions 0 to {self._partitions - 1}"
        place = TopicPartition(self._topics.instances, partition)
        position = self._log.positions(self._group, [place]).get(place)
        if position is None or offset >= position.offset:
            return "that instance was not decided on yet, or has not come"
        first, _ = self._log.bounds(TopicPartition(self._topics.label_requests, partition))
        if first == 0:
            return "nobody was asked about that instance"
        for outcome in self._outcomes(0):
            if outcome.request_id == request_id:
                return f"the request is no longer kept; what became of it is: {outcome.kind}"
        return "nobody was asked about that instance, or the request is no longer kept"

    def labels(self) -> list[str]:
        """Return the classes among the outcomes, in the order they first came."""
        found: dict[str, None] = {}
        for outcome in self._outcomes(0):
            if isinstance(outcome.label, str):
                found.setdefault(outcome.label)
        return list(found)

    def _outcomes(self, start: int) -> Iterator[Outcome]:
        return (found for found in self._recorded(start) if isinstance(found, Outcome))

    def _recorded(self, start: int) -> Iterator[Recorded]:
        return map(outcome_of, self._records(self._topics.outcomes, 0, start))

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


def _settles(found: Recorded, annotator: str | None) -> TypeGuard[Outcome | Vote]:
    """Say whether a request waits no longer after this record, or at least not for an answer by this annotator."""
    return isinstance(found, Outcome) or (isinstance(found, Vote) and found.annotator == annotator)


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
    """Return a record as one JSON object: where it lies, its key and headers, and its value, parsed where it is JSON.

    Of a chunk of a snapshot only the size is told.
    """
    headers = {name: (content or b"").decode(errors="replace") for name, content in record.headers}
    value: Any = None
    if record.value is not None and PART_OF in headers and CHUNK_KEY.fullmatch(record.key or b""):
        value = {"bytes": len(record.value)}
    elif record.value is not None:
        try:
            value = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            value = record.value.decode(errors="replace")
    key = None if record.key is None else record.key.decode(errors="replace")
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    found = {**place, "timestamp": record.timestamp, "key": key, "headers": headers, "value": value}
    return orjson.dumps(found).decode()


def _decided(partition: int, count: int, last: int = 0) -> InstancesDecided:
    """Return the event of a stretch of instances whose last one has an offset; only what estimates need is in it."""
    return InstancesDecided(partition, count, 0, {}, range(last + 1 - count, last + 1), (), ())


HELD: Final[Mapping[Permit | None, str]] = {
    "queue_full": "as many requests wait as budget.max_pending allows.",
    "limit_count": "a limit of budget.limits is used up until its period ends.",
    "limit_cost": "a limit of budget.limits is used up until its period ends.",
}
WHY: Final[dict[str, str]] = {
    "uncertainty": "the strategy found its label worth the budget",
    "exploration": "it was drawn at random for the unbiased arm, whatever the model thought",
    "cold_start": "the model knew nothing yet, and the loan allows a few labels in advance",
    "coverage": "nothing like it had been asked about before",
    "drift": "the stream had changed",
    "rare_class": "it may be of a rare class",
}


def held_in_words(standings: Sequence[Standing]) -> list[str]:
    """Say where the strategy gets nothing though the rate would allow it, and why.

    >>> for line in held_in_words([Standing(p, 90, 9, 9.0, 5, 0, "queue_full") for p in (0, 1)]): print(line)
    Nothing more is chosen on 2 of 2 partitions: as many requests wait as
    budget.max_pending allows.
    """
    found = Counter(HELD[standing.held] for standing in standings if standing.held in HELD)
    told = (f"Nothing more is chosen on {n} of {len(standings)} partitions: {why}" for why, n in found.items())
    return [line for sentence in told for line in wrap(sentence, 79)]


def in_words(request: LabelRequest, outcome: Outcome | None) -> str:
    """Say in sentences why a request was made and what became of it."""
    spent = request.budget
    about = f"{'a made-up one near ' if request.synthetic else ''}instance {request.instance_id}"
    ahead = " What is ahead of it is paid back from the instances to come." if spent["asked"] > spent["allowed"] else ""
    lines = [
        f"Request {request.request_id} about {about}, made {to_iso(request.requested_at)}.",
        f"Why: {WHY[request.reason]} ({request.reason}, strategy {request.strategy}).",
        f"The model (version {request.model_version}) said: {_guess(request.prediction)}.",
        f"{_worth(request.utility)} {_chance(request)}",
        f"Budget then: {spent['asked']:g} asked of {spent['allowed']:g} allowed, {spent['seen']:g} seen.{ahead}",
    ]
    if outcome is None:
        awaited = "an answer" if request.answers == 1 else f"answers by {request.answers} annotators"
        lines.append(f"No outcome yet: it waits for {awaited}, or what came is not committed.")
    else:
        said = "" if outcome.label is None else f" as {outcome.label}"
        by = f" by {outcome.annotator}" if outcome.annotator else ""
        if outcome.votes:
            by = " by " + ", ".join(f"{v.annotator} ({v.kind if v.label is None else v.label})" for v in outcome.votes)
        lines.append(f"Outcome: {outcome.kind}{said}{by}, {to_iso(outcome.resolved_at)}.")
    return "\n".join(lines)


def unasked_in_words(record: Unlabelled) -> str:
    """Say what became of an instance that nobody was asked about.

    >>> print(unasked_in_words(Unlabelled(0, 42, "tx-7", {}, 128, "ok", 0.97)))
    Nobody was asked about instance tx-7 (partition 0, offset 42).
    It was learned with a pseudo-label: the model (version 128) was 97.0% sure of ok.
    """
    lines = [
        f"Nobody was asked about instance {record.instance_id} (partition {record.partition}, offset {record.offset})."
    ]
    if record.label is None:
        lines.append(f"The model (version {record.model_version}) observed it without a label.")
    else:
        said = f"the model (version {record.model_version}) was {record.probability:.1%} sure of {record.label}"
        lines.append(f"It was learned with a pseudo-label: {said}.")
    return "\n".join(lines)


def quality_in_words(estimates: Estimates) -> list[str]:
    """Say how good the model is on the whole stream, and on what that rests, in lines of less than 80 characters.

    >>> from dataclasses import replace
    >>> from streamal.web.status import Estimate
    >>> found = Estimates(3_912, 2, response={"selected": 1.0, "rest": 0.5})
    >>> quality_in_words(found)
    ['Quality on the whole stream: unknown with 2 audit labels; 5 are needed.']
    >>> accuracy, others = Estimate(0.872, 0.841, 0.899, 200), [Estimate(x, None, None, 200) for x in (0.8, 0.4)]
    >>> measures = {"accuracy": accuracy, "macro_f1": others[0], "log_loss": others[1]}
    >>> recall = {"ok": Estimate(0.93, 0.9, 0.95, 193), "fraud": Estimate(0.7, None, None, 7)}
    >>> found = replace(found, audit_labels=200, measures=measures, naive={"accuracy": 0.78}, recall=recall)
    >>> found = replace(found, improvement=Improvement(0.002, -0.036, 0.041, 8_024, 812, pays=False))
    >>> for line in quality_in_words(replace(found, answered=380, untaught=41)): print(line)
    Accuracy on the whole stream 0.87 (0.84 to 0.90), on the answered ones 0.78.
    Rests on the last 3,912 instances with 200 audit labels.
    Answered: 100% of the requests the model chose, 50% of those left to chance.
    41 of the 380 answered requests were made before the model had learned
    anything, and count as wrong.
    Macro-F1 0.80, log loss 0.40.
    Recall, the rarest first: fraud 0.70, ok 0.93 (0.90 to 0.95).
    The last 8,024 labels raised the accuracy by 0.002 (-0.036 to 0.041).
    Further labels no longer pay at this rate, so far as 812 audit labels can tell:
    a gain of more than 0.041 would have been seen.
    """
    if not estimates.measures:
        return [f"Quality on the whole stream: unknown{why_unknown(estimates)}."]
    name = "accuracy" if "accuracy" in estimates.measures else "mae"
    found, naive = estimates.measures[name], estimates.naive[name]
    title, form = ("Accuracy", ".2f") if name == "accuracy" else ("Mean absolute error", ".4g")
    response = estimates.response
    lines = [
        f"{title} on the whole stream {_interval(found, form)}, on the answered ones {naive:{form}}.",
        f"Rests on the last {estimates.instances:,} instances with {estimates.audit_labels:,} audit labels.",
        f"Answered: {response.get('selected', 1.0):.0%} of the requests the model chose, "
        f"{response.get('rest', 1.0):.0%} of those left to chance.",
    ]
    if estimates.untaught and estimates.untaught >= TOLD_FROM * estimates.answered:
        share = f"{estimates.untaught:,} of the {estimates.answered:,}"
        lines.append(f"{share} answered requests were made before the model had learned")
        lines.append("anything, and count as wrong.")
    if "macro_f1" in estimates.measures:
        f1, loss = (estimates.measures[other].value for other in ("macro_f1", "log_loss"))
        lines.append(f"Macro-F1 {f1:.2f}, log loss {loss:.2f}.")
    lines += _recall_in_words(estimates.recall)
    return lines + (_worth_in_words(estimates.improvement, name) if estimates.improvement else [])


def _interval(found: Estimate, form: str) -> str:
    between = "" if found.low is None else f" ({found.low:{form}} to {found.high:{form}})"
    return f"{found.value:{form}}{between}"


def _recall_in_words(recall: Mapping[str, Estimate]) -> list[str]:
    """Say how much of each class is recognised, of the rarest ones if there are many; lines break between classes."""
    if not recall:
        return []
    rarest = sorted(recall.items(), key=lambda item: item[1].labels)[:CLASSES_TOLD]
    which = "the rarest first" if len(rarest) == len(recall) else f"the {CLASSES_TOLD} rarest of {len(recall)} classes"
    told = (f"{name} {_interval(found, '.2f')}".replace(" ", NO_BREAK) for name, found in rarest)
    lines = wrap(f"Recall, {which}: {', '.join(told)}.", 79, break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def _worth_in_words(found: Improvement, measure: str) -> list[str]:
    """Say what the last labels brought, and whether further ones pay."""
    verb, form = ("raised the accuracy", ".3f") if measure == "accuracy" else ("lowered the error", ".4g")
    value, low, high = (f"{end:{form}}" for end in (found.value, found.low, found.high))
    lines = [f"The last {found.labels:,} labels {verb} by {value} ({low} to {high})."]
    if found.pays:
        return [*lines, "Further labels still pay."]
    audits, unseen = f"{found.audit_labels:,} audit labels", f"{max(0.0, found.high):{form}}"
    if found.pays is None:
        told = [
            f"Whether further labels pay cannot be told yet from {audits}:",
            f"up to {unseen} may be gained unseen.",
        ]
    else:
        told = [
            f"Further labels no longer pay at this rate, so far as {audits} can tell:",
            f"a gain of more than {unseen} would have been seen.",
        ]
    return [*lines, *told]


def agreement_in_words(found: float | None) -> list[str]:
    """Say how far several annotators agree, if there are several.

    >>> agreement_in_words(0.412), agreement_in_words(None)
    (["The annotators' agreement is 0.41 by Krippendorff's alpha: 1 is full, 0 is chance."], [])
    """
    if found is None:
        return []
    return [f"The annotators' agreement is {found:.2f} by Krippendorff's alpha: 1 is full, 0 is chance."]


def _guess(prediction: Prediction) -> str:
    if VALUE in prediction:
        return f"{prediction[VALUE]:.6g}"
    return ", ".join(f"{name} {p:.1%}" for name, p in prediction.items()) or "nothing yet"


def _worth(utility: float) -> str:
    if math.isfinite(utility):
        return f"Utility {utility:.4g}."
    return f"Utility {utility:g}, which ranks highest: there was nothing yet to measure it by."


def _chance(request: LabelRequest) -> str:
    if request.propensity >= 1.0:
        return "It was certain to be asked."
    drawn = request.reason == "exploration" and request.would_select
    anyhow = "; the strategy would have asked anyhow" if drawn else ""
    return f"It had a chance of {request.propensity:.3g} of being asked{anyhow}."
