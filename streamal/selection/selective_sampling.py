"""Selective sampling: ask with probability ``b / (b + margin)``, so that a sure prediction is only less likely asked.

Source: Cesa-Bianchi, Gentile, Zaniboni: Worst-Case Analysis of Selective Sampling for Linear Classification (2006),
written for the Perceptron, whose margin is the distance from its hyperplane. For any model with class probabilities the
margin is that of the largest one from ``1/C``, with C the number of classes known, as MOA has it. In the paper b is a
constant that the mistake bound is tuned with; MOA takes the budgeted rate for it, and where that is below ``1/C`` then
wants more than the budget allows. Here b is calibrated, so that the mean propensity is the steered rate.

The paper's adaptive variant lets b grow with the root of 1 plus the mistakes made so far, since the Perceptron's
margins grow with its mistakes as well. Margins of probabilities do not, so under calibration little is left of it: a
mistake raises b at once, by less the more there were, until calibration has taken that back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from streamal.messages import Features, Outcome, Prediction, best_label
from streamal.selection.calibration import Calibration
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.utility import top_two

LEAST_MARGIN: Final = 1e-3
"""A margin of 0 would be asked about whatever b is; with this one even a model that only knows ties is calibrated."""


def margin_from_chance(prediction: Prediction) -> float | None:
    """Return how far the largest probability is from ``1/C``; None where there are no two classes to choose between.

    What is no number counts as a tie, which is the least margin there is, 1e-3.

    >>> margin_from_chance({"a": 0.25, "b": 0.75}), margin_from_chance({"a": 0.5, "b": 0.5}), margin_from_chance({})
    (0.25, 0.001, None)
    """
    best = top_two(prediction)[0]
    if len(prediction) < 2 or best == 0.0:
        return None
    margin = abs(best - 1.0 / len(prediction))
    return min(1.0, margin) if margin > LEAST_MARGIN else LEAST_MARGIN


class SelectiveSampling(Unmindful):
    """Asks with propensity ``b / (b + margin)``, steered; memory: two numbers.

    `adaptive` (false) multiplies the calibrated b by the root of 1 plus the mistakes among the answers.
    """

    def __init__(self, spec: StrategySpec) -> None:
        self._adaptive = spec.switch("adaptive", default=False)
        self._calibration = Calibration(spec.rate)
        self._mistakes = 0

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Compare the margin with b."""
        margin = margin_from_chance(prediction)
        if margin is None:
            return Proposal(min(1.0, steered_rate(standing)), 0.0)
        return Proposal(self._calibration.propensity(self._chance(margin), standing), -margin)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Calibrate b by what the margin made of it."""
        margin = margin_from_chance(prediction)
        if margin is not None:
            self._calibration.adapt(self._chance(margin))

    def resolved(self, outcome: Outcome) -> None:
        """Count a mistake, if b depends on them."""
        if self._adaptive and outcome.kind == "learned":
            self._mistakes += best_label(outcome.prediction) != outcome.label

    def state(self) -> dict[str, Any]:
        """Return the calibrated b and the mistakes."""
        return {"b": self._calibration.factor, "mistakes": self._mistakes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set both."""
        self._calibration.factor = float(state.get("b", 1.0))
        self._mistakes = int(state.get("mistakes", 0))

    def _chance(self, margin: float) -> float:
        b = self._calibration.factor * math.sqrt(1.0 + self._mistakes)
        return b / (b + margin)
