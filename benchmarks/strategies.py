"""What a strategy itself costs per instance: `propose`, `update` and `resolved`, and `choose` where it pools.

No model predicts: predictions, and those of an ensemble's members, are made beforehand, and so is every call. A first
pass decides behind a simple allowance and writes down what was called; the last `MEASURED` instances are then called
again, on copies of the strategy as it stood before them, in turn with the default strategy on the same instances.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, cast

from benchmarks.measure import Spread
from streamal.learning.model import Model
from streamal.messages import VALUE, Features, Outcome, Prediction
from streamal.selection.pool import MOST_KNOWN
from streamal.selection.registry import STRATEGIES, build
from streamal.selection.strategy import Candidate, QueryStrategy, Standing, StrategySpec

RATE: Final = 0.05
CAP: Final = 23.0
WINDOW: Final = 512
PRIMED: Final = 6_000
"""Enough for 256 requests, the most that any strategy keeps by default."""
MEASURED: Final = 2_000
LATENCY: Final = 100
MEMBERS: Final = 10
"""As many as the forests of the presets have."""
POOL_WINDOW: Final = 400
"""Instances; the default burst holds what 440 earn."""
YARDSTICK: Final = "class_conditional"
SHAPES: Final = ((8, 2), (8, 10), (50, 2), (50, 10))
"""Features and classes."""


class Instance(NamedTuple):
    """Features, what the model says of them, what its members say, and the label."""

    features: Features
    prediction: Prediction
    members: Sequence[Prediction]
    label: str | float


class Spoken:
    """Stands for a model whose members' predictions were made beforehand, so that asking them costs nothing."""

    ensemble = True

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._members = {id(instance.features): instance.members for instance in instances}
        self._any = instances[0].prediction

    def members(self, features: Features) -> Sequence[Prediction]:
        return self._members[id(features)]

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        return [self._any] * len(batch)


class Gathered(NamedTuple):
    """What a chooser is given at the end of a window."""

    candidates: Sequence[Candidate]
    known: Sequence[Outcome]
    permitted: int
    standing: Standing


class Step(NamedTuple):
    """One instance with what came of it: was it asked about, which answers came then, and did a window end."""

    instance: Instance
    standing: Standing
    asked: bool
    answered: Sequence[Outcome]
    gathered: Gathered | None


Way = tuple[QueryStrategy, list[Step], list[float]]
"""A strategy, what is called, and how long it took each time."""


