"""Query by committee: ask where the members of an ensemble disagree, or where one of them is unsure.

The committee is the served model's own ensemble (`Model.members`), so it costs what its members' predictions cost.
Members that say nothing do not count. No copy of a forest learns the pending instances, so while answers are late it
goes on asking where it has asked already.

`Committee` measures, by its parameter:

- `vote_entropy`: the entropy of the members' votes for their best class. Argamon-Engelson, Dagan: Committee-based
  sample selection for probabilistic classifiers (1999), without the constant that scales it to 1;
- `consensus_entropy`: the entropy of the members' mean prediction;
- `max_kl`: the largest divergence of a member from that mean; the mean of the divergences is the measure of McCallum,
  Nigam: Employing EM and pool-based active learning for text classification (1998);
- `min_margin`: the smallest margin of any member. Jiang, Gupta: Minimum-margin active learning (2019). The margin is
  that of the logarithms, which keeps the order where a member is as good as sure; with two classes the order is theirs.

`Variance` is the same idea for a regression: the variance of the members' predictions. Burbidge, Rowland, King: Active
learning for regression based on query by committee (2007).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from streamal.messages import VALUE, Features, Prediction, best_label
from streamal.selection.ranked import Ranked
from streamal.selection.strategy import StrategySpec
from streamal.selection.utility import log_margin, top_two


def opinions(members: Iterable[Prediction]) -> list[dict[str, float]]:
    """Return what the members say, each as shares that sum to 1; those that say nothing, or no numbers, are left out.

    >>> opinions([{"a": 3.0, "b": 1.0}, {}, {"a": 0.0, "b": 0.0}, {"a": math.nan}])
    [{'a': 0.75, 'b': 0.25}]
    """
    found = []
    for said in members:
        total = sum(said.values())
        if 0.0 < total < math.inf:
            found.append({label: share / total for label, share in said.items()})
    return found


def consensus(said: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of the members' shares.

    >>> consensus([{"a": 1.0}, {"a": 0.5, "b": 0.5}])
    {'a': 0.75, 'b': 0.25}
    """
    mean: dict[str, float] = {}
    for shares in said:
        for label, share in shares.items():
            mean[label] = mean.get(label, 0.0) + share / len(said)
    return mean


def entropy(shares: Iterable[float]) -> float:
    """Return the entropy of shares, in nats.

    >>> entropy([1.0, 0.0]), round(entropy([0.5, 0.5]), 4)
    (0.0, 0.6931)
    """
    return -sum(share * math.log(share) for share in shares if share > 0.0) + 0.0


def vote_entropy(said: Sequence[Mapping[str, float]]) -> float:
    """Return the entropy of the votes for the best class.

    >>> round(vote_entropy([{"a": 0.9, "b": 0.1}, {"a": 0.4, "b": 0.6}]), 4)
    0.6931
    """
    votes = Counter(map(best_label, said))
    return entropy(count / len(said) for count in votes.values())


def consensus_entropy(said: Sequence[Mapping[str, float]]) -> float:
    """Return the entropy of the mean prediction.

    >>> round(consensus_entropy([{"a": 1.0}, {"b": 1.0}]), 4)
    0.6931
    """
    return entropy(consensus(said).values())


def max_kl(said: Sequence[Mapping[str, float]]) -> float:
    """Return the largest Kullback-Leibler divergence of a member from the mean prediction, in nats.

    >>> max_kl([{"a": 0.8, "b": 0.2}] * 2), round(max_kl([{"a": 1.0}, {"b": 1.0}]), 4)
    (0.0, 0.6931)
    """
    mean = consensus(said)
    return max(sum(p * math.log(p / mean[label]) for label, p in shares.items() if p > 0.0) for shares in said)


def min_margin(said: Sequence[Mapping[str, float]]) -> float:
    """Return the log margin of the member that is least sure: 0 where one sees a tie, lower the surer all are.

    >>> min_margin([{"a": 0.5, "b": 0.5}, {"a": 1.0}]), round(min_margin([{"a": 0.9, "b": 0.1}] * 2), 3)
    (0.0, -2.197)
    """
    return max(log_margin(*top_two(shares)) for shares in said)


MEASURES: Final[Mapping[str, Callable[[Sequence[Mapping[str, float]]], float]]] = {
    "min_margin": min_margin,
    "vote_entropy": vote_entropy,
    "consensus_entropy": consensus_entropy,
    "max_kl": max_kl,
}


class Committee(Ranked):
    """Ranks instances by a `measure` of the members' disagreement, `min_margin` by default.

    `min_margin` was best in earlier measurements; `vote_entropy` has few values and breaks many ties at random. Memory:
    the window of utilities.
    """

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._model = spec.model
        self._measure = MEASURES[spec.choice("measure", "min_margin", tuple(MEASURES))]

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Measure the disagreement, None while no member says anything."""
        said = opinions(self._model().members(features))
        return self._measure(said) if said else None


class Variance(Ranked):
    """Ranks instances by the variance of the members' predicted numbers. Memory: the window of utilities."""

    def __init__(self, spec: StrategySpec) -> None:
        super().__init__(spec)
        self._model = spec.model

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        """Return the variance, None while fewer than two members predict a number."""
        values = [said[VALUE] for said in self._model().members(features) if VALUE in said]
        known = [value for value in values if math.isfinite(value)]
        if len(known) < 2:
            return None
        mean = sum(known) / len(known)
        return sum((value - mean) * (value - mean) for value in known) / len(known)
