"""What ranks high is asked about, what has no utility at the rate, and nothing is lost where all utilities fall."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean

import pytest
from specimens import Constant

from streamal.messages import Features, Prediction
from streamal.selection.ranked import Ranked
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.05
WINDOW = 512


class Stated(Ranked):
    """The utility is what the features say."""

    def utility(self, features: Features, prediction: Prediction) -> float | None:
        found = features.get("utility")
        return float(found) if isinstance(found, float) else None


def strategy() -> Stated:
    return Stated(StrategySpec(RATE, WINDOW, {}, lambda: Constant({})))


class Ledger:
    """The level that a lane would keep, and the requests it would let through."""

    def __init__(self) -> None:
        self.standing = Standing(rate=RATE, cap=23.0)
        self.asked = 0
        self._random = Random(0)

    def see(self, chosen: Ranked, features: Features) -> Proposal:
        standing = self.standing
        standing.level = min(standing.cap, standing.level + RATE)
        proposal = chosen.propose(features, {}, standing)
        asked = standing.level >= 1.0 and self._random.random() < proposal.propensity
        standing.level -= asked
        self.asked += asked
        chosen.update(features, {}, proposal, asked=asked)
        return proposal


def test_the_highest_are_asked_about_at_the_rate() -> None:
    chosen, random, standing = strategy(), Random(0), Standing(rate=RATE, cap=23.0)
    found = []
    for _ in range(4_000):
        features: Features = {"utility": random.gauss(0.0, 1.0)}
        proposal = chosen.propose(features, {}, standing)
        chosen.update(features, {}, proposal, asked=False)
        found.append(proposal.propensity)
    floor = spill(standing)
    assert fmean(found[WINDOW:]) == pytest.approx(steered_rate(standing) + 0.95 * floor, rel=0.15)
    assert chosen.propose({"utility": 3.0}, {}, standing) == (1.0, 3.0)
    assert chosen.propose({"utility": 0.0}, {}, standing) == (floor, 0.0)


def test_utilities_that_fall_all_at_once_again_and_again_cost_no_allowance() -> None:
    chosen, ledger, random = strategy(), Ledger(), Random(1)
    for number in range(20_000):
        drop = (number % 2_000) * 5.0 if number % 4_000 < 2_000 else 10_000.0
        ledger.see(chosen, {"utility": random.random() - drop})
    assert ledger.asked >= 0.97 * RATE * 20_000


def test_without_a_utility_it_asks_at_the_rate_and_keeps_nothing() -> None:
    chosen, standing = strategy(), Standing(rate=RATE, cap=23.0)
    for _ in range(10):
        proposal = chosen.propose({}, {}, standing)
        chosen.update({}, {}, proposal, asked=True)
        assert proposal == (steered_rate(standing), math.inf)
    assert chosen.propose({"utility": -5.0}, {}, standing) == (steered_rate(standing), -5.0)
    assert chosen.state() == {}
