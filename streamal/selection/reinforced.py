"""Lets the members of an ensemble vote on asking, and rewards those whose vote found an error of the model.

A member votes for asking when its largest class probability lies below a threshold; votes count by the members'
powers. Where the powers of those in favour make a majority, the answer rewards by +1 if the model was wrong, else by a
penalty: the powers of the members in favour are multiplied by ``e^(step * reward)``, the threshold by
``1 + step * (1 - 2^(reward / penalty))``, and it never exceeds 1.

Source: Wassermann, Cuvelier, Casas: RAL - Improving Stream-Based Active Learning by Reinforcement Learning (2019), with
the defaults of the authors' program. Deviations: theirs asks whenever there is a majority; here the powers in favour
are ranked among those of the last instances, so that the budget is neither spent on the first that come nor left over
once the threshold has fallen. Equal votes are ranked by the members' mean uncertainty. The window is scored anew
whenever powers or threshold change. A power keeps a tenth of an equal share, so that no member is silenced for good.
The part asked at random is `strategy.explore`. With a penalty of -1 the threshold falls unless two of three
answers find an error; a penalty nearer to 0 makes it one of two.

Finding errors is not the same as learning: where labels are noisy, members are rewarded for the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from streamal.messages import Features, Outcome, Prediction, best_label
from streamal.selection.grounded import Grounded
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.vectors import Vector

STEP: Final = 0.01
THRESHOLD: Final = 0.9
PENALTY: Final = -1.0
LEAST_THRESHOLD: Final = 1e-3
"""The certainty of a member that knows as many classes as there may be, and none better than another."""
MOST_MEMBERS: Final = 32
"""Members beyond these have no vote: each one's power stands in the ledger, which has to stay small."""
LEAST_POWER: Final = 0.1
"""Of an equal share."""
DIGITS: Final = 6
"""To which powers are rounded, for the same reason."""
TIE: Final = 1e-3
"""Weight of the uncertainty beside the votes: less than the power of any member."""


def certainty(prediction: Prediction) -> float:
    """Return the largest probability, within [0, 1]; 0 where there is none or one is no number.

    >>> certainty({"a": 0.25, "b": 0.75}), certainty({}), certainty({"a": float("nan"), "b": 1.0})
    (0.75, 0.0, 0.0)
    """
    shares = prediction.values()
    return min(1.0, max(0.0, *shares)) if shares and not math.isnan(sum(shares)) else 0.0


def rewarded(powers: Sequence[float], voters: Sequence[bool], factor: float) -> list[float]:
    """Multiply the powers of those who voted for asking, and share out to a sum of 1 again.

    >>> rewarded([0.5, 0.5], [True, False], 3.0)
    [0.75, 0.25]
    """
    grown = [power * factor if voted else power for power, voted in zip(powers, voters, strict=True)]
    least = LEAST_POWER * sum(grown) / len(grown)
    kept = [max(least, power) for power in grown]
    return [round(power / sum(kept), DIGITS) for power in kept]


class Reinforced(Unmindful):
    """Ranks the weighted votes of an ensemble's members; a single model is a committee of one.

    `step` (0 to 1, exclusive) is how fast powers and threshold move, `threshold` (above 0, to 1) where the latter
    begins, and `penalty` (-10 to 0, exclusive) the reward for asking where the model was right. Memory: for each
    instance of the window, 8 bytes and another 8 for each member, 32 at most.
    """

    def __init__(self, spec: StrategySpec) -> None:
        self.warmup = 4 * spec.window
        self._model = spec.model
        self._step = spec.number("step", STEP, above=0.0, below=1.0)
        self._begin = spec.number("threshold", THRESHOLD, above=0.0, most=1.0)
        self._penalty = spec.number("penalty", PENALTY, least=-10.0, below=0.0)
        self._size = spec.window
        self._threshold = self._begin
        self._powers: list[float] = []
        self._rows = np.zeros((0, 0))
        self._scores = np.zeros(0)
        self._next = 0

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Rank the votes on an instance among those on the last ones."""
        rate = steered_rate(standing)
        if not any(prediction.values()):
            return Grounded(min(1.0, rate), 1.0 + TIE, None)
        row = self._ask(features, prediction)
        [score] = self._score(row[np.newaxis])
        above, ties = int((self._scores > score).sum()), int((self._scores == score).sum())
        rank = rate * (len(self._scores) + 1) - above
        return Grounded(min(1.0, max(0.0, rank / (ties + 1))), float(score), row)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take the votes into the window."""
        if not isinstance(proposal, Grounded) or proposal.grounds is None:
            return
        row, score = proposal.grounds, proposal.utility
        if self._rows.shape[1] != len(row):
            self._rows, self._scores, self._next = np.zeros((0, len(row))), np.zeros(0), 0
        if len(self._rows) < self._size:
            self._rows, self._scores = np.vstack([self._rows, row]), np.append(self._scores, score)
        else:
            self._rows[self._next], self._scores[self._next] = row, score
            self._next = (self._next + 1) % self._size

    def resolved(self, outcome: Outcome) -> None:
        """Reward the members in favour, if they had the majority; they are heard once more, as they are by now."""
        if outcome.kind != "learned" or not any(outcome.prediction.values()):
            return
        row = self._ask(outcome.features, outcome.prediction)
        powers, voters = self._powers_of(len(row)), [bool(vote) for vote in row < self._threshold]
        if 2.0 * sum(power for power, voted in zip(powers, voters, strict=True) if voted) <= sum(powers):
            return
        reward = 1.0 if best_label(outcome.prediction) != outcome.label else self._penalty
        self._powers = rewarded(powers, voters, math.exp(self._step * reward))
        moved = self._threshold * (1.0 + self._step * (1.0 - 2.0 ** (reward / self._penalty)))
        self._threshold = min(1.0, max(LEAST_THRESHOLD, moved))
        self._scores = self._score(self._rows)

    def state(self) -> dict[str, Any]:
        """Return the threshold and the powers."""
        return {"threshold": self._threshold, "powers": self._powers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set threshold and powers, and score the window with them."""
        self._threshold = float(state.get("threshold", self._begin))
        self._powers = list(state.get("powers", ()))
        self._scores = self._score(self._rows)

    def _ask(self, features: Features, prediction: Prediction) -> Vector:
        """Return how certain each member is."""
        members = self._model().members(features)[:MOST_MEMBERS]
        return np.array([certainty(member) for member in members or [prediction]])

    def _powers_of(self, members: int) -> list[float]:
        """Return the powers of so many members; they are equal where their number has changed."""
        return self._powers if len(self._powers) == members else [round(1.0 / members, DIGITS)] * members

    def _score(self, rows: Vector) -> Vector:
        """Return votes and uncertainty of instances; rounded, since ties have to be ties."""
        powers = np.array(self._powers_of(rows.shape[1])) if rows.size else np.zeros(rows.shape[1])
        worth = ((rows < self._threshold) + TIE * (1.0 - rows)) * powers
        rounded: Vector = np.round(worth.sum(axis=1), 9)
        return rounded
