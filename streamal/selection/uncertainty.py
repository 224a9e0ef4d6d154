"""Uncertainty thresholds: ask when the largest class probability falls below a fixed, a moving, or a randomised bar.

All four are of Zliobaite, Bifet, Pfahringer, Holmes: Active Learning With Drifting Streaming Data (2014), in the form
of scikit-activeml where it differs from MOA's. Their propensity is given in closed form instead of by an extra draw.
Where the model is sure of everything the plain rules stop asking; `spill` then spends the unused allowance at random,
and the parameter `spill = false` turns that off for comparisons with the literature.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Final

from streamal.messages import Features, Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import spill, steered_rate
from streamal.selection.utility import top_two

STEP: Final = 0.01
RANDOM_PART: Final = 0.1
ETA: Final = NormalDist(1.0, 1.0)
LEAST_THETA: Final = 1e-12
MOST_THETA: Final = 1e12


class FixedUncertainty(Unmindful):
    """Asks when p1 is at most ``1/C + rate * (1 - 1/C)``, with C the number of classes known. Memory: none."""

    def __init__(self, spec: StrategySpec) -> None:
        self._spill = spec.switch("spill", default=True)

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Compare the largest probability with the bar."""
        best = top_two(prediction)[0]
        if not prediction or best == 0.0:
            return Proposal(min(1.0, steered_rate(standing)), 1.0)
        wanted = self.wish(best, len(prediction), standing.rate)
        return Proposal(max(wanted, spill(standing)) if self._spill else wanted, 1.0 - best)

    def wish(self, best: float, classes: int, rate: float) -> float:
        """Return the rule's own propensity for a largest probability among so many classes; a NaN is always wanted."""
        bar = 1.0 / classes + rate * (1.0 - 1.0 / classes)
        return float(not best > bar)


class VariableUncertainty(FixedUncertainty):
    """Asks when p1 is below a bar that falls by the part `step` (0.01) with each request and rises by it otherwise.

    A larger step follows changes faster and spends less evenly. Memory: one number.
    """

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._step = spec.number("step", STEP, above=0.0, below=1.0)
        self._theta = 1.0

    def wish(self, best: float, classes: int, rate: float) -> float:
        """Return 1 below the bar."""
        return float(not best >= self._theta)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Move the bar; an instance that was wanted and refused leaves it where it is."""
        if not prediction:
            return
        if top_two(prediction)[0] >= self._theta:
            self._move(self._step)
        elif asked:
            self._move(-self._step)

    def _move(self, part: float) -> None:
        self._theta = min(MOST_THETA, max(LEAST_THETA, self._theta * (1.0 + part)))

    def state(self) -> dict[str, Any]:
        """Return the bar."""
        return {"theta": self._theta}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the bar."""
        self._theta = float(state.get("theta", 1.0))


class RandomisedUncertainty(VariableUncertainty):
    """The moving bar times a normal variable of mean and deviation 1: sure predictions are asked about as well.

    The bar falls with each request, whatever factor was drawn, and rises with each instance that is passed over: less
    so the more probable asking was, since it may have been wanted and refused.
    Memory: one number.
    """

    def wish(self, best: float, classes: int, rate: float) -> float:
        """Return the chance that the randomised bar lies above."""
        return 1.0 - ETA.cdf(best / self._theta) if best == best else 1.0

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Move the bar."""
        if not prediction:
            return
        passed_over = 1.0 - self.wish(top_two(prediction)[0], len(prediction), 0.0)
        self._move(-self._step if asked else self._step * passed_over)


class Split(VariableUncertainty):
    """With the chance `random` (0.1) at random with the budgeted rate, else by the moving bar.

    More randomness finds changes in regions the model is sure about, and leaves fewer labels for the rest. Memory: one
    number.
    """

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._random = spec.number("random", RANDOM_PART, least=0.0, most=1.0)

    def wish(self, best: float, classes: int, rate: float) -> float:
        """Mix the two."""
        return self._random * rate + (1.0 - self._random) * super().wish(best, classes, rate)
