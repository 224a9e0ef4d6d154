"""A model that cannot learn one label: what a user's own factory may do to the loop, for a story."""

from __future__ import annotations

from typing import Any

from river import naive_bayes


class Fragile(naive_bayes.MultinomialNB):
    """Naive Bayes that is half changed when it meets the label `invoice`, and raises."""

    def learn_one(self, x: Any, y: Any) -> None:
        naive_bayes.MultinomialNB.learn_one(self, x, y)
        if y == "invoice":
            message = "expected a kind of animal"
            raise ValueError(message)


def build() -> Any:
    """What `model.factory` names."""
    return Fragile()  # type: ignore[no-untyped-call]  # River leaves the constructor untyped
