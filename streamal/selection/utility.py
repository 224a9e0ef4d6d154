"""Utilities: how much an answer would teach, from the predicted class probabilities alone.

All grow with uncertainty. `log_margin` keeps the order where `1 - (p1 - p2)` has already rounded to 0, as the
probabilities of naive Bayes do; it is the one the default strategy ranks by.
"""

from __future__ import annotations

import math
from typing import Final

from streamal.messages import Prediction

TINY: Final = 1e-300


def top_two(prediction: Prediction) -> tuple[float, float]:
    """Return the two largest probabilities, 0 for those that are missing; NaN if any probability is NaN.

    >>> top_two({"a": 0.2, "b": 0.7, "c": 0.1})
    (0.7, 0.2)
    >>> top_two({})
    (0.0, 0.0)
    """
    values = list(prediction.values())
    if len(values) == 2:
        first, second = values
        if first == first and second == second:
            return (second, first) if second > first else (first, second)
    if any(value != value for value in values):
        return math.nan, math.nan
    values.sort(reverse=True)
    return (values[0], values[1] if len(values) > 1 else 0.0) if values else (0.0, 0.0)


def log_margin(first: float, second: float) -> float:
    """Return ``ln p2 - ln p1`` of the two largest probabilities: 0 for a tie, lower the surer.

    >>> log_margin(0.5, 0.5), round(log_margin(0.9, 0.1), 3)
    (0.0, -2.197)
    """
    return math.log(TINY if second < TINY else second) - math.log(TINY if first < TINY else first)
