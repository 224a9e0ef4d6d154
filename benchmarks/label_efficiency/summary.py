"""What the cells say, in figures: means with spreads, ranks, labels needed, wins, and what was spent.

A block is a stream with a model, a rate and a delay. Only blocks count in which every contender has run with the same
seeds. Blocks that share a stream are not independent, so tests over blocks are optimistic; the same tests over whole
streams, of which there are few, are the cautious bound.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean, stdev
from typing import Final, NamedTuple

from scipy.stats import friedmanchisquare, rankdata, studentized_range

from benchmarks.label_efficiency.cells import MODELS, Result
from benchmarks.label_efficiency.contenders import FULL
from streamal.errors import ConfigError

GOAL: Final = 0.95
"""Of full supervision's kappa, whose labels are counted."""
LEARNABLE: Final = 0.1
"""Kappa that full supervision has to reach for its labels to be counted: a part of almost nothing is noise."""
LEVEL: Final = 0.05


class Block(NamedTuple):
    """Where contenders meet."""

    stream: str
    model: str
    rate: float
    delay: int


class Estimate(NamedTuple):
    """A mean with the standard deviation of what it is the mean of."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Return the mean and deviation of values, 0 for a single one.

        >>> Estimate.of([1.0, 3.0])
        Estimate(mean=2.0, deviation=1.4142135623730951)
        """
        known = list(values)
        return cls(fmean(known), stdev(known) if len(known) > 1 else 0.0)


class Ranks(NamedTuple):
    """Mean ranks over some blocks, 1 the best, with Friedman's p-value and Nemenyi's critical difference at 5 %."""

    mean: Mapping[str, float]
    blocks: int
    p: float
    critical: float


class Needed(NamedTuple):
    """Labels for `GOAL`: how many times fewer than the reference, and of how many streams.

    `bounds` counts the streams where one of both needs no more than at its lowest rate; there that is what counts. Left
    out are streams where one of both never asks at its lowest rate.
    """

    ratio: float
    streams: int
    bounds: int


class Duel(NamedTuple):
    """Runs on the same stream, model, rate, delay and seed: shares won and tied, and by how much in kappa.

    `streams` are the mean differences of the streams.
    """

    won: float
    tied: float
    difference: float
    streams: Mapping[str, float]


class Spending(NamedTuple):
    """What was asked in parts of what the rate allows, and the largest excess over the bound, in labels."""

    mean: float
    least: float
    most: float
    overshoot: float


