"""Everything bad that others may write comes in among the good, and changes nothing but the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from auditor import Letter, audit, check_models, letters_of, probes, saved, view
from corpus import BAD_ANSWERS, BAD_INPUT, CLASSES, INSTANCE, SECRET, UNMATCHED, BadAnswer, BadInput
from story import Place, Stage, electricity, until

from streamal.messages import MAX_BYTES
from streamal.transport.log import Append

PHASES = 4
GOOD = 120
"""Good instances in each phase."""


class Sent(NamedTuple):
    """A record to be appended, and the reason it will be refused with, None for a good one."""

    record: Append
    reason: str | None = None


class Play:
    """Good instances and answers in phases, among them the bad ones, unless `bad` is off.

    No answer comes while instances are decided, the strategy is periodic, and there is one partition: what is asked
    depends on the good instances alone, and so does the order of what is learned.
    """

    def __init__(self, stage: Stage, *, bad: bool) -> None:
        self._stage = stage
        self._bad = bad
        self._answered: set[str] = set()
        self._count = 0
        self.expected: list[Letter] = []
        self.sent: dict[tuple[str, int], bytes | None] = {}

    def phase(self, number: int) -> None:
        """Send instances, wait for their requests, send answers, wait until they are matched."""
        topics = self._stage.topics
        good = [Sent(Append(topics.instances, 0, self._instance())) for _ in range(GOOD)]
        self._send(interleave(good, self._corpus("instances", number)))
        until(self._stage.drained, f"the instances of phase {number} decided")
        answers = self._answers(BAD_ANSWERS if number == 0 else ())
        self._send(interleave(answers, self._corpus("answers", number)))
        until(lambda: self._stage.drained() and self._stage.caught_up(), f"the answers of phase {number} matched")

    def expire(self) -> None:
        """Let requests run out of time, then answer them; the worker's expiry must be short by now."""
        good = [Sent(Append(self._stage.topics.instances, 0, self._instance())) for _ in range(GOOD)]
        self._send(good)
        until(self._stage.drained, "the last instances decided")
        until(lambda: not self._waiting(), "their requests expired")
        late = [kind for kind in BAD_ANSWERS if kind.expire]
        gone = [o["request_id"] for o in self._stage.read(self._stage.topics.outcomes) if o["kind"] == "expired"]
        pairs = zip(late, gone, strict=False)
        self._send([Sent(self._answer(request_id, kind.answer), kind.reason) for kind, request_id in pairs])
        until(self._stage.drained, "the late answers matched")

    def _instance(self) -> bytes:
        row = electricity()[self._count]
        self._count += 1
        return orjson.dumps({"id": f"half-hour-{self._count}", "features": {**row.features, "price": 1.0}})

    def _corpus(self, topic: str, number: int) -> list[Sent]:
        if not self._bad:
            return []
        chosen = [kind for kind in (*BAD_INPUT, *UNMATCHED) if kind.topic == topic][number::PHASES]
        return [Sent(self._as_append(kind), kind.reason) for kind in chosen]

    def _as_append(self, kind: BadInput) -> Append:
        topic = getattr(self._stage.topics, kind.topic)
        return Append(topic, 0, kind.value, kind.key, kind.headers)

    def _waiting(self) -> list[str]:
        """Return the ids of the requests without an outcome."""
        ended = {found.get("request_id") for found in self._stage.read(self._stage.topics.outcomes)}
        requests = self._stage.read(self._stage.topics.label_requests)
        return [request["request_id"] for request in requests if request["request_id"] not in ended]

    def _answers(self, kinds: Sequence[BadAnswer]) -> list[Sent]:
        """Answer what waits: the first ones as the kinds want it, and once more what is bad; the others well."""
        pairs = [(kind.before, kind) for kind in kinds if kind.before is not None]
        sent = []
        for number, request_id in enumerate(self._waiting()):
            before, kind = pairs[number] if number < len(pairs) else ({"label": CLASSES[number % 2]}, None)
            sent.append(Sent(self._answer(request_id, before)))
            if kind is not None and self._bad:
                sent.append(Sent(self._answer(request_id, kind.answer), kind.reason))
        assert len(sent) >= len(pairs)
        return sent

    def _answer(self, request_id: str, fields: dict[str, Any]) -> Append:
        return Append(self._stage.topics.answers, 0, orjson.dumps({"request_id": request_id, **fields}))

    def _send(self, records: Sequence[Sent]) -> None:
        offsets = self._stage.append([sent.record for sent in records])
        for (record, reason), offset in zip(records, offsets, strict=True):
            if reason is not None:
                self.expected.append(Letter(record.topic, 0, offset, reason))
                self.sent[record.topic, offset] = record.value


