"""Drift: how soon it is found and how often where there is none, what adapting to it gains, and what looking costs.

The synthetic streams change at once, in their middle: `flipped` has its two classes the other way round, `turned`
another boundary, and in `moved` only a feature moves; `steady` has no drift, so all that is told of it is false.
Streams of files have whatever they have: each seed begins at a later row of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean, median, stdev
from typing import Any, Final, NamedTuple

from benchmarks.decisions import cut
from benchmarks.measure import Spread, electricity, rounds
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.stream import Row, read
from streamal.events import DriftDetected, Event, InstancesDecided, ModelReplaced, MomentsTaken, RequestResolved
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets
from streamal.learning.drift import Heard, StreamWatch, WatchedModel
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import Instance, Moments, Outcome
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan

RATE: Final = 0.05
ROWS: Final = 20_000
"""Of a synthetic stream; its drift comes half-way."""
FEATURES: Final = 6
NOISE: Final = 0.05
MOVED: Final = 2.0
"""Standard deviations by which one feature moves."""
LATER: Final = 500
"""Rows by which each seed begins later in a stream of a file."""
MODELS: Final = ("logistic_regression", "gaussian_nb", "hoeffding_tree")
STREAMS: Final = ("flipped", "turned", "moved", "steady")
SOURCES: Final[Mapping[str, Heard]] = {
    "errors of answers": "answers",
    "errors of exploration": "exploration",
    "utilities": "answers",
    "features": "answers",
}
BATCH: Final = 100


class Course(NamedTuple):
    """What became of a run: its kappa, and what was told at which row."""

    kappa: float
    told: Sequence[Event]


def synthetic(kind: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a synthetic stream."""
    random = Random(seed)
    first = [random.gauss(0.0, 1.0) for _ in range(FEATURES)]
    second = {"flipped": [-w for w in first], "turned": [random.gauss(0.0, 1.0) for _ in first]}.get(kind, first)
    for number in range(ROWS):
        changed = number >= ROWS // 2
        x = [random.gauss(0.0, 1.0) for _ in first]
        if kind == "moved" and changed:
            x[0] += MOVED
        above = sum(w * v for w, v in zip(second if changed else first, x, strict=True)) > 0.0
        yield Row({f"f{at}": v for at, v in enumerate(x)}, "ab"[above != (random.random() < NOISE)])


def streams(stream: Path) -> dict[str, Sequence[Row]]:
    """Return the streams of files: Electricity, or those in a folder."""
    if stream.is_dir():
        return {
            path.name.partition(".")[0]: list(read(path, label="target")) for path in sorted(stream.glob("*.csv.gz"))
        }
    return {"electricity": electricity(stream)}


def run(rows: Sequence[Row], model: Model, seed: int) -> Course:
    """Let a sampler decide on rows whose labels come at once; a second goes by from one to the next."""
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(RATE), seed=seed, serve=True)], Fold(model))
    sampler.open(0, Handover())
    watch, scores, written, told = StreamWatch(utilities=True, features=True), Prequential(), 0, list[Event]()
    for number, row in enumerate(rows):
        now = float(number)
        events = sampler.see(0, [Instance(number, now, str(number), row.features, label=row.label)], now)
        events += sampler.tick(now)
        for event in events:
            told += watch.observe(event, now)
            if isinstance(event, InstancesDecided):
                scores.score(event.predictions[0], row.label)
            elif isinstance(event, RequestResolved | MomentsTaken):
                record: Outcome | Moments = event.outcome if isinstance(event, RequestResolved) else event.moments
                told += sampler.fold([(written, record)])
                written += 1
    return Course(scores.summary()["kappa"] or 0.0, told)


