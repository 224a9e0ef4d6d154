"""The model as a fold over `outcomes`: one record at a time, in the order of the log, scored before it is learned.

Whoever folds the same records has the same model, bit for bit; that is what lets every worker learn from all answers
without talking to the others, and what a replay is checked against. A record that the model cannot learn is left out:
the model may be half changed by then, so it goes back to the last checkpoint, learns the records since once more,
and goes on. Every worker does so at the same record; so it is with drift, which a `WatchedModel` looks for.

An instance that nobody was asked about is observed, or learned with its pseudo-label, and makes nothing evident: what
the model says of it before is what it was labelled by, so it is neither scored nor shown to the detectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from streamal.events import ExampleLearned, ExampleSkipped, FoldEvent
from streamal.learning.drift import WatchedModel
from streamal.learning.model import FAILURES, Model
from streamal.messages import VALUE, Moments, Outcome, Recorded, Unlabelled, Vote, best_label

CHECKPOINT_EVERY: Final = 1_000

Lesson = Outcome | Unlabelled | Moments
"""What the model may learn from: votes are counted before."""


class Fold:
    """The served model and its version: the offset after the last folded record of `outcomes`.

    `last` is the fingerprint of that record, by which another log is known; "" before the first.
    """

    def __init__(self, model: Model, version: int = 0, last: str = "") -> None:
        self.model = model
        self.version = version
        self.last = last
        self._checkpoint = model.copy()
        self._tail: list[Lesson] = []

    @property
    def served(self) -> Model:
        """The model that predicts, without those that watch it or wait to replace it."""
        return self.model.served if isinstance(self.model, WatchedModel) else self.model

    def resume(self, model: Model, version: int, last: str) -> None:
        """Go on from a snapshot, for everyone who shares this fold; called before the first record, if at all."""
        self.model, self.version, self.last = model, version, last
        self._checkpoint = model.copy()
        self._tail.clear()

    def fold(self, records: Iterable[tuple[int, Recorded]]) -> list[FoldEvent]:
        """Fold records with their offsets; returns what was learned or left out, and what it makes evident."""
        events: list[FoldEvent] = []
        record: Recorded | None = None
        for offset, record in records:
            if not isinstance(record, Vote) and (not isinstance(record, Outcome) or record.teaches):
                self._remember()
                events += self._take(record)
            self.version = offset + 1
        if record is not None:
            self.last = fingerprint(record)
        return events

    def _remember(self) -> None:
        if len(self._tail) >= CHECKPOINT_EVERY:
            self._checkpoint = self.model.copy()
            self._tail.clear()

    def _take(self, record: Lesson) -> list[FoldEvent]:
        """Apply one record, or undo all trace of it."""
        try:
            events = self._apply(record)
        except FAILURES as error:
            self.model = self._checkpoint.copy()
            for earlier in self._tail:
                self._apply(earlier)
            self._checkpoint = self.model.copy()
            self._tail.clear()
            return [] if isinstance(record, Moments) else [ExampleSkipped(record, type(error).__name__)]
        self._tail.append(record)
        return events

    def _apply(self, record: Lesson) -> list[FoldEvent]:
        if isinstance(record, Moments):
            self.model.merge(record.moments)
            return []
        if isinstance(record, Unlabelled):
            if record.label is None:
                self.model.observe(record.features)
            else:
                self.model.learn(record.features, record.label)
            return []
        if record.label is None:
            message = "a learned outcome has a label; this one has none"
            raise ValueError(message)
        prediction = self.model.predict([record.features])[0]
        self.model.learn(record.features, record.label, record.weight)
        hit = None if VALUE in prediction else best_label(prediction) == record.label
        learned = ExampleLearned(record, prediction, hit)
        if isinstance(self.model, WatchedModel):
            return [learned, *self.model.heed(record, prediction)]
        return [learned]


def fingerprint(record: Recorded) -> str:
    """Return what tells a record of `outcomes` from those of other logs at the same offset.

    >>> fingerprint(Moments(0, 2, {}))
    '495f877ac4e62566'
    """
    return sha256(record.encode()).hexdigest()[:16]
