"""Who competes, and on which terms: our strategies, and each peer as shipped and behind our ledger.

All get the same models, the same rows and the same answers, so only the choice differs. `skactiveml.Split` is the peer
as shipped: its own budget alone, no ledger, no loan, utilities from the served model. `skactiveml.Split@ledger` wants
the same, but the ledger has the last word, the cold start's loan is ours, and utilities come from the copy that knows
what is pending; all of the budget is the peer's to choose with. `skactiveml.Split@explored` gives up a part for
exploration, as our own strategies do. `full` asks about everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from benchmarks.label_efficiency.peers import PEERS, OnLedger, Peer, Setting, vector
from streamal.annotate.oracle import Oracle
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.simulate import Simulator
from streamal.evaluate.stream import Row
from streamal.lane import MOMENTS_EVERY, SamplingPlan
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.learning.moments import MomentAccumulator
from streamal.selection.budget import BudgetPlan
from streamal.selection.registry import STRATEGIES
from streamal.selection.strategy import QueryStrategy

FULL: Final = "full"
"""Full supervision: what all labels would reach, with the same delay."""
EXPLORE: Final[Mapping[str, float]] = {"ledger": 1e-9, "explored": 0.05}
"""The terms besides `shipped`, with exploration's share of the budget: none within any stream, or our default."""
OURS: Final = tuple(name for name, entry in STRATEGIES.items() if "classification" in entry.tasks)
CONTENDERS: Final = (*OURS, *PEERS, *(f"{peer}@{terms}" for terms in EXPLORE for peer in PEERS))


class Race(Protocol):
    """One contender on one stream; `max_overshoot` is its largest excess over its bound at any prefix, in labels."""

    scores: Prequential
    max_overshoot: float

    @property
    def asked(self) -> int:
        """Labels asked for so far."""

    def take(self, number: int, row: Row) -> None:
        """Predict a row, score, decide, and learn what is due."""


class PeerPlan(SamplingPlan):
    """A sampling plan whose strategy is a peer; its parameters are the peer's setting."""

    def build_strategy(self, fold: Fold) -> QueryStrategy:
        """Build the peer."""
        return OnLedger(PEERS[self.strategy](Setting(**self.parameters)))


class Ledgered(Simulator):
    """A contender behind our ledger: the simulator as it is."""

    @property
    def asked(self) -> int:
        """Labels asked for so far."""
        return self.lane.asked

    def take(self, number: int, row: Row) -> None:
        """Take a step."""
        self.step(number, row)


class Shipped:
    """A peer as it is shipped: what it wants is asked about, and nothing else is."""

    def __init__(self, peer: Peer, model: Model, rate: float, delay: int) -> None:
        self._peer = peer
        self._model = model
        self._rate = rate
        self._delay = delay
        self._due: deque[tuple[int, Row]] = deque()
        self._moments = MomentAccumulator()
        self.scores = Prequential()
        self.seen = self.asked = 0
        self.max_overshoot = -float("inf")

    def take(self, number: int, row: Row) -> None:
        """Predict a row, score, decide, and learn what is due."""
        prediction = self._model.predict([row.features])[0]
        self.scores.score(prediction, row.label)
        features = vector(row.features)
        utility = self._peer.utility(features, prediction)
        asked = self._peer.wants(utility)
        self._peer.note(features, utility, asked=asked)
        self.seen += 1
        if asked:
            self.asked += 1
            self._due.append((number + self._delay, row))
        self.max_overshoot = max(self.max_overshoot, self.asked - self._rate * self.seen - 1.0)
        self._learn(number, row)

    def _learn(self, now: int, row: Row) -> None:
        """Learn as the service does: moments of all rows at each doubling and every thousand, labels when they come."""
        if self._model.scales:
            self._moments.add([row.features])
            if self._moments.count >= min(self.seen / 2, MOMENTS_EVERY):
                self._model.merge(self._moments.take())
        while self._due and self._due[0][0] <= now:
            _, told = self._due.popleft()
            self._model.learn(told.features, told.label)


def enter(contender: str, setting: Setting, model: Model, delay: int, classes: list[str]) -> Race:
    """Return a contender ready to start."""
    if contender == FULL:
        return Shipped(PEERS["skactiveml.StreamRandomSampling"](setting._replace(rate=1.0)), model, 1.0, delay)
    if contender in PEERS:
        return Shipped(PEERS[contender](setting), model, setting.rate, delay)
    budget = BudgetPlan(setting.rate)
    peer, _, terms = contender.partition("@")
    if terms:
        given = setting._asdict()
        plan: SamplingPlan = PeerPlan(budget, peer, given, explore=EXPLORE[terms], seed=setting.seed)
    else:
        plan = SamplingPlan(budget, contender, seed=setting.seed)
    return Ledgered(plan, model, Oracle(delay), classes)
