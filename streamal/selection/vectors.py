"""Features as standardised vectors, for strategies that measure distances.

Numbers and booleans count; strings do not. Each column is scaled by the mean and deviation of the instances so far, and
a missing value stands at the mean. Columns are admitted in the order in which they are first met, up to `MOST_COLUMNS`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamal.messages import Features

MOST_COLUMNS: Final = 256
"""Each costs its part of every distance; later ones are left out."""
MOST_DEVIATIONS: Final = 10.0
"""Values are kept within so many deviations, as in the models' scaling: one outlier must not be all of a distance."""

Vector = np.ndarray[Any, np.dtype[np.float64]]


class Standardiser:
    """Turns features into vectors; only `add` changes it.

    >>> scale = Standardiser()
    >>> for x in (1.0, 2.0, 3.0): scale.add({"x": x, "city": "Oslo"})
    >>> scale.vector({"x": 2.0}).tolist(), scale.vector({}).tolist()
    ([0.0], [0.0])
    """

    __slots__ = ("_columns", "_deviation", "_inverse", "_mean", "_seen")

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._seen = np.zeros(0)
        self._mean = np.zeros(0)
        self._deviation = np.zeros(0)
        self._inverse = np.zeros(0)

    @property
    def width(self) -> int:
        """The number of columns so far."""
        return len(self._columns)

    def raw(self, features: Features) -> Vector:
        """Return the numbers of an instance in the order of the columns, NaN where one is missing."""
        get = features.get
        found = [get(name) for name in self._columns]
        return np.array([v if isinstance(v, int | float) else np.nan for v in found], dtype=np.float64)

    def scale(self, raw: Vector) -> Vector:
        """Return raw numbers in deviations from the mean; rows that were made with fewer columns are not accepted."""
        found = (raw - self._mean) * self._inverse
        np.nan_to_num(found, copy=False, nan=0.0)
        return np.clip(found, -MOST_DEVIATIONS, MOST_DEVIATIONS, out=found)

    def vector(self, features: Features) -> Vector:
        """Return the standardised vector of an instance; shape (columns,)."""
        return self.scale(self.raw(features))

    def add(self, features: Features) -> None:
        """Take in an instance: its columns, and its numbers into mean and deviation (Welford's recurrence)."""
        for name, value in features.items():
            if name not in self._columns and isinstance(value, int | float) and len(self._columns) < MOST_COLUMNS:
                self._columns[name] = len(self._columns)
        if (missing := len(self._columns) - len(self._mean)) > 0:
            self._seen, self._mean, self._deviation, self._inverse = (
                np.append(found, np.zeros(missing))
                for found in (self._seen, self._mean, self._deviation, self._inverse)
            )
        raw = self.raw(features)
        known = ~np.isnan(raw)
        self._seen += known
        off = np.where(known, raw - self._mean, 0.0)
        self._mean += off / np.maximum(self._seen, 1.0)
        self._deviation += off * np.where(known, raw - self._mean, 0.0)
        spread = np.sqrt(self._deviation / np.maximum(self._seen, 1.0))
        self._inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0.0)
