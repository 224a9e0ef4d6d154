"""Multi-class probabilistic active learning: ask where an answer or two should make the most difference to accuracy.

What is known at x are counts per class, the evidence k: how near the answered requests of each class are (`parzen`).
With a Dirichlet distribution of parameters ``k + prior`` over the class probabilities at x, let acc(m) be the expected
accuracy at x when m more answers have been counted and the class with the most evidence is predicted. The utility is

    density(x) * max over m of (acc(m) - acc(0)) / m,

with the density from the instances of late. An unexplored place is worth most, one whose answers contradict each other
less, and one whose answers agree nearly nothing.

Source: Kottke, Krempl, Lang, Teschner, Spiliopoulou: Multi-class probabilistic active learning (2016), whose algorithm
is called McPAL. The prior of 0.001 and up to two answers are the defaults of scikit-activeml's later form; here they
have a closed form in the sorted evidence. What differs: the highest of a pool are asked about there, the highest ranks
of a window here; and a request that waits counts as an answer of the class that was predicted, or late answers would
make it ask about one place again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from streamal.messages import Features, Outcome, Prediction, best_label
from streamal.selection.parzen import BANDWIDTH, Points
from streamal.selection.ranked import Ranked
from streamal.selection.strategy import Proposal, StrategySpec
from streamal.selection.vectors import Standardiser

PRIOR: Final = 1e-3
M_MAX: Final = 2
MOST_REQUESTS: Final = 256
"""Whose evidence counts; each costs its part of every decision."""
MOST_NEIGHBOURS: Final = 128
"""Instances of late that the density is estimated from, if the window is as long."""
UNKNOWN: Final = 0
"""The code of a request that taught no class."""


def expected_accuracy(parameters: Sequence[float], answers: int) -> float:
    """Return the expected accuracy once so many more answers are counted, 0 to 2, drawn from the class probabilities.

    These have a Dirichlet distribution with the given parameters, all above 0; the class predicted is the one with the
    largest parameter plus count.

    >>> [round(expected_accuracy([2.0, 1.0], answers), 4) for answers in (0, 1, 2)]
    [0.6667, 0.6667, 0.7]
    """
    total, best = sum(parameters), max(parameters)
    if answers == 0:
        return best / total
    if answers == 1:
        return sum(a * max(best, a + 1.0) for a in parameters) / (total * (total + 1.0))
    found = smaller = 0.0
    for a in sorted(parameters):
        # both answers of this class, or one of it and one of any with less evidence, in either order
        found += a * (a + 1.0) * max(best, a + 2.0) + 2.0 * a * smaller * max(best, a + 1.0)
        smaller += a
    return found / (total * (total + 1.0) * (total + 2.0))


def gain(parameters: Sequence[float], m_max: int) -> float:
    """Return the largest gain in expected accuracy per answer, with 1 to `m_max` of them; 0 or more.

    >>> gain([1.0, 1.0], 1) > gain([3.0, 3.0], 1) > gain([6.0, 1.0], 1) == 0.0
    True
    """
    now = expected_accuracy(parameters, 0)
    return max(0.0, *((expected_accuracy(parameters, m) - now) / m for m in range(1, m_max + 1)))


class Probabilistic(Ranked):
    """Ranks instances by their probabilistic gain.

    `prior` (0.001) is the evidence each class has beforehand: more takes more answers to settle a place. `m_max` (2) is
    how many answers ahead it looks, 1 or 2: with 1, places where one answer cannot change what is predicted are worth
    nothing. `bandwidth` (0.25) is how near, in deviations of one column, an answer must be to count.

    Memory: 16 bytes for each column of the last 256 requests and 128 instances, and the window of utilities.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._prior = spec.number("prior", PRIOR, least=1e-6, most=10.0)
        self._m_max = spec.whole("m_max", M_MAX, least=1, most=2)
        bandwidth = spec.number("bandwidth", BANDWIDTH, least=0.01, most=100.0)
        self._scale = Standardiser()
        self._recent = Points(min(spec.window, MOST_NEIGHBOURS), bandwidth)
        self._asked = Points(MOST_REQUESTS, bandwidth)
        self._requests: list[Features | None] = [None] * MOST_REQUESTS
        self._answered = [False] * MOST_REQUESTS
        self._codes = np.full(MOST_REQUESTS, UNKNOWN, dtype=np.intp)
        self._code_of: dict[str | None, int] = {None: UNKNOWN}

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the gain times the density; None before anything was learned."""
        if not any(prediction.values()):
            return None
        vector = self._scale.vector(features)
        # two classes at least: that there is another one than the first is never ruled out
        classes = max(3, len(self._code_of))
        evidence = np.bincount(self._codes[: len(self._asked)], self._asked.kernel(vector), classes)[1:]
        recent = self._recent.kernel(vector)
        density = float(recent.sum()) / len(recent) if len(recent) else 1.0
        return density * gain((evidence + self._prior).tolist(), self._m_max)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take in the instance as one of late, and as evidence for the class predicted if it was asked about."""
        super().update(features, prediction, proposal, asked=asked)
        self._scale.add(features)
        self._recent.add(self._scale.raw(features), self._scale)
        if asked:
            self._count(features, best_label(prediction), answered=False)

    def resolved(self, outcome: Outcome) -> None:
        """Let the request count for the class it was answered with, or for none; the last answer counts."""
        label = str(outcome.label) if outcome.teaches else None
        again = outcome.kind == "corrected"
        for slot, features in enumerate(self._requests):
            if self._answered[slot] == again and features == outcome.features:
                self._codes[slot] = self._code(label)
                self._answered[slot] = True
                return
        if label is not None:
            self._count(outcome.features, label, answered=True)

    def _count(self, features: Features, label: str | None, *, answered: bool) -> None:
        slot = self._asked.add(self._scale.raw(features), self._scale)
        self._codes[slot] = self._code(label)
        self._requests[slot] = features
        self._answered[slot] = answered

    def _code(self, label: str | None) -> int:
        return self._code_of.setdefault(label, len(self._code_of))
