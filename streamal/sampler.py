"""The selective sampler: batch in, events out, and no I/O; production, simulation and replay run this very object.

It owns the fold (one model for all partitions) and one `Lane` for each partition it was given. The order of calls is
the whole truth: the same calls with the same arguments give the same events and the same ledgers, bit for bit.
Between two calls of `fold` the model does not change, so a batch is predicted at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamal.events import (
    AnswerForwarded,
    Event,
    ExampleLearned,
    ExampleSkipped,
    FoldEvent,
    ModelReplaced,
    MomentsTaken,
    RecordRefused,
    RequestResolved,
    RequestSkipped,
    VoteTaken,
)
from streamal.lane import Handover, Lane, SamplingPlan
from streamal.learning.fold import Fold
from streamal.messages import (
    MAX_CLASSES,
    Answer,
    DeadLetter,
    Instance,
    Recorded,
    parse_request_id,
)


class SelectiveSampler:
    """Decides on instances, matches answers, folds outcomes."""

    def __init__(self, plans: Sequence[SamplingPlan], fold: Fold) -> None:
        self._plans = plans
        self._fold = fold
        self.lanes: dict[int, Lane] = {}

    @property
    def version(self) -> int:
        """The version of the served model: the offset after the last folded record of `outcomes`."""
        return self._fold.version

    @property
    def partitions(self) -> int:
        """How many partitions the whole stream has."""
        return len(self._plans)

    @property
    def warmup(self) -> int:
        """How many past instances `open` wants to be shown."""
        return self._plans[0].build_strategy(self._fold).warmup

    def open(self, partition: int, handover: Handover) -> Lane:
        """Take over a partition."""
        lane = Lane(self._plans[partition], partition, self._fold)
        lane.take_over(handover)
        self.lanes[partition] = lane
        return lane

    def close(self) -> None:
        """Give all partitions up, with what was not handed over."""
        self.lanes.clear()

    def replan(self, plans: Sequence[SamplingPlan]) -> list[int]:
        """Go on with other budgets, one plan per partition; returns the owned partitions that got another one."""
        self._plans = plans
        return [p for p, lane in sorted(self.lanes.items()) if lane.replan(plans[p])]

    def see(self, partition: int, instances: Sequence[Instance], now: float) -> list[Event]:
        """Decide on a batch of a partition's instances, in offset order; `now` is in seconds since 1970."""
        return self.lanes[partition].decide(instances, now)

    def answer(self, partition: int, answers: Sequence[Answer], now: float) -> list[Event]:
        """Match answers that came on a partition with the requests that wait; the model learns nothing yet."""
        events: list[Event] = []
        for answer in answers:
            target, offset = parse_request_id(answer.request_id)
            if target != partition and target < self.partitions:
                received = answer.received
                events.append(AnswerForwarded(partition, target, received.key, received.value))
            else:
                events.append(self._match(partition, target, offset, answer, now))
        return events

    def _match(
        self, partition: int, target: int, offset: int, answer: Answer, now: float
    ) -> RequestResolved | VoteTaken | RequestSkipped | RecordRefused:
        lane = self.lanes[partition]
        waits = target == partition and lane.pending.get(offset) is not None
        if not waits and not (target == partition and lane.corrects(offset, answer)):
            return RecordRefused(DeadLetter(answer.received, *lane.why_unmatched(target, offset, answer)))
        if answer.kind == "skip":
            return RequestSkipped(partition, answer.request_id)
        if answer.label is not None and not lane.takes(answer.label):
            message = f"the model has learned {MAX_CLASSES} classes and takes no further ones; see model.classes"
            return RecordRefused(DeadLetter(answer.received, "too_many_classes", message))
        if waits and (refusal := lane.why_no_vote(offset, answer)) is not None:
            return RecordRefused(DeadLetter(answer.received, *refusal))
        return lane.resolve(offset, answer, now) if waits else lane.correct(offset, answer, now)

    def tick(self, now: float) -> list[Event]:
        """Let requests expire and hand out moments that are due; called about once per transaction."""
        events: list[Event] = []
        for lane in self.lanes.values():
            events += lane.expire(now)
            if (moments := lane.moments_due(now)) is not None:
                events.append(MomentsTaken(moments))
        return events

    def fold(self, records: Iterable[tuple[int, Recorded]]) -> list[FoldEvent]:
        """Fold records of `outcomes` with their offsets, in order."""
        before = self._fold.version
        events = self._fold.fold(records)
        if self._fold.version != before:
            examples = sum(isinstance(event, ExampleLearned | ExampleSkipped) for event in events)
            replaced = any(isinstance(event, ModelReplaced) for event in events)
            for lane in self.lanes.values():
                lane.model_changed(examples, replaced=replaced)
        return events
