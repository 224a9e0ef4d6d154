"""Random sampling: the control every other strategy is measured against.

Each instance is asked about with the same propensity, the budgeted rate, steered gently by what is unused so that the
whole allowance is spent (a plain Bernoulli draw behind a hard budget loses some at both ends).
"""

from __future__ import annotations

from streamal.messages import Features, Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate


class Random(Unmindful):
    """Asks with the budgeted rate whatever the prediction. Memory: none."""

    def __init__(self, spec: StrategySpec) -> None:
        pass

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Return the rate."""
        return Proposal(min(1.0, steered_rate(standing)), 0.0)


class Periodic(Random):
    """Asks whenever a whole label's allowance has accrued: evenly spaced, deterministic, and blind to the model.

    It aliases with streams that repeat at a multiple of its period. Memory: none. Source: the credit rule of
    scikit-activeml's PeriodicSampling.
    """

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Return 1 when a label's allowance is there."""
        return Proposal(float(standing.level >= 1.0), 0.0)
