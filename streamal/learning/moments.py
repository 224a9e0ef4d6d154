"""Count, mean and spread of each numeric feature over all instances, labelled or not, in a form that can be merged.

A scaler that only sees labelled rows sees a selected, biased sample. So each owner of a partition gathers the moments
of all its rows and puts them on the log now and then; every worker merges them into its model in the same order, and
the model stays a function of the log. Merging is Chan's formula; within a stretch the sums are shifted by the column's
first value, so a large mean does not eat the spread. Stretches begin at the last `take` and have `STRETCH` instances
however these came in, so that a replay gets the same floats.

Chan, Golub, LeVeque 1983: Algorithms for computing the sample variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import Final

from streamal.messages import Features, Moment, Value

MAX_NAMES: Final = 1_000
"""Distinct names gathered between two `take`s; a stream of random names then costs a bounded record, not the memory."""

STRETCH: Final = 128
"""Instances summed at once: more would cost less each, and keep more features in memory."""
COLUMN_ROWS: Final = 8
"""From this many rows on, summing columns in C is cheaper than updating row by row."""

REAL: Final = frozenset({int, float})


def merge_moments(a: Moment, b: Moment) -> Moment:
    """Return the moment of the instances of both.

    >>> merge_moments(Moment(2, 1.0, 2.0), Moment(1, 4.0, 0.0))
    Moment(size=3, mean=2.0, deviation=8.0)
    """
    count = a.size + b.size
    if not count:
        return a
    delta = b.mean - a.mean
    share = b.size / count
    return Moment(count, a.mean + delta * share, a.deviation + b.deviation + delta * delta * a.size * share)


class MomentAccumulator:
    """The moments of the numeric features (not booleans) of all instances added since the last `take`.

    >>> gathered = MomentAccumulator()
    >>> gathered.add([{"x": 1.0, "city": "Oslo"}, {"x": 3.0, "city": None}])
    >>> gathered.count, gathered.take(), gathered.count
    (2, {'x': Moment(size=2, mean=2.0, deviation=2.0)}, 0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[Features] = []
        self._moments: dict[str, Moment] = {}

    def add(self, batch: Sequence[Features]) -> None:
        """Add instances; called for every batch that is decided."""
        self.count += len(batch)
        waiting = self._waiting
        waiting += batch
        whole = len(waiting) - len(waiting) % STRETCH
        for start in range(0, whole, STRETCH):
            self._add_stretch(waiting[start : start + STRETCH])
        del waiting[:whole]

    def _add_stretch(self, batch: Sequence[Features]) -> None:
        if len(batch) < COLUMN_ROWS:
            self._add_rows(batch)
            return
        names = tuple(batch[0])
        if all(tuple(row) == names for row in batch):
            for name, column in zip(names, zip(*[row.values() for row in batch], strict=True), strict=True):
                self._add_column(name, column)
        else:
            self._add_rows(batch)

    def take(self) -> dict[str, Moment]:
        """Return what was gathered, and begin anew."""
        if self._waiting:
            self._add_stretch(self._waiting)
            self._waiting = []
        taken = self._moments
        self._moments = {}
        self.count = 0
        return taken

    # What is ignored below mypy cannot see: types tested against REAL are numbers, and a `cast` would be a call each.

    def _add_column(self, name: str, column: Sequence[Value]) -> None:
        values = column if REAL.issuperset(map(type, column)) else [value for value in column if type(value) in REAL]
        if not values:
            return
        first: float = values[0]  # type: ignore[assignment]
        shifted: list[float] = [value - first for value in values]  # type: ignore[operator]
        count = len(shifted)
        total = sum(shifted)
        spread = sum(map(mul, shifted, shifted)) - total * total / count
        self._merge(name, Moment(count, first + total / count, max(spread, 0.0)))

    def _add_rows(self, batch: Sequence[Features]) -> None:
        moments = self._moments
        for row in batch:
            for name, value in row.items():
                if type(value) not in REAL:
                    continue
                if name in moments:
                    count, mean, deviation = moments[name]
                    delta: float = value - mean  # type: ignore[operator]
                    count += 1
                    mean += delta / count
                    moments[name] = Moment(count, mean, deviation + delta * (value - mean))  # type: ignore[operator]
                elif len(moments) < MAX_NAMES:
                    moments[name] = Moment(1, float(value), 0.0)  # type: ignore[arg-type]

    def _merge(self, name: str, moment: Moment) -> None:
        if name in self._moments:
            self._moments[name] = merge_moments(self._moments[name], moment)
        elif len(self._moments) < MAX_NAMES:
            self._moments[name] = moment
