"""The sampler matches answers with requests, forwards strays, and tells second answers from unknown ones."""

from __future__ import annotations

import pytest
from corpus import BAD_ANSWERS, CLASSES, UNMATCHED, BadAnswer, BadInput, answer
from specimens import Constant, answer_to, stream

from streamal.decoding import AnswerDecoder
from streamal.events import (
    AnswerForwarded,
    ExampleLearned,
    InstancesDecided,
    LabelRequested,
    MomentsTaken,
    RecordRefused,
    RequestResolved,
    RequestSkipped,
)
from streamal.lane import Handover, SamplingPlan
from streamal.learning.fold import Fold
from streamal.messages import LETTER_BYTES, MAX_CLASSES, DeadLetter, LabelRequest, Received
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan
from streamal.service.ledgers import Topics
from streamal.service.outbox import Outbox

EXPIRY = 100.0
PLAN = SamplingPlan(BudgetPlan(rate=0.2, expiry=EXPIRY), strategy="periodic")
PARTITIONS = 3
SHARED = """partition offset instance_id features prediction utility propensity reason would_select strategy
model_version""".split()


def opened(*partitions: int, scales: bool = False) -> SelectiveSampler:
    sampler = SelectiveSampler([PLAN] * PARTITIONS, Fold(Constant({"ok": 0.6, "fraud": 0.4}, scales=scales)))
    for partition in partitions:
        sampler.open(partition, Handover())
    return sampler


def asked(sampler: SelectiveSampler, partition: int = 0, now: float = 0.0) -> LabelRequest:
    """Show instances until one is asked about."""
    for instance in stream(100):
        for event in sampler.see(partition, [instance], now):
            if isinstance(event, LabelRequested):
                return event.request
    pytest.fail("nothing was asked")


def test_an_answer_becomes_an_outcome_with_all_that_was_known_when_it_was_asked() -> None:
    sampler = opened(0)
    request = asked(sampler, now=3.0)
    [event] = sampler.answer(0, [answer_to(request.request_id, "fraud")], 5.25)
    assert isinstance(event, RequestResolved)
    outcome = event.outcome
    assert event.latency == 2.25
    assert (outcome.kind, outcome.label, outcome.annotator, outcome.weight) == ("learned", "fraud", "someone", 1.0)
    assert (outcome.requested_at, outcome.resolved_at) == (3.0, 5.25)
    for name in SHARED:
        assert getattr(outcome, name) == getattr(request, name), name
    assert len(sampler.lanes[0].pending) == 0


@pytest.mark.parametrize(("kind", "outcome_kind"), [("unsure", "abstained"), ("invalid", "invalid")])
def test_an_annotator_may_not_know(kind: str, outcome_kind: str) -> None:
    sampler = opened(0)
    [event] = sampler.answer(0, [answer_to(asked(sampler).request_id, kind=kind)], 1.0)
    assert isinstance(event, RequestResolved)
    assert (event.outcome.kind, event.outcome.label) == (outcome_kind, None)
    assert sampler.fold([(0, event.outcome)]) == []


def test_a_skipped_request_waits_on() -> None:
    sampler = opened(0)
    request = asked(sampler)
    skip, answered = answer_to(request.request_id, kind="skip"), answer_to(request.request_id, "ok")
    events = sampler.answer(0, [skip, skip, answered], 1.0)
    assert events[:2] == [RequestSkipped(0, request.request_id)] * 2
    assert isinstance(events[2], RequestResolved)


def test_an_answer_on_another_partition_is_passed_on_unchanged() -> None:
    sampler = opened(0)
    stray = answer_to("2-17")
    assert sampler.answer(0, [stray], 0.0) == [AnswerForwarded(0, 2, stray.received.key, stray.received.value or b"")]


@pytest.mark.parametrize(("size", "kept"), [(LETTER_BYTES, LETTER_BYTES), (LETTER_BYTES + 1, None)])
def test_a_forwarded_answer_keeps_a_key_of_usual_size_only(size: int, kept: int | None) -> None:
    outbox = Outbox(Topics(), 0, 0.0)
    outbox.collect([AnswerForwarded(0, 2, b"k" * size, b"{}")])
    [append] = outbox.appends
    assert (append.partition, append.value) == (2, b"{}")
    assert append.key == (None if kept is None else b"k" * kept)


def test_a_dead_letter_leaves_with_the_key_it_keeps() -> None:
    outbox = Outbox(Topics(), 0, 0.0)
    received = Received("answers", 0, 0, 0, b"k" * (2 * LETTER_BYTES), b"{}", ())
    outbox.collect([RecordRefused(DeadLetter(received, "unknown", "m"))])
    assert [append.key for append in outbox.appends] == [b"k" * LETTER_BYTES]


def test_a_class_too_many_is_refused_and_its_request_waits_on() -> None:
    model = Constant({"0": 1.0})
    model.classes = [str(number) for number in range(MAX_CLASSES)]
    sampler = SelectiveSampler([PLAN], Fold(model))
    sampler.open(0, Handover())
    request_id = asked(sampler).request_id
    refused, resolved = sampler.answer(0, [answer_to(request_id, "one more"), answer_to(request_id, "7")], 1.0)
    assert isinstance(refused, RecordRefused)
    assert refused.letter.reason == "too_many_classes"
    assert "one more" not in refused.letter.message
    assert isinstance(resolved, RequestResolved)
    assert resolved.outcome.label == "7"


