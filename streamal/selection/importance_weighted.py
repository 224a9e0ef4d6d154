"""Importance-weighted active learning: ask with the chance that a label could still turn the prediction.

With n instances seen, L the share of errors among them and g the loss by which the best hypothesis beats the best one
that predicts otherwise here, the chance is 1 while ``g <= sqrt(b) * s + b``, else
``b * ((s + sqrt(s^2 + 4g)) / 2g)^2``, with ``s = sqrt(L) + sqrt(L + g)`` and ``b = c0 * ln(n + 1) / n``. The second
reaches 1 just at the bound of the first, so it is all of the rule once it is cut at 1.

Source: Beygelzimer, Hsu, Langford, Zhang: Agnostic Active Learning Without Constraints (2010), after Beygelzimer,
Dasgupta, Langford: Importance Weighted Active Learning (2009), in the form of Vowpal Wabbit, which estimates g without
a second hypothesis: as the importance weight with which the opposite label, learned once, would turn the prediction,
divided by n. For a model under log loss that weight is known in closed form. It is taken here for any model that gives
probabilities, with the log odds of its two most probable classes and Vowpal Wabbit's default learning rate,
``0.5 / sqrt(n)``: calibration makes up for a model that learns faster or slower.

Where it deviates: c0 is calibrated, so that the mean propensity is the steered rate, since a rate that falls with
``ln(n) / n`` would not use the allowance. L is the share of errors among the answers, each weighted by the inverse of
its propensity, and 1 before the first; Vowpal Wabbit adds a margin of error, most of which c0 makes up for. The model
does not learn with the inverse propensity as its weight: measured, that lost against learning each label once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from streamal.messages import Features, Outcome, Prediction, best_label
from streamal.selection.calibration import Calibration
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.utility import log_margin, top_two

LEARNING_RATE: Final = 0.5
LEAST_ODDS: Final = 1e-3
"""A tie would be asked about whatever c0 is; with this one even a model that only knows ties is calibrated."""
MOST_ODDS: Final = 1e3
"""Logarithms of doubles end before it."""
TINY: Final = 1e-4
"""As in Vowpal Wabbit, where it keeps b defined before the first instance."""


def weight_to_turn(odds: float) -> float:
    """Return the weight that turns a prediction of such log odds (not negative) under log loss, at learning rate 1.

    The opposite label moves the log odds x by ``-1 / (1 + e^-x)`` per weight, so it takes the integral of
    ``1 + e^-x`` from 0 to the log odds.

    >>> weight_to_turn(0.0), round(weight_to_turn(0.001), 6), round(weight_to_turn(50.0), 6)
    (0.0, 0.002, 51.0)
    """
    return odds - math.expm1(-odds)


def chance(b: float, g: float, loss: float) -> float:
    """Return the rule's chance of asking; `g` above 0, `loss` from 0 to 1.

    >>> chance(0.01, 0.01, 0.0), round(chance(0.01, 0.5, 0.0), 4), round(chance(0.01, 0.5, 0.3), 4)
    (1.0, 0.0524, 0.1199)
    """
    s = math.sqrt(loss) + math.sqrt(loss + g)
    root = (s + math.sqrt(s * s + 4.0 * g)) / (2.0 * g)
    return min(1.0, b * root * root)


def log_odds(prediction: Prediction) -> float | None:
    """Return the log odds of the two most probable classes, from 1e-3 to 1e3; None where a prediction says nothing.

    What is no number counts as a tie.

    >>> log_odds({"a": 0.5, "b": 0.5}), round(log_odds({"a": 0.1, "b": 0.9}), 3), log_odds({})
    (0.001, 2.197, None)
    """
    first, second = top_two(prediction)
    if len(prediction) < 2 or first == 0.0:
        return None
    odds = -log_margin(first, second)
    return min(MOST_ODDS, odds) if odds > LEAST_ODDS else LEAST_ODDS


class ImportanceWeighted(Unmindful):
    """Asks with the chance above, steered; memory: four numbers."""

    def __init__(self, spec: StrategySpec) -> None:
        self._calibration = Calibration(spec.rate)
        self._seen = 0
        self._wrong = 0.0
        self._weight = 0.0

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Weigh what it would take to turn the prediction."""
        odds = log_odds(prediction)
        if odds is None:
            return Proposal(min(1.0, steered_rate(standing)), 0.0)
        return Proposal(self._calibration.propensity(self._chance(odds), standing), -odds)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Calibrate c0 by what the odds made of it, and count the instance."""
        odds = log_odds(prediction)
        if odds is not None:
            self._calibration.adapt(self._chance(odds))
        self._seen += 1

    def resolved(self, outcome: Outcome) -> None:
        """Take an answer into the weighted share of errors."""
        if outcome.kind == "learned" and outcome.propensity > 0.0:
            weight = 1.0 / outcome.propensity
            self._weight += weight
            if best_label(outcome.prediction) != outcome.label:
                self._wrong += weight

    def state(self) -> dict[str, Any]:
        """Return the calibrated c0, the instances seen, and the sums of weights of wrong and of all predictions."""
        return {"c0": self._calibration.factor, "seen": self._seen, "wrong": self._wrong, "weight": self._weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set all four."""
        self._calibration.factor = float(state.get("c0", 1.0))
        self._seen = int(state.get("seen", 0))
        self._wrong, self._weight = float(state.get("wrong", 0.0)), float(state.get("weight", 0.0))

    def _chance(self, odds: float) -> float:
        n = self._seen + 1
        b = self._calibration.factor * (math.log(n + 1.0) + TINY) / (n + TINY)
        g = weight_to_turn(odds) / (LEARNING_RATE * math.sqrt(n))
        loss = (1.0 + self._wrong) / (1.0 + self._weight)
        return chance(b, g, loss)
