"""Learns which of several strategies lowers the model's error, and lets it decide more often.

The strategies, its arms, take turns: one decides alone until the next payment. A payment is an answer of exploration.
It owes nothing to any arm, so its error, weighted by the inverse of its propensity, is an estimate without bias. The
reward is by how much it lies below the mean of the former ones; it goes to the arms in proportion to the requests of
their turns since the last payment, and their shares of the turns grow and shrink by it. Exploration's requests and the
loan's are among these: a strategy is told what was asked about, not whose wish that was. Rewarding an arm for finding
instances that the model gets wrong would chase noise instead.

Source: Hsu, Lin: Active Learning by Learning (2015), on EXP4 of Auer, Cesa-Bianchi, Freund, Schapire: The Nonstochastic
Multiarmed Bandit Problem (2002). Deviations: the paper draws an arm for each request, and estimates the accuracy from
what the arms have chosen. Here a turn lasts about twenty requests, since there is but one payment for so many, and
where the arms are mixed it cannot say who earned it; the turns follow a sequence that is even instead of random. A drop
of the error is rewarded instead of the accuracy itself, so that a good model is no reward for everybody. EXP4.P's
bonus is left out. The number of payments to come is not known, so a `horizon` stands for it; and the least share is a
bound of the shares themselves instead of a part mixed in, so that an arm whose time comes later rises at once.

It learns slowly: one payment says little, and until some hundred have come the turns are nearly even, which is worse
than the best arm alone. Where answers come later than a turn lasts, rewards go to the wrong arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

from streamal.errors import ConfigError
from streamal.messages import Features, Outcome, Prediction, best_label
from streamal.selection.grounded import Grounded
from streamal.selection.strategy import Proposal, QueryStrategy, Standing, StrategySpec, Unmindful

ARMS: Final = ("class_conditional", "coreset", "random")
MOST_ARMS: Final = 6
"""What they keep stands in the ledger, which has to stay small."""
HORIZON: Final = 100
"""Payments: with the defaults of rate and exploration, 40,000 instances."""
LONGEST_TURN: Final = 64
"""Requests after which the next arm has its turn though nothing was paid: answers may come late, or never."""
GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def least_share(arms: int, horizon: int) -> float:
    """Return the least part of the turns that each arm keeps, ``sqrt(ln K / (K T))``; it is EXP4's step as well.

    >>> round(least_share(3, 100), 4), least_share(6, 1)
    (0.0605, 0.16666666666666666)
    """
    return min(1.0 / arms, math.sqrt(math.log(arms) / (arms * horizon)))


def in_turn(number: int, shares: Sequence[float]) -> int:
    """Return whose turn it is: the multiples of the golden ratio fill the unit interval evenly, and so the shares.

    >>> [in_turn(number, [0.5, 0.3, 0.2]) for number in range(10)]
    [0, 1, 0, 2, 0, 0, 1, 0, 2, 1]
    """
    place = number * GOLDEN % 1.0 * sum(shares)
    return min(sum(place >= end for end in accumulate(shares)), len(shares) - 1)


@dataclass(slots=True)
class Arm:
    """A strategy, its share of the turns, and how many requests were made in these since the last payment."""

    strategy: QueryStrategy
    share: float
    chosen: int = 0


class Bandit(Unmindful):
    """Lets the strategies named in `arms` take turns, 2 to 6, each with its own default parameters.

    `horizon` is how many payments (10 to 100,000) it takes to trust one arm much more than another, or the other again:
    more is slower, less swayed by chance, and leaves less to the worse arms. Memory: that of the arms.
    """

    def __init__(self, spec: StrategySpec, build: Callable[[str, StrategySpec], QueryStrategy]) -> None:
        names = arms_of(spec.parameters)
        horizon = spec.whole("horizon", HORIZON, least=10, most=100_000)
        try:
            built = {name: build(name, replace(spec, parameters={})) for name in names}
        except ConfigError as error:
            message = f"strategy.parameters.arms: {error}"
            raise ConfigError(message) from None
        if pooling := [name for name, strategy in built.items() if strategy.pools is not None]:
            message = f"strategy.parameters.arms: '{pooling[0]}' chooses at the end of a window and cannot take turns"
            raise ConfigError(message)
        self.warmup = max(strategy.warmup for strategy in built.values())
        self.recalls = any(strategy.recalls for strategy in built.values())
        self._arms = {name: Arm(strategy, 1.0 / len(built)) for name, strategy in built.items()}
        self._least = least_share(len(built), horizon)
        self._kept = 1.0 - 1.0 / horizon
        self._turn = 0
        self._payments = self._weight = self._losses = 0.0
        self._begin_turn(0)

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Return what the arm proposes whose turn it is; the others are heard for their own sake."""
        proposals = [arm.strategy.propose(features, prediction, standing) for arm in self._arms.values()]
        return Grounded(*proposals[self._leader], proposals)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Pass the decision on, to each arm with its own proposal; what is recalled only to those that recall.

        Whose utility a recalled request has is not known, so no arm gets it.
        """
        arms = list(self._arms.values())
        if not isinstance(proposal, Grounded):
            recalled = Proposal(proposal.propensity, math.inf)
            for arm in arms:
                if arm.strategy.recalls:
                    arm.strategy.update(features, prediction, recalled, asked=asked)
            return
        for arm, own in zip(arms, proposal.grounds, strict=True):
            arm.strategy.update(features, prediction, own, asked=asked)
        if asked:
            arms[self._leader].chosen += 1
            if sum(arm.chosen for arm in arms) % LONGEST_TURN == 0:
                self._begin_turn(self._turn + 1)

    def resolved(self, outcome: Outcome) -> None:
        """Pass the outcome on, and let an answer of exploration pay the arms."""
        for arm in self._arms.values():
            arm.strategy.resolved(outcome)
        if outcome.reason == "exploration" and outcome.kind == "learned" and outcome.propensity > 0.0:
            self._pay(float(best_label(outcome.prediction) != outcome.label), 1.0 / outcome.propensity)

    def _pay(self, loss: float, weight: float) -> None:
        """Reward the requests since the last payment by how far a loss lies below the mean of the former ones."""
        arms = self._arms.values()
        requests = sum(arm.chosen for arm in arms)
        if requests and self._payments:
            drop = (self._losses / self._weight - loss) * weight * self._payments / self._weight
            for arm in arms:
                reward = self._least * drop * arm.chosen / (requests * arm.share)
                arm.share = max(self._least, arm.share * math.exp(min(1.0, max(-1.0, reward))))
            total = sum(arm.share for arm in arms)
            for arm in arms:
                arm.share /= total
        for arm in arms:
            arm.chosen = 0
        self._payments = self._kept * self._payments + 1.0
        self._weight = self._kept * self._weight + weight
        self._losses = self._kept * self._losses + weight * loss
        self._begin_turn(self._turn + 1)

    def _begin_turn(self, number: int) -> None:
        self._turn = number
        self._leader = in_turn(number, [arm.share for arm in self._arms.values()])

    def state(self) -> dict[str, Any]:
        """Return how the arms stand and what the next payment needs."""
        return {
            "arms": {name: [arm.share, arm.chosen, arm.strategy.state()] for name, arm in self._arms.items()},
            "paid": [self._turn, self._payments, self._weight, self._losses],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the arms that were there before; a new one begins with an even share."""
        fresh = [1.0 / len(self._arms), 0, dict[str, Any]()]
        for name, arm in self._arms.items():
            arm.share, arm.chosen, own = state.get("arms", {}).get(name, fresh)
            arm.strategy.restore(own)
        turn, self._payments, self._weight, self._losses = state.get("paid", (0, 0.0, 0.0, 0.0))
        self._begin_turn(turn)


def arms_of(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the arms.

    >>> arms_of({"arms": ["random", "density"]})
    ('random', 'density')

    Raises:
        ConfigError: they are not 2 to 6 different names.
    """
    found = parameters.get("arms", ARMS)
    names = tuple(found) if isinstance(found, list | tuple) else ()
    fits = all(isinstance(name, str) for name in names) and 2 <= len(set(names)) == len(names) <= MOST_ARMS
    if not fits or "bandit" in names:
        message = (
            f"strategy.parameters.arms = {found!r}: expected a list of 2 to {MOST_ARMS} different strategies other "
            f"than bandit, such as {list(ARMS)}"
        )
        raise ConfigError(message)
    return names