def test_below_the_bound_a_new_class_is_taken_and_so_is_any_number() -> None:
    for classes, label in (([str(number) for number in range(MAX_CLASSES - 1)], "new"), ([], 2.5)):
        model = Constant({})
        model.classes = classes
        sampler = SelectiveSampler([PLAN], Fold(model))
        sampler.open(0, Handover())
        [event] = sampler.answer(0, [answer_to(asked(sampler).request_id, label)], 1.0)
        assert isinstance(event, RequestResolved)


def test_a_replayed_label_of_a_class_too_many_leaves_its_request_waiting() -> None:
    model = Constant({"0": 1.0})
    model.classes = [str(number) for number in range(MAX_CLASSES)]
    sampler = SelectiveSampler([PLAN], Fold(model))
    lane = sampler.open(0, Handover())
    events = sampler.see(0, stream(100, replay=True), 0.0)
    requests = [event for event in events if isinstance(event, LabelRequested)]
    assert len(lane.pending) == len(requests) > 0
    assert not [event for event in events if isinstance(event, RequestResolved)]


@pytest.mark.parametrize("case", UNMATCHED, ids=lambda case: case.name)
def test_an_answer_that_no_request_waits_for_is_refused(case: BadInput) -> None:
    sampler = opened(0)
    asked(sampler)
    found = AnswerDecoder("classification", CLASSES)(Received("answers", 0, 5, 1_000, b"key", case.value, ()))
    [event] = sampler.answer(0, [found], 0.0)
    assert isinstance(event, RecordRefused)
    assert (event.letter.reason, event.letter.received) == (case.reason, found.received)
    assert len(sampler.lanes[0].pending) == 1


@pytest.mark.parametrize("case", BAD_ANSWERS, ids=lambda case: case.name)
@pytest.mark.parametrize("handed_over", [False, True])
def test_a_late_or_second_answer_is_refused_with_its_reason(case: BadAnswer, handed_over: bool) -> None:
    sampler = opened(0)
    request = asked(sampler)
    decoder = AnswerDecoder("classification", CLASSES)
    records = [
        Received("answers", 0, at, 0, b"key", answer(request.request_id, **parts), ())
        for at, parts in enumerate((case.before or {}, case.answer))
    ]
    events = sampler.tick(EXPIRY) if case.expire else sampler.answer(0, [decoder(records[0])], 1.0)
    [ended] = [event for event in events if isinstance(event, RequestResolved)]
    ledger = sampler.lanes[0].ledger()
    if handed_over:
        sampler = SelectiveSampler([PLAN] * PARTITIONS, Fold(Constant({})))
        sampler.open(0, Handover(ledger, [request], [ended.outcome]))
    [event] = sampler.answer(0, [decoder(records[1])], 2.0)
    assert isinstance(event, RecordRefused)
    assert (event.letter.reason, event.letter.received) == (case.reason, records[1])
    assert sampler.lanes[0].ledger() == ledger


def test_of_two_answers_in_one_batch_the_first_counts() -> None:
    sampler = opened(0)
    request_id = asked(sampler).request_id
    first, second = sampler.answer(0, [answer_to(request_id, "ok"), answer_to(request_id, "fraud")], 0.0)
    assert isinstance(first, RequestResolved)
    assert first.outcome.label == "ok"
    assert isinstance(second, RecordRefused)
    assert second.letter.reason == "conflict"


def test_partitions_are_decided_on_their_own() -> None:
    sampler, alone = opened(0, 2), opened(2)
    for instance in stream(60):
        sampler.see(0, [instance], 0.0)
        assert sampler.see(2, [instance], 0.0) == alone.see(2, [instance], 0.0)
    assert sampler.lanes[0].asked > 0
    assert sampler.lanes[2].ledger() == alone.lanes[2].ledger()
    assert sampler.partitions == PARTITIONS


def test_a_tick_lets_requests_of_all_partitions_expire_and_takes_moments() -> None:
    sampler = opened(0, 1, scales=True)
    first, second = asked(sampler, 0), asked(sampler, 1)
    events = sampler.tick(EXPIRY)
    ended = [event.outcome for event in events if isinstance(event, RequestResolved)]
    assert [(found.request_id, found.kind) for found in ended] == [
        (first.request_id, "expired"),
        (second.request_id, "expired"),
    ]
    assert [event.moments.partition for event in events if isinstance(event, MomentsTaken)] == [0, 1]
    assert sampler.tick(EXPIRY) == []


def test_folding_makes_the_next_version_for_all_partitions() -> None:
    sampler = opened(0, 1)
    [resolved] = sampler.answer(0, [answer_to(asked(sampler).request_id, "ok")], 0.0)
    assert isinstance(resolved, RequestResolved)
    [learned] = sampler.fold([(41, resolved.outcome)])
    assert isinstance(learned, ExampleLearned)
    assert sampler.version == 42
    assert asked(sampler, 1).model_version == 42


def test_what_is_closed_is_gone() -> None:
    sampler = opened(0, 1)
    sampler.close()
    assert sampler.lanes == {}
    assert sampler.tick(1e9) == []


def test_an_empty_batch_decides_nothing() -> None:
    sampler = opened(0)
    [event] = sampler.see(0, [], 0.0)
    assert isinstance(event, InstancesDecided)
    assert (event.count, event.asked, sampler.lanes[0].seen) == (0, 0, 0)


def test_the_warm_up_is_the_strategy_s() -> None:
    assert opened().warmup == 0
    plan = SamplingPlan(BudgetPlan(rate=0.2), strategy="class_conditional", window=64)
    assert SelectiveSampler([plan], Fold(Constant({}))).warmup > 64
