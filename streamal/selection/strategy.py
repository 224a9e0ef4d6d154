"""The contract of a query strategy: from a prediction to the propensity of asking for the label.

A strategy says how probable asking *should* be; the budget has the last word, and the coin decides. So a strategy
never counts labels and never tosses: it reads `Standing`, which the sampler keeps. One object serves one partition. A
strategy is one file of this folder plus one line in `streamal.selection.registry`.

`propose` changes nothing and may be called any number of times. `update` is the only mutation and is called exactly
once per instance, in offset order, after the decision. State comes in two kinds: `state()` is small (a few numbers),
exact, and kept in the ledger; everything else is soft: a new owner builds it anew by calling `update` for the last
`warmup` instances before its position, as not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from streamal.learning.model import Model
from streamal.messages import Features, Prediction


class Proposal(NamedTuple):
    """What a strategy wants for one instance.

    `propensity` is in [0, 1]; `utility` grows with what the label would teach, on the strategy's own scale (a NaN or
    an infinity counts as the highest).
    """

    propensity: float
    utility: float


@dataclass(slots=True)
class Standing:
    """How the partition stands when an instance is considered; kept by the sampler, only read by strategies.

    `rate` is the budgeted labelling rate; `epsilon` the part of it that exploration takes in this block; `cap` the most
    unused allowance that is kept, in labels; `seen` counts instances, this one included; `asked` counts label requests
    so far; `level` is the allowance not used yet, in labels (negative while a loan is unpaid); `pending` counts
    requests that wait for their answer.
    """

    rate: float
    cap: float
    epsilon: float = 0.05
    seen: int = 0
    asked: int = 0
    level: float = 0.0
    pending: int = 0


class QueryStrategy(Protocol):
    """Turns a prediction into the propensity of asking, for one partition."""

    warmup: int
    """How many past instances a new owner shows to `update` to rebuild the soft state; 0 if there is none."""

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Say how probable asking should be; changes nothing."""

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take note of the instance just decided: the only mutation."""

    def state(self) -> dict[str, Any]:
        """Return the exact state as a small JSON object."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """What a strategy is built from."""

    rate: float
    window: int
    parameters: Mapping[str, Any]
    model: Callable[[], Model]
    """The model as it stands now, for strategies that look inside it."""
