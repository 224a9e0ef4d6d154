"""A model that cannot learn one label: what a user's own factory may do to the loop, for a story."""

from __future__ import annotations

from river import naive_bayes


class Fragile(naive_bayes.GaussianNB):  # type: ignore[misc]
    """Gaussian naive Bayes that is half changed when it meets the label `invoice`, and raises."""

    def learn_one(self, x: dict[str, float], y: str) -> None:
        super().learn_one(x, y)
        if y == "invoice":
            message = "expected a kind of animal"
            raise ValueError(message)


def build() -> Fragile:
    """What `model.factory` names."""
    return Fragile()
