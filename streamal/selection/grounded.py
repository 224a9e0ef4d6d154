"""A proposal that carries what it was made from, so that `update` need not work it out a second time."""

from __future__ import annotations

from typing import Any, Self

from streamal.selection.strategy import Proposal


class Grounded(Proposal):
    """A proposal with its `grounds`, which only the strategy that made it reads; a recalled one comes without.

    >>> proposal = Grounded(0.25, 1.0, ["seen", "nearby"])
    >>> proposal == (0.25, 1.0), proposal.grounds
    (True, ['seen', 'nearby'])
    """

    grounds: Any

    def __new__(cls, propensity: float, utility: float, grounds: Any) -> Self:
        """Make one as a tuple is made."""
        made = super().__new__(cls, propensity, utility)
        made.grounds = grounds
        return made
