"""Class-conditional conformal rank of the log margin: the default query strategy.

Each instance's log margin is ranked among the last `window` margins *of the same predicted class*. The rank is a
conformal p-value, uniform whatever the model as long as nothing changes, so asking below a rate meets that rate without
tuning, and constant margins give exactly random sampling: cold and saturated models need no special case. The rate
is tilted half-way towards classes that are predicted rarely.

While many answers are pending the model lags behind, and the very top of the ranking holds what was asked about
already; from `LATE_FROM` pending requests on, the sharp threshold is therefore softened to ``5 * (1 - rank)^4`` times
the rate.

Source: conformal p-values after Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005); margin sampling
after Scheffer, Decomain, Wrobel (2001). The combination is streamal's own.
"""

from __future__ import annotations

import math
from typing import Final

from streamal.messages import Features, Prediction, best_label
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.utility import log_margin, top_two
from streamal.selection.window import Ranking

LATE_FROM: Final = 16
DECAY: Final = 0.998
"""Per instance, of the class shares: they look back about 500 instances."""
PRESENT: Final = 0.001
"""Share from which a class counts as present."""
TILT: Final = 0.5
RESCALE: Final = 1e100
NEGLIGIBLE: Final = 1e-50


def leaders(prediction: Prediction) -> tuple[str | None, float, float]:
    """Return the most probable class with its probability, and that of the next one.

    >>> leaders({"a": 0.25, "b": 0.75})
    ('b', 0.75, 0.25)
    """
    if len(prediction) == 2:
        (a, p), (b, q) = prediction.items()
        return (b, q, p) if q > p else (a, p, q)
    label = best_label(prediction)
    return (label, *top_two(prediction))


class Shares:
    """Decayed shares of the classes among the predictions; memory grows with the classes only."""

    __slots__ = ("_increment", "_total", "_weights", "present")

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._increment = 1.0
        self._total = 0.0
        self.present = 0

    def tilt(self, label: str) -> float:
        """Return the factor on the rate of a class: 1 for an average one, more the rarer it is.

        >>> shares = Shares()
        >>> for label in "aaab": shares.add(label)
        >>> shares.tilt("b") > 1 > shares.tilt("a")
        True
        """
        weight = self._weights.get(label)
        if not weight:
            return 1.0
        return 1.0 - TILT + TILT * self._total / ((self.present or 1) * weight)

    def add(self, label: str) -> None:
        """Take in a predicted class."""
        self._increment /= DECAY
        self._weights[label] = self._weights.get(label, 0.0) + self._increment
        self._total += self._increment
        bar = PRESENT * self._total
        weights = self._weights.values()
        self.present = len(weights) if min(weights) > bar else sum([weight > bar for weight in weights])
        if self._increment > RESCALE:
            scaled = {name: weight / self._increment for name, weight in self._weights.items()}
            self._weights = {name: weight for name, weight in scaled.items() if weight > NEGLIGIBLE}
            self._total /= self._increment
            self._increment = 1.0


class ClassConditional(Unmindful):
    """The default strategy. Memory: for each class that was predicted, a share and a window of scores."""

    def __init__(self, spec: StrategySpec) -> None:
        self.warmup = 4 * spec.window
        self._window = spec.window
        self._rankings: dict[str, Ranking] = {}
        self._shares = Shares()

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Rank the instance within its predicted class; called for every instance, so written for speed."""
        rate = steered_rate(standing)
        label, first, second = leaders(prediction)
        if label is None or first == 0.0:
            return Proposal(min(1.0, rate), math.inf)
        score = log_margin(first, second)
        if rate < 1.0:
            rate *= self._shares.tilt(label)
        ranking = self._rankings.get(label)
        low, high = ranking.place(math.inf if score != score else score) if ranking is not None else (0.0, 1.0)
        if standing.pending >= LATE_FROM and rate < 1.0:
            a, b = 1.0 - low, 1.0 - high
            aa, bb = a * a, b * b
            propensity = rate * (aa * aa * a - bb * bb * b) / (high - low)
        else:
            propensity = (rate - low) / (high - low)
        return Proposal(0.0 if propensity < 0.0 else 1.0 if propensity > 1.0 else propensity, score)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take the score into the window of its class."""
        label = best_label(prediction)
        if label is None or proposal[1] == math.inf:
            return
        ranking = self._rankings.get(label)
        if ranking is None:
            ranking = self._rankings[label] = Ranking(self._window)
        utility = proposal[1]
        ranking.add(math.inf if utility != utility else utility)
        self._shares.add(label)
