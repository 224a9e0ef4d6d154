"""River's estimators where they need a finer grain: floored densities in trees, and a state small and safe to load.

Under selective sampling a leaf of a stock Hoeffding tree collapses: its naive Bayes skips a class whose density is
zero instead of counting it as improbable, so a class seen once can win everywhere. A floor under the density cures it.
River's `Gaussian` carries a random generator that nothing here draws from, 2.5 KB for each class and feature of each
leaf; `LeanGaussian` is the same arithmetic without it, which makes a tree's copy and snapshot ten times cheaper.
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
"""River's own GaussianNB has the same floor; its trees have none."""
MIN_VARIANCE: Final = 1e-300
"""Below it the terms of a density leave the range of floats; such a spread counts as none."""
CHUNK: Final = 24
"""Densities multiplied before taking a logarithm: with their floor the product stays above 1e-216."""


class LeanGaussian:
    """A running normal distribution, updated by the arithmetic of `river.proba.Gaussian`, bit for bit.

    >>> found = LeanGaussian()
    >>> found.update(6.0), found.update(7.0)
    (None, None)
    >>> found.mean, round(found(6.5), 6)
    (6.5, 0.56419)
    """

    __slots__ = ("_deviation", "_terms", "ddof", "mean", "n_samples")

    def __init__(self, ddof: int = 1, n_samples: float = 0.0, mean: float = 0.0, deviation: float = 0.0) -> None:
        self.ddof = ddof
        self.n_samples = n_samples
        self.mean = mean
        self._deviation = deviation
        self._terms: tuple[float, float, float] | None = None

    def __reduce__(self) -> tuple[type[LeanGaussian], tuple[int, float, float, float]]:
        return LeanGaussian, (self.ddof, self.n_samples, self.mean, self._deviation)

    def update(self, value: float, w: float = 1.0) -> None:
        """Take in one value."""
        before = self.mean
        self.n_samples += w
        self.mean = before + (w / self.n_samples) * (value - before)
        self._deviation += w * (value - before) * (value - self.mean)
        self._terms = None

    @property
    def variance(self) -> float:
        """0 while there are too few values."""
        return self._deviation / (self.n_samples - self.ddof) if self.n_samples > self.ddof else 0.0

    @property
    def terms(self) -> tuple[float, float, float]:
        """Return m, h and n of the density `n * exp(h * (x - m)^2)`; all are 0 while there is no spread."""
        if self._terms is None:
            variance = self.variance
            usable = variance > MIN_VARIANCE
            self._terms = (
                (self.mean, -0.5 / variance, 1.0 / math.sqrt(math.tau * variance)) if usable else (0.0, 0.0, 0.0)
            )
        return self._terms

    def __call__(self, value: float) -> float:
        """Return the density, 0 while there is no spread."""
        m, h, n = self._terms or self.terms
        d = value - m
        return n * math.exp(d * d * h)

    def cdf(self, value: float) -> float:
        """Return the share below a value, 0 while there is no spread."""
        variance = self.variance
        if variance <= 0.0:
            return 0.0
        share: float = norm_cdf((value - self.mean) / variance**0.5)
        return share


NOTHING: Final = LeanGaussian()
"""Has met no value, so its density is 0."""


class FlooredSplitter(GaussianSplitter):
    """River's Gaussian splitter with a floor under the density, for trees that learn from selected labels."""

    _att_dist_per_class: dict[Any, Any]

    def update(self, att_val: Any, target_val: Any, w: float) -> None:
        """Take in one value of the feature."""
        if target_val not in self._att_dist_per_class:
            self._att_dist_per_class[target_val] = LeanGaussian()
            self._min_per_class[target_val] = self._max_per_class[target_val] = att_val
        super().update(att_val, target_val, w)  # type: ignore[no-untyped-call]

    def cond_log_proba(self, att_val: float, target_val: int) -> float:
        """Return the log density of a value given a class."""
        return math.log(DENSITY_FLOOR + self._att_dist_per_class.get(target_val, NOTHING)(att_val))


class LeanGaussianNB(GaussianNB):
    """River's Gaussian naive Bayes on `LeanGaussian`s, without a call to SciPy per prediction.

    Densities are multiplied by the chunk before the logarithm is taken; results are River's within 1e-12. The generated
    scorer computes in this same order, so that it does not matter which of the two predicts an instance.
    """

    def __init__(self) -> None:
        self.class_counts: Counter[int] = Counter()
        self.gaussians: defaultdict[int, defaultdict[str, LeanGaussian]] = defaultdict(
            partial(defaultdict, partial(LeanGaussian, 0))
        )

    def learn_one(self, x: Mapping[Any, Any], y: Any) -> None:
        """Learn one example."""
        self.class_counts[y] += 1
        gaussians = self.gaussians[y]
        for name, value in x.items():
            gaussians[name].update(value)

    def log_priors(self) -> dict[int, float]:
        """Return the logarithm of each class's share of the examples."""
        total = sum(self.class_counts.values())
        return {label: math.log(count / total) for label, count in self.class_counts.items()}

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
        for label in found:
            known: Mapping[str, LeanGaussian] = self.gaussians.get(label, {})
            densities = [DENSITY_FLOOR + known.get(name, NOTHING)(value) for name, value in x.items()]
            for start in range(0, len(densities), CHUNK):
                chunk = densities[start : start + CHUNK]
                product = math.prod(chunk)
                # Densities of a nearly constant feature can overflow when they are multiplied.
                found[label] += math.log(product) if product < math.inf else sum(map(math.log, chunk))
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
