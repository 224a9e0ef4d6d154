"""Membership query synthesis: make an instance on the decision boundary, and ask about the real one that is nearest.

Most of the allowance, ``1 - share``, goes to the default strategy as the stream comes. What is put aside until the end
of a window of `pool_window` instances goes to synthesis, and so does what the default strategy has left over as far as
the burst has no room for it beside the next window's. One request is made for each pair of answered instances:

1. Among the last `MOST_KNOWN` requests with a label as their answer, take the closest pair with opposite answers, then
   the closest among the others, and so on: each instance is in one pair at most, so that requests spread along the
   boundary. Distances are between the numeric features, standardised within the window.
2. On the line between the two, bisect `STEPS` times: the model as it stands predicts the point in the middle, and the
   half in which it leaves the first one's class is kept. Numbers lie between the parents'; all other features, and
   numbers that one parent lacks, are those of the nearer parent.
3. `mode = "nearest"` asks about the instance of the window that is nearest to the point, among those that nobody was
   asked about. `mode = "synthetic"` asks about the point itself, in a request that is marked `synthetic` and bears id
   and offset of that nearest instance; no estimate counts it.

Where there are fewer pairs than labels, as long as all answers are alike, the least sure instances of the window take
the rest. As with `streamal.selection.pool`, a request may be made up to a window after its instance.

People cannot read what was synthesised: Baum and Lang's annotators met hybrids of characters that mean nothing. So
nearest is the default; the other mode is for annotators that are a computation or an experiment.

Sources: Wang, Hu, Yuan, Lu: Active Learning via Query Synthesis and Nearest Neighbour Search (2015), who spread further
requests over the perpendicular through the middle of one pair instead of over more pairs; Angluin: Queries and Concept
Learning (1988); Baum, Lang: Query Learning Can Work Poorly when a Human Oracle is Used (1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from streamal.learning.model import Model
from streamal.messages import Features, Label, LabelRequest, Outcome, Prediction, best_label
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.pool import LEAST_SIZE, MOST_KNOWN, MOST_SIZE, SIZE, doubt, scaled, top
from streamal.selection.strategy import Candidate, Choice, Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.vectors import Vector, squared_distances

SHARE: Final = 0.2
STEPS: Final = 10
"""Halvings: a thousandth of the distance between the parents is left of the doubt where the boundary lies."""


class Synthesis(Unmindful):
    """The default strategy, and requests at the boundary from a `share` (0.2) of the allowance.

    More of it teaches where the boundary runs, and less what lies elsewhere. Memory: the default strategy's; the
    sampler keeps the instances of the open window.
    """

    def __init__(self, spec: StrategySpec) -> None:
        self.size = spec.whole("pool_window", SIZE, least=LEAST_SIZE, most=MOST_SIZE)
        self._share = spec.number("share", SHARE, least=0.0, most=1.0)
        self._synthetic = spec.choice("mode", "nearest", ("nearest", "synthetic")) == "synthetic"
        self._model = spec.model
        self._default = ClassConditional(spec)
        self.warmup = self._default.warmup
        self.pools = self

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Let the default strategy propose at its part of the rate, with the window's part of the level put aside."""
        rate, level = (1.0 - self._share) * standing.rate, standing.level - self._aside(standing)
        return self._default.propose(features, prediction, replace(standing, rate=rate, level=level))

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Show it to the default strategy."""
        self._default.update(features, prediction, proposal, asked=asked)

    def choose(
        self,
        candidates: Sequence[Candidate],
        known: Iterable[LabelRequest | Outcome],
        count: int,
        standing: Standing,
    ) -> list[Choice]:
        """Choose the nearest instance to each synthesised one, then the least sure."""
        if not (count := min(count, self._due(count, standing, candidates[0].draw))):
            return []
        answered = [one for one in known if isinstance(one, Outcome) and one.label is not None][:MOST_KNOWN]
        scale, points = scaled(candidates)
        pairs = opposite([scale.vector(one.features) for one in answered], [one.label for one in answered], count)
        made = synthesise([(answered[a], answered[b]) for a, b in pairs], self._model())
        taken = np.zeros(len(candidates))
        chosen = []
        for features in made:
            place = int(np.argmin(squared_distances(points, scale.vector(features)) + taken))
            taken[place] = math.inf
            if self._synthetic:
                chosen.append(Choice(place, doubt(self._model().predict([features])[0]), synthetic=features))
            else:
                chosen.append(Choice(place, doubt(candidates[place].prediction)))
        if len(chosen) < count:
            left = np.flatnonzero(taken == 0.0).tolist()
            rest = top([candidates[place] for place in left], (), count - len(chosen))
            chosen += [choice._replace(place=left[choice.place]) for choice in rest]
        return chosen

    def _aside(self, standing: Standing) -> float:
        """Return what the open window has put aside so far, in labels."""
        return self._share * (1.0 - standing.epsilon) * standing.rate * standing.gathered

    def _due(self, count: int, standing: Standing, draw: float) -> int:
        """Return how many labels the window's end takes: what was put aside, and what the next one has no room for."""
        room = standing.cap - standing.rate * standing.gathered
        return max(int(self._aside(standing) + draw), count - max(0, int(room)))


def opposite(vectors: Sequence[Vector], labels: Sequence[Label | None], count: int) -> list[tuple[int, int]]:
    """Return up to `count` pairs of vectors with different labels, the closest first, each vector in one at most.

    >>> opposite([np.array([x]) for x in (0.0, 1.0, 1.5, 4.0)], ["a", "b", "a", "b"], 9)
    [(1, 2), (0, 3)]
    """
    if len(vectors) < 2:
        return []
    points = np.stack(vectors, axis=1)
    distances = np.stack([squared_distances(points, vector) for vector in vectors])
    codes = np.array(list(map(list(dict.fromkeys(labels)).index, labels)))
    distances[codes[:, None] == codes] = math.inf
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        a, b = divmod(int(distances.argmin()), len(vectors))
        if distances[a, b] == math.inf:
            break
        pairs.append((a, b))
        distances[[a, b]] = distances[:, [a, b]] = math.inf
    return pairs


def synthesise(pairs: Sequence[tuple[Outcome, Outcome]], model: Model) -> list[Features]:
    """Return, for each pair, the instance on the line between them at which the model leaves the first one's class."""
    spans = [(0.0, 1.0)] * len(pairs)
    made = _middles(pairs, spans)
    for _ in range(STEPS if pairs else 0):
        stays = [best_label(p) == first.label for p, (first, _) in zip(model.predict(made), pairs, strict=True)]
        spans = [
            ((low + high) / 2.0, high) if stay else (low, (low + high) / 2.0)
            for (low, high), stay in zip(spans, stays, strict=True)
        ]
        made = _middles(pairs, spans)
    return made


def _middles(pairs: Sequence[tuple[Outcome, Outcome]], spans: Sequence[tuple[float, float]]) -> list[Features]:
    return [
        between(first.features, second.features, (low + high) / 2.0)
        for (first, second), (low, high) in zip(pairs, spans, strict=True)
    ]


def between(first: Features, second: Features, part: float) -> Features:
    """Return the instance at a part, in [0, 1], of the way from one to another.

    >>> between({"x": 1.0, "city": "Oslo"}, {"x": 3.0, "city": "Bergen", "y": 2}, 0.75)
    {'x': 2.5, 'city': 'Bergen', 'y': 2}
    """
    found = dict(first if part <= 0.5 else second)
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if isinstance(a, int | float) and isinstance(b, int | float) and bool not in (type(a), type(b)):
            found[name] = (1.0 - part) * a + part * b
    return found
