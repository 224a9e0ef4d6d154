"""What strategies share that rank a utility of their own in one window of the last utilities.

The rank decides, not the scale: any monotone function of a utility asks the same. See `streamal.selection.window`.
Where utilities fall all at once, as those of a forest do that replaces its trees, nothing new ranks high for a whole
window; what is unused by then is spent at random (`streamal.selection.threshold.spill`) rather than lost.
"""

from __future__ import annotations

import math
from typing import Final

from streamal.messages import Features, Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import spill, steered_rate
from streamal.selection.window import TopRanks

WARMUP_WINDOWS: Final = 4
"""As the default strategy's: predictions that say nothing fill no window, so one window's worth may not be enough."""


class Ranked(Unmindful):
    """Asks about the highest utilities of the window, at the steered rate; a subclass says what a utility is.

    Memory: two numbers for each utility of the window.
    """

    def __init__(self, spec: StrategySpec) -> None:
        self.warmup = WARMUP_WINDOWS * spec.window
        self._ranks = TopRanks(spec.window)

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return how much the label would teach, None where that cannot be said; changes nothing."""
        raise NotImplementedError

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Rank the utility; where there is none, ask at the steered rate."""
        utility = self.utility(features, prediction)
        if utility is None:
            return Proposal(min(1.0, steered_rate(standing)), math.inf)
        return Proposal(max(self._ranks.propensity(utility, standing), spill(standing)), utility)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take the utility into the window."""
        if proposal.utility != math.inf:
            self._ranks.add(proposal.utility)
