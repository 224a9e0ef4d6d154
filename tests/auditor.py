"""The auditor of stories and simulations: reads all that was committed, checks each promise against the log alone.

Every instance decided once, every request within the budget at every prefix and made once, every answer accounted for,
the first valid answer to a request, or what most of several say, learned and learned once, every refusal with its
reason and position, and every prediction in a request bit-equal to that of a fold of `outcomes` up to the version it
names.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
from story import Stage, Tape, electricity

from streamal import assemble
from streamal.decoding import AnswerDecoder
from streamal.errors import BadRecord
from streamal.learning import snapshot
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import (
    Answer,
    Features,
    Label,
    LabelRequest,
    Moments,
    Outcome,
    Vote,
    decode_outcome,
    parse_request_id,
)
from streamal.pooling import fitting
from streamal.service.ledgers import Topics, decode_metadata
from streamal.service.verify import verify
from streamal.settings import Settings
from streamal.transport.log import Log, Record, TopicPartition

REVISED = ("corrected", "confirmed")
KINDS = {"label": "learned", "unsure": "abstained", "invalid": "invalid", "cancel": "cancelled"}


class Audited(Protocol):
    """A stream with its log, whoever worked on it."""

    @property
    def settings(self) -> Settings: ...
    @property
    def topics(self) -> Topics: ...
    @property
    def count(self) -> int: ...
    @property
    def log(self) -> Log: ...

    def tape(self, topic: str) -> Tape:
        """Return all committed records of a topic up to now."""


class Letter(NamedTuple):
    """Where a refused record lay, and why it was refused."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass
class Findings:
    """What an audit counted, after it found nothing wrong."""

    instances: int = 0
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    votes: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    forwarded: int = 0
    skipped: int = 0


def audit(stage: Audited) -> Findings:
    """Check all promises on a stream that is drained; fails at the first one that is broken."""
    letters = letters_of(stage)
    places = [letter[:3] for letter in letters]
    assert len(places) == len(set(places)), "a record was put aside twice"
    found = Findings(letters=Counter(letter.reason for letter in letters))
    requests = requests_of(stage)
    found.requests = len(requests)
    for partition in range(stage.count):
        found.instances += check_decisions(stage, partition)
        check_ledger(stage, partition, letters)
        check_budget(stage, partition, letters, [r for r in requests.values() if r.partition == partition])
    check_answers(stage, requests, letters, found)
    check_predictions(stage, requests.values())
    check_replay(stage)
    return found


def check_replay(stage: Audited) -> None:
    """Check that every decision can be made again, to the last bit."""
    report = verify(assemble.subject_of(stage.settings, stage.log))
    assert report.sound, [line for partition in report.partitions for line in partition.differences]
    assert not any(partition.unverifiable or partition.repeated for partition in report.partitions)


def letters_of(stage: Audited) -> list[Letter]:
    """Return all dead letters, and check that each lies beside the instance or answer it is about."""
    found = []
    for record in stage.tape(stage.topics.dead_letters).records():
        headers = {name: (content or b"").decode(errors="replace") for name, content in record.headers}
        prefix = "__streamal.errors."
        topic, reason = headers[f"{prefix}topic"], headers[f"{prefix}reason"]
        place = int(headers[f"{prefix}partition"]), int(headers[f"{prefix}offset"])
        assert topic == stage.topics.outcomes or place[0] == record.partition
        found.append(Letter(topic, *place, reason))
    return found


def requests_of(stage: Audited) -> dict[str, LabelRequest]:
    """Return all label requests by id, none of them made twice."""
    found: dict[str, LabelRequest] = {}
    for record in stage.tape(stage.topics.label_requests).records():
        request = LabelRequest.decode(record.value or b"")
        assert request.request_id not in found, f"request {request.request_id} was made twice"
        assert request.partition == record.partition
        found[request.request_id] = request
    return found


