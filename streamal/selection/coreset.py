"""Coverage: ask about what lies farthest from everything that was asked about, whatever the model thinks of it.

Batch core-set selection asks next about the instance whose distance to the nearest asked one is largest, a greedy
solution of the k-centre problem. A stream lets instances pass one by one; here that distance is the utility, and it is
ranked in a window. Outliers are what it likes best, so it serves models that err where they have seen nothing, such as
trees, rather than linear ones.

Source: Sener, Savarese: Active Learning for Convolutional Neural Networks: A Core-Set Approach (2018); the greedy rule
is Gonzalez's: Clustering to Minimize the Maximum Intercluster Distance (1985). They measure distances in a network's
last layer, we on standardised features. Charikar, Chekuri, Feder, Motwani: Incremental Clustering and Dynamic
Information Retrieval (1997) bound the points of a stream by a radius that doubles; ours are thinned by the greedy rule
itself, since a radius would age with the scale of the features.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from streamal.messages import Features, Prediction
from streamal.selection.ranked import Ranked
from streamal.selection.strategy import Proposal, StrategySpec
from streamal.selection.vectors import Standardiser, Vector, squared_distances, widened

POINTS: Final = 200
MOST_POINTS: Final = 2_000
"""Each costs a distance per instance, 0.05 us at 50 features."""
RESCALE_EVERY: Final = 50
"""Instances after which the points get the scale of now at the latest; it costs about two measurements."""


def farthest_first(points: Vector, count: int) -> list[int]:
    """Return the places, in rising order, of at most `count` points that lie far apart; shape (columns, points).

    The last one is taken, then again and again the one whose distance to the nearest taken one is largest. Their
    radius is at most twice the smallest that so many can have (Gonzalez). Of equal points one is taken.

    >>> farthest_first(np.array([[0.0, 0.1, 5.0, 9.0, 9.0]]), 3)
    [0, 2, 4]
    """
    taken = [points.shape[1] - 1]
    nearest = squared_distances(points, points[:, taken[0]])
    while len(taken) < count and nearest.max() > 0.0:
        taken.append(int(nearest.argmax()))
        np.minimum(nearest, squared_distances(points, points[:, taken[-1]]), out=nearest)
    return sorted(taken)


class Coreset(Ranked):
    """Ranks instances by their distance to the nearest one that was asked about, in standard deviations.

    `points` (200) is how many of those are kept; when there are so many, the half that covers them best stays. With
    more of them, finer gaps are seen, at a cost. Memory: these, the scale of the features, and the window of distances.

    A new owner finds the points again in what is remembered of the requests and measures the warm-up by all of them,
    so it goes on roughly as before.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._most = spec.whole("points", POINTS, least=2, most=MOST_POINTS)
        self._scale = Standardiser()
        self._raw = np.zeros((0, 0))
        self._points = np.zeros((0, 0))
        self._age = 0

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the distance, None before anything was asked about."""
        vector = self._scale.vector(features)
        distances = squared_distances(widened(self._points, len(vector), 0.0), vector)
        return math.sqrt(distances.min()) if len(distances) else None

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take in the distance, and the instance itself if it was asked about."""
        super().update(features, prediction, proposal, asked=asked)
        self._scale.add(features)
        self._age += 1
        if asked:
            self._cover(self._scale.raw(features))
        elif self._age >= RESCALE_EVERY:
            self._rescale()

    def _cover(self, raw: Vector) -> None:
        """Keep one more point, and thin them if there are enough."""
        self._raw = np.column_stack([widened(self._raw, len(raw), math.nan), raw])
        self._rescale()
        if self._raw.shape[1] == self._most:
            kept = farthest_first(self._points, self._most // 2)
            self._raw, self._points = self._raw[:, kept], self._points[:, kept]

    def _rescale(self) -> None:
        """Bring all points to the scale of now; a value that is missing stands at the mean of now."""
        self._points = self._scale.scale(widened(self._raw, self._scale.width, math.nan).T).T
        self._age = 0
