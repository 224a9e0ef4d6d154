"""Features as standardised vectors, for strategies that measure distances.

Numbers and booleans count; strings do not. Each column is scaled by the mean and deviation of its last values, and a
missing value stands at the mean. Columns are admitted in the order in which they are first met, up to `MOST_COLUMNS`.
All sums run over the columns one after another, never in the order that suits a processor: a replay elsewhere gets the
same floats.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamal.messages import MAX_NUMBER, Features

MOST_COLUMNS: Final = 256
"""Each costs its part of every distance; later ones are left out."""
MOST_DEVIATIONS: Final = 10.0
"""Values are kept within so many deviations, as in the models' scaling: one outlier must not be all of a distance."""
HORIZON: Final = 1_000.0
"""From so many values on, a column's mean and deviation are exponential averages, to which each new value adds its
thousandth: so the scale follows a drift, and a new owner finds nearly the same one in the warm-up."""
FLAT: Final = 1e-9
"""A deviation that is this small a part of the mean is rounding, not spread; the column counts as constant."""
NUMBERS: Final = frozenset({float, int, bool, type(None)})
"""What an array takes as it is; None becomes NaN."""

Vector = np.ndarray[Any, np.dtype[np.float64]]


def squared_distances(points: Vector, vector: Vector) -> Vector:
    """Return the squared distance of a vector to each point; shapes (columns, points) and (columns,) to (points,).

    >>> squared_distances(np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([1.0, 1.0])).tolist()
    [2.0, 4.0]
    """
    off = np.subtract(points, vector[:, None], order="C")
    off *= off
    total: Vector = np.add.reduce(off)
    return total


def widened(points: Vector, columns: int, fill: float) -> Vector:
    """Return points of shape (some columns, points) with as many columns as are known now.

    >>> widened(np.ones((1, 2)), 2, 0.0).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if len(points) == columns:
        return points
    return np.vstack([points, np.full((columns - len(points), points.shape[1]), fill)])


class Standardiser:
    """Turns features into vectors; only `add` changes it. Memory: four numbers for each column, and the last instance.

    >>> scale = Standardiser()
    >>> for x in (1.0, 2.0, 3.0): scale.add({"x": x, "city": "Oslo"})
    >>> scale.vector({"x": 2.0}).tolist(), scale.vector({}).tolist()
    ([0.0], [0.0])
    """

    __slots__ = ("_columns", "_inverse", "_last", "_mean", "_seen", "_variance")

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._seen = np.zeros(0)
        self._mean = np.zeros(0)
        self._variance = np.zeros(0)
        self._inverse = np.zeros(0)
        self._last: tuple[Features, Vector] = {}, np.zeros(0)

    @property
    def width(self) -> int:
        """The number of columns so far."""
        return len(self._columns)

    def raw(self, features: Features) -> Vector:
        """Return the numbers of an instance in the order of the columns, NaN where one is missing.

        The array is kept for the next call about the same instance, so it is not to be changed.
        """
        last, raw = self._last
        if last is features and len(raw) == len(self._columns):
            return raw
        found = list(map(features.get, self._columns))
        if not NUMBERS.issuperset(map(type, found)):
            found = [value if isinstance(value, int | float) else None for value in found]
        raw = np.array(found, dtype=np.float64)
        np.maximum(raw, -MAX_NUMBER, out=raw)
        np.minimum(raw, MAX_NUMBER, out=raw)
        self._last = features, raw
        return raw

    def scale(self, raw: Vector) -> Vector:
        """Return raw numbers in deviations from the mean; rows that were made with fewer columns are not accepted."""
        found: Vector = (raw - self._mean) * self._inverse
        np.copyto(found, 0.0, where=found != found)
        np.maximum(found, -MOST_DEVIATIONS, out=found)
        return np.minimum(found, MOST_DEVIATIONS, out=found)

    def vector(self, features: Features) -> Vector:
        """Return the standardised vector of an instance; shape (columns,)."""
        return self.scale(self.raw(features))

    def add(self, features: Features) -> None:
        """Take in an instance: its columns, and its numbers into mean and deviation.

        Welford's recurrence, which becomes an exponential average once `HORIZON` values of a column were seen.
        """
        if not features.keys() <= self._columns.keys():
            self._admit(features)
        off = self.raw(features) - self._mean
        known = off == off
        np.copyto(off, 0.0, where=~known)
        self._seen += known
        np.minimum(self._seen, HORIZON, out=self._seen)
        share = known / np.maximum(self._seen, 1.0)
        step = off * share
        self._mean += step
        off *= off - step
        self._variance += (off - self._variance) * share
        spread = np.sqrt(self._variance)
        self._inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > FLAT * np.abs(self._mean))

    def _admit(self, features: Features) -> None:
        """Give a column to each name that comes with a number for the first time."""
        for name, value in features.items():
            if name not in self._columns and isinstance(value, int | float) and len(self._columns) < MOST_COLUMNS:
                self._columns[name] = len(self._columns)
        if len(self._columns) == len(self._mean):
            return
        self._seen, self._mean, self._variance, self._inverse = (
            np.append(found, np.zeros(len(self._columns) - len(found)))
            for found in (self._seen, self._mean, self._variance, self._inverse)
        )
