"""Do the live estimates keep what they promise: does their 95 % interval hold the truth in 95 of 100 runs?

And is it said that labels no longer pay when that is so, and not while they do?

A simulation knows every label, so what the service estimates from a few answers can be held against the truth of the
very same run. Each run has a seed, a stretch of a stream, a model and an annotator of its own, and no constant of
`streamal.evaluate.estimate` was chosen by these runs. The naive figure is that on the answered requests alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import track
from river import datasets
from river.datasets import synth

from benchmarks.measure import electricity
from streamal.annotate.oracle import Oracle
from streamal.evaluate.estimate import Asked, Stratum, accuracy_interval, improvement
from streamal.evaluate.simulate import Simulator
from streamal.evaluate.stream import Row, read
from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.messages import best_label
from streamal.selection.budget import BudgetPlan
from streamal.selection.coin import Coin
from streamal.web.status import Estimate, Improvement

RUNS: Final = 400
ROWS: Final = 10_000
"""Of a run; at the default share of exploration they bring 25 audit labels, and so wide intervals."""
RATE: Final = 0.05
MODELS: Final = ("logistic_regression", "gaussian_nb", "hoeffding_tree")
ANNOTATORS: Final[Mapping[str, Callable[[int], Oracle]]] = {
    "prompt": lambda seed: Oracle(seed=seed),
    "late": lambda seed: Oracle(delay=300.0, seed=seed),
    "silent": lambda seed: Oracle(silence=0.3, seed=seed),
}
"""Who answers at once, who 300 rows late, and who never answers 3 in 10 questions."""
STOPPING_RUNS: Final = 84
LOOKS: Final = (2_500, 5_000, 10_000)
"""Rows after which a run is asked whether labels still pay: early, when models learn fast, and late."""
SHARES: Final = (0.2, 0.5)
"""Of exploration in those runs, at `STOPPING_RATE`: 100 to 400 and 250 to 1,000 audit labels at the looks."""
STOPPING_RATE: Final = 0.2
GAINS: Final = ((-1.0, "below 0"), (0.0, "0 to 1"), (0.01, "1 to 3"), (0.03, "3 to 10"), (0.1, "10 and more"))
"""Least true gain of a group, and its name, in points of accuracy."""
CHANCES: Final = ((0.95, 0.95), (0.9, 0.9), (0.8, 0.8), (0.8, 0.83), (0.8, 0.85), (0.8, 0.9), (0.6, 0.8))
AUDIT_LABELS: Final = (100, 200, 400, 1_000)
DRAWN: Final = 400
START: Final = 0
"""The coin that shifts the start of a stream."""

Source = Callable[[int], Sequence[Row]]
"""Gives the rows of a run by its seed."""


class Check(NamedTuple):
    """One estimate of a run, the naive figure beside it if there is one, and the truth."""

    measure: str
    estimate: Estimate
    naive: float | None
    truth: float

    @property
    def covered(self) -> bool | None:
        """Whether the interval holds the truth; None if there is no interval."""
        low, high = self.estimate.low, self.estimate.high
        return None if low is None or high is None else low <= self.truth <= high


def coverage(stream: Path, repeats: int) -> Sequence[Mapping[str, Any]]:
    """Make `RUNS` runs, whatever `repeats` says; `stream` is Electricity's file, or a folder of other streams."""
    found = sources(stream)
    cells = list(product(found, MODELS, ANNOTATORS))
    checks: dict[tuple[str, str], list[Check]] = defaultdict(list)
    for seed in track(range(RUNS), "runs", console=Console(stderr=True)):
        name, model, annotator = cells[seed % len(cells)]
        for check in run(found[name](seed), model, ANNOTATORS[annotator](seed), seed):
            for group in ("all", annotator, name):
                checks[check.measure, group].append(check)
    measures = list(dict.fromkeys(measure for measure, _ in checks))
    shown = [*product(measures, ("all",)), *product(("accuracy",), (*ANNOTATORS, *found))]
    return [line(*key, checks[key]) for key in shown]


def sources(stream: Path) -> dict[str, Source]:
    """Return the streams by name."""
    if stream.is_dir():
        return {path.name.split(".")[0]: shifted(list(read(path))) for path in sorted(stream.glob("*.csv.gz"))}
    return {
        "electricity": shifted(electricity(stream)),
        "segment": shifted(rows_of(datasets.ImageSegments())),
        "agrawal": lambda seed: rows_of(synth.Agrawal(seed % 10, seed, perturbation=0.1).take(ROWS)),
        "led": lambda seed: rows_of(synth.LED(seed, noise_percentage=0.1).take(ROWS)),
        "drifting rbf": lambda seed: rows_of(
            synth.RandomRBFDrift(seed, seed, n_classes=4, change_speed=0.001, n_drift_centroids=5).take(ROWS)
        ),
        "sea": lambda seed: rows_of(synth.SEA(seed % 4, noise=0.1, seed=seed).take(ROWS)),
        "waveform": lambda seed: rows_of(synth.Waveform(seed).take(ROWS)),
    }


def shifted(rows: Sequence[Row]) -> Source:
    """Return what gives stretches of a stream, which goes on from its beginning where it ends."""

    def stretch(seed: int) -> Sequence[Row]:
        start = int(Coin(seed, START).draw(0) * len(rows))
        return [rows[(start + number) % len(rows)] for number in range(min(ROWS, len(rows)))]

    return stretch


