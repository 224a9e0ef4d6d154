"""A copy of the model that has already learnt the pending instances, with the labels it predicted for them.

While answers are on their way the served model does not change, so it would ask about the same region again and
again. The copy knows what has been asked: utilities come from it, predictions never. It is built anew on the first
instance after enough answers came in, so that on average an answer costs a bounded number of learning steps. A
regression gets none: its own prediction teaches it nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from streamal.learning.model import FAILURES, Model
from streamal.messages import Features, Prediction, best_label

STEPS_PER_ANSWER: Final = 8
"""Pending instances that are learnt again per answer, on average."""


class Lookahead:
    """The copy of one partition; `model` says which model utilities come from."""

    __slots__ = ("_changes", "_copy")

    def __init__(self) -> None:
        self._copy: Model | None = None
        self._changes = 0

    def model(self, served: Model, pending: Iterable[tuple[Features, Prediction]], waiting: int) -> Model:
        """Return the copy, built anew if it is due, or the served model itself when there is no use for one."""
        if not waiting or not served.lookahead or served.task == "regression":
            self._copy = None
            return served
        if self._copy is None or self._changes * STEPS_PER_ANSWER > waiting:
            self._copy = served.copy()
            self._changes = 0
            for features, prediction in pending:
                _anticipate(self._copy, features, prediction)
        return self._copy

    def asked(self, features: Features, prediction: Prediction) -> None:
        """Let the copy learn an instance that was just asked about."""
        if self._copy is not None:
            _anticipate(self._copy, features, prediction)

    def changed(self, records: int) -> None:
        """Take note that the served model has folded so many records."""
        self._changes += records


def _anticipate(model: Model, features: Features, prediction: Prediction) -> None:
    label = best_label(prediction)
    if label is not None:
        # What the copy cannot learn costs it some foresight; the fold deals with it when the answer comes.
        with suppress(*FAILURES):
            model.learn(features, label)
