"""Models as a user's own factory may give them: one that cannot learn one label, one that is slow, one of several."""

from __future__ import annotations

import time
from typing import Any

from river import ensemble, naive_bayes, tree


class Fragile(naive_bayes.MultinomialNB):
    """Naive Bayes that is half changed when it meets the label `invoice`, and raises."""

    def learn_one(self, x: Any, y: Any) -> None:
        naive_bayes.MultinomialNB.learn_one(self, x, y)
        if y == "invoice":
            message = "expected a kind of animal"
            raise ValueError(message)


class Slow(naive_bayes.MultinomialNB):
    """Naive Bayes that takes as long to learn as a big forest."""

    def learn_one(self, x: Any, y: Any) -> None:
        time.sleep(0.003)
        naive_bayes.MultinomialNB.learn_one(self, x, y)


def build_regressors() -> Any:
    """What `model.factory` names: an ensemble for a regression, of which there is no preset."""
    return ensemble.BaggingRegressor(tree.HoeffdingTreeRegressor(), n_models=5, seed=0)


def build_slow() -> Any:
    """What `model.factory` names."""
    return Slow()  # type: ignore[no-untyped-call]  # River leaves the constructor untyped


def build() -> Any:
    """What `model.factory` names."""
    return Fragile()  # type: ignore[no-untyped-call]  # River leaves the constructor untyped
