"""A model in four verbs: predict a batch, learn one example, observe one without a label, merge moments of all rows.

Everything the rest of streamal knows about River stands behind `Model`. A prediction changes nothing, so a batch
between two learned examples is predicted at once; `learn`, `observe` and `merge` are the only mutations, and all are
deterministic, which is what makes the model a fold over the `outcomes` topic.

Classes are strings here, whatever the annotator sent (`streamal.messages.canonical_label`), so a stray `1` among `"1"`
can never poison a tree. Before the first example a classifier predicts `{}`; a class it has not met is absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, Protocol

from streamal.messages import Features, Moment, Prediction

FAILURES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What an estimator may raise over an instance it cannot take."""


class Model(Protocol):
    """What the fold, the sampler and the strategies need of a model."""

    @property
    def task(self) -> Literal["classification", "regression"]:
        """Decides how labels are validated and which strategies apply."""

    @property
    def lookahead(self) -> bool:
        """Whether copying is cheap enough (about 1 ms) to keep a copy that has learnt the pending instances."""

    @property
    def scales(self) -> bool:
        """Whether `merge` has an effect; where it has none, nobody gathers moments."""

    @property
    def observes(self) -> bool:
        """Whether `observe` has an effect; where it has none, no instances are put on the log for it."""

    @property
    def classes(self) -> Collection[str]:
        """The classes learned so far, none for a regression; how many there may be is for the caller to bound."""

    @property
    def examples(self) -> int:
        """How many labelled examples it has learned."""

    @property
    def ensemble(self) -> bool:
        """Whether several members vote, as a committee strategy needs it."""

    def members(self, features: Features) -> list[Prediction]:
        """Predict one instance by each member of an ensemble; by a single model, or before the first example, `[]`."""

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """Predict each instance; changes nothing, not even on names never seen, and never raises for valid features."""

    def learn(self, features: Features, label: str | float, weight: float = 1.0) -> None:
        """Learn one labelled example.

        Called once per example in the order of the log. If it raises, the model may be half changed and is not to be
        used again: `streamal.learning.fold` goes back to its last checkpoint and leaves the example out.
        """

    def observe(self, features: Features) -> None:
        """Let the parts that learn without labels learn from one instance; called and failing as `learn` is."""

    def merge(self, moments: Mapping[str, Moment]) -> None:
        """Merge the moments of instances that may not be labelled, for models that scale; others ignore it."""

    def copy(self) -> Model:
        """Return an independent copy that predicts the same."""
