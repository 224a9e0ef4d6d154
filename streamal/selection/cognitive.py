"""The cognitive dual query: ask about the unsure instances that a forgetting memory finds typical of the stream.

As in `streamal.selection.density`, an instance is eligible if it is nearer to some of the remembered ones than any
before. What differs is the memory, which is small and forgets as people do. Each time an instance is somebody's new
nearest neighbour, that one is *recalled*; its strength is ``exp(-f * t)``, with t the instances since its last recall
and the forgetting factor ``f = 1 / (recalls + 1)``. The weakest one makes room for each newcomer. So instances that
many others gather around stay for long, and leave once the stream has moved away.

Source: Liu, Xue, Wu, Zhou, Yang, Li, Cao: Online Active Learning for Drifting Data Streams (2023), there called CogDQS.
Its second query is an uncertainty rule of Zliobaite and others on `p1`; here ``1 - p1`` is ranked in a window, for the
reasons given in `streamal.selection.density`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from streamal.messages import Prediction
from streamal.selection.density import Density, Flags, Neighbours, all_but_first
from streamal.selection.strategy import StrategySpec
from streamal.selection.vectors import Vector

MEMORY: Final = 10
MOST_MEMORY: Final = 1_000
LEAST_DENSITY: Final = 1


class Cognition(Neighbours):
    """Vectors that are forgotten by their strength, of equally strong ones the oldest.

    Memory: besides a vector, three numbers for each.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._now = 0
        self._recalls = np.zeros(size)
        self._recalled = np.zeros(size)

    def add(self, vector: Vector) -> None:
        """Recall those that get a new nearest neighbour, then remember it in place of the weakest."""
        self._now += 1
        super().add(vector)
        self._recalls[self._count - 1] = 0
        self._recalled[self._count - 1] = self._now

    def _recall(self, closer: Flags) -> None:
        self._recalls += closer
        self._recalled[closer] = self._now

    def _weakest(self) -> int:
        """Return the place of the least strength; its negative logarithm is compared, which never rounds to 0."""
        return int(np.argmax((self._now - self._recalled) / (self._recalls + 1.0)))

    def _forget(self, place: int) -> None:
        super()._forget(place)
        self._recalls[place:-1] = self._recalls[place + 1 :]
        self._recalled[place:-1] = self._recalled[place + 1 :]


class Cognitive(Density):
    """Ranks instances with enough neighbours in the memory by their uncertainty, all others below.

    `memory` (10) is how many instances are remembered: a larger one is less particular about who is eligible, and
    slower to follow a change. `density` (1) is the least local density factor; with more, fewer are eligible, which the
    stream's densest regions are. Memory: these, the scale of the features, and the
    window of utilities.
    """

    def surroundings(self, spec: StrategySpec) -> tuple[Neighbours, int]:
        """Return the memory, and the least local density factor."""
        memory = Cognition(spec.whole("memory", MEMORY, least=1, most=MOST_MEMORY))
        return memory, spec.whole("density", LEAST_DENSITY, least=1, most=memory.size)

    def doubt(self, prediction: Prediction) -> float:
        """Return ``1 - p1``, NaN where the model says nothing."""
        return all_but_first(prediction)[0]