def detection(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure delays and false alarms on the synthetic streams; `stream` plays no part."""
    found = []
    for kind, name in product(STREAMS, MODELS):
        courses = {
            heard: [
                run(
                    list(synthetic(kind, seed)),
                    WatchedModel(presets.build(name, parameters={}, seed=seed), heard=heard, gathers=True),
                    seed,
                )
                for seed in range(repeats)
            ]
            for heard in dict.fromkeys(SOURCES.values())
        }
        found += [signals(kind, name, source, courses[heard]) for source, heard in SOURCES.items()]
    return found


def signals(kind: str, model: str, source: str, courses: Sequence[Course]) -> dict[str, Any]:
    """Return what was told of a source, all before the drift being false."""
    turn = ROWS if kind == "steady" else ROWS // 2
    watched = source.partition(" ")[0]
    times = [[e.at for e in course.told if isinstance(e, DriftDetected) and e.source == watched] for course in courses]
    false = sum(at < turn for run_times in times for at in run_times)
    delays = [min(after) for run_times in times if (after := [at - turn for at in run_times if at >= turn])]
    return {
        "stream": kind,
        "model": model,
        "source": source,
        "delay": f"{median(delays):.0f} [{min(delays):.0f}..{max(delays):.0f}]" if delays else "-",
        "found": "-" if kind == "steady" else f"{len(delays)} of {len(courses)}",
        "false_per_10k": round(false / (turn * len(courses)) * 10_000, 2),
    }


def adaptation(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure kappa with active and with passive adaptation; `stream` is Electricity's file, or a folder."""
    found = []
    real = streams(stream)
    for kind, name in product([*STREAMS, *real], MODELS):
        kappas: list[tuple[float, float]] = []
        replaced = 0
        for seed in range(repeats):
            rows = real[kind][seed * LATER :] if kind in real else list(synthetic(kind, seed))
            passive, active = (
                run(
                    rows,
                    WatchedModel(presets.build(name, parameters={}, seed=seed), heard="answers", adapts=adapts),
                    seed,
                )
                for adapts in (False, True)
            )
            kappas.append((passive.kappa, active.kappa))
            replaced += sum(isinstance(event, ModelReplaced) for event in active.told)
        found.append(gain(kind, name, kappas, replaced))
    return found


def gain(kind: str, model: str, kappas: Sequence[tuple[float, float]], replaced: int) -> dict[str, Any]:
    """Return means and deviations over the seeds, and in how many of them active adaptation lost."""
    passive, active = zip(*kappas, strict=True)
    gains = [after - before for before, after in kappas]
    return {
        "stream": kind,
        "model": model,
        "passive": spread(passive),
        "active": spread(active),
        "gain": spread(gains),
        "worst": round(min(gains), 3),
        "lost": f"{sum(one < 0.0 for one in gains)} of {len(gains)}",
        "replaced": round(replaced / len(gains), 1),
    }


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation.

    >>> spread([0.5, 0.7])
    '0.600 ±0.141'
    """
    return f"{fmean(values):.3f} ±{stdev(values) if len(values) > 1 else 0.0:.3f}"


def cost(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure the CPU per instance of deciding, learning and watching, answers coming at once."""
    rows = [row for _, row in rounds(electricity(stream), ROWS)]
    instances = [Instance(at, at / BATCH, str(at), row.features, label=row.label) for at, row in enumerate(rows)]
    ways: dict[str, tuple[Heard | None, bool, bool]] = {
        "nothing": (None, False, False),
        "errors": ("answers", False, False),
        "errors, utilities": ("answers", True, False),
        "errors, utilities, features": ("answers", True, True),
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (heard, utilities, features) in ways.items():
            model: Model = presets.build("logistic_regression", parameters={}, seed=0)
            if heard is not None:
                model = WatchedModel(model, heard=heard, gathers=features)
            spent[way].append(seconds(instances, model, StreamWatch(utilities=utilities, features=features)))
    least = min(spent["nothing"])
    return [
        {"watched": way, "cpu_us": Spread.of(times), "added_us": round(min(times) - least, 2)}
        for way, times in spent.items()
    ]


def seconds(instances: Sequence[Instance], model: Model, watch: StreamWatch) -> float:
    """Return the CPU time per instance in microseconds."""
    sampler, written = SelectiveSampler([SamplingPlan(BudgetPlan(RATE))], Fold(model)), 0
    sampler.open(0, Handover())
    begun = time.process_time()
    for batch in cut(instances, BATCH):
        now = batch[-1].timestamp
        events = [*sampler.see(0, batch, now), *sampler.tick(now)]
        for event in events:
            watch.observe(event, now)
            if isinstance(event, RequestResolved | MomentsTaken):
                record: Outcome | Moments = event.outcome if isinstance(event, RequestResolved) else event.moments
                sampler.fold([(written, record)])
                written += 1
    return (time.process_time() - begun) / len(instances) * 1e6
