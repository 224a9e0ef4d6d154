"""Does not ask twice about near-duplicates while the first answer is awaited; wraps any strategy.

An answer that is on its way will teach the model about its neighbourhood, but no prediction shows that yet, so a
strategy asks there again and again. Here an instance is passed over if it is among the nearest to what waits: the
distance to the nearest waiting request is ranked among those of the last instances, so a fixed share of them is passed
over, whatever the scale, the number of columns and the number of requests that wait. The steering spends their part
elsewhere. Where nothing waits, the strategy decides as if it were alone.

Source: that a pending answer is a reason not to ask nearby is the point of forgetting and simulating incoming labels in
Pham, Kottke, Krempl, Sick: Stream-based active learning for sliding windows under the influence of verification latency
(2022); the rank of the distance is streamal's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamal.messages import Features, Outcome, Prediction
from streamal.selection.grounded import Grounded
from streamal.selection.strategy import Proposal, QueryStrategy, Standing
from streamal.selection.vectors import Standardiser, Vector, squared_distances, widened
from streamal.selection.window import Ranking

NEAREST: Final = 0.2
"""Share of the instances that are passed over."""
MOST_WAITING: Final = 200
"""Requests that are remembered, the last ones; each costs its part of every distance."""

RESCALED_EVERY: Final = 50
"""Instances after which what waits is brought to the scale of now, which has few values to go by at first."""

Key = tuple[tuple[str, Any], ...]


class Distinct:
    """Passes over the instances that are nearest to a request that waits; otherwise as its `strategy`.

    Memory: that of the strategy, `window` distances, and the numbers of the last 200 requests that wait.
    """

    def __init__(self, strategy: QueryStrategy, window: int) -> None:
        self._strategy = strategy
        self.warmup = max(strategy.warmup, window)
        self.recalls = True
        self.pools = strategy.pools
        self._distances = Ranking(window)
        self._scale = Standardiser()
        self._seen = 0
        self._waiting: list[Key] = []
        self._raw = np.zeros((0, 0))
        self._points = np.zeros((0, 0))

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Let the strategy propose, and lower it by the chance that the instance is among the nearest."""
        proposal = self._strategy.propose(features, prediction, standing)
        if not self._waiting:
            return Grounded(*proposal, (proposal, None))
        vector = self._scale.vector(features)
        nearness = -math.sqrt(squared_distances(widened(self._points, len(vector), 0.0), vector).min())
        low, high = self._distances.place(nearness)
        passed = min(1.0, max(0.0, (NEAREST - low) / (high - low)))
        return Grounded(proposal.propensity * (1.0 - passed), proposal.utility, (proposal, nearness))

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Tell the strategy, by its own proposal, and let a request wait; a recalled one comes without grounds."""
        own, nearness = proposal.grounds if isinstance(proposal, Grounded) else (proposal, None)
        if own is not proposal or self._strategy.recalls:
            self._strategy.update(features, prediction, own, asked=asked)
        self._scale.add(features)
        self._seen += 1
        if self._seen % RESCALED_EVERY == 0:
            self._keep(self._raw)
        if nearness is not None:
            self._distances.add(nearness)
        if asked:
            self._waiting.append(tuple(features.items()))
            self._keep(np.column_stack([widened(self._raw, self._scale.width, math.nan), self._scale.raw(features)]))
            if len(self._waiting) > MOST_WAITING:
                self._drop(0)

    def resolved(self, outcome: Outcome) -> None:
        """Tell the strategy, and let the request go."""
        self._strategy.resolved(outcome)
        key = tuple(outcome.features.items())
        if key in self._waiting:
            self._drop(self._waiting.index(key))

    def state(self) -> dict[str, Any]:
        """Return the strategy's state; what waits is known without."""
        return self._strategy.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the strategy."""
        self._strategy.restore(state)

    def _drop(self, place: int) -> None:
        del self._waiting[place]
        self._keep(np.delete(self._raw, place, axis=1))

    def _keep(self, raw: Vector) -> None:
        """Keep what waits, brought to the scale of now; a value that was missing stands at the mean of now."""
        self._raw = widened(raw, self._scale.width, math.nan)
        self._points = self._scale.scale(self._raw.T).T