def outcomes_of(stage: Audited) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcomes with their offsets, without moments and votes."""
    for record in stage.tape(stage.topics.outcomes).records():
        outcome = decode_outcome(record.value or b"")
        if isinstance(outcome, Outcome):
            yield record.offset, outcome


def check_decisions(stage: Audited, partition: int) -> int:
    """Check that the audit records cover every instance and answer of a partition once; returns the instances."""
    audits = [orjson.loads(r.value or b"") for r in stage.tape(stage.topics.decisions).partitions[partition]]
    instances = stage.tape(stage.topics.instances).partitions[partition]
    chain(instances, [(a["from"], a["to"]) for a in audits])
    answers = stage.tape(stage.topics.answers).partitions[partition]
    chain(answers, [(a["answers_from"], a["answers_to"]) for a in audits])
    return len(instances)


def chain(records: Sequence[Record], spans: Sequence[tuple[int, int]]) -> None:
    """Check that stretches of offsets follow each other without gap or overlap, from the first record to the last."""
    offsets = [record.offset for record in records]
    at = 0
    for first, following in spans:
        if first == following:
            continue
        assert at < len(offsets), f"[{first}, {following}) lies behind the last record"
        assert first == offsets[at], f"[{first}, {following}) should begin at {offsets[at]}: a gap or a repetition"
        while at < len(offsets) and offsets[at] < following:
            at += 1
        assert following == offsets[at - 1] + 1
    assert at == len(offsets), f"{len(offsets) - at} records were never covered"


def ledger_of(stage: Audited, partition: int) -> dict[str, Any]:
    """Return the ledger beside the group's position."""
    place = TopicPartition(stage.topics.instances, partition)
    return decode_metadata(stage.log.positions(stage.settings.transport.group, [place])[place].metadata)[0]


def check_ledger(stage: Audited, partition: int, letters: Sequence[Letter]) -> None:
    """Check that the ledger beside the position is the one last audited, and has counted every good instance."""
    place = TopicPartition(stage.topics.instances, partition)
    records = stage.tape(place.topic).partitions[partition]
    position = stage.log.positions(stage.settings.transport.group, [place])[place]
    ledger = ledger_of(stage, partition)
    last = orjson.loads(stage.tape(stage.topics.decisions).partitions[partition][-1].value or b"")
    refused = sum(letter[:2] == place for letter in letters)
    assert ledger == last["ledger_after"], "the ledger is not the one last audited"
    assert position.offset == records[-1].offset + 1
    assert ledger["budget"]["seen"] + refused == len(records), "an instance was counted twice, or not at all"
    outcomes = (decode_outcome(record.value or b"") for record in stage.tape(stage.topics.outcomes).records())
    taken = sum(found.count for found in outcomes if isinstance(found, Moments) and found.partition == partition)
    assert taken <= ledger["budget"]["seen"], "moments were taken twice of the same instances"


def check_budget(stage: Audited, partition: int, letters: Sequence[Letter], requests: Sequence[LabelRequest]) -> None:
    """Check the bound at every prefix of a partition, against the records themselves.

    A prefix ends where a request was made: with the instance it is about, or with the last one of that one's window.
    """
    task = assemble.build_model(stage.settings).task
    plan = assemble.plans_of(stage.settings, task, stage.count)[partition]
    pools = plan.build_strategy(Fold(assemble.build_model(stage.settings))).pools
    late = fitting(pools.size, plan.budget) - 1 if pools else 0
    loan, rate = plan.budget.loan, plan.budget.rate
    topic = stage.topics.instances
    refused = {letter.offset for letter in letters if letter[:2] == (topic, partition)}
    records = [record for record in stage.tape(topic).partitions[partition] if record.offset not in refused]
    numbers = {record.offset: number for number, record in enumerate(records, start=1)}
    order = sorted(requests, key=lambda request: request.budget["seen"])
    for made, request in enumerate(order, start=1):
        assert request.offset in numbers, f"{request.request_id} is about an instance that does not exist"
        number, seen = numbers[request.offset], int(request.budget["seen"])
        assert number <= seen <= number + late, f"{request.request_id}, about number {number}, was made at {seen}"
        assert made <= max(loan, rate * seen + 1), f"{made} asked of {seen} seen in {partition}"
        assert request.budget["asked"] == made, f"{request.request_id} is number {made}, and says otherwise"
        real = request.features == orjson.loads(records[number - 1].value or b"")["features"]
        assert real != request.synthetic
    made = ledger_of(stage, partition)["budget"]["asked"]
    assert made == len(requests), "the ledger speaks of requests that do not exist"
    assert list(requests) == order, "requests do not lie in the order they were made"