def interleave(good: Sequence[Sent], bad: Sequence[Sent]) -> list[Sent]:
    """Spread bad records evenly among good ones, with good ones first and last."""
    slots: list[list[Sent]] = [[sent] for sent in good]
    for number, sent in enumerate(bad):
        slots[number * (len(good) - 1) // max(1, len(bad))].append(sent)
    return [sent for slot in slots for sent in slot]


def setting(place: Place, staged: Callable[..., Stage]) -> Stage:
    return staged(
        place,
        transport={"partitions": 1},
        instance=INSTANCE,
        model={"classes": CLASSES, "scaling": "labelled"},
        budget={"rate": 0.2},
        strategy={"name": "periodic"},
    )


def put_aside(stage: Stage) -> dict[tuple[str, int], bytes | None]:
    """Return the values of the dead letters by where they lay."""
    letters = letters_of(stage)
    records = stage.tape(stage.topics.dead_letters).records()
    return {(letter.topic, letter.offset): record.value for letter, record in zip(letters, records, strict=True)}


def test_bad_input_is_put_aside_and_leaves_no_trace(
    place: Place, staged: Callable[..., Stage], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stage = setting(place, staged)
    stage.start(0)
    play = Play(stage, bad=True)
    for number in range(PHASES):
        play.phase(number)
    until(stage.caught_up, "all outcomes folded")
    assert stage.worker(0).end()[0] == 0
    check_models(stage, 0)
    model, _ = saved(stage, 0)
    stage.start(0, STREAMAL__BUDGET__EXPIRY="1s")
    play.expire()
    until(stage.caught_up, "all outcomes folded")
    assert stage.worker(0).end()[0] == 0
    assert stage.worker(0).starts == 2, "the loop must not have died"

    assert Counter(letters_of(stage)) == Counter(play.expected), "each once, with its reason and position"
    assert len({kind.name for kind in (*BAD_INPUT, *UNMATCHED)}) + len(BAD_ANSWERS) >= 40
    assert len(play.expected) == len(BAD_INPUT) + len(UNMATCHED) + len(BAD_ANSWERS)
    for where, value in put_aside(stage).items():
        sent = play.sent[where]
        assert value == sent or (sent is not None and len(sent) > MAX_BYTES and value and sent.startswith(value))
    assert audit(stage).instances == (PHASES + 1) * GOOD + sum(kind.topic == "instances" for kind in BAD_INPUT)
    assert SECRET not in stage.worker(0).output.read_text()

    clean = setting(Place(tmp_path_factory.mktemp("clean")), staged)
    clean.start(0)
    other = Play(clean, bad=False)
    for number in range(PHASES):
        other.phase(number)
    until(clean.caught_up, "all outcomes folded")
    assert clean.worker(0).end()[0] == 0
    assert audit(clean).letters == {}
    assert view(model, probes()) == view(saved(clean, 0)[0], probes()), (
        "the model differs from one that never met bad input"
    )


def test_secrets_of_refused_records_stay_in_their_values(embedded: Place, staged: Callable[..., Stage]) -> None:
    """A dead letter quotes nothing in its headers."""
    stage = setting(embedded, staged)
    stage.start(0)
    chosen = [kind for kind in (*BAD_INPUT, *UNMATCHED) if kind.topic == "answers"]
    stage.append([Append(stage.topics.answers, 0, kind.value, None, kind.headers) for kind in chosen])
    until(lambda: len(letters_of(stage)) == len(chosen), "all put aside")
    for record in stage.tape(stage.topics.dead_letters).records():
        assert not any(SECRET.encode() in (content or b"") for _, content in record.headers)
    assert Path(stage.worker(0).output).read_text().count(SECRET) == 0
