"""Prequential evaluation on a labelled stream: predict, score, decide, maybe ask, learn when the answer comes.

The `SelectiveSampler` is the one that serves; only the log and the annotators are simulated. What was spent stands
beside what was reached, and the budget is checked at every prefix. Beside a strategy stands random sampling with
exactly as many labels: at the same rate a strategy that leaves labels unspent would be compared with more of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Final, NamedTuple

from streamal.annotate.oracle import Oracle
from streamal.evaluate.estimate import Estimator
from streamal.evaluate.prequential import Prequential, Recall
from streamal.evaluate.stream import Row
from streamal.events import Event, InstancesDecided, LabelRequested, RequestResolved, recorded
from streamal.lane import Handover, SamplingPlan
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import Answer, Instance, Label, Prediction, Received, Unlabelled
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import Limit
from streamal.web.status import Estimates

CURVE_POINTS: Final = 200
CONTROLS: Final = 3
"""Random runs beside a strategy at least, over all its seeds: one alone varies by a point of kappa and more."""
AMPLE: Final = 1.02
"""The control's rate, relative to the one that gives its labels on average: it reaches their number before the end,
and then asks no more."""


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
    budget held. `scores` are those of all instances, `estimates` what a service would have known of them. `answers`
    counts what the annotators said, `answers_per_request` of them to each question. `unlabelled` instances were
    observed without a label, `pseudo_labelled` ones learned with the model's own, which was right as often as
    `pseudo_accuracy` says (None where there are none). `controls` are random runs on the same rows with as many labels,
    if there are any. `recall` is by class, the rarest first, and `loan` the cold start's, which `asked` may reach
    however little is allowed yet.
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
    answers_per_request: int
    answers: int
    unlabelled: int
    pseudo_labelled: int
    pseudo_accuracy: float | None
    curve: tuple[CurvePoint, ...]
    controls: tuple[Simulation, ...] = ()
    recall: Mapping[str, Recall] = field(default_factory=dict)
    loan: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the figures as one JSON object, without the curve.

        Of the estimates it has those of the accuracy or the mean absolute error, of the improvement, and the response
        rates, of the controls their mean scores.
        """
        found = asdict(replace(self, curve=(), controls=()))
        scores: dict[str, Any] = found.pop("scores")
        del found["curve"], found["estimates"], found["controls"]
        known, gain = self.estimates.measures, self.estimates.improvement
        accuracy, error = known.get("accuracy"), known.get("mae")
        estimate = accuracy or error
        return {
            **found,
            **scores,
            "recall": {label: recall.value for label, recall in self.recall.items()} or None,
            "response": dict(self.estimates.response),
            "estimated_accuracy": accuracy and accuracy.value,
            "estimated_mae": error and error.value,
            "estimated_low": estimate and estimate.low,
            "estimated_high": estimate and estimate.high,
            "naive_accuracy": self.estimates.naive.get("accuracy"),
            "naive_mae": self.estimates.naive.get("mae"),
            "estimated_improvement": gain and gain.value,
            "improvement_low": gain and gain.low,
            "improvement_high": gain and gain.high,
            "labels_pay": gain and gain.pays,
            **{f"random_{name}": self.at_random(name) for name in ("accuracy", "kappa", "mae")},
        }

    def at_random(self, name: str) -> float | None:
        """Return the mean score of the random runs with as many labels; None where there is none."""
        known = [score for control in self.controls if (score := control.scores[name]) is not None]
        return fmean(known) if known else None


def measure_of(runs: Iterable[Simulation]) -> str:
    """Return the score that runs are compared by."""
    return "kappa" if any(run.scores["kappa"] is not None for run in runs) else "mae"


def lead(run: Simulation, other: Simulation, measure: str) -> float:
    """Return by how much a run is better than another one: by more kappa, or by less error."""
    difference = (run.scores[measure] or 0.0) - (other.scores[measure] or 0.0)
    return -difference if measure == "mae" else difference


class Taken(NamedTuple):
    """What became of one row: the served model's prediction, and whether its label was asked for."""

    asked: bool
    prediction: Prediction