def check_answers(
    stage: Audited, requests: Mapping[str, LabelRequest], letters: Sequence[Letter], found: Findings
) -> None:
    """Check that each answer became an outcome, a dead letter, a copy on the right partition, or a skip."""
    outcomes: dict[str, Outcome] = {}
    last: dict[str, Outcome] = {}
    for _, outcome in outcomes_of(stage):
        assert outcome.request_id in requests, "an outcome without a request"
        if outcome.kind in REVISED:
            assert outcome.revision == last[outcome.request_id].revision + 1
            found.votes[outcome.kind] += 1
        else:
            assert outcome.request_id not in outcomes, f"request {outcome.request_id} was resolved twice"
            outcomes[outcome.request_id] = outcome
            found.outcomes[outcome.kind] += 1
        last[outcome.request_id] = outcome
    decode = AnswerDecoder(assemble.build_model(stage.settings).task, stage.settings.model.classes)
    times = [answer_times(stage, partition) for partition in range(stage.count)]
    expected: set[Letter] = set()
    first: dict[str, Answer] = {}
    polls: dict[str, dict[str, Answer]] = {identity: {} for identity, made in requests.items() if made.answers > 1}
    astray: Counter[tuple[int, bytes]] = Counter()
    copies: Counter[tuple[int, bytes]] = Counter()
    for record in stage.tape(stage.topics.answers).records():
        place = (record.topic, record.partition, record.offset)
        try:
            answer = decode(record)
        except BadRecord as bad:
            expected.add(Letter(*place, bad.reason))
            continue
        target = parse_request_id(answer.request_id)[0]
        if any(name == "schema" for name, _ in record.headers):
            copies[record.partition, record.value or b""] += 1
        if target != record.partition and target < stage.count:
            astray[target, record.value or b""] += 1
        elif answer.request_id in polls:
            ending, votes = outcomes[answer.request_id], polls[answer.request_id]
            late = times[record.partition](record.offset) > ending.resolved_at
            ended = late or len(votes) == requests[answer.request_id].answers
            if reason := ballot(answer, votes, ended=ended):
                expected.add(Letter(*place, reason))
            elif answer.kind == "skip":
                found.skipped += 1
            else:
                found.votes["taken"] += 1
        elif reason := verdict(answer, times[record.partition](record.offset), first, requests, outcomes):
            expected.add(Letter(*place, reason))
        elif answer.kind == "skip":
            found.skipped += 1
    assert copies == astray, "an answer that came on another partition was lost or repeated"
    refused = {letter for letter in letters if letter.topic == stage.topics.answers}
    assert refused == expected, f"refused answers differ: {sorted(refused ^ expected)[:5]}"
    answered = {request_id for request_id, outcome in outcomes.items() if outcome.kind != "expired"}
    polled = {request_id for request_id, votes in polls.items() if votes}
    assert answered == set(first) | polled, "an answer was lost, or an outcome has no answer"
    check_votes(stage, requests, polls, outcomes, last, found)
    for request_id, answer in first.items():
        outcome = outcomes[request_id]
        assert (outcome.kind, outcome.label) == (KINDS[answer.kind], answer.label), "the first answer must win"
        assert outcome.features == requests[request_id].features
    found.forwarded = sum(copies.values())


def check_votes(
    stage: Audited,
    requests: Mapping[str, LabelRequest],
    polls: Mapping[str, Mapping[str, Answer]],
    endings: Mapping[str, Outcome],
    last: Mapping[str, Outcome],
    found: Findings,
) -> None:
    """Check that each vote is on the log, in a record of its own or in the outcome it led to, and what most say."""
    records = [decode_outcome(record.value or b"") for record in stage.tape(stage.topics.outcomes).records()]
    led = found.votes["corrected"] + found.votes["confirmed"]
    for request_id, votes in polls.items():
        said = [(name, vote.kind, vote.label, vote.revision) for name, vote in votes.items()]
        kept = [(vote.annotator, vote.kind, vote.label, vote.revision) for vote in last[request_id].votes]
        assert kept == said, "a vote was lost, or changed"
        assert last[request_id].label == most([label for _, kind, label, _ in said if kind != "unsure"])
        complete = len(votes) == requests[request_id].answers
        led += complete
        found.votes["early"] += not complete and bool(votes)
        assert endings[request_id].features == requests[request_id].features
    assert found.votes["taken"] == led + sum(isinstance(record, Vote) for record in records), "a vote was counted twice"


def most(said: Sequence[Label | None]) -> Label | None:
    """Return what was said most often, None for invalid; of several the one that was said first.

    >>> most(["b", "a", "a", None]), most(["b", "a"]), most([])
    ('a', 'b', None)
    """
    return max(said, key=lambda label: (said.count(label), -said.index(label)), default=None)


def ballot(answer: Answer, votes: dict[str, Answer], *, ended: bool) -> str | None:
    """Return why one of several answers must have been refused, None if it was not; takes note of the votes."""
    name = answer.annotator or ""
    before = votes.get(name)
    if ended and not votes:
        return "expired"
    if answer.kind == "skip":
        return "ended" if ended else None
    if not name and not ended:
        return "missing_annotator"
    if before is None:
        if not ended:
            votes[name] = answer
        return "ended" if ended else None
    if (before.kind, before.label) == (answer.kind, answer.label):
        return "duplicate"
    if answer.revision <= before.revision:
        return "conflict"
    votes[name] = answer
    return None


