"""The contract of a query strategy: from a prediction to the propensity of asking for the label.

A strategy says how probable asking *should* be; the budget has the last word, and the coin decides. So a strategy
never counts labels and never tosses: it reads `Standing`, which the sampler keeps. One object serves one partition. A
strategy is one file of this folder plus one line in `streamal.selection.registry`.

`propose` changes nothing and may be called any number of times. `update` is called exactly once per instance, in offset
order, after the decision; `resolved` once per outcome, in the order they are written. Nothing else changes anything.

State comes in two kinds. `state()` is small (a few numbers), exact, and kept in the ledger. Everything else is soft: a
new owner builds it anew before it calls `restore`, which has the last word. It calls `update` as asked for each request
that is remembered, with an infinite utility where another strategy made it, and `resolved` for each of their outcomes,
if the strategy `recalls`; then `update` as not asked for the last `warmup` instances before its position.

A strategy that `pools` has its say once more, at the end of each window of instances: its `Chooser` compares those that
nobody was asked about so far. The sampler keeps the window and restores it; a chooser keeps nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from streamal.errors import ConfigError
from streamal.learning.model import Model
from streamal.messages import Features, LabelRequest, Outcome, Prediction


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
    so far; `level` is the allowance not used yet, in labels (negative while a loan is unpaid); `full` says that what is
    not asked now is soon lost; `pending` counts requests that wait for their answer; `gathered` counts the instances of
    the open window, without this one.
    """

    rate: float
    cap: float
    epsilon: float = 0.05
    seen: int = 0
    asked: int = 0
    level: float = 0.0
    full: bool = False
    pending: int = 0
    gathered: int = 0


class Candidate(NamedTuple):
    """An instance of a window that was not asked about; `draw` is a uniform number of its own in [0, 1)."""

    features: Features
    prediction: Prediction
    draw: float


class Choice(NamedTuple):
    """The candidate at a place is to be asked about; `utility` and `propensity` as in a `Proposal`.

    `synthetic` features take the place of its own, where it is only the nearest real instance.
    """

    place: int
    utility: float
    propensity: float = 1.0
    synthetic: Features | None = None


class Chooser(Protocol):
    """Compares the instances of a window at its end."""

    size: int
    """How many instances a window has; fewer where the budget's burst does not hold the allowance of so many."""

    def choose(
        self,
        candidates: Sequence[Candidate],
        known: Iterable[LabelRequest | Outcome],
        count: int,
        standing: Standing,
    ) -> Sequence[Choice]:
        """Choose at most `count` of the candidates, of which there are as many or more; the first is asked first.

        `count` is what the allowance permits, 1 or more; `known` is what was asked not long ago and what became of it,
        the latest first; `standing` is that of the last instance, with all of the window's as `gathered`. Changes
        nothing; called once per window, unless nothing is permitted, and what is chosen is asked about unless a limit
        or a full queue forbids it, or a made instance is like one that waits.
        """


class QueryStrategy(Protocol):
    """Turns a prediction into the propensity of asking, for one partition."""

    warmup: int
    """How many past instances a new owner shows to `update` to rebuild the soft state; 0 if there is none."""
    recalls: bool
    """Whether a new owner shows it the remembered requests and their outcomes as well."""
    pools: Chooser | None
    """What chooses at the end of each window; None if every instance is decided on at once."""

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Say how probable asking should be; changes nothing."""

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take note of the instance just decided."""

    def resolved(self, outcome: Outcome) -> None:
        """Take note of what became of a request of this partition; its label has not been learned yet."""

    def state(self) -> dict[str, Any]:
        """Return the exact state as a small JSON object."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; an empty one, as a former version may have left it, is a fresh start."""


class Unmindful:
    """The parts of the contract for a strategy that keeps nothing, to be replaced by what it does keep."""

    warmup: int = 0
    recalls: bool = False
    pools: Chooser | None = None

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take note of nothing."""

    def resolved(self, outcome: Outcome) -> None:
        """Take note of nothing."""

    def state(self) -> dict[str, Any]:
        """Keep nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """What a strategy is built from; its own parameters are read by `number`, `whole`, `choice` and `switch`."""

    rate: float
    window: int
    parameters: Mapping[str, Any]
    model: Callable[[], Model]
    """The model as it stands now, for strategies that look inside it."""

    def number(
        self,
        name: str,
        default: float,
        *,
        least: float = -math.inf,
        most: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float:
        """Return a parameter that is a number within its bounds.

        Raises:
            ConfigError: it is none.
        """
        value = self.parameters.get(name, default)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (fits and least <= value <= most and above < value < below):
            bounds = (("from", least), ("to", most), ("above", above), ("below", below))
            said = " ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
            raise self._refusal(name, value, f"a number {said}".strip(), default)
        return float(value)

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        """Return a parameter that is a whole number within its bounds.

        Raises:
            ConfigError: it is none.
        """
        value = self.parameters.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self._refusal(name, value, f"a whole number from {least} to {most}", default)
        return value

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """Return a parameter that is one of a few words.

        Raises:
            ConfigError: it is none of them.
        """
        value = self.parameters.get(name, default)
        if value not in options:
            raise self._refusal(name, value, f"one of {', '.join(options)}", default)
        return str(value)

    def switch(self, name: str, *, default: bool) -> bool:
        """Return a parameter that is true or false.

        Raises:
            ConfigError: it is neither.
        """
        value = self.parameters.get(name, default)
        if type(value) is not bool:
            raise self._refusal(name, value, "true or false", default)
        return value

    def _refusal(self, name: str, value: object, expected: str, default: object) -> ConfigError:
        return ConfigError(f"strategy.parameters.{name} = {value!r}: expected {expected}, such as {default}")
