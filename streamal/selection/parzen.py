"""A bounded set of remembered instances and how near each of them is: a Parzen window.

The kernel is Gaussian, 1 at no distance. Its bandwidth grows with the square root of the number of columns that vary,
as distances do, so that it suits few features and many.

Its exponentials are those of the C library: numpy has several of its own, and which one a processor gets decides the
last bits. So they are as equal elsewhere as the model's probabilities are: with the same C library, on processors that
all have fused multiply-add, as those of servers do, or all lack it.

Source: Parzen: On estimation of a probability density function and mode (1962); the bandwidth's size is that of the
mean criterion of Chaudhuri et al.: The mean and median criteria for kernel bandwidth selection for support vector data
description (2017).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from streamal.selection.vectors import Standardiser, Vector, squared_distances, widened

BANDWIDTH: Final = 0.25
"""In deviations, for one column; the mean criterion gives 0.249 for 256 points and 0.252 for 128."""


class Points:
    """The last `size` instances, as they came and standardised; the oldest makes room.

    The first ones come before their scale is known, so all are standardised anew whenever their number doubles. A
    smaller `bandwidth` tells places further apart. Memory: 16 bytes for each column of each point.

    >>> points, scale = Points(2, bandwidth=1.0), Standardiser()
    >>> for x in (-1.0, 1.0): scale.add({"x": x})
    >>> [points.add(scale.raw({"x": x}), scale) for x in (0.0, -1.0, 1.0)]
    [0, 1, 0]
    >>> points.kernel(scale.vector({"x": 1.0})).round(4).tolist()
    [1.0, 0.1353]
    """

    __slots__ = ("_added", "_bandwidth", "_factor", "_raw", "_scaled", "_size")

    def __init__(self, size: int, bandwidth: float) -> None:
        self._size = size
        self._bandwidth = bandwidth
        self._added = 0
        self._raw = np.zeros((0, size))
        self._scaled = np.zeros((0, size))
        self._factor = 0.0

    def __len__(self) -> int:
        return min(self._added, self._size)

    def add(self, raw: Vector, scale: Standardiser) -> int:
        """Take in raw numbers, just made by this `scale`, and return the slot they lie in."""
        slot = self._added % self._size
        self._added += 1
        wider = len(raw) > len(self._raw)
        self._raw = widened(self._raw, len(raw), math.nan)
        self._raw[:, slot] = raw
        if wider or not self._added & (self._added - 1):
            self._scaled = np.ascontiguousarray(scale.scale(self._raw.T).T)
            varying = int(np.count_nonzero(self._scaled[:, : len(self)].any(axis=1)))
            self._factor = -0.5 / (self._bandwidth**2 * max(1, varying))
        else:
            self._scaled[:, slot] = scale.scale(raw)
        return slot

    def kernel(self, vector: Vector) -> Vector:
        """Return how near each point is to a standardised vector, from 0 to 1, by its slot; shape (points,).

        In columns that are newer than the last point all points stand at the mean.
        """
        points = widened(self._scaled, len(vector), 0.0)[:, : len(self)]
        exponents = self._factor * squared_distances(points, vector)
        return np.fromiter(map(math.exp, exponents.tolist()), np.float64, len(exponents))
