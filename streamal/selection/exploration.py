"""Stratified exploration: one instance of each block is asked about, whatever the model thinks.

A block has `ceil(1 / (epsilon * rate))` instances, and the coin draws one position in it uniformly. So every instance
has an exact chance of being asked that owes nothing to the model, the cost is exact, and estimates from these answers
vary less than with independent coin flips. Rounding up keeps the share of exploration within `epsilon` of the budget,
which the proof in `streamal.selection.budget` needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from streamal.selection.coin import Coin


def block_length(share: float, rate: float) -> int:
    """Return how many instances a block has when exploration takes `share` of the budget.

    >>> block_length(0.05, 0.05), block_length(1.0, 0.4), block_length(1.0, 1.0)
    (400, 3, 1)
    """
    return max(1, math.ceil(1.0 / (share * rate) - 1e-9))


class Exploration:
    """The blocks of one partition.

    `share` is the least part of the budget that exploration takes; a block's own, `epsilon`, rises to the part of the
    requests that nobody has answered yet, since a model that learns nothing cannot choose well.
    """

    __slots__ = (
        "_coin", "_least", "_position", "_rate", "begun", "block", "done", "epsilon", "floor", "length", "passed",
    )  # fmt: skip

    def __init__(self, rate: float, share: float, coin: Coin, *, begin: int = 1) -> None:
        self._rate = rate
        self._least = share
        self._coin = coin
        self.block = -1
        self.begun = begin
        self.length = 0
        self.floor = 0.0
        """The chance of each instance of this block; 0 before the first block."""
        self.epsilon = share
        self.passed = 0
        self.done = False
        self._position = 0

    def step(self, seen: int, unanswered: float) -> bool:
        """Go on to the instance number `seen` (from 1 on) and return whether it is the drawn one.

        `unanswered` is pending requests by requests made; it counts only where a block begins.
        """
        if seen < self.begun:
            return False
        if seen >= self.begun + self.length:
            self.begun = seen
            self.block += 1
            self.length = block_length(min(1.0, max(self._least, unanswered)), self._rate)
            self.floor = 1.0 / self.length
            # What rounding the length up leaves over goes to the strategy; else it would never be spent.
            self.epsilon = min(1.0, 1.0 / (self.length * self._rate))
            self.done = False
            self._position = int(self._coin.draw(self.block) * self.length)
        self.passed = seen - self.begun + 1
        return not self.done and self.passed == self._position + 1

    @property
    def owed(self) -> float:
        """What this block has accrued and not asked yet, in labels: between -1 and 1."""
        return self.passed / self.length - self.done if self.length else 0.0

    def begin_anew(self, begin: int) -> None:
        """End the block before its time; the next one begins with instance number `begin`."""
        self.begun = begin
        self.length = self.passed = 0
        self.floor = 0.0
        self.done = False

    def to_come(self, until: float) -> int:
        """Return how many exploration requests may still come while `seen < until`, this block's own included."""
        own = 0 if self.done else 1
        return own + max(0, math.ceil((until - self.begun - self.length) / block_length(self._least, self._rate)))

    def state(self) -> list[float]:
        """Return the exact state."""
        return [self.block, self.begun, self.length, self.epsilon, self.passed, int(self.done)]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a `state`."""
        self.block, self.begun, self.length, self.epsilon, self.passed, done = state
        self.done = bool(done)
        self.floor = 1.0 / self.length if self.length else 0.0
        self._position = int(self._coin.draw(self.block) * self.length)
