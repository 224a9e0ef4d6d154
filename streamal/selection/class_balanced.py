"""Class-balanced margin sampling: a threshold for each pair of predicted classes, lower the more it has been served.

For an instance whose most probable classes are i and j, in this order, the margin is compared with a threshold of that
ordered pair. An answer to a request of the rule lowers it by the part `step` if the model was right, and by as much
again (for either of the two classes) if the label is the majority of the pair. It is raised, up to where it started, by
an answer to a request the rule did not make whose label is j. So the requests move from the pairs of a usual class,
which get most of them at first, to those of rare classes: a class may be the majority of one pair and the minority of
another. Which of two classes is the majority is told by exploration's answers alone, which owe nothing to the model.

Source: Liu, Zhang, Ding, Liu: A comprehensive active learning method for multiclass imbalanced data streams with
concept drift (2021), known as CALMID. Where it deviates:

- The budget is not met by absolute thresholds, which only ever fall where the model is right, but by the rank of the
  margin divided by the threshold among those of the last `window` instances. So only the ratios of thresholds count,
  and the lowest is taken as 1: those of the pair that is served most then stay comparable over the window.
- The margin is that of the logarithms, which keeps an order among predictions that are all but certain.
- Steps are forgotten, with the same memory of 500 labels as the source's window of labels has, instead of beginning
  anew where a drift is detected.
- Random requests are those of exploration; the source's are a part of the rule.
- The source's learning weight of ``1 + ln(1 + difficulty + 1/imbalance)`` is left out, and so is its ensemble: a
  strategy decides whom to ask, and the model learns each label once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import nlargest
from typing import Final, TypeVar

from streamal.messages import Features, Outcome, Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.utility import log_margin
from streamal.selection.window import TopRanks

Name = TypeVar("Name")

STEP: Final = 0.01
MOST_STEP: Final = 0.1
"""A thousand steps, the most there can be, still leave a threshold that can be divided by."""
DECAY: Final = 0.998
"""Per answer, of the steps counted: they look back about 500 answers. A new owner remembers those among the last 2,000
outcomes of all partitions."""
PRIOR_DECAY: Final = 0.98
"""Per answer of exploration: about 50, which are a thousand answers where exploration takes its usual twentieth."""
NEGLIGIBLE: Final = 0.01
LEAST_MARGIN: Final = -1e3
"""Log margins of probabilities end before it."""


def leading(prediction: Prediction) -> tuple[str, ...]:
    """Return the two most probable classes in this order, the first ones on a tie; nothing where nothing is said.

    >>> leading({"a": 0.1, "b": 0.7, "c": 0.2}), leading({"a": 1.0}), leading({"a": 0.0, "b": 0.0})
    (('b', 'c'), ('a',), ())
    """
    found = nlargest(2, prediction, key=prediction.__getitem__)
    return tuple(found) if found and prediction[found[0]] != 0.0 else ()


def faded(counts: Mapping[Name, float], decay: float) -> dict[Name, float]:
    """Return counts times a decay, without those that have become negligible, so that there are never many.

    >>> faded({"a": 1.0, "b": 0.015}, 0.5)
    {'a': 0.5}
    """
    return {name: left for name, count in counts.items() if (left := count * decay) > NEGLIGIBLE}


class ClassBalanced(Unmindful):
    """Asks about the smallest margins relative to their pair's threshold.

    `step` (0.01, at most 0.1) is the part by which an answer moves a threshold; more balances the pairs more evenly
    and follows single answers, and 0 is plain margin sampling. Memory: 16 bytes for each instance of the window, and a
    number for each pair that had one of the last 2,650 answers.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        self.warmup = 4 * spec.window
        self._step = spec.number("step", STEP, least=0.0, most=MOST_STEP)
        self._ranks = TopRanks(spec.window)
        self._steps: dict[tuple[str, ...], float] = {}
        self._most = 0.0
        self._priors: dict[str, float] = {}

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Rank the margin, in units of its pair's threshold."""
        pair = leading(prediction)
        if not pair:
            return Proposal(min(1.0, steered_rate(standing)), 0.0)
        margin = log_margin(prediction[pair[0]], prediction[pair[1]] if len(pair) == 2 else 0.0)
        margin = max(LEAST_MARGIN, margin) if margin < 0.0 else 0.0
        utility = margin / self.threshold(pair)
        return Proposal(self._ranks.propensity(utility, standing), utility)

    def threshold(self, pair: tuple[str, ...]) -> float:
        """Return the threshold of an ordered pair, relative to the lowest one, so from 1 on."""
        return float((1.0 - self._step) ** (self._steps.get(pair, 0.0) - self._most))

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take the utility into the window."""
        if leading(prediction) and proposal.utility != math.inf:
            self._ranks.add(proposal.utility)

    def resolved(self, outcome: Outcome) -> None:
        """Take an answer into the priors, if exploration asked for it, and move the threshold of its pair."""
        if outcome.kind != "learned":
            return
        label = str(outcome.label)
        if outcome.reason == "exploration":
            self._priors = faded(self._priors, PRIOR_DECAY)
            self._priors[label] = self._priors.get(label, 0.0) + 1.0
        pair = leading(outcome.prediction)
        self._steps = faded(self._steps, DECAY)
        if len(pair) == 2 and (moved := self._moved(pair, label, wanted=outcome.would_select is True)):
            self._steps[pair] = max(0.0, self._steps.get(pair, 0.0) + moved)
        self._most = max(self._steps.values(), default=0.0)

    def _moved(self, pair: tuple[str, ...], label: str, *, wanted: bool) -> int:
        """Return the steps by which an answer lowers the threshold of its pair."""
        first, second = pair
        if not wanted:
            return -(label == second)
        other = first if label == second else second
        majority = label in pair and self._priors.get(label, 0.0) > self._priors.get(other, 0.0)
        return (label == first) + majority
