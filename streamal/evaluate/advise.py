"""Which model, strategy and rate? Chosen on the earlier half of a labelled file, held against the later one.

The search has three steps. All pairs of model and strategy run at one rate; after each seed but the first the worse
half of them is left out (successive halving: Jamieson, Talwalkar, AISTATS 2016). The pair that is chosen runs at each
rate. Then the choice is final, and runs on rows that it was not chosen by: the figure of the winner among many is too
good on the rows that made it win.

Seeds draw the coin, and shift the start of the stream, since a rule without chance would be the same in all of them.
They share their rows, so differences are taken seed by seed. One whose 95 % interval (Student's) includes zero is taken
for noise, and then what is listed first is preferred: the caller lists what is configured and what is simpler first.
What the seeds cannot show is how another stream would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, Final, Literal, NamedTuple

from streamal.evaluate.simulate import Simulation, measure_of

Half = Literal["earlier", "later"]

SEEDS: Final = 5
"""Runs of each finalist by default: Student's quantile is then 2.8, with 3 it would be 4.3."""
HELD: Final = 5
"""Runs of each seed besides the search: full supervision, and on the later half that, the choice, random, runner-up."""
ALL_RUN: Final = 2
"""Seeds that every pair runs with: one alone left out pairs that were among the best of five."""
KEPT: Final = 2
"""Pairs that stay in the search at least, so that there is a runner-up."""
NEARLY: Final = 0.95
"""Share of full supervision's score at which more labels are no longer advised; the field's usual mark."""
LEAST_ROWS: Final = 200
"""Rows without which nothing is advised: a half has then five labels at 5 %, and twenty at 20 %."""
FEW_ROWS: Final = 4_000
FEW_LABELS: Final = 100
"""Rows, and labels of the chosen runs, below which it is said that they are too few to tell: kappa at 1 % of less than
2,000 rows is noise, and a half has half of the rows."""
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantile of 97.5 % for 1 to 9 degrees of freedom; with more, the last is taken, which is a bit too wide."""


class Candidate(NamedTuple):
    """What may be advised: the model by its kind, the strategy by its name, and labels per instance."""

    model: str
    strategy: str
    rate: float


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried; of pairs of model and strategy what is preferred comes first, of rates the lowest.

    The pairs are compared at `rate`.
    """

    pairs: Sequence[tuple[str, str]]
    rates: Sequence[float]
    rate: float
    seeds: Sequence[int]

    @property
    def runs(self) -> int:
        """How many runs the search takes, at most.

        >>> Grid([("gaussian_nb", "random"), ("gaussian_nb", "split")], [0.05, 0.1], 0.05, [0, 1, 2]).runs
        24
        """
        running, found = len(self.pairs), 0
        for number, _ in enumerate(self.seeds, start=1):
            found += running
            if number >= ALL_RUN:
                running = min(running, max(KEPT, math.ceil(running / 2)) + 1)
        return found + len(self.seeds) * (len(self.rates) - 1 + HELD)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one thing is than another, seed by seed: the mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, leads: Sequence[float]) -> Difference:
        """Return the mean of several leads with its interval; of one alone nothing is known but itself.

        >>> found = Difference.of([0.02, 0.04, 0.03])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.noise
        (0.03, 0.005, 0.055, False)
        >>> Difference.of([0.02]).noise
        True
        """
        mean = fmean(leads)
        if len(leads) < 2:
            return cls(mean, -math.inf, math.inf)
        half = STUDENT[min(len(leads) - 1, len(STUDENT)) - 1] * stdev(leads) / math.sqrt(len(leads))
        return cls(mean, mean - half, mean + half)

    @property
    def noise(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True, slots=True)
class Trial:
    """The runs of one candidate, one per seed; `scores` are kappa, or for regression the mean absolute error."""

    candidate: Candidate
    asked: float
    scores: tuple[float, ...]
    measure: str

    @classmethod
    def of(cls, candidate: Candidate, runs: Sequence[Simulation]) -> Trial:
        """Sum up the runs of a candidate."""
        measure = measure_of(runs)
        scores = tuple(run.scores[measure] or 0.0 for run in runs)
        return cls(candidate, fmean(run.asked for run in runs), scores, measure)

    @property
    def score(self) -> float:
        """The mean score."""
        return fmean(self.scores)

    @property
    def rank(self) -> float:
        """The mean score, more of which is better."""
        return -self.score if self.measure == "mae" else self.score

    def as_json(self) -> dict[str, Any]:
        """Return the trial as a JSON object."""
        return {**self.candidate._asdict(), "asked": self.asked, self.measure: self.scores}

    def over(self, other: Trial) -> Difference:
        """Return by how much this one is better, over the seeds that both have."""
        sign = -1.0 if self.measure == "mae" else 1.0
        return Difference.of([sign * (a - b) for a, b in zip(self.scores, other.scores, strict=False)])

    def nearly(self, ceiling: Trial) -> bool:
        """Whether it comes within 5 % of full supervision."""
        if self.measure == "mae":
            return NEARLY * self.score <= ceiling.score
        return self.score >= NEARLY * ceiling.score


@dataclass(frozen=True, slots=True)
class Held:
    """What the choice reached on the later half: beside it random sampling with as many labels, and all labels.

    `runner_up` is the second best pair at the same rate, None where there was no other.
    """

    chosen: Trial
    random: Trial
    ceiling: Trial
    runner_up: Trial | None


