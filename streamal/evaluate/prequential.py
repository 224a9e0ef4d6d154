"""Prequential scores: each prediction is scored before its label is learned, over all instances that have one.

In a simulation every instance's label is known, so these are the true figures. In production only answered requests
have one, and those were chosen for being hard: the figure is then 10 to 15 points too low, and is shown with that
caveat.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from river import metrics

from streamal.messages import VALUE, Label, Prediction, best_label

LEAST: Final = 1e-15
NOTHING: Final = ""
"""The predicted class of a model that has learned none."""


class Recall(NamedTuple):
    """Which share of a class was recognised, and which share of all instances it is."""

    value: float
    share: float


class Prequential:
    """Running scores; for regression `mae`, `rmse` and `r2`, else the rest."""

    def __init__(self) -> None:
        matrix = metrics.ConfusionMatrix()
        self._accuracy = metrics.Accuracy(cm=matrix)
        self._others = {
            "kappa": metrics.CohenKappa(cm=matrix),
            "macro_f1": metrics.MacroF1(cm=matrix),
            "balanced_accuracy": metrics.BalancedAccuracy(cm=matrix),
        }
        self._errors = {"mae": metrics.MAE(), "rmse": metrics.RMSE(), "r2": metrics.R2()}
        self._loss = 0.0
        self._matrix = matrix
        self.count = 0

    def score(self, prediction: Prediction, label: Label) -> None:
        """Take in one prediction and the truth; one that says nothing counts as wrong."""
        self.count += 1
        if isinstance(label, str):
            self._matrix.update(label, best_label(prediction) or NOTHING)
            self._loss -= math.log(max(LEAST, prediction.get(label, 0.0)))
        else:
            for error in self._errors.values():
                error.update(label, prediction.get(VALUE, 0.0))

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return float(self._accuracy.get())

    def summary(self) -> dict[str, float | None]:
        """Return all scores by name, None for those that do not apply."""
        classes = self._matrix.n_samples > 0
        found: dict[str, float | None] = {"accuracy": self.accuracy if classes else None}
        found |= {name: _finite(metric.get()) if classes else None for name, metric in self._others.items()}
        if found["macro_f1"] is not None and NOTHING in self._matrix.classes:
            # saying nothing is wrong, but it is no class to be averaged over
            found["macro_f1"] *= len(self._matrix.classes) / (len(self._matrix.classes) - 1)
        found["log_loss"] = self._loss / self.count if classes else None
        found |= {name: None if classes or not self.count else _finite(e.get()) for name, e in self._errors.items()}
        return found

    def recall(self) -> dict[str, Recall]:
        """Return the recall of each class, the rarest first; nothing for regression."""
        matrix = self._matrix
        counts = {label: count for label, count in matrix.sum_row.items() if count}
        return {
            label: Recall(matrix.true_positives(label) / counts[label], counts[label] / self.count)
            for label in sorted(counts, key=lambda label: (counts[label], label))
        }


def _finite(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
