"""Prequential evaluation on a labelled stream: predict, score, decide, maybe ask, learn when the answer comes.

The `SelectiveSampler` is the one that serves; only the log and the annotators are simulated. What was spent stands
beside what was reached, and the budget is checked at every prefix.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

from streamal.annotate.oracle import Oracle
from streamal.evaluate.estimate import Estimator
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.stream import Row
from streamal.events import Event, InstancesDecided, LabelRequested, MomentsTaken, RequestResolved, UnlabelledTaken
from streamal.lane import SamplingPlan
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import Answer, Folded, Instance, Label, Prediction, Received
from streamal.sampler import Handover, SelectiveSampler
from streamal.web.status import Estimates

CURVE_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """How far a run had come: `accuracy` over the rows since the last point, the scores over all rows so far."""

    seen: int
    asked: int
    accuracy: float | None
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of one run.

    `max_overshoot` is the largest excess of `asked` over its bound at any prefix, in labels; at most 0 when the
    budget held. `scores` are those of all instances, `estimates` what a service would have known of them. `unlabelled`
    instances were observed without a label, `pseudo_labelled` ones learned with the model's own, which was right as
    often as `pseudo_accuracy` says (None where there are none).
    """

    instances: int
    asked: int
    allowed: float
    max_overshoot: float
    spent_ratio: float
    scores: dict[str, float | None]
    estimates: Estimates
    strategy: str
    model: str
    rate: float
    seed: int
    delay: int
    learned: int
    unlabelled: int
    pseudo_labelled: int
    pseudo_accuracy: float | None
    curve: tuple[CurvePoint, ...]

    def summary(self) -> dict[str, Any]:
        """Return the figures as one flat JSON object, without the curve; of the estimates those of the accuracy."""
        found = asdict(self)
        scores: dict[str, Any] = found.pop("scores")
        del found["curve"], found["estimates"]
        estimate = self.estimates.measures.get("accuracy")
        return {
            **found,
            **scores,
            "estimated_accuracy": estimate and estimate.value,
            "estimated_low": estimate and estimate.low,
            "estimated_high": estimate and estimate.high,
            "naive_accuracy": self.estimates.naive.get("accuracy"),
        }


class Taken(NamedTuple):
    """What became of one row: the served model's prediction, and whether its label was asked for."""

    asked: bool
    prediction: Prediction


class Simulator:
    """One run, row by row; `classes` are those a mistaken annotator may name."""

    def __init__(self, plan: SamplingPlan, model: Model, oracle: Oracle, classes: list[str]) -> None:
        self._plan = plan
        self._sampler = SelectiveSampler([replace(plan, serve=True)], Fold(model))
        self.lane = self._sampler.open(0, Handover())
        self._oracle = oracle
        self._classes = classes
        self._due: list[tuple[float, int, Label | None]] = []
        """A heap by time; of answers due at the same time the one about the earlier row comes first."""
        self._labels: list[Label] = []
        self._log_end = 0
        self.scores = Prequential()
        self.estimator = Estimator(audits=math.inf, requests=math.inf)
        self.learned = 0
        self.unlabelled = self.pseudo_labelled = self.pseudo_right = 0
        self.max_overshoot = -float("inf")

    def step(self, number: int, row: Row) -> Taken:
        """Take one row."""
        instance = Instance(number, float(number), str(number), row.features)
        asked, prediction = False, None
        self._labels.append(row.label)
        events = self._sampler.see(0, [instance], float(number))
        for event in events:
            self.estimator.observe(event)
            if isinstance(event, InstancesDecided):
                prediction = event.predictions[0]
                self.scores.score(prediction, row.label)
            elif isinstance(event, LabelRequested):
                asked = True
                about = event.request.offset  # an earlier row, where a window has ended
                answer = self._oracle.answer(about, self._labels[about], self._classes)
                heapq.heappush(self._due, (number + self._oracle.latency(about), about, answer))
        budget = self._plan.budget
        bound = max(budget.loan, self.lane.allowed + 1.0) if budget.loan else self.lane.allowed
        self.max_overshoot = max(self.max_overshoot, self.lane.asked - bound)
        self._log([*events, *self._sampler.tick(float(number))])
        self._answer(number)
        return Taken(asked, prediction or {})

    def _answer(self, now: int) -> None:
        while self._due and self._due[0][0] <= now:
            _, offset, label = heapq.heappop(self._due)
            if label is not None:
                received = Received("answers", 0, offset, now, None, None, ())
                answer = Answer(f"0-{offset}", "label", label, "oracle", received)
                self._log(self._sampler.answer(0, [answer], float(now)))

    def _log(self, events: Iterable[Event]) -> None:
        """Fold what would go to `outcomes`, as every worker does when it reads it back."""
        for event in events:
            record: Folded
            if isinstance(event, RequestResolved):
                self.estimator.observe(event)
                record = event.outcome
                self.learned += record.kind == "learned"
            elif isinstance(event, MomentsTaken):
                record = event.moments
            elif isinstance(event, UnlabelledTaken):
                record = event.record
                self.unlabelled += record.label is None
                self.pseudo_labelled += record.label is not None
                self.pseudo_right += record.label == self._labels[record.offset]
            else:
                continue
            self._sampler.fold([(self._log_end, record)])
            self._log_end += 1


def simulate(
    rows: Iterable[Row],
    total: int,
    plan: SamplingPlan,
    model: Model,
    oracle: Oracle,
    *,
    model_name: str,
    classes: list[str],
    progress: Callable[[int], None] = lambda rows: None,
) -> Simulation:
    """Run a stream of `total` rows through a sampler; `progress` is told now and then how many rows are done."""
    simulator = Simulator(plan, model, oracle, classes)
    curve: list[CurvePoint] = []
    every = max(1, total // CURVE_POINTS)
    number = last = 0
    right = 0.0
    for number, row in enumerate(rows):
        simulator.step(number, row)
        if (number + 1) % every == 0:
            accuracy = simulator.scores.accuracy
            hits = accuracy * (number + 1)
            recent = (hits - right) / (number + 1 - last) if isinstance(row.label, str) else None
            curve.append(CurvePoint(number + 1, simulator.lane.asked, recent, simulator.scores.summary()))
            last, right = number + 1, hits
            progress(number + 1)
    lane = simulator.lane
    return Simulation(
        instances=lane.seen,
        asked=lane.asked,
        allowed=lane.allowed,
        max_overshoot=simulator.max_overshoot,
        spent_ratio=lane.asked / lane.allowed if lane.allowed else 0.0,
        scores=simulator.scores.summary(),
        estimates=simulator.estimator.estimate(),
        strategy=plan.strategy,
        model=model_name,
        rate=plan.budget.rate,
        seed=plan.seed,
        delay=int(oracle.delay),
        learned=simulator.learned,
        unlabelled=simulator.unlabelled,
        pseudo_labelled=simulator.pseudo_labelled,
        pseudo_accuracy=simulator.pseudo_right / pseudo if (pseudo := simulator.pseudo_labelled) else None,
        curve=tuple(curve),
    )
