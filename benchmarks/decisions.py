"""What one decision costs: the sampler without I/O beside River's bare `predict_proba_one` on the same rows.

Both know the same labels: those the sampler asked for on the first `TAUGHT` rows. Two regimes are measured, since
pending requests cost: `answered` (each answer comes at once, so utilities come from the served model) and `waiting` (no
answer comes, so they come from the copy that learns each instance asked about). What is timed is `see` alone; outcomes
are folded in between, once per `FOLD_EVERY` rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from river import linear_model, naive_bayes, preprocessing, tree

from benchmarks.measure import Spread, electricity, own_peak, rounds
from streamal.events import Event, MomentsTaken, RequestResolved
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets
from streamal.learning.fold import Fold
from streamal.messages import Instance, Moments, Outcome
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan

RATE: Final = 0.05
TAUGHT: Final = 8_000
PRIMED: Final = 2_000
MEASURED: Final = 4_000
FOLD_EVERY: Final = 1_000
BATCHES: Final = (1, 100, 1_000)
REGIMES: Final = ("answered", "waiting")
PER_SECOND: Final = 100.0
"""Instances per second of the stream's own time, which says how often moments are due."""

BARE: Final[Mapping[str, Callable[[], Any]]] = {
    "logistic_regression": lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "gaussian_nb": naive_bayes.GaussianNB,
    "hoeffding_tree": tree.HoeffdingTreeClassifier,
}


class Bench:
    """One sampler that has learned from the first rows, and goes on in one of the regimes."""

    def __init__(self, model: str, instances: Sequence[Instance], regime: str) -> None:
        plan = SamplingPlan(BudgetPlan(rate=RATE))
        self._sampler = SelectiveSampler([plan], Fold(presets.build(model, parameters={}, seed=0)))
        self._sampler.open(0, Handover())
        self._answered = regime == "answered"
        self._written = 0
        self.outcomes: list[Outcome] = []
        self.asked = 0
        for batch in cut(instances[:TAUGHT], FOLD_EVERY):
            self._fold(self._see(batch), batch[-1].timestamp)
        self._next = TAUGHT
        self._rest = instances[TAUGHT:]
        if not self._answered:
            self._rest = [instance._replace(label=None) for instance in self._rest]
        for batch in cut(self._rest[:PRIMED], FOLD_EVERY):
            self._fold(self._see(batch), batch[-1].timestamp)
        self.asked = 0

    def seconds(self, size: int) -> float:
        """Return the CPU time of deciding on the measured rows in batches of `size`."""
        spent = 0.0
        for stretch in cut(self._rest[PRIMED : PRIMED + MEASURED], FOLD_EVERY):
            batches = list(cut(stretch, size))
            events = []
            begun = time.process_time()
            for batch in batches:
                events.append(self._see(batch))
            spent += time.process_time() - begun
            self._fold([event for found in events for event in found], stretch[-1].timestamp)
        return spent

    def _see(self, batch: Sequence[Instance]) -> list[Event]:
        return self._sampler.see(0, batch, batch[-1].timestamp)

    def _fold(self, events: Sequence[Event], now: float) -> None:
        records: list[Outcome | Moments] = [event.outcome for event in events if isinstance(event, RequestResolved)]
        self.outcomes += [record for record in records if isinstance(record, Outcome)]
        self.asked += len(records)
        records += [event.moments for event in self._sampler.tick(now) if isinstance(event, MomentsTaken)]
        self._sampler.fold([(self._written + number, record) for number, record in enumerate(records)])
        self._written += len(records)


def cut(instances: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    """Yield stretches of `size`."""
    for start in range(0, len(instances), size):
        yield instances[start : start + size]


def bare_seconds(bare: Any, instances: Sequence[Instance]) -> float:
    """Return the CPU time of River's own prediction of each instance."""
    predict = bare.predict_proba_one
    batch = [instance.features for instance in instances]
    begun = time.process_time()
    for features in batch:
        predict(features)
    return time.process_time() - begun


def decisions(model: str, stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure a model's decisions, each beside the bare prediction."""
    count = TAUGHT + PRIMED + MEASURED
    instances = [
        Instance(number, number / PER_SECOND, str(number), row.features, label=row.label)
        for number, row in rounds(electricity(stream), count)
    ]
    bare = BARE[model]()
    for outcome in Bench(model, instances, "waiting").outcomes:
        bare.learn_one(dict(outcome.features), outcome.label == "up")
    cells = [(regime, size) for regime in REGIMES for size in BATCHES]
    spent: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    peer: list[float] = []
    for _ in range(repeats):
        for regime, size in cells:
            peer.append(bare_seconds(bare, instances[-MEASURED:]) / MEASURED * 1e6)
            spent[regime, size].append(Bench(model, instances, regime).seconds(size) / MEASURED * 1e6)
    alone = Spread.of(peer)
    return [row(regime, size, Spread.of(spent[regime, size]), alone) for regime, size in cells]


def row(regime: str, size: int, core: Spread, bare: Spread) -> dict[str, Any]:
    """Return one line of the table."""
    return {
        "answers": regime,
        "batch": size,
        "cpu_us": core,
        "decisions_per_cpu_s": round(1e6 / core.median),
        "bare_cpu_us": bare,
        "ratio": round(core.median / bare.median, 3),
        "peak_mib": round(own_peak(), 1),
    }
