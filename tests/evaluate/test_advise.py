"""What is advised is the best, or among equals the preferred, and never rests on the rows that it is judged on."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from random import Random

import pytest
from rich.console import Console

from streamal.evaluate import report
from streamal.evaluate.advise import (
    ALL_RUN,
    FEW_LABELS,
    FEW_ROWS,
    STUDENT,
    Advice,
    Candidate,
    Difference,
    Grid,
    Half,
    Trial,
    Trials,
    advise,
    enough,
)
from streamal.evaluate.simulate import Simulation
from streamal.web.status import Estimates

Scores = Callable[[Candidate, int, Half], float]
PAIRS = tuple(product(("lr", "nb", "tree"), ("default", "random", "split")))
GRID = Grid(PAIRS, (0.01, 0.05, 0.1), 0.05, (0, 1, 2, 3, 4))
QUALITY = {"lr": 0.5, "nb": 0.6, "tree": 0.4, "default": 0.1, "random": 0.0, "split": 0.05}
ROWS = 50_000


def noise(candidate: Candidate, seed: int, half: Half) -> float:
    return Random(f"{candidate}{seed}{half}").gauss(0.0, 0.005)


def quality(candidate: Candidate, seed: int, half: Half) -> float:
    """Return a score that grows with the rate, until labels are plenty."""
    model, strategy, rate = candidate
    return (QUALITY[model] + QUALITY[strategy]) * min(1.0, 0.6 + 4.0 * rate) + noise(candidate, seed, half)


class Recorded:
    """Simulations that take no time: their scores are made up, and who was run is kept."""

    def __init__(self, scores: Scores, measure: str = "kappa", rows: int = ROWS) -> None:
        self._scores = scores
        self._measure = measure
        self._rows = rows
        self.runs: list[tuple[Candidate, int, Half]] = []
        self.controls: list[tuple[Candidate, int, Half]] = []
        self.advice = advise(GRID, Trials(self.run, self.control), rows)

    def run(self, candidate: Candidate, seed: int, half: Half) -> Simulation:
        self.runs.append((candidate, seed, half))
        return self._simulation(candidate, seed, self._scores(candidate, seed, half))

    def control(self, candidate: Candidate, seed: int, half: Half, beside: Simulation) -> Simulation:
        self.controls.append((candidate, seed, half))
        assert (beside.strategy, beside.seed) == (candidate.strategy, seed)
        return self._simulation(candidate, seed, self._scores(candidate._replace(strategy="random"), seed, half))

    def _simulation(self, candidate: Candidate, seed: int, score: float) -> Simulation:
        asked = round(candidate.rate * self._rows / 2)
        model, strategy, rate = candidate
        scores = {"kappa": None, "accuracy": None, "mae": None, self._measure: score}
        spent = (self._rows // 2, asked, asked, 0.0, 1.0)
        return Simulation(*spent, scores, Estimates(), strategy, model, rate, seed, 0, asked, 1, asked, 0, 0, None, ())


def test_the_best_pair_is_advised_at_the_rate_that_is_enough() -> None:
    recorded = Recorded(quality)
    found = recorded.advice
    assert found.chosen == Candidate("nb", "default", 0.1)
    assert found.better is None
    assert found.held.runner_up is not None
    assert found.held.runner_up.candidate == Candidate("nb", "split", 0.1)
    assert found.doubts == []
    assert not found.held.chosen.over(found.held.random).noise
    assert [step.noise for step in found.steps] == [False, False]


def test_the_later_half_is_not_looked_at_before_the_choice_and_does_not_change_it() -> None:
    def otherwise(candidate: Candidate, seed: int, half: Half) -> float:
        return quality(candidate, seed, half) if half == "earlier" else -quality(candidate, seed, half)

    one, other = Recorded(quality), Recorded(otherwise)
    assert one.advice.chosen == other.advice.chosen
    assert one.advice.rates == other.advice.rates
    halves = [half for _, _, half in one.runs]
    assert halves == sorted(halves)
    later = {candidate for candidate, _, half in one.runs if half == "later"}
    assert later == {Candidate("nb", "default", 0.1), Candidate("nb", "random", 1.0), Candidate("nb", "split", 0.1)}
    assert {half for _, _, half in one.controls} == {"later"}


def test_among_equals_the_first_is_preferred_and_it_is_said() -> None:
    def equal(candidate: Candidate, seed: int, half: Half) -> float:
        return min(1.0, 0.6 + 4.0 * candidate.rate) + 10 * noise(candidate, seed, half)

    found = Recorded(equal).advice
    assert found.chosen[:2] == ("lr", "default")
    if found.pairs[0].candidate[:2] != ("lr", "default"):
        assert found.better is not None
        assert found.better.noise
    assert any("within noise" in line for line in found.doubts)


def test_each_run_is_made_once_and_bad_pairs_are_left_out_early() -> None:
    recorded = Recorded(quality)
    assert len(recorded.runs) == len(set(recorded.runs))
    assert len(recorded.runs) + len(recorded.controls) <= GRID.runs
    seeds = {trial.candidate[:2]: len(trial.scores) for trial in recorded.advice.pairs}
    assert len(seeds) == 9
    assert seeds["nb", "default"] == seeds["lr", "default"] == 5
    assert seeds["tree", "random"] == min(seeds.values()) == ALL_RUN
    assert len(recorded.runs) < 0.8 * GRID.runs + 9 * 5


def test_an_error_is_the_better_the_smaller() -> None:
    found = Recorded(lambda candidate, seed, half: 2.0 - quality(candidate, seed, half), measure="mae").advice
    assert found.chosen[:2] == ("nb", "default")
    assert found.ceiling.measure == "mae"
    assert all(step.mean > 0.0 for step in found.steps)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [((0.2, 0.5, 0.79), 2), ((0.2, 0.77, 0.79), 1), ((0.5, 0.5, 0.5), 0), ((0.5, 0.5, 0.6), 2), ((0.8, 0.8, 0.8), 0)],
)
def test_a_rate_is_enough_that_nearly_reaches_all_labels_or_that_no_higher_one_beats(
    scores: tuple[float, ...], chosen: int
) -> None:
    def trial(score: float, rate: float) -> Trial:
        return Trial(Candidate("m", "s", rate), 10.0, tuple(score + shift for shift in (0.0, 0.01, -0.01)), "kappa")

    ladder = [trial(score, rate) for score, rate in zip(scores, (0.01, 0.02, 0.04), strict=True)]
    assert enough(ladder, trial(0.8, 1.0)) is ladder[chosen]


@pytest.mark.parametrize("rows", [FEW_ROWS - 1, FEW_ROWS, ROWS])
def test_a_small_sample_is_told(rows: int) -> None:
    found = Recorded(quality, rows=rows).advice
    assert any("too small to tell" in line for line in found.doubts) == (rows < FEW_ROWS)
    assert found.held.chosen.asked >= FEW_LABELS or rows < FEW_ROWS


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    random = Random(0)
    for count in (2, 5, 10):
        drawn = [Difference.of([random.gauss(0.1, 1.0) for _ in range(count)]) for _ in range(1_000)]
        held = sum(one.low <= 0.1 <= one.high for one in drawn) / len(drawn)
        assert held == pytest.approx(0.95, abs=0.02)
    assert len(STUDENT) == 9


@pytest.mark.parametrize("measure", ["kappa", "mae"])
def test_the_report_fits_80_columns_and_has_the_evidence(measure: str) -> None:
    text = rendered(Recorded(quality, measure).advice)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in (measure, "random, as many labels", "all labels", "Advice: ", "25,000 rows"):
        assert part in text
    assert text.count("±") > 12


def rendered(advice: Advice) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report.advice(advice))
    return captured.get()


def test_the_json_has_the_evidence() -> None:
    found = json.loads(json.dumps(Recorded(quality).advice.as_json()))
    assert (found["model"], found["strategy"], found["rate"]) == ("nb", "default", 0.1)
    assert len(found["rates"]) == 3
    assert len(found["pairs"]) == 9
    assert found["held_out"]["random"]["asked"] == found["held_out"]["chosen"]["asked"]
    assert found["lead_over_random"]["low"] > 0.0
