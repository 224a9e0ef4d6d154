"""The cells of the comparison: what each is, how it is run, and the file they are kept in, so that a run can go on.

A cell is one contender on one stream with one model, rate, delay and seed. Each seed begins at another row of the
stream, which is a ring, so that rules without chance vary as well: the starts are spread over all of it, or lie so many
rows apart from the first one on. A line is appended per finished cell; a killed run goes on where the file ends.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from benchmarks.label_efficiency.contenders import FULL, enter
from benchmarks.label_efficiency.peers import Setting
from benchmarks.measure import STREAM
from streamal.errors import ConfigError
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.stream import Row, read
from streamal.learning import presets

MODELS: Final = ("logistic_regression", "gaussian_nb", "hoeffding_tree")
RATES: Final = (0.01, 0.05, 0.1, 0.2)
DELAYS: Final = (0, 100, 1_000)
SEEDS: Final = 5
ROWS: Final = 10_000
SPACING: Final = (5**0.5 - 1) / 2
"""Of a ring, between the starts of two seeds: the golden section spreads any number of them evenly."""
CURVE_POINTS: Final = 25


class Cell(NamedTuple):
    """What identifies a run.

    `rate` is 1 for full supervision, `rows` the most rows of a stream that are used, and `shift` the rows between the
    starts of two seeds, 0 if they are spread over the stream.
    """

    stream: str
    model: str
    contender: str
    rate: float
    delay: int
    seed: int
    rows: int
    shift: int = 0


class Result(NamedTuple):
    """What came of a cell, run with a commit; `curve` is the kappa over all rows so far, at equal distances."""

    cell: Cell
    seen: int
    asked: int
    max_overshoot: float
    scores: Mapping[str, float | None]
    curve: Sequence[float]
    cpu_s: float
    commit: str = ""

    @property
    def kappa(self) -> float:
        """Cohen's kappa over all rows; 0 where it is not defined, as all rows were of one class."""
        return self.scores["kappa"] or 0.0

    @property
    def spent(self) -> float:
        """What was asked in parts of what the rate allows."""
        return self.asked / (self.cell.rate * self.seen)


def find(directory: Path | None) -> dict[str, Path]:
    """Return the streams of a directory by name, or the one that ships with the package.

    Raises:
        ConfigError: there is none.
    """
    if directory is None:
        return {STREAM.name.partition(".")[0]: STREAM}
    found = {path.name.partition(".")[0]: path for path in sorted(directory.glob("*.csv.gz"))}
    if not found:
        message = f"{directory}: expected labelled streams (*.csv.gz, the label in the last column), found none"
        raise ConfigError(message)
    return found


@lru_cache(maxsize=1)
def load(path: Path) -> list[Row]:
    """Return the rows of a stream; its label is the last column."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        label = next(file).rstrip().rpartition(",")[2]
    return list(read(path, label=label))


def ring(rows: Sequence[Row], seed: int, most: int, shift: int = 0) -> list[Row]:
    """Return the rows of a seed: at most so many, from its start on, and each row once.

    >>> ring([10, 11, 12, 13, 14], 0, 3), ring([10, 11, 12, 13, 14], 1, 9)
    ([10, 11, 12], [13, 14, 10, 11, 12])
    >>> ring([10, 11, 12, 13, 14], 3, 2, shift=2)
    [11, 12]
    """
    start = seed * shift % len(rows) if shift else int(seed * SPACING % 1.0 * len(rows))
    return [*rows[start:], *rows[:start]][:most]


def grid(
    streams: Iterable[str],
    models: Sequence[str],
    contenders: Sequence[str],
    rates: Sequence[float],
    delays: Sequence[int],
    seeds: int,
    rows: int,
    shift: int = 0,
) -> Iterator[Cell]:
    """Yield the cells, seed by seed, so that what is there after an interruption can be compared.

    >>> [(cell.contender, cell.rate) for cell in grid(["a"], ["gaussian_nb"], ["random"], [0.1], [0], 1, 9)]
    [('full', 1.0), ('random', 0.1)]
    """
    for seed in range(seeds):
        for stream in streams:
            for model in models:
                for delay in delays:
                    parties = [(FULL, 1.0), *((contender, rate) for contender in contenders for rate in rates)]
                    for contender, rate in parties:
                        yield Cell(stream, model, contender, rate, delay, seed, rows, shift)


def run(cell: Cell, path: Path) -> Result:
    """Run a cell.

    The first `delay` rows are not scored: no answer can have come, so all contenders are silent, and silence, which
    agrees with no label, would draw every kappa towards 0.
    """
    stream = load(path)
    rows = ring(stream, cell.seed, cell.rows, cell.shift)
    classes = sorted({str(row.label) for row in stream})
    setting = Setting(cell.rate, cell.seed, len(classes), len(stream[0].features))
    model = presets.build(cell.model, parameters={}, seed=cell.seed)
    race = enter(cell.contender, setting, model, cell.delay, classes)
    curve: list[float] = []
    begun = time.process_time()
    for number, row in enumerate(rows):
        if number == cell.delay:
            race.scores = Prequential()
        race.take(number, row)
        if (number + 1) * CURVE_POINTS >= (len(curve) + 1) * len(rows):
            curve.append(round(race.scores.summary()["kappa"] or 0.0, 4))
    spent = time.process_time() - begun
    scores = {name: score for name, score in race.scores.summary().items() if score is not None}
    return Result(cell, len(rows), race.asked, race.max_overshoot, scores, curve, round(spent, 3))


def run_all(cells: Sequence[Cell], paths: Mapping[str, Path], jobs: int) -> Iterator[Result]:
    """Yield the results of cells as they are done, from so many processes."""
    if jobs == 1:
        yield from (run(cell, paths[cell.stream]) for cell in cells)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(run, cell, paths[cell.stream]) for cell in cells]
        try:
            yield from (future.result() for future in as_completed(waiting))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def kept(path: Path) -> list[Result]:
    """Return the results in a file, none if it does not exist; a last line that was torn by a kill is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    found = []
    for line in whole.splitlines():
        fields: dict[str, Any] = orjson.loads(line)
        cell = Cell(**{name: fields.pop(name) for name in Cell._fields if name in fields})
        found.append(Result(cell, **fields))
    return found


def keep(results: Iterable[Result], path: Path, commit: str) -> Iterator[Result]:
    """Append results to a file, each as soon as it is there, and pass them on; a torn last line is overwritten.

    `commit` is what they were run with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        for result in (found._replace(commit=commit) for found in results):
            fields = {**result.cell._asdict(), **result._asdict()}
            del fields["cell"]
            file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            yield result