def rows_of(stream: Iterable[tuple[Mapping[Any, Any], Any]]) -> list[Row]:
    """Return the rows of a stream of River's."""
    return [Row({str(name): float(value) for name, value in x.items()}, str(y)) for x, y in stream]


def run(rows: Sequence[Row], kind: str, oracle: Oracle, seed: int) -> Iterator[Check]:
    """Simulate once, and yield what was estimated."""
    plan, model = SamplingPlan(BudgetPlan(RATE), seed=seed), presets.build(kind, parameters={}, seed=seed)
    right: dict[str, list[bool]] = {str(row.label): [] for row in rows}
    simulator = Simulator(plan, model, oracle, sorted(right))
    for number, row in enumerate(rows):
        right[str(row.label)].append(best_label(simulator.step(number, row).prediction) == row.label)
    found, truth = simulator.estimator.estimate(), simulator.scores.summary()
    for measure, estimate in found.measures.items():
        yield Check(measure, estimate, found.naive[measure], truth[measure] or 0.0)
    for label, estimate in found.recall.items():
        yield Check("recall", estimate, None, fmean(right[label]))


def stopping(stream: Path, repeats: int) -> Sequence[Mapping[str, Any]]:
    """Make `STOPPING_RUNS` runs, whatever `repeats` says, and ask at the `LOOKS` whether labels still pay."""
    found = sources(stream)
    cells = list(product(found, MODELS, SHARES))
    said: dict[str, list[tuple[float, Improvement]]] = defaultdict(list)
    for seed in track(range(STOPPING_RUNS), "runs", console=Console(stderr=True)):
        name, model, explore = cells[seed % len(cells)]
        for truth, gain in looks(found[name](seed), model, explore, seed):
            said[[group for least, group in GAINS if truth >= least][-1]].append((truth, gain))
    return [{"true gain, points": group} | verdicts(said[group]) for _, group in GAINS if said[group]]


def drawn(stream: Path, repeats: int) -> Sequence[Mapping[str, Any]]:
    """Draw the audit labels of models that are right with given chances, `DRAWN` times, whatever `repeats` says."""
    found = []
    for (before, after), count in track(list(product(CHANCES, AUDIT_LABELS)), "chances", console=Console(stderr=True)):
        random = Random(f"{before} {after} {count}")
        gains = [
            improvement(audited(before, count // 2, random), audited(after, count // 2, random), 0)
            for _ in range(DRAWN)
        ]
        said = verdicts([(after - before, gain) for gain in gains if gain])
        found.append({"accuracy": f"{before:g} to {after:g}", "audit labels": count} | said)
    return found


def audited(chance: float, count: int, random: Random) -> Estimate:
    """Return the accuracy that so many audit labels show, one in 400 instances, of a model right with a chance."""
    right = sum(random.random() < chance for _ in range(count))
    labels = [Asked(0, True, False, 1.0, label="a", guess="a" if number < right else "b") for number in range(count)]
    low, high = accuracy_interval(right / count, [Stratum(400 * count, count, [(1.0, asked) for asked in labels])])
    return Estimate(right / count, low, high, count)


def verdicts(said: Sequence[tuple[float, Improvement]]) -> dict[str, Any]:
    """Return how often each was said, and how often an interval that includes zero would have been enough to stop."""
    return {
        "looks": len(said),
        "covered": round(fmean(gain.low <= truth <= gain.high for truth, gain in said), 3),
        **{
            name: round(fmean(gain.pays is verdict for _, gain in said), 3)
            for name, verdict in (("still pay", True), ("no longer", False), ("not told", None))
        },
        "includes 0": round(fmean(gain.low <= 0.0 for _, gain in said), 3),
    }


def looks(rows: Sequence[Row], kind: str, explore: float, seed: int) -> Iterator[tuple[float, Improvement]]:
    """Simulate once, and yield at each look the true gain of the later half, and what is estimated of it."""
    plan = SamplingPlan(BudgetPlan(STOPPING_RATE), explore=explore, seed=seed)
    model = presets.build(kind, parameters={}, seed=seed)
    simulator = Simulator(plan, model, Oracle(seed=seed), sorted({str(row.label) for row in rows}))
    right: list[bool] = []
    for number, row in enumerate(rows):
        right.append(best_label(simulator.step(number, row).prediction) == row.label)
        if len(right) in LOOKS and (gain := simulator.estimator.estimate().improvement):
            middle = len(right) // 2
            yield fmean(right[middle:]) - fmean(right[:middle]), gain


def line(measure: str, group: str, checks: Sequence[Check]) -> dict[str, Any]:
    """Return what the checks of a group come to; errors are estimate less truth."""
    errors = [check.estimate.value - check.truth for check in checks]
    naive = [check.naive - check.truth for check in checks if check.naive is not None]
    covered = [check.covered for check in checks if check.covered is not None]
    widths = [
        (c.estimate.high - c.estimate.low) / 2
        for c in checks
        if c.estimate.high is not None and c.estimate.low is not None
    ]
    return {
        "measure": measure,
        "runs": group,
        "bias": round(fmean(errors), 3),
        "rms": round(fmean(error**2 for error in errors) ** 0.5, 3),
        "naive": round(fmean(naive), 3) if naive else None,
        "half": round(fmean(widths), 3) if widths else None,
        "intervals": len(covered),
        "covered": round(fmean(covered), 3) if covered else None,
    }