def cost(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure every strategy with its default parameters; the stream plays no part."""
    return [line(name, repeats) for name in STRATEGIES]


def line(name: str, repeats: int) -> dict[str, Any]:
    """Return one line of the table: microseconds per instance by features and classes, and ratios in the same order."""
    found: dict[str, Any] = {"strategy": name}
    ratios = []
    regression = "classification" not in STRATEGIES[name].tasks
    for columns, classes in SHAPES:
        if regression and classes > 2:
            found[f"us_{columns}x{classes}"] = "-"
            continue
        usual = instances_of(columns, classes)
        ways = prepared(name, instances_of(columns, 0) if regression else usual), prepared(YARDSTICK, usual)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for (strategy, calls), taken in zip(ways, times, strict=True):
                taken.append(seconds(copy.deepcopy(strategy), calls) / MEASURED * 1e6)
        spent, default = map(Spread.of, times)
        found[f"us_{columns}x{classes}"] = spent
        ratios.append(round(spent.median / default.median, 2))
    return found | {"ratios": ratios}


@cache
def instances_of(columns: int, classes: int) -> Sequence[Instance]:
    """Return the instances of one shape, the same for every strategy."""
    return list(islice(made(columns, classes), PRIMED + MEASURED))


def made(columns: int, classes: int) -> Iterator[Instance]:
    """Yield instances of normal features, which say nothing of the label; with 0 classes they are of a regression."""
    random = Random(0)
    labels = [f"class-{number}" for number in range(classes)]
    while True:
        features = {f"feature-{number}": random.gauss(0.0, 1.0) for number in range(columns)}
        members: list[Prediction]
        if labels:
            scores = [random.expovariate(1.0) ** 3 for _ in labels]
            members = [
                shares(labels, [score * random.lognormvariate(0.0, 0.3) for score in scores]) for _ in range(MEMBERS)
            ]
            yield Instance(features, shares(labels, scores), members, random.choices(labels, scores)[0])
        else:
            centre = random.gauss(0.0, 1.0)
            members = [{VALUE: centre + random.gauss(0.0, 0.2)} for _ in range(MEMBERS)]
            yield Instance(features, {VALUE: centre}, members, centre + random.gauss(0.0, 0.5))


def shares(labels: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Return scores as shares of 1.

    >>> shares("ab", [3.0, 1.0])
    {'a': 0.75, 'b': 0.25}
    """
    total = sum(scores)
    return {label: score / total for label, score in zip(labels, scores, strict=True)}


def prepared(name: str, instances: Sequence[Instance]) -> tuple[QueryStrategy, list[Step]]:
    """Return a strategy that has seen the first instances, and what is to be called for the others."""
    model = cast(Model, Spoken(instances))
    strategy = build(name, StrategySpec(RATE, WINDOW, {}, lambda: model), STRATEGIES[name].tasks[0])
    walk = steps(strategy, instances)
    deque(islice(walk, PRIMED), maxlen=0)
    return copy.deepcopy(strategy), list(walk)


def steps(strategy: QueryStrategy, instances: Sequence[Instance]) -> Iterator[Step]:
    """Yield what is called for each instance, while the strategy decides on it."""
    random, standing = Random(1), Standing(RATE, CAP)
    due: deque[tuple[int, Outcome]] = deque()
    known: deque[Outcome] = deque(maxlen=MOST_KNOWN)
    window: dict[int, Candidate] = {}
    for number, instance in enumerate(instances):
        level = min(CAP, standing.level + RATE)
        standing = replace(standing, seen=number + 1, level=level, pending=len(due), gathered=number % POOL_WINDOW)
        proposal = strategy.propose(instance.features, instance.prediction, standing)
        asked = level >= 1.0 and random.random() < proposal.propensity
        strategy.update(instance.features, instance.prediction, proposal, asked=asked)
        queried = [number] if asked else []
        gathered = None
        if strategy.pools and not asked:
            window[number] = Candidate(instance.features, instance.prediction, random.random())
        if strategy.pools and number % POOL_WINDOW == POOL_WINDOW - 1:
            gathered = Gathered(list(window.values()), list(known)[::-1], int(level), standing)
            places = list(window)
            queried += [places[choice.place] for choice in strategy.pools.choose(*gathered)]
            window.clear()
        answered = []
        while due and due[0][0] <= number:
            answered.append(due.popleft()[1])
        for outcome in answered:
            strategy.resolved(outcome)
        known.extend(answered)
        yield Step(instance, standing, asked, answered, gathered)
        due.extend((number + LATENCY, answer(one, instances[one])) for one in queried)
        standing = replace(standing, asked=standing.asked + len(queried), level=level - len(queried))


def answer(offset: int, instance: Instance) -> Outcome:
    """Return what an answered request leaves."""
    return Outcome(
        kind="learned",
        partition=0,
        offset=offset,
        instance_id=str(offset),
        features=instance.features,
        label=instance.label,
        weight=1.0,
        prediction=instance.prediction,
        utility=0.5,
        propensity=0.5,
        reason="uncertainty",
        would_select=True,
        strategy="",
        model_version=0,
        requested_at=float(offset),
        resolved_at=float(offset + LATENCY),
        annotator=None,
    )


def seconds(strategy: QueryStrategy, steps: Sequence[Step]) -> float:
    """Return the CPU time of the calls."""
    propose, update, pools = strategy.propose, strategy.update, strategy.pools
    begun = time.process_time()
    for (features, prediction, _, _), standing, asked, answered, gathered in steps:
        update(features, prediction, propose(features, prediction, standing), asked=asked)
        if gathered and pools:
            pools.choose(*gathered)
        for outcome in answered:
            strategy.resolved(outcome)
    return time.process_time() - begun