@dataclass(frozen=True)
class Summary:
    """The comparable part of some results; `runs` are in the order of `seeds`."""

    contenders: tuple[str, ...]
    blocks: tuple[Block, ...]
    seeds: tuple[int, ...]
    rows: int
    shift: int
    runs: Mapping[tuple[Block, str], Sequence[Result]]

    @classmethod
    def of(cls, results: Iterable[Result], rows: int | None = None, shift: int = 0) -> Summary:
        """Return what can be compared of the runs with these starts.

        `rows` chooses among runs of several lengths, the longest ones by default.

        Raises:
            ConfigError: nothing can.
        """
        found: dict[tuple[Block, str], dict[int, Result]] = defaultdict(dict)
        known = [result for result in results if result.cell.shift == shift]
        rows = rows or max((result.cell.rows for result in known), default=0)
        for result in known:
            cell = result.cell
            if cell.rows == rows:
                found[Block(cell.stream, cell.model, cell.rate, cell.delay), cell.contender][cell.seed] = result
        contenders = sorted({contender for _, contender in found} - {FULL})
        seeds: dict[Block, set[int]] = {}
        for block in sorted({block for block, contender in found if contender != FULL}):
            parties = [*((block, contender) for contender in contenders), (block._replace(rate=1.0), FULL)]
            if shared := set.intersection(*(set(found.get(party, ())) for party in parties)):
                seeds[block] = shared
        if not seeds:
            message = (
                f"of {len(known)} cells none can be compared: expected every contender on some stream with the same "
                "model, rate, delay and seed; go on with `run`, or choose contenders that have run by --strategy"
            )
            raise ConfigError(message)
        every = sorted(set.intersection(*seeds.values()))
        kept = {*seeds, *(block._replace(rate=1.0) for block in seeds)}
        runs = {
            party: [by_seed[seed] for seed in every]
            for party, by_seed in found.items()
            if party[0] in kept and set(every) <= set(by_seed)
        }
        return cls(tuple(contenders), tuple(seeds), tuple(every), rows, shift, runs)

    def kappa(self, block: Block, contender: str) -> float:
        """Return the mean kappa of a block over the seeds; that of full supervision is the same at every rate."""
        return fmean(run.kappa for run in self.runs_of(block, contender))

    def runs_of(self, block: Block, contender: str) -> Sequence[Result]:
        """Return the runs of a contender, one per seed."""
        return self.runs[block._replace(rate=1.0) if contender == FULL else block, contender]

    def sets(self) -> list[tuple[str, int]]:
        """Return the models with their delays, in the order of the tables."""
        found = {(block.model, block.delay) for block in self.blocks}
        return sorted(found, key=lambda pair: (MODELS.index(pair[0]), pair[1]))

    @property
    def commits(self) -> list[str]:
        """What the runs were made with, a commit for each part of them."""
        return sorted({run.commit or "unknown" for runs in self.runs.values() for run in runs})

    def only(self, model: str, delay: int) -> Summary:
        """Return the part with one model and one delay."""
        return replace(self, blocks=tuple(self.where(model=model, delay=delay)))

    def where(self, **parts: object) -> list[Block]:
        """Return the blocks with these parts."""
        return [block for block in self.blocks if all(getattr(block, name) == part for name, part in parts.items())]

    def mean(self, contender: str, blocks: Iterable[Block] | None = None) -> Estimate:
        """Return the mean kappa over blocks, all by default, with its deviation over the seeds."""
        runs = [self.runs_of(block, contender) for block in (self.blocks if blocks is None else blocks)]
        return Estimate.of(fmean(run.kappa for run in of_seed) for of_seed in zip(*runs, strict=True))

    def by_kappa(self, contenders: Iterable[str]) -> list[str]:
        """Return contenders by their mean kappa, the best first."""
        return sorted(contenders, key=lambda contender: -self.mean(contender).mean)

    def spending(self, contender: str) -> Spending:
        """Return what a contender spent."""
        runs = [run for block in self.blocks for run in self.runs_of(block, contender)]
        spent = [run.spent for run in runs]
        return Spending(fmean(spent), min(spent), max(spent), max(run.max_overshoot for run in runs))

    def ranks(self, contenders: Sequence[str], part: Callable[[Block], object] = lambda block: block) -> Ranks:
        """Rank contenders by their mean kappa over the blocks of each part; ties share their ranks."""
        parts: dict[object, list[Block]] = defaultdict(list)
        for block in self.blocks:
            parts[part(block)].append(block)
        table = [
            [fmean(self.kappa(block, contender) for block in blocks) for contender in contenders]
            for blocks in parts.values()
        ]
        ranked = rankdata([[-kappa for kappa in row] for row in table], axis=1)
        enough = len(contenders) > 2 and len(table) > 1
        p = float(friedmanchisquare(*zip(*table, strict=True)).pvalue) if enough else math.nan
        mean = dict(zip(contenders, ranked.mean(axis=0).tolist(), strict=True))
        return Ranks(mean, len(table), p, critical_difference(len(contenders), len(table)))

    def needed(self, contender: str, reference: str, model: str, delay: int) -> Needed:
        """Compare the labels that two contenders need, as a geometric mean over the streams."""
        ratios, bounds = [], 0
        for stream in {block.stream for block in self.where(model=model, delay=delay)}:
            curves = [self._curve(each, stream, model, delay) for each in (contender, reference)]
            goal = GOAL * curves[0][-1][1]
            if goal >= GOAL * LEARNABLE and all(curve[0][0] > 0.0 for curve in curves):
                own, other = (labels_for(goal, curve) for curve in curves)
                ratios.append(other / own)
                bounds += any(curve[0][1] >= goal for curve in curves)
        return Needed(geometric_mean(ratios) if ratios else math.nan, len(ratios), bounds)

    def _curve(self, contender: str, stream: str, model: str, delay: int) -> list[tuple[float, float]]:
        """Return labels and kappa at each rate, and full supervision at last."""
        blocks = sorted(self.where(stream=stream, model=model, delay=delay))
        parties = [*((block, contender) for block in blocks), (blocks[-1], FULL)]
        return [(fmean(run.asked for run in self.runs_of(*party)), self.kappa(*party)) for party in parties]

    def duel(self, contender: str, other: str) -> Duel:
        """Compare two contenders run by run."""
        streams: dict[str, list[float]] = defaultdict(list)
        for block in self.blocks:
            pairs = zip(self.runs_of(block, contender), self.runs_of(block, other), strict=True)
            streams[block.stream] += [one.kappa - another.kappa for one, another in pairs]
        every = [difference for of_stream in streams.values() for difference in of_stream]
        return Duel(
            fmean(difference > 0 for difference in every),
            fmean(difference == 0 for difference in every),
            fmean(every),
            {stream: fmean(of_stream) for stream, of_stream in streams.items()},
        )

    def losses(self, contender: str, reference: str) -> Iterator[tuple[Block, Estimate]]:
        """Yield the blocks where a contender is below another on average, the worst first, with the difference."""
        found = {}
        for block in self.blocks:
            pairs = zip(self.runs_of(block, contender), self.runs_of(block, reference), strict=True)
            difference = Estimate.of(one.kappa - another.kappa for one, another in pairs)
            if difference.mean < 0:
                found[block] = difference
        yield from sorted(found.items(), key=lambda item: item[1].mean)


