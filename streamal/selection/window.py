"""A window of the last utilities, and where a new one ranks among them: a threshold that needs no scale.

The rank is a conformal p-value: uniform whatever the utilities, as long as nothing changes. So asking below a rate
meets that rate without tuning, and constant utilities give exactly random sampling.

Source: Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World (2005).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque

from streamal.selection.strategy import Standing
from streamal.selection.threshold import steered_rate


class Ranking:
    """The last `size` utilities, kept sorted beside their order of arrival."""

    __slots__ = ("_arrived", "_size", "_sorted")

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrived: deque[float] = deque()
        self._sorted: list[float] = []

    def place(self, utility: float) -> tuple[float, float]:
        """Return the ends of the p-value of a utility: the shares of those above it, and of those and its equals.

        >>> ranking = Ranking(4)
        >>> for utility in (1.0, 2.0, 2.0): ranking.add(utility)
        >>> ranking.place(2.0)
        (0.0, 0.75)
        """
        total = len(self._sorted)
        upto = bisect_right(self._sorted, utility)
        tied = upto and self._sorted[upto - 1] == utility
        ties = upto - bisect_left(self._sorted, utility) if tied else 0
        low = (total - upto) / (total + 1)
        return low, low + (ties + 1) / (total + 1)

    def add(self, utility: float) -> None:
        """Take in a utility and let the oldest go."""
        if len(self._arrived) == self._size:
            oldest = self._arrived.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._arrived.append(utility)
        insort(self._sorted, utility)


class TopRanks:
    """Asks about the highest of the last `size` utilities, at the steered rate; a NaN counts as the highest.

    Memory: two numbers of 8 bytes for each utility of the window.
    """

    __slots__ = ("_ranking",)

    def __init__(self, size: int) -> None:
        self._ranking = Ranking(size)

    def propensity(self, utility: float, standing: Standing) -> float:
        """Return the chance that the rank of a utility, ties broken at random, lies below the rate; changes nothing.

        >>> ranks = TopRanks(100)
        >>> for utility in range(99): ranks.add(float(utility))
        >>> [ranks.propensity(utility, Standing(rate=0.05, cap=23.0)) for utility in (50.0, 99.0)]
        [0.0, 1.0]
        """
        low, high = self._ranking.place(math.inf if utility != utility else utility)
        return min(1.0, max(0.0, (steered_rate(standing) - low) / (high - low)))

    def add(self, utility: float) -> None:
        """Take in the utility of an instance that was decided on."""
        self._ranking.add(math.inf if utility != utility else utility)
