"""Pool-based sampling in a bounded window: gather, compare, and ask for what the window has earned, exactly.

A strategy of the stream decides on each instance as it comes, against those before it. This one waits for the end of a
window of `pool_window` instances, predicts them all with the model as it stands then, and asks for the best of them, as
many as the tokens allow. Its price is latency: **a request may be made up to `pool_window` instances after the instance
it is about**. Exploration and the cold start's loan go on asking at once; whom they ask is not chosen again.

`budget.burst` must hold what a window earns, ``rate * pool_window``, and three labels more; with a smaller one windows
are as long as it allows, and one that was set to be longer is refused.

Sources: pool-based sampling after Lewis, Gale: A Sequential Algorithm for Training Text Classifiers (1994); `badge`:
Ash, Zhang, Krishnamurthy, Langford, Agarwal: Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds
(2020); `k_centre`: Sener, Savarese: Active Learning for Convolutional Neural Networks: A Core-Set Approach (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np

from streamal.messages import Features, LabelRequest, Outcome, Prediction
from streamal.selection.strategy import Candidate, Choice, Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.utility import log_margin, top_two
from streamal.selection.vectors import Standardiser, Vector, squared_distances

SIZE: Final = 500
"""Enough to compare at 1 % (five labels of 500), and the features of 500 instances are about a megabyte."""
LEAST_SIZE: Final = 50
MOST_SIZE: Final = 2_000
MOST_KNOWN: Final = 500
"""Earlier requests that `k_centre` keeps its distance from, the latest ones: each costs a pass over the window."""

Method = Callable[[Sequence[Candidate], Iterable[LabelRequest | Outcome], int], list[Choice]]


def doubt(prediction: Prediction) -> float:
    """Return the log margin: 0 for a tie, lower the surer the model; what is no number counts as the highest.

    >>> doubt({"a": 0.5, "b": 0.5}), doubt({"a": math.nan})
    (0.0, inf)
    """
    margin = log_margin(*top_two(prediction))
    return margin if math.isfinite(margin) else math.inf


def scaled(candidates: Sequence[Candidate]) -> tuple[Standardiser, Vector]:
    """Return the scale of a window and its points; shape (columns, candidates).

    >>> scaled([Candidate({"x": x}, {}, 0.5) for x in (1.0, 3.0)])[1].tolist()
    [[-1.0, 1.0]]
    """
    scale = Standardiser()
    for candidate in candidates:
        scale.add(candidate.features)
    return scale, np.stack([scale.vector(candidate.features) for candidate in candidates], axis=1)


def top(candidates: Sequence[Candidate], known: Iterable[LabelRequest | Outcome], count: int) -> list[Choice]:
    """Choose the largest log margins; ties at the bar are broken by lot, and the propensity says so.

    >>> unsure, sure = {"a": 0.6, "b": 0.4}, {"a": 0.9, "b": 0.1}
    >>> pool = [Candidate({}, sure, 0.5), Candidate({}, unsure, 0.9), Candidate({}, sure, 0.1)]
    >>> [(choice.place, choice.propensity) for choice in top(pool, (), 2)]
    [(1, 1.0), (2, 0.5)]
    """
    doubts = [doubt(candidate.prediction) for candidate in candidates]
    order = sorted(range(len(candidates)), key=lambda i: (-doubts[i], candidates[i].draw))
    bar = doubts[order[count - 1]]
    above = sum(found > bar for found in doubts)
    tied = (count - above) / doubts.count(bar)
    return [Choice(i, doubts[i], 1.0 if doubts[i] > bar else tied) for i in order[:count]]


def badge(candidates: Sequence[Candidate], known: Iterable[LabelRequest | Outcome], count: int) -> list[Choice]:
    """Choose by k-means++ on gradient embeddings, so that doubt counts and no doubt is asked about twice.

    The embedding of x is the gradient that the predicted class as label would give a linear layer: ``(p - onehot) (x)
    (x, 1)``, x standardised within the window. Each next choice is drawn with a chance in proportion to its squared
    distance to the nearest one before, the first to the squared length: as if the origin, which teaches nothing, had
    been chosen already. (The authors' program takes the longest first.) The propensity is that of the draw by which it
    was taken; that of being taken at all is larger and has no closed form, so do not weight by it.

    >>> pool = [Candidate({"x": x}, {"a": 0.6, "b": 0.4}, 0.5) for x in (1.0, 1.0, 9.0)]
    >>> sorted(choice.place for choice in badge(pool, (), 2))
    [1, 2]
    """
    points = scaled(candidates)[1]
    gradients = _gradients([candidate.prediction for candidate in candidates])
    lengths = np.add.reduce(gradients * gradients) * (1.0 + np.add.reduce(points * points))
    nearest = lengths.copy()
    chosen: list[Choice] = []
    for step in range(count):
        cumulative = np.cumsum(nearest)
        total = float(cumulative[-1])
        if total <= 0.0:
            return chosen + _by_lot(candidates, chosen, count - step)
        drawn = int(np.searchsorted(cumulative, candidates[step].draw * total, side="right"))
        best = min(drawn, int(np.flatnonzero(nearest)[-1]))
        chosen.append(Choice(best, float(nearest[best]), float(nearest[best]) / total))
        overlap = np.add.reduce(gradients * gradients[:, best, None]) * (
            1.0 + np.add.reduce(points * points[:, best, None])
        )
        np.minimum(nearest, np.maximum(0.0, lengths + lengths[best] - 2.0 * overlap), out=nearest)
        nearest[best] = 0.0
    return chosen


def k_centre(candidates: Sequence[Candidate], known: Iterable[LabelRequest | Outcome], count: int) -> list[Choice]:
    """Choose, one by one, whatever lies farthest from all that was asked and chosen so far; greedy k-centre.

    Distances are between the numeric features, standardised within the window. A window without any is chosen from by
    lot.

    >>> pool = [Candidate({"x": x}, {}, draw) for x, draw in ((1.0, 0.3), (1.1, 0.2), (5.0, 0.6), (9.0, 0.8))]
    >>> [choice.place for choice in k_centre(pool, (), 3)]
    [1, 3, 2]
    """
    scale, points = scaled(candidates)
    nearest = np.full(len(candidates), math.inf)
    for asked in islice(known, MOST_KNOWN):
        np.minimum(nearest, squared_distances(points, scale.vector(asked.features)), out=nearest)
    chosen: list[Choice] = []
    for step in range(count):
        farthest = float(nearest.max())
        if farthest <= 0.0:
            return chosen + _by_lot(candidates, chosen, count - step)
        rivals = np.flatnonzero(nearest == farthest).tolist()
        best = min(rivals, key=lambda i: candidates[i].draw)
        chosen.append(Choice(best, math.sqrt(farthest), 1.0 / len(rivals)))
        np.minimum(nearest, squared_distances(points, points[:, best]), out=nearest)
        nearest[best] = 0.0
    return chosen


METHODS: Final[Mapping[str, Method]] = {"top": top, "badge": badge, "k_centre": k_centre}


class Pool(Unmindful):
    """Asks at the end of a window only; `method` says by what it compares.

    `top` (the default) by doubt alone, `badge` by doubt and difference, `k_centre` by difference alone. Memory: none of
    its own; the sampler keeps the instances of the open window.
    """

    def __init__(self, spec: StrategySpec) -> None:
        self.size = spec.whole("pool_window", SIZE, least=LEAST_SIZE, most=MOST_SIZE)
        self._method = METHODS[spec.choice("method", "top", tuple(METHODS))]
        self.pools = self

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Let it wait; its doubt so far is told."""
        return Proposal(0.0, doubt(prediction))

    def choose(
        self,
        candidates: Sequence[Candidate],
        known: Iterable[LabelRequest | Outcome],
        count: int,
        standing: Standing,
    ) -> list[Choice]:
        """Choose by the method."""
        return self._method(candidates, known, count)


def _gradients(predictions: Sequence[Prediction]) -> Vector:
    """Return ``p - onehot(argmax)`` of each prediction; shape (classes, predictions). One that is broken is a tie."""
    classes = list(dict.fromkeys(name for prediction in predictions for name in prediction))
    found = np.zeros((len(classes), len(predictions)))
    for number, prediction in enumerate(predictions):
        if all(map(math.isfinite, prediction.values())):
            found[:, number] = [prediction.get(name, 0.0) for name in classes]
        else:
            found[:, number] = 1.0 / len(classes)
    if classes:
        found[found.argmax(axis=0), np.arange(len(predictions))] -= 1.0
    return found


def _by_lot(candidates: Sequence[Candidate], chosen: Sequence[Choice], count: int) -> list[Choice]:
    """Choose among what is left, where nothing tells one from another."""
    taken = {choice.place for choice in chosen}
    left = sorted((i for i in range(len(candidates)) if i not in taken), key=lambda i: candidates[i].draw)
    return [Choice(i, 0.0, count / len(left)) for i in left[:count]]