def critical_difference(contenders: int, blocks: int) -> float:
    """Return by how much mean ranks have to differ for two of several contenders to differ at 5 %: Nemenyi's test.

    >>> round(critical_difference(5, 30), 2)
    1.11

    Source: Demsar: Statistical Comparisons of Classifiers over Multiple Data Sets (2006).
    """
    studentised = float(studentized_range.ppf(1.0 - LEVEL, contenders, math.inf))
    return studentised / math.sqrt(2.0) * math.sqrt(contenders * (contenders + 1) / (6.0 * blocks))


def cliques(ranks: Mapping[str, float], critical: float) -> list[tuple[float, float]]:
    """Return the longest stretches of ranks in which no two differ significantly, as first and last rank.

    >>> cliques({"a": 1.0, "b": 1.5, "c": 2.2, "d": 4.0}, 1.0)
    [(1.0, 1.5), (1.5, 2.2)]
    """
    ordered = sorted(ranks.values())
    found: list[tuple[float, float]] = []
    for first in ordered:
        last = max(rank for rank in ordered if rank - first < critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def labels_for(goal: float, curve: Sequence[tuple[float, float]]) -> float:
    """Return how many labels reach a goal: where the curve first crosses it, by interpolation in the logarithm.

    `curve` holds labels and kappa by rising labels. What lies below the first point is not known: where that one
    reaches the goal already, its labels are returned. The last point is expected to reach it.

    >>> round(labels_for(0.5, [(100.0, 0.4), (1000.0, 0.6)]), 1)
    316.2
    >>> labels_for(0.3, [(100.0, 0.4), (1000.0, 0.6)])
    100.0
    """
    before = curve[0]
    for point in curve:
        if point[1] >= goal:
            rise = point[1] - before[1]
            part = (goal - before[1]) / rise if rise > 0 else 1.0
            return float(before[0] * (point[0] / before[0]) ** part)
        before = point
    return before[0]
