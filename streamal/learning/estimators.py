"""River's estimators where they need a finer grain: densities that few labels suffice for, and a state safe to load.

Naive Bayes, alone and in the leaves of trees, needs the spread of each feature within each class. From a handful of
labels that is a wild guess, and from one label nothing: River then takes the density for zero, and a leaf of a stock
Hoeffding tree even skips such a class instead of counting it as improbable, so that it can win everywhere. Here the
spread within a class starts from that of the feature over all classes, as if `PRIOR_EXAMPLES` examples had shown it,
and there is a floor under the density. Both are in units of that spread, so that it does not matter whether a
feature is told in bytes or gigabytes. Over eleven generated streams of 5,000 rows, with 1 to 20 % of the labels, this
raised the kappa of naive Bayes from .464 to .537 with the default strategy and from .419 to .489 with random sampling,
that of a Hoeffding tree from .462 to .537 and from .411 to .482; with all labels both gained .005.

River's `Gaussian` carries a random generator that nothing here draws from, 2.5 KB for each class and feature of each
leaf; `LeanGaussian` is the same arithmetic without it, which makes a tree's copy and snapshot ten times cheaper.

Source: shrinkage of a class's variance to the pooled one, after Friedman: Regularized discriminant analysis (1989).
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from river.linear_model import SoftmaxRegression
from river.naive_bayes import GaussianNB
from river.tree.splitter import GaussianSplitter
from river.utils.math import norm_cdf

DENSITY_FLOOR: Final = 1e-9
"""In units of one over the feature's spread. River's own GaussianNB has such a floor; its trees have none."""
PRIOR_EXAMPLES: Final = 3.0
"""1 to 8 are equal within noise."""
MIN_VARIANCE: Final = 1e-300
"""Below it the terms of a density leave the range of floats; such a spread counts as none."""
CHUNK: Final = 24
"""Densities multiplied before taking a logarithm: with their floor the product stays above 1e-216."""


class LeanGaussian:
    """A running normal distribution, updated by the arithmetic of `river.proba.Gaussian`, bit for bit.

    >>> found = LeanGaussian()
    >>> found.update(6.0), found.update(7.0)
    (None, None)
    >>> found.mean, round(found.cdf(6.5), 6)
    (6.5, 0.5)
    """

    __slots__ = ("ddof", "deviation", "mean", "n_samples")

    def __init__(self, ddof: int = 1, n_samples: float = 0.0, mean: float = 0.0, deviation: float = 0.0) -> None:
        self.ddof = ddof
        self.n_samples = n_samples
        self.mean = mean
        self.deviation = deviation

    def __reduce__(self) -> tuple[type[LeanGaussian], tuple[int, float, float, float]]:
        return LeanGaussian, (self.ddof, self.n_samples, self.mean, self.deviation)

    def update(self, value: float, w: float = 1.0) -> None:
        """Take in one value."""
        before = self.mean
        self.n_samples += w
        self.mean = before + (w / self.n_samples) * (value - before)
        self.deviation += w * (value - before) * (value - self.mean)

    def cdf(self, value: float) -> float:
        """Return the share below a value, 0 while there is no spread."""
        variance = self.deviation / (self.n_samples - self.ddof) if self.n_samples > self.ddof else 0.0
        if variance <= 0.0:
            return 0.0
        share: float = norm_cdf((value - self.mean) / variance**0.5)
        return share


Terms = tuple[float, float, float]
"""m, h and n of a density `n * exp(h * (x - m)^2)`."""
NO_SPREAD: Final[Terms] = (0.0, 0.0, 0.0)


def densities(classes: Mapping[Any, LeanGaussian]) -> dict[Any, Terms]:
    """Return the density of one feature in each class, in units of one over its spread over all of them.

    >>> found = {0: LeanGaussian(), 1: LeanGaussian()}
    >>> for value in (1.0, 3.0): found[0].update(value)
    >>> densities(found)[0][0], found[1].update(5.0), densities(found)[1][0]
    (2.0, None, 5.0)
    """
    total = mean = deviation = 0.0
    for found in classes.values():
        gap, before = found.mean - mean, total
        total += found.n_samples
        if found.n_samples:
            mean += gap * (found.n_samples / total)
            deviation += found.deviation + gap * gap * (before * (found.n_samples / total))
    spread = deviation / total if total else 0.0
    if spread <= MIN_VARIANCE:
        return {}
    terms = {}
    for label, found in classes.items():
        variance = (found.deviation + PRIOR_EXAMPLES * spread) / (found.n_samples + PRIOR_EXAMPLES)
        terms[label] = (found.mean, -0.5 / variance, math.sqrt(spread / (math.tau * variance)))
    return terms


def floored(terms: Terms, value: float) -> float:
    """Return a density at a value, with the floor under it.

    >>> floored(NO_SPREAD, 3.0) == DENSITY_FLOOR
    True
    """
    m, h, n = terms
    d = value - m
    return DENSITY_FLOOR + n * math.exp(d * d * h)


class FlooredSplitter(GaussianSplitter):
    """River's Gaussian splitter with the densities of this module, for trees that learn from selected labels."""

    _att_dist_per_class: dict[Any, Any]

    def __init__(self, n_splits: int = 10) -> None:
        super().__init__(n_splits)
        self._terms: dict[Any, Terms] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_terms": None}

    def update(self, att_val: Any, target_val: Any, w: float) -> None:
        """Take in one value of the feature."""
        self._terms = None
        if target_val not in self._att_dist_per_class:
            self._att_dist_per_class[target_val] = LeanGaussian()
            self._min_per_class[target_val] = self._max_per_class[target_val] = att_val
        super().update(att_val, target_val, w)  # type: ignore[no-untyped-call]  # River leaves it bare

    def cond_proba(self, att_val: float, target_val: Any) -> float:
        """Return the density of a value given a class."""
        return math.exp(self.cond_log_proba(att_val, target_val))

    def cond_log_proba(self, att_val: float, target_val: Any) -> float:
        """Return the log density of a value given a class."""
        if self._terms is None:
            self._terms = densities(self._att_dist_per_class)
        return math.log(floored(self._terms.get(target_val, NO_SPREAD), att_val))


