"""Steering: how the unused allowance raises or lowers the rate of asking, so that the budget is used, not hoarded."""

from __future__ import annotations

import math
from typing import Final

from streamal.selection.strategy import Standing

SOFTNESS: Final = 8.0
"""Labels of surplus or debt that change the rate by a factor of e, at most; 4 to 16 were equal within noise."""
MOST_SURPLUS: Final = 50.0
"""In units of the softness: beyond it everything is asked about anyhow, and a float would end some time."""
STEEPNESS: Final = 8.0
LAZY_PART: Final = 0.25


def steered_rate(standing: Standing) -> float:
    """Return the rate at which to select now: the budget without exploration's share, steered by what is unused.

    Where the allowance is full it is at least 1, however low the budget's rate: so none is lost for good while a model
    that becomes ever surer of itself finds every instance easier than all those before.

    >>> from streamal.selection.strategy import Standing
    >>> round(steered_rate(Standing(rate=0.05, cap=23.0, level=0.0)), 4)
    0.0478
    >>> steered_rate(Standing(rate=0.05, cap=23.0, level=8.0)) > 2 * 0.0478
    True
    >>> steered_rate(Standing(rate=0.001, cap=23.0, level=22.0, full=True))
    1.0
    """
    rate = standing.rate
    softness = min(SOFTNESS, standing.cap / -math.log(rate)) if 0.0 < rate < 1.0 else SOFTNESS
    surplus = min(MOST_SURPLUS, (standing.level + rate) / softness)
    steered = (1.0 - standing.epsilon) * rate * math.exp(surplus)
    return max(1.0, steered) if standing.full else steered


def spill(standing: Standing) -> float:
    """Return the propensity of asking although the rule would not: small, until much of the allowance lies unused.

    The uncertainty rules of the literature never ask again where the model is sure of itself. This is what keeps them
    from starving: past a quarter of the cap, the unused allowance is spent at random.

    >>> from streamal.selection.strategy import Standing
    >>> round(spill(Standing(rate=0.05, cap=20.0, level=5.0)), 4)
    0.0475
    >>> spill(Standing(rate=0.05, cap=20.0, level=0.0)) < 0.01
    True
    """
    surplus = STEEPNESS * (standing.level / standing.cap - LAZY_PART)
    return min(1.0, (1.0 - standing.epsilon) * standing.rate * math.exp(surplus))
