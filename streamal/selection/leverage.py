"""Optimal design for a regression: ask where a linear model of all that was asked about is least determined.

`Leverage` asks about the instances with the highest leverage ``h = x' M^-1 x``, with x the standardised features and a
constant, and M the information matrix of the requests (`streamal.selection.information`): the greedy step of
D-optimality. Sources: Fedorov: Theory of Optimal Experiments (1972); for a stream, where a leverage in the highest part
of the distribution is asked about at once, Riquelme, Johari, Zhang: Online active linear regression via thresholding
(2017).

`Improvement` weighs it by the error there. If e is the model's error at x, a least-squares model that learns x changes
its predictions of all it was asked about, x included, by ``e^2 h / (1 + h)`` in sum of squares: the distance of Cook:
Detection of influential observation in linear regression (1977), without its constant. Its expectation is the utility,
with ``e^2`` the mean of the squared errors of the last answered requests, weighted by their nearness (`parzen`) and
drawn towards the mean of all of them as by one more answer.

Their strength is a relation that is linear. Where it is not, the highest leverages teach the model about the edge of
the data alone, and random requests do better; nor does an error that is noise get smaller by asking where it is large.

Both deviate from their sources in that requests fade, so that a stream may change, and that a request counts once it is
made, not once it is answered, so that late answers do not make it ask about the same place again.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from streamal.messages import MAX_NUMBER, VALUE, Features, Outcome, Prediction
from streamal.selection.information import InformationMatrix
from streamal.selection.parzen import BANDWIDTH, Points
from streamal.selection.ranked import Ranked
from streamal.selection.strategy import Proposal, StrategySpec
from streamal.selection.vectors import MOST_COLUMNS, Standardiser, Vector

RIDGE: Final = 1.0
"""As if each coordinate had been asked about once, at one deviation."""
MEMORY: Final = 512
"""Requests; about as far back as 10,000 instances at 5 %."""
MOST_ANSWERS: Final = 256
"""Answered requests that the local error is estimated from."""


class Leverage(Ranked):
    """Ranks instances by their leverage.

    `ridge` (1) is what is taken to be known beforehand: less makes rare features count for more. `memory` (512) is how
    many requests are looked back on: less follows a changing stream faster, more covers it more evenly.

    Memory: 8 bytes for each pair of columns, half a megabyte at most, and the window of utilities.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        ridge = spec.number("ridge", RIDGE, least=1e-6, most=1e6)
        self._asked = InformationMatrix(ridge, spec.whole("memory", MEMORY, least=MOST_COLUMNS + 1, most=1_000_000))
        self._asked.grow(1)
        self._scale = Standardiser()

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the leverage; None before anything was learned."""
        return self._asked.leverage(with_constant(self._scale.vector(features))) if prediction else None

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take in the instance's scale, and its vector if it was asked about."""
        super().update(features, prediction, proposal, asked=asked)
        self._scale.add(features)
        self._asked.grow(self._scale.width + 1)
        if asked:
            self._asked.add(with_constant(self._scale.vector(features)))


class Improvement(Leverage):
    """Ranks instances by the change that learning them is expected to make.

    `ridge` and `memory` as for leverage; `bandwidth` (0.25) is how near, in deviations of one column, an answer must be
    for its error to count.

    Memory: as leverage, and 16 bytes for each column of the last 256 answers.
    """

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._answered = Points(MOST_ANSWERS, spec.number("bandwidth", BANDWIDTH, least=0.01, most=100.0))
        self._errors = np.zeros(MOST_ANSWERS)
        self._offsets = np.full(MOST_ANSWERS, -1)

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the expected change, in squared units of the label; None before the first answer."""
        if not (prediction and len(self._answered)):
            return None
        vector = self._scale.vector(features)
        leverage = self._asked.leverage(with_constant(vector))
        near, errors = self._answered.kernel(vector), self._errors[: len(self._answered)]
        return local_mean(near, errors) * leverage / (1.0 + leverage)

    def resolved(self, outcome: Outcome) -> None:
        """Take in the squared error of the prediction the request was made with; a correction takes its place."""
        predicted = outcome.prediction.get(VALUE, math.nan)
        if not (outcome.teaches and isinstance(outcome.label, int | float) and math.isfinite(predicted)):
            return
        held = np.flatnonzero(self._offsets == outcome.offset).tolist() if outcome.kind == "corrected" else []
        slot = held[0] if held else self._answered.add(self._scale.raw(outcome.features), self._scale)
        # capped, since the square of what a model that diverged says would not be a number
        self._errors[slot] = min(MAX_NUMBER, abs(outcome.label - predicted)) ** 2
        self._offsets[slot] = outcome.offset


def with_constant(vector: Vector) -> Vector:
    """Return a vector with a 1 before it, for what a linear model adds whatever the features.

    >>> with_constant(np.array([0.5])).tolist()
    [1.0, 0.5]
    """
    return np.concatenate(((1.0,), vector))


def local_mean(near: Vector, values: Vector) -> float:
    """Return the mean of values weighted by nearness, with the plain mean as one more value at no distance.

    >>> local_mean(np.array([1.0, 0.0]), np.array([4.0, 0.0]))
    3.0
    """
    return float(((near * values).sum() + values.mean()) / (near.sum() + 1.0))