class Simulator:
    """One run, row by row; annotators are all like `oracle`, and a mistaken one may name any of `classes`."""

    def __init__(self, plan: SamplingPlan, model: Model, oracle: Oracle, classes: list[str]) -> None:
        self._plan = plan
        self._sampler = SelectiveSampler([replace(plan, serve=True)], Fold(model))
        self.lane = self._sampler.open(0, Handover())
        self._oracles = oracle.team(plan.answers)
        self._classes = classes
        self._due: list[tuple[float, int, int, Label | None]] = []
        """A heap by time; of answers due at the same time the one about the earlier row comes first."""
        self._labels: list[Label] = []
        self._log_end = 0
        self.scores = Prequential()
        self.estimator = Estimator(audits=math.inf, requests=math.inf, compared=math.inf)
        self.learned = 0
        self.answers = 0
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
                for oracle in self._oracles:
                    answer = oracle.answer(about, self._labels[about], self._classes)
                    heapq.heappush(self._due, (number + oracle.latency(about), about, oracle.number, answer))
        budget = self._plan.budget
        bound = max(budget.loan, self.lane.allowed + 1.0) if budget.loan else self.lane.allowed
        self.max_overshoot = max(self.max_overshoot, self.lane.asked - bound)
        self._log([*events, *self._sampler.tick(float(number))])
        self._answer(number)
        return Taken(asked, prediction or {})

    def _answer(self, now: int) -> None:
        while self._due and self._due[0][0] <= now:
            _, offset, number, label = heapq.heappop(self._due)
            if label is not None:
                self.answers += 1
                received = Received("answers", 0, offset, now, None, None, ())
                answer = Answer(f"0-{offset}", "label", label, self._oracles[number].name, received)
                self._log(self._sampler.answer(0, [answer], float(now)))

    def _log(self, events: Iterable[Event]) -> None:
        """Fold what would go to `outcomes`, as every worker does when it reads it back."""
        for event in events:
            if (record := recorded(event)) is None:
                continue
            if isinstance(event, RequestResolved):
                self.estimator.observe(event)
                self.learned += event.outcome.kind == "learned"
            elif isinstance(record, Unlabelled):
                self.unlabelled += record.label is None
                self.pseudo_labelled += record.label is not None
                self.pseudo_right += record.label == self._labels[record.offset]
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
        answers_per_request=plan.answers,
        answers=simulator.answers,
        unlabelled=simulator.unlabelled,
        pseudo_labelled=simulator.pseudo_labelled,
        pseudo_accuracy=simulator.pseudo_right / pseudo if (pseudo := simulator.pseudo_labelled) else None,
        curve=tuple(curve),
        recall=simulator.scores.recall(),
        loan=plan.budget.loan,
    )


def as_many(plan: SamplingPlan, labels: int, rows: int) -> Iterator[SamplingPlan]:
    """Yield plans of random sampling that ask for so many labels of a stream and no more, each sooner than the last.

    They differ from a strategy's in nothing else: the loan is the same, and exploration's share is random anyhow.

    >>> from streamal.selection.budget import BudgetPlan
    >>> plan, *_ = as_many(SamplingPlan(BudgetPlan(0.05), "split"), 480, 10_000)
    >>> plan.strategy, round(plan.budget.rate, 4), plan.budget.limits[0].most
    ('random', 0.0491, 480)
    """
    only = Limit("count", labels, rows + 1.0)
    rate = 0.0
    while rate < 1.0:
        rate = min(1.0, AMPLE * max(rate, (labels + 1) / rows))
        budget = replace(plan.budget, rate=rate, loan=min(plan.budget.loan, labels), limits=(only,), spare=0)
        yield replace(plan, budget=budget, strategy="random", parameters={})


def control(
    simulation: Simulation,
    plan: SamplingPlan,
    run: Callable[[SamplingPlan], Simulation],
) -> Simulation:
    """Return what random sampling reaches with as many labels as a simulation asked for, by `run` on the same rows."""
    for chosen in as_many(plan, simulation.asked, simulation.instances):
        found = run(chosen)
        if found.asked == simulation.asked:
            break
    return found
