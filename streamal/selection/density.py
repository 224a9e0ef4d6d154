"""Density-focused uncertainty: ask about the unsure instances that lie where the stream is dense.

The last instances are remembered, each with the distance to its nearest neighbour so far. The *local density factor* of
a new instance counts those to which it is nearer than any before: an outlier is nobody's neighbour. Instances with a
factor of 0 rank below all others, so they are hardly asked about as long as the others use the allowance; the others
rank by their margin.

Source: Ienco, Zliobaite, Pfahringer: High Density-Focused Uncertainty Sampling for Active Learning over Evolving Stream
Data (2014), there called DBALStream. We differ in three points. Distances are measured on standardised features, since
those of a topic have units of their own. The randomised variable threshold on the margin spends what it likes; a rank
among the last margins spends the allowance. And ``1 - (p1 - p2)`` is summed from the small probabilities, which is the
same number and keeps the order where `p1` has rounded to 1.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from streamal.messages import Features, Prediction
from streamal.selection.ranked import WARMUP_WINDOWS, Ranked
from streamal.selection.strategy import Proposal, StrategySpec
from streamal.selection.utility import top_two
from streamal.selection.vectors import Standardiser, Vector, squared_distances, widened

NEIGHBOURS: Final = 100
MOST_NEIGHBOURS: Final = 1_000
"""Each costs a distance per instance, twice: 0.1 us at 50 features."""
ALONE: Final = -1.0
"""The utility of an instance with too few neighbours: below all others, and the same for all such."""

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def all_but_first(prediction: Prediction) -> tuple[float, float]:
    """Return the sum of all probabilities but the largest, which is ``1 - p1``, and the second largest.

    Both are NaN where the model says nothing, or something that is no number.

    >>> all_but_first({"a": 0.75, "b": 0.25}), all_but_first({"a": 1.0, "b": 1e-30, "c": 1e-30})
    ((0.25, 0.25), (2e-30, 1e-30))
    >>> all_but_first({})
    (nan, nan)
    """
    first, second = top_two(prediction)
    if not 0.0 < first < math.inf:
        return math.nan, math.nan
    return second if len(prediction) <= 2 else sum(sorted(prediction.values())[:-1]), second


class Neighbours:
    """The last `size` vectors, each with its squared distance to the nearest one met since, or remembered when it came.

    Memory: a vector and a distance for each.

    >>> neighbours = Neighbours(3)
    >>> for x in (0.0, 1.0, 5.0): neighbours.add(np.array([x]))
    >>> [neighbours.density(np.array([x])) for x in (0.5, 3.0, 9.5)]
    [2, 1, 0]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._count = 0
        self._points = np.zeros((0, size))
        self._nearest = np.zeros(size)
        """In the order of arrival; 0 where there is none yet, to which nothing is nearer."""

    def density(self, vector: Vector) -> int:
        """Return the local density factor: to how many of the remembered it is nearer than any before."""
        distances = squared_distances(widened(self._points, len(vector), 0.0), vector)
        return int(np.count_nonzero(distances < self._nearest))

    def add(self, vector: Vector) -> None:
        """Remember a vector, and forget one where there are `size`."""
        self._points = widened(self._points, len(vector), 0.0)
        distances = squared_distances(self._points, vector)
        self._recall(distances < self._nearest)
        np.minimum(self._nearest, distances, out=self._nearest)
        nearest = distances[: self._count].min(initial=math.inf)
        if self._count == self.size:
            self._forget(self._weakest())
        else:
            self._count += 1
        self._points[:, self._count - 1] = vector
        self._nearest[self._count - 1] = nearest

    def _recall(self, closer: Flags) -> None:
        """Take note of those that get a new nearest neighbour."""

    def _weakest(self) -> int:
        """Return the place of the one to forget: the oldest."""
        return 0

    def _forget(self, place: int) -> None:
        """Move those behind one forward, so that the last place is free."""
        self._points[:, place:-1] = self._points[:, place + 1 :]
        self._nearest[place:-1] = self._nearest[place + 1 :]


class Density(Ranked):
    """Ranks instances with a local density factor of at least 1 by their margin, all others below.

    `neighbours` (100) is how many of the last instances are remembered: with more of them an instance is more easily
    somebody's neighbour. Memory: these, the scale of the features, and the window of utilities.
    """

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._scale = Standardiser()
        self._neighbours, self._least = self.surroundings(spec)
        self.warmup = WARMUP_WINDOWS * max(spec.window, self._neighbours.size)

    def surroundings(self, spec: StrategySpec) -> tuple[Neighbours, int]:
        """Return the memory of neighbours, and the least local density factor."""
        return Neighbours(spec.whole("neighbours", NEIGHBOURS, least=1, most=MOST_NEIGHBOURS)), 1

    def doubt(self, prediction: Prediction) -> float:
        """Return ``1 - (p1 - p2)``, NaN where the model says nothing."""
        return sum(all_but_first(prediction))

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the doubt, or `ALONE`."""
        doubt = self.doubt(prediction)
        if not math.isfinite(doubt):
            return None
        return doubt if self._neighbours.density(self._scale.vector(features)) >= self._least else ALONE

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Remember the instance, asked about or not."""
        super().update(features, prediction, proposal, asked=asked)
        self._neighbours.add(self._scale.vector(features))
        self._scale.add(features)
