"""Calibration: one factor that brings a rule's own chances of asking to the labelling rate on average.

Some rules of the literature give a probability with a free factor in it, which trades labels for mistakes. Under a
budget it has to follow the rate instead, so it is moved after each instance, up or down by how far the rule's chance
was from the rate (stochastic approximation: Robbins, Monro 1951). What is unused of the allowance then moves the odds
of that chance as far as it moves the odds of the rate: equal chances are all the steered rate, and a chance of 0 or 1
stays what it is.
"""

from __future__ import annotations

import math
from typing import Final

from streamal.selection.strategy import Standing
from streamal.selection.threshold import spill, steered_rate

STEP: Final = 0.1
"""Of the factor's logarithm, per label that the rate allows: it settles within some ten labels."""
MOST_TARGET: Final = 0.5
"""Above it an excess over the rate is so small a part of the rate that the factor would only creep down."""
LEAST_FACTOR: Final = 1e-15
MOST_FACTOR: Final = 1e15


def odds_moved(chance: float, before: float, after: float) -> float:
    """Return a chance whose odds are moved as far as those of a rate are, from `before` (in (0, 1)) to `after`.

    >>> round(odds_moved(0.05, 0.05, 0.1), 12), odds_moved(1.0, 0.05, 0.01), odds_moved(0.2, 0.05, 1.0)
    (0.1, 1.0, 1.0)
    """
    if not 0.0 < after < 1.0:
        return float(after >= 1.0)
    if chance == 1.0:
        return chance
    times = after * (1.0 - before) / (before * (1.0 - after))
    return chance * times / (1.0 - chance + chance * times)


class Calibration:
    """The factor of one rule; memory: one number, which belongs to the exact state.

    >>> scale = Calibration(rate=0.1)
    >>> for _ in range(2_000): scale.adapt(min(1.0, 0.7 * scale.factor))
    >>> round(0.7 * scale.factor, 6)
    0.1
    """

    __slots__ = ("_target", "factor")

    def __init__(self, rate: float) -> None:
        self._target = min(MOST_TARGET, rate)
        self.factor = 1.0

    def propensity(self, chance: float, standing: Standing) -> float:
        """Return the propensity that becomes of a rule's own chance, spilled allowance included; changes nothing."""
        return max(odds_moved(chance, self._target, steered_rate(standing)), spill(standing))

    def adapt(self, chance: float) -> None:
        """Take in the rule's own chance for an instance that was decided on."""
        factor = self.factor * math.exp(STEP * (self._target - chance))
        self.factor = min(MOST_FACTOR, max(LEAST_FACTOR, factor))