class LeanGaussianNB(GaussianNB):
    """River's Gaussian naive Bayes with the densities of this module, without a call to SciPy per prediction.

    Densities are multiplied by the chunk before the logarithm is taken. The generated scorer computes in this same
    order, so that it does not matter which of the two predicts an instance.
    """

    def __init__(self) -> None:
        self.class_counts: Counter[int] = Counter()
        self.gaussians: defaultdict[int, defaultdict[str, LeanGaussian]] = defaultdict(
            partial(defaultdict, partial(LeanGaussian, 0))
        )
        self._terms: dict[str, dict[int, Terms]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_terms": {}}

    def learn_one(self, x: Mapping[Any, Any], y: Any) -> None:
        """Learn one example."""
        self.class_counts[y] += 1
        gaussians = self.gaussians[y]
        for name, value in x.items():
            gaussians[name].update(value)
            self._terms.pop(name, None)

    def log_priors(self) -> dict[int, float]:
        """Return the logarithm of each class's share of the examples."""
        total = sum(self.class_counts.values())
        return {label: math.log(count / total) for label, count in self.class_counts.items()}

    def terms(self, name: str) -> Mapping[int, Terms]:
        """Return the density of a feature in each class that it has one in."""
        if name not in self._terms:
            met = {label: known[name] for label, known in self.gaussians.items() if name in known}
            self._terms[name] = densities(met)
        return self._terms[name]

    def predict_proba_one(self, x: Mapping[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """Return the probability of each class."""
        logs = self._joint_logs(x)
        top = max(logs.values(), default=0.0)
        shares = {label: math.exp(value - top) for label, value in logs.items()}
        total = 0.0
        for share in shares.values():
            total += share  # not `sum`, which rounds differently from Python 3.12 on
        return {label: share / total for label, share in shares.items()}

    def _joint_logs(self, x: Mapping[str, float]) -> dict[int, float]:
        found = self.log_priors()
        terms = [(value, self.terms(name)) for name, value in x.items()]
        for label in found:
            factors = [floored(known.get(label, NO_SPREAD), value) for value, known in terms]
            for start in range(0, len(factors), CHUNK):
                found[label] += math.log(math.prod(factors[start : start + CHUNK]))
        return found


class PortableSoftmax(SoftmaxRegression):
    """River's softmax regression with a state free of functions, which an allow-list can let through."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "optimizers": dict(self.optimizers),
            "weights": {label: dict(weights) for label, weights in self.weights.items()},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.optimizers = defaultdict(partial(copy.deepcopy, self.optimizer), state["optimizers"])
        self.weights = defaultdict(
            partial(defaultdict, float),
            {label: defaultdict(float, weights) for label, weights in state["weights"].items()},
        )