def answer_times(stage: Audited, partition: int) -> Callable[[int], float]:
    """Return what tells when the answer at an offset was matched: the time of the transaction that covers it."""
    audits = [orjson.loads(r.value or b"") for r in stage.tape(stage.topics.decisions).partitions[partition]]
    ends = [(a["answers_to"], a["at"]) for a in audits]
    return lambda offset: float(ends[bisect_right(ends, offset, key=itemgetter(0))][1])


def verdict(
    answer: Answer,
    at: float,
    first: dict[str, Answer],
    requests: Mapping[str, LabelRequest],
    outcomes: Mapping[str, Outcome],
) -> str | None:
    """Return why an answer must have been refused, None if it was not; takes note of the first one to each request."""
    identity = answer.request_id
    if identity not in requests:
        return "unknown"
    if identity in first:
        before = first[identity]
        same = before.kind == "label" and before.label == answer.label
        return "duplicate" if same or answer.kind != "label" else "conflict"
    outcome = outcomes.get(identity)
    if outcome is not None and outcome.kind == "expired" and at > outcome.resolved_at:
        return "expired"
    if answer.kind == "skip":
        return None
    first[identity] = answer
    return None


def check_predictions(stage: Audited, requests: Any) -> None:
    """Check that each request carries what the model of its version says, to the last bit."""
    fold = Fold(assemble.build_model(stage.settings))
    records = stage.tape(stage.topics.outcomes).partitions[0]
    at = 0
    by_version = sorted(requests, key=lambda request: request.model_version)
    for version, asked in groupby(by_version, key=lambda request: request.model_version):
        until = at
        while until < len(records) and records[until].offset < version:
            until += 1
        fold.fold((record.offset, decode_outcome(record.value or b"")) for record in records[at:until])
        at = until
        assert fold.version == version, f"no record of outcomes ends at version {version}"
        for request in asked:
            predicted = fold.model.predict([request.features])[0]
            assert bits(predicted) == bits(request.prediction), f"request {request.request_id}, version {version}"


def folded(stage: Audited, version: int) -> Fold:
    """Return an uninterrupted fold by a fresh model of the outcomes before a version."""
    fold = Fold(assemble.build_model(stage.settings))
    records = (record for record in stage.tape(stage.topics.outcomes).records() if record.offset < version)
    fold.fold((record.offset, decode_outcome(record.value or b"")) for record in records)
    return fold


def saved(stage: Stage, slot: int) -> tuple[Model, int]:
    """Return model and version that the worker of a slot saved last."""
    settings = stage.settings_of(slot)
    path = Path(settings.snapshot.directory) / f"{settings.pipeline}-{slot}.snapshot"
    key = Path(settings.snapshot.key_file).read_bytes()
    allowed = assemble.allowed_in(settings)
    return snapshot.load(path.read_bytes(), config_hash=assemble.config_hash(settings), key=key, allowed=allowed)[:2]


def check_models(stage: Stage, *slots: int) -> None:
    """Check that the workers' saved models are the uninterrupted fold of all outcomes, to the last bit.

    What a worker appends while it ends may be missing from its model and from the others', but only moments and expired
    requests can be.
    """
    for slot in slots:
        check_model(stage, *saved(stage, slot), probes(), f"worker {slot}")


def check_model(stage: Audited, model: Model, version: int, rows: Sequence[Features], whose: str) -> None:
    """Check that a model is the uninterrupted fold of all outcomes, by its predictions on some rows."""
    last = max(offset for offset, outcome in outcomes_of(stage) if outcome.kind != "expired")
    assert version > last, f"{whose} has folded to {version}, the last outcome lies at {last}"
    fold = folded(stage, version)
    assert fold.version == version
    expected = view(fold.model, rows)
    assert any(expected), "a model that knows nothing proves nothing"
    assert view(model, rows) == expected, f"the model of {whose} differs"


def probes() -> list[Features]:
    """Return 200 instances of Electricity."""
    return [row.features for row in electricity()[:: len(electricity()) // 200][:200]]


def view(model: Model, rows: Sequence[Features]) -> list[dict[str, str]]:
    """Return a model's predictions to the last bit."""
    return [bits(prediction) for prediction in model.predict(rows)]


def bits(prediction: Mapping[str, float]) -> dict[str, str]:
    """Return a prediction in a form that is equal only when every bit is.

    >>> bits({"up": 0.1})
    {'up': '0x1.999999999999ap-4'}
    """
    return {label: float(probability).hex() for label, probability in prediction.items()}
