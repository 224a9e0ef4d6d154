"""What lies near a waiting request is passed over, a fixed share of the instances, until the answer comes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import fmean

import orjson
import pytest
from specimens import Partition, Settled, stream

from streamal.lane import SamplingPlan
from streamal.messages import Features, LabelRequest, Outcome, Prediction
from streamal.selection.budget import BudgetPlan
from streamal.selection.distinct import MOST_WAITING, NEAREST, Distinct
from streamal.selection.registry import build
from streamal.selection.strategy import Proposal, QueryStrategy, Standing, StrategySpec, Unmindful

RATE = 0.2
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
SURE: Prediction = {"a": 0.8, "b": 0.2}


class Eager(Unmindful):
    """A strategy that always wants half, and keeps what it is told."""

    def __init__(self, *, recalls: bool = False) -> None:
        self.recalls = recalls
        self.told: list[tuple[Proposal, bool]] = []
        self.outcomes: list[Outcome] = []

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        return Proposal(0.5, 7.0)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        self.told.append((proposal, asked))

    def resolved(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def model() -> Settled:
    return Settled()


def built(name: str) -> QueryStrategy:
    return build(name, StrategySpec(RATE, WINDOW, {}, model), "classification")


def wanted(strategy: QueryStrategy, features: Features) -> float:
    return strategy.propose(features, SURE, STANDING).propensity


def see(strategy: QueryStrategy, features: Features, *, asked: bool = False) -> Proposal:
    proposal = strategy.propose(features, SURE, STANDING)
    strategy.update(features, SURE, proposal, asked=asked)
    return proposal


def answered(features: Features) -> Outcome:
    """Return the outcome of a request, its features as the log gives them back."""
    return Outcome(
        kind="learned",
        partition=0,
        offset=0,
        instance_id="0",
        features=orjson.loads(orjson.dumps(dict(features))),
        label="a",
        weight=1.0,
        prediction=SURE,
        utility=7.0,
        propensity=0.5,
        reason="uncertainty",
        would_select=True,
        strategy="",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def around(count: int, seed: int = 0) -> list[dict[str, float]]:
    random = Random(seed)
    return [{"x": random.gauss(0.0, 1.0), "y": random.gauss(0.0, 1.0)} for _ in range(count)]


def settled(strategy: QueryStrategy, *asked: Features) -> Distinct:
    """Return it after a hundred instances, with requests that wait for another hundred."""
    found = Distinct(strategy, WINDOW)
    for features in around(100):
        see(found, features)
    for request in asked:
        see(found, request, asked=True)
    for features in around(100, 1):
        see(found, features)
    return found


def test_what_lies_near_a_waiting_request_is_passed_over_until_the_answer_comes() -> None:
    asked: Features = {"x": 1.1, "y": 0.3, "city": "Oslo"}
    strategy = settled(Eager(), asked)
    assert wanted(strategy, asked) == 0.0
    assert wanted(strategy, {"x": 1.11, "y": 0.29, "city": "Bergen"}) == 0.0
    assert wanted(strategy, {"x": -1.0, "y": -0.3}) == 0.5
    strategy.resolved(answered({"x": 1.1, "y": 0.31, "city": "Oslo"}))
    assert wanted(strategy, asked) == 0.0, "that was another request"
    strategy.resolved(answered(asked))
    assert wanted(strategy, asked) == 0.5
    strategy.resolved(answered(asked))
    assert wanted(strategy, asked) == 0.5, "a correction follows an answer"


def test_two_requests_about_the_same_wait_for_two_answers() -> None:
    strategy = settled(Eager(), {"x": 1.0, "y": 0.0}, {"x": 1.0, "y": 0.0})
    strategy.resolved(answered({"x": 1.0, "y": 0.0}))
    assert wanted(strategy, {"x": 1.0, "y": 0.0}) == 0.0
    strategy.resolved(answered({"x": 1.0, "y": 0.0}))
    assert wanted(strategy, {"x": 1.0, "y": 0.0}) == 0.5


@pytest.mark.parametrize("waiting", [1, 20, 2 * MOST_WAITING])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_same_share_is_passed_over_however_many_wait_and_whatever_the_scale(waiting: int, scale: float) -> None:
    strategy = Distinct(Eager(), WINDOW)
    found = []
    for number, features in enumerate(around(waiting + 1_000)):
        scaled = {name: scale * value for name, value in features.items()}
        found.append(see(strategy, scaled, asked=number < waiting).propensity)
    assert fmean(found[waiting + WINDOW :]) == pytest.approx(0.5 * (1.0 - NEAREST), abs=0.03)


@pytest.mark.parametrize("features", [{"x": 1.0}, {"city": "Oslo"}, {}, {"x": None}], ids=str)
def test_where_all_are_alike_none_is_passed_over_for_sure(features: Features) -> None:
    strategy = Distinct(Eager(), WINDOW)
    for _ in range(200):
        see(strategy, features, asked=True)
    assert wanted(strategy, features) == pytest.approx(0.5 * (1.0 - NEAREST))


def test_without_a_waiting_request_the_strategy_decides_alone() -> None:
    alone, wrapped = built("class_conditional"), Distinct(built("class_conditional"), WINDOW)
    random = Random(0)
    for features in around(500):
        [prediction] = model().predict([features])
        expected = alone.propose(features, prediction, STANDING)
        found = wrapped.propose(features, prediction, STANDING)
        assert tuple(found) == tuple(expected)
        asked = random.random() < found.propensity
        alone.update(features, prediction, expected, asked=asked)
        wrapped.update(features, prediction, found, asked=asked)
        if asked:
            wrapped.resolved(answered(features))


def test_the_strategy_hears_of_all_with_its_own_proposal() -> None:
    inner = Eager()
    strategy = settled(inner, {"x": 1.0, "y": 0.0})
    lowered = see(strategy, {"x": 1.0, "y": 0.0}, asked=True)
    assert lowered.propensity == 0.0
    assert lowered.utility == 7.0
    assert inner.told[-1] == (Proposal(0.5, 7.0), True)
    outcome = answered({"x": 1.0, "y": 0.0})
    strategy.resolved(outcome)
    assert inner.outcomes == [outcome]


@pytest.mark.parametrize("recalls", [False, True])
def test_what_is_recalled_waits_and_reaches_a_strategy_that_recalls(recalls: bool) -> None:
    inner = Eager(recalls=recalls)
    strategy = Distinct(inner, WINDOW)
    strategy.update({"x": 1.0, "y": 0.0}, SURE, Proposal(0.3, 2.0), asked=True)
    assert inner.told == ([(Proposal(0.3, 2.0), True)] if recalls else [])
    for features in around(200):
        see(strategy, features)
    assert wanted(strategy, {"x": 1.0, "y": 0.0}) == 0.0


@pytest.mark.parametrize(
    ("name", "warmup"), [("random", WINDOW), ("class_conditional", built("class_conditional").warmup)]
)
def test_it_promises_what_the_strategy_needs_and_its_own(name: str, warmup: int) -> None:
    inner = built(name)
    strategy = Distinct(inner, WINDOW)
    assert strategy.warmup == warmup
    assert strategy.recalls
    assert strategy.pools is inner.pools
    assert Distinct(built("pool"), WINDOW).pools is not None


def test_its_state_is_that_of_the_strategy() -> None:
    strategy = Distinct(built("variable_uncertainty"), WINDOW)
    strategy.restore({"theta": 0.25})
    assert strategy.state() == {"theta": 0.25}


ODD_FEATURES: tuple[Features, ...] = (
    {},
    {"x": None, "y": None},
    {"x": "seven"},
    {"x": True, "new": 3},
    {"x": math.nan, "y": 1.0},
    {"x": math.inf, "y": -math.inf},
    {"x": 1e300, "y": -1e300},
    {f"c{i}": float(i) for i in range(300)},
)


AROUND: list[Features] = [*around(20, 2)]


def test_odd_features_break_nothing_and_proposing_changes_nothing() -> None:
    strategy, nosy = settled(built("class_conditional")), settled(built("class_conditional"))
    for number, features in enumerate([*ODD_FEATURES, *AROUND] * 3):
        for other in ODD_FEATURES:
            assert 0.0 <= nosy.propose(other, SURE, STANDING).propensity <= 1.0
        assert see(nosy, features, asked=number % 2 == 0) == see(strategy, features, asked=number % 2 == 0)
        if number % 3 == 0:
            for one in (strategy, nosy):
                one.resolved(replace(answered({}), features=features))


def run(
    wrap: Callable[[QueryStrategy], QueryStrategy], monkeypatch: pytest.MonkeyPatch, *, silent: int = 0
) -> Partition:
    plain = SamplingPlan.build_strategy
    with monkeypatch.context() as patch:
        patch.setattr(SamplingPlan, "build_strategy", lambda plan, fold: wrap(plain(plan, fold)))
        plan = SamplingPlan(BudgetPlan(RATE), "class_conditional", window=WINDOW)
        partition = Partition(plan, Settled(), delay=200, silent=silent)
        partition.run(stream(3_000))
    return partition


def nearest_waiting(partition: Partition) -> float:
    """Return the mean distance of a request to the nearest of the last twenty before it."""
    asked = [LabelRequest.decode(value).features for value in partition.requests]
    places = [(float(features["x"] or 0.0), float(features["y"] or 0.0)) for features in asked]
    return fmean(
        min(math.dist(place, other) for other in places[at - 20 : at]) for at, place in enumerate(places) if at > 20
    )


def test_requests_spread_out_and_the_allowance_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(lambda strategy: strategy, monkeypatch)
    spread = run(lambda strategy: Distinct(strategy, WINDOW), monkeypatch)
    assert nearest_waiting(spread) > 1.1 * nearest_waiting(plain)
    assert spread.lane.asked >= 0.95 * spread.lane.allowed


def test_answers_that_never_come_do_not_make_it_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = run(lambda strategy: Distinct(strategy, WINDOW), monkeypatch, silent=1)
    assert silent.lane.asked >= 0.95 * silent.lane.allowed


def test_memory_is_bounded() -> None:
    strategy, random, sizes = (
        Distinct(build("random", StrategySpec(RATE, WINDOW, {}, model), "classification"), WINDOW),
        Random(0),
        [],
    )
    for number in range(200_000):
        proposal = see(strategy, {"x": random.random()}, asked=number % 20 == 0)
        if number % 40 == 0 and random.random() < 0.5:
            strategy.resolved(answered({"x": 0.5}))
        assert 0.0 <= proposal.propensity <= 1.0
        if (number + 1) % 50_000 == 0:
            sizes.append(len(pickle.dumps(strategy)))
    assert max(sizes) < 1.05 * min(sizes)