@dataclass(frozen=True, slots=True)
class Advice:
    """What is advised, and why.

    `pairs` are all pairs of model and strategy at one rate, best first, those with fewer scores left out early.
    `rates` is the chosen pair at each rate, `ceiling` its model with all labels; both on the earlier half. `better` is
    by how much the best pair led the chosen one, which was then preferred for being listed first; None where the best
    one was chosen.
    """

    chosen: Candidate
    pairs: tuple[Trial, ...]
    rates: tuple[Trial, ...]
    ceiling: Trial
    better: Difference | None
    held: Held
    rows: int

    @property
    def steps(self) -> tuple[Difference, ...]:
        """What each further rate buys over the one before."""
        return tuple(more.over(less) for less, more in pairwise(self.rates))

    @property
    def doubts(self) -> list[str]:
        """What speaks against relying on it, in sentences."""
        found = []
        if self.rows < FEW_ROWS or self.held.chosen.asked < FEW_LABELS:
            found.append(
                f"The sample is too small to tell: {self.rows:,} rows, and {self.held.chosen.asked:,.0f} labels in a "
                f"half; expected {FEW_ROWS:,} rows and {FEW_LABELS} labels at least. Take it as a guess."
            )
        if self.held.chosen.over(self.held.random).noise and self.chosen.strategy != "random":
            found.append(
                "On the later half the strategy's lead over random sampling with as many labels is within noise: what "
                "you gain is not more than that interval says."
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything as one JSON object."""

        def shown(trial: Trial | None) -> dict[str, Any] | None:
            return trial.as_json() if trial else None

        held = self.held
        return {
            **self.chosen._asdict(),
            "rows": self.rows,
            "pairs": [shown(trial) for trial in self.pairs],
            "rates": [shown(trial) for trial in self.rates],
            "steps": [asdict(step) for step in self.steps],
            "ceiling": shown(self.ceiling),
            "better": self.better and asdict(self.better),
            "held_out": {name: shown(getattr(held, name)) for name in ("chosen", "random", "ceiling", "runner_up")},
            "lead_over_random": asdict(held.chosen.over(held.random)),
            "doubts": self.doubts,
        }


class Trials:
    """Runs each candidate once: `run` takes a candidate, a seed and the half of the file.

    `control` takes such a run as well, and gives random sampling with as many labels.
    """

    def __init__(
        self,
        run: Callable[[Candidate, int, Half], Simulation],
        control: Callable[[Candidate, int, Half, Simulation], Simulation],
    ) -> None:
        self._run = run
        self._control = control
        self._known: dict[tuple[Candidate, int, Half], Simulation] = {}

    def run(self, candidate: Candidate, seeds: Sequence[int], half: Half = "earlier") -> Trial:
        """Return the runs of a candidate."""
        return Trial.of(candidate, [self._one(candidate, seed, half) for seed in seeds])

    def control(self, candidate: Candidate, seeds: Sequence[int], half: Half) -> Trial:
        """Return random sampling with as many labels, seed by seed."""
        runs = [self._control(candidate, seed, half, self._one(candidate, seed, half)) for seed in seeds]
        return Trial.of(candidate._replace(strategy="random"), runs)

    def _one(self, candidate: Candidate, seed: int, half: Half) -> Simulation:
        key = candidate, seed, half
        if key not in self._known:
            self._known[key] = self._run(*key)
        return self._known[key]


def advise(grid: Grid, trials: Trials, rows: int) -> Advice:
    """Search the grid and return what is advised for a file of so many rows."""
    seeds = grid.seeds
    pairs = [Candidate(model, strategy, grid.rate) for model, strategy in grid.pairs]
    tried = search(pairs, trials, seeds)
    best = tried[0]
    finalists = [trial for trial in tried if len(trial.scores) == len(seeds)]
    preferred = min(
        (trial for trial in finalists if trial is best or best.over(trial).noise),
        key=lambda trial: pairs.index(trial.candidate),
    )
    model, strategy, _ = preferred.candidate
    ladder = tuple(trials.run(Candidate(model, strategy, rate), seeds) for rate in grid.rates)
    everything = Candidate(model, "random", 1.0)
    ceiling = trials.run(everything, seeds)
    chosen = enough(ladder, ceiling).candidate
    second = next((trial for trial in finalists if trial is not preferred), None)
    held = Held(
        chosen=trials.run(chosen, seeds, "later"),
        random=trials.control(chosen, seeds, "later"),
        ceiling=trials.run(everything, seeds, "later"),
        runner_up=second and trials.run(second.candidate._replace(rate=chosen.rate), seeds, "later"),
    )
    better = None if preferred is best else best.over(preferred)
    return Advice(chosen, tuple(tried), ladder, ceiling, better, held, rows)


def search(pairs: Sequence[Candidate], trials: Trials, seeds: Sequence[int]) -> list[Trial]:
    """Run the pairs, half of them no further after each seed; returns all, those with the most seeds and best first.

    The pair that is listed first stays, so that it can be preferred.
    """
    found: list[Trial] = []
    running = list(pairs)
    for number in range(1, len(seeds) + 1):
        ranked = sorted((trials.run(pair, seeds[:number]) for pair in running), key=lambda t: t.rank, reverse=True)
        last = number == len(seeds)
        kept = len(ranked) if number < ALL_RUN else max(KEPT, math.ceil(len(ranked) / 2))
        stay = [trial for place, trial in enumerate(ranked) if place < kept or trial.candidate == pairs[0]]
        found = [*(trial for trial in ranked if last or trial not in stay), *found]
        running = [trial.candidate for trial in stay]
    return found


def enough(ladder: Sequence[Trial], ceiling: Trial) -> Trial:
    """Return the lowest rate that nearly reaches full supervision, or that no higher one beats beyond noise."""
    for place, trial in enumerate(ladder):
        more = [higher.over(trial) for higher in ladder[place + 1 :]]
        if trial.nearly(ceiling) or all(step.low <= 0.0 for step in more):
            break
    return trial
