"""What every query strategy promises, whatever its rule; a new line in the registry is tested by being there."""

from __future__ import annotations

import copy
import gc
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from random import Random
from types import FunctionType, ModuleType

import numpy as np
import orjson
import pytest
from specimens import Constant, Partition, Settled, Surer, logistic, stream, truth

from streamal.annotate.oracle import Oracle
from streamal.errors import ConfigError
from streamal.evaluate.simulate import Simulation, simulate
from streamal.evaluate.stream import Row
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets
from streamal.messages import VALUE, Features, Instance, Label, LabelRequest, Outcome, Prediction, Task
from streamal.pooling import fitting
from streamal.selection import vectors
from streamal.selection.budget import BudgetPlan
from streamal.selection.registry import STRATEGIES, build, check
from streamal.selection.strategy import Candidate, Proposal, QueryStrategy, Standing, StrategySpec
from streamal.service.ledgers import Pointers, encode_metadata

RATE = 0.2
WINDOW = 64
ROUNDING = 4_096
"""Bytes by which equally full lists, queues and tables differ; one byte for each of 180,000 instances is more."""
MODEL = Settled()
ODD: tuple[Prediction, ...] = (
    {},
    {"a": 1.0},
    {"a": 0.0},
    {"a": 0.5, "b": 0.5},
    {"a": 0.99, "b": 0.01},
    {"a": 0.0, "b": 0.0},
    {"a": 1.0, "b": 0.0, "c": 0.0},
    {"a": math.nan},
    {"a": math.nan, "b": 0.5},
    {"a": 0.5, "b": math.nan},
    {"a": 0.5, "b": 0.2, "c": math.nan},
    {"a": math.inf},
    {"a": math.inf, "b": 0.5},
    {"a": math.inf, "b": math.inf},
    {"a": -math.inf, "b": 0.5},
    {"a": 1e-320, "b": 1e-320},
    {"a": -0.5, "b": 1.5},
    {f"c{i}": 0.001 for i in range(1_000)},
)
CONSTANT: tuple[Prediction, ...] = ({}, {"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.99, "b": 0.01}, {"a": 1.0, "b": 0.0})
UTILITIES = (-math.inf, -1e308, -30.0, 0.0, 1e-320, 30.0, 1e308, math.inf, math.nan)
STANDINGS = tuple(
    Standing(rate=RATE, cap=23.0, epsilon=epsilon, seen=100, asked=20, level=level, pending=pending)
    for epsilon in (0.05, 1.0)
    for level in (-19.5, 0.0, 1.0, 23.0)
    for pending in (0, 500)
)

POOLING = [
    name
    for name, entry in sorted(STRATEGIES.items())
    if entry.build(StrategySpec(RATE, WINDOW, {}, lambda: MODEL)).pools is not None
]
by_name = pytest.mark.parametrize("name", sorted(STRATEGIES))


def task_of(name: str) -> Task:
    return STRATEGIES[name].tasks[0]


def new(name: str) -> QueryStrategy:
    return build(name, StrategySpec(RATE, WINDOW, {}, lambda: MODEL), task_of(name))


def cases(count: int, seed: int = 0) -> Iterator[tuple[Features, Prediction, Standing]]:
    """Return what a lane would show: mostly usual predictions, some odd ones."""
    random = Random(seed)
    for instance in stream(count, seed):
        odd = random.random() < 0.2
        prediction = random.choice(ODD) if odd else MODEL.predict([instance.features])[0]
        yield instance.features, prediction, random.choice(STANDINGS)


def show(
    strategy: QueryStrategy,
    seen: list[tuple[Features, Prediction, Standing]],
    seed: int = 1,
    outcomes: list[Outcome] | None = None,
) -> list[str]:
    """Propose, update and resolve for each; returns the proposals in a form in which a NaN equals itself."""
    random = Random(seed)
    found = []
    for number, (features, prediction, standing) in enumerate(seen):
        proposal = strategy.propose(features, prediction, standing)
        found.append(repr(proposal))
        asked = random.random() < proposal.propensity
        strategy.update(features, prediction, proposal, asked=asked)
        if asked:
            outcome = outcome_about(number, features, prediction, proposal)
            strategy.resolved(outcome)
            if outcomes is not None:
                outcomes.append(outcome)
    return found


def outcome_about(offset: int, features: Features, prediction: Prediction, proposal: Proposal) -> Outcome:
    """Return what an answered request leaves."""
    return Outcome(
        kind="learned",
        partition=0,
        offset=offset,
        instance_id=str(offset),
        features=features,
        label=truth(features),
        weight=1.0,
        prediction=prediction,
        utility=proposal.utility,
        propensity=proposal.propensity,
        reason="exploration" if offset % 5 == 0 else "uncertainty",
        would_select=True,
        strategy="",
        model_version=0,
        requested_at=float(offset),
        resolved_at=float(offset),
        annotator=None,
    )


@by_name
def test_proposing_changes_nothing(name: str) -> None:
    seen = list(cases(400))
    quiet, nosy = new(name), new(name)
    show(quiet, seen[:200])
    show(nosy, seen[:200])
    state = copy.deepcopy(nosy.state())
    for features, prediction, standing in seen[:100]:
        before = repr((features, prediction, standing))
        nosy.propose(features, prediction, standing)
        assert repr((features, prediction, standing)) == before
    assert nosy.state() == state
    assert show(nosy, seen[200:]) == show(quiet, seen[200:])


@by_name
def test_proposing_the_same_a_hundred_times_says_the_same(name: str) -> None:
    strategy = new(name)
    show(strategy, list(cases(100)))
    features, prediction, standing = next(cases(1, seed=5))
    assert len({repr(strategy.propose(features, prediction, standing)) for _ in range(100)}) == 1


@by_name
def test_the_same_seed_makes_the_same_requests(name: str) -> None:
    def requests(seed: int) -> list[bytes]:
        plan = SamplingPlan(BudgetPlan(RATE), name, seed=seed, window=WINDOW, task=task_of(name))
        partition = Partition(plan, logistic(), delay=30)
        partition.run(stream(300))
        return partition.requests

    first = requests(0)
    assert first == requests(0)
    assert first != requests(1)


@by_name
def test_it_goes_on_from_its_state_and_what_is_remembered(name: str) -> None:
    seen, outcomes = list(cases(200)), list[Outcome]()
    former, heir = new(name), new(name)
    assert not former.warmup or former.warmup >= len(seen)
    show(former, seen[:150], outcomes=outcomes)
    for outcome in outcomes if heir.recalls else []:
        proposal = Proposal(outcome.propensity, outcome.utility)
        heir.update(outcome.features, outcome.prediction, proposal, asked=True)
    for outcome in outcomes if heir.recalls else []:
        heir.resolved(outcome)
    for features, prediction, _ in seen[:150] if heir.warmup else []:
        proposal = heir.propose(features, prediction, Standing(RATE, 23.0))
        heir.update(features, prediction, proposal, asked=False)
    heir.restore(orjson.loads(orjson.dumps(former.state())))
    assert heir.state() == former.state()
    expected, found = show(former, seen[150:]), show(heir, seen[150:])
    assert found == expected or not STRATEGIES[name].exact


def settled(task: Task) -> Constant:
    """Return a model that learns nothing, so that owners differ in their strategy alone."""
    return Settled() if task == "classification" else Constant({VALUE: 1.0}, task=task)


def heir_of(plan: SamplingPlan, handover: Handover) -> Partition:
    """Return a new owner under a plan of its own; the model has learned nothing."""
    heir = Partition(plan, settled(plan.task))
    heir.lane = heir.sampler.open(0, handover)
    return heir


@by_name
def test_it_takes_over_from_every_other_strategy(name: str) -> None:
    plan, seen = SamplingPlan(BudgetPlan(RATE), name, window=WINDOW, task=task_of(name)), stream(200)
    for other in sorted(other for other, entry in STRATEGIES.items() if plan.task in entry.tasks):
        former = Partition(replace(plan, strategy=other), settled(plan.task), delay=30)
        former.run(seen[:100])
        heir = heir_of(plan, former.handover(seen[:100]))
        heir.run(seen[100:])
        assert heir.lane.seen == 200
        assert former.lane.asked < heir.lane.asked <= RATE * 200


@pytest.mark.parametrize(
    ("name", "arms", "maker"),
    [
        *((name, (), "another") for name in sorted(STRATEGIES)),
        ("bandit", ("volume", "coreset"), "bandit"),
        ("bandit", ("class_balanced", "probabilistic"), "bandit"),
    ],
)
def test_utilities_of_another_strategy_are_not_taken_over(name: str, arms: tuple[str, ...], maker: str) -> None:
    """Those of a bandit's arms are among them: a request does not say whose they are."""
    parameters = {"arms": arms} if arms else {}
    plan, seen = SamplingPlan(BudgetPlan(RATE), name, parameters, window=WINDOW, task=task_of(name)), stream(200)
    former = Partition(plan, settled(plan.task), delay=30, silent=3)
    former.run(seen[:150])
    handover = former.handover(seen[140:150])
    assert handover.requests
    assert handover.outcomes
    found = []
    for utility in UTILITIES:
        requests = [replace(made, utility=utility, strategy=maker) for made in handover.requests]
        outcomes = [replace(ended, utility=utility, strategy=maker) for ended in handover.outcomes]
        heir = heir_of(plan, replace(handover, requests=requests, outcomes=outcomes))
        heir.run(seen[150:])
        found.append((heir.lane.ledger(), heir.utilities, heir.requests))
    assert all(one == found[0] for one in found)


@by_name
@pytest.mark.parametrize("utility", UTILITIES)
def test_no_utility_that_is_recalled_breaks_it(name: str, utility: float) -> None:
    strategy, standing = new(name), Standing(RATE, 23.0)
    for _ in range(3):
        for features, prediction, _ in cases(100) if strategy.recalls else ():
            strategy.update(features, prediction, Proposal(1.0, utility), asked=True)
    for features, prediction, _ in cases(50):
        assert 0.0 <= strategy.propose(features, prediction, standing).propensity <= 1.0
    orjson.loads(orjson.dumps(strategy.state()))


@by_name
def test_a_former_version_s_empty_state_is_a_fresh_start(name: str) -> None:
    strategy, seen = new(name), list(cases(50))
    strategy.restore({})
    assert show(strategy, seen) == show(new(name), seen)


@by_name
def test_no_prediction_breaks_it(name: str) -> None:
    strategy, features = new(name), {"x": 1.0, "y": 0.0}
    for _ in range(3):
        for prediction in ODD:
            for standing in STANDINGS:
                proposal = strategy.propose(features, prediction, standing)
                assert isinstance(proposal, Proposal)
                assert 0.0 <= proposal.propensity <= 1.0, (prediction, standing)
                for asked in (True, False):
                    strategy.update(features, prediction, proposal, asked=asked)
    orjson.loads(orjson.dumps(strategy.state()))


@by_name
@pytest.mark.parametrize("prediction", ODD, ids=str)
def test_nothing_odd_that_lasts_makes_it_starve_or_overspend(name: str, prediction: Prediction) -> None:
    assert_spends(SamplingPlan(BudgetPlan(RATE), name, task=task_of(name)), prediction, 1_000)


@by_name
@pytest.mark.parametrize(("rate", "loan"), [(0.02, 0), (0.05, 20), (0.5, 20), (1.0, 0)])
@pytest.mark.parametrize("prediction", CONSTANT, ids=str)
def test_a_constant_model_never_makes_it_starve(name: str, rate: float, loan: int, prediction: Prediction) -> None:
    assert_spends(SamplingPlan(BudgetPlan(rate, loan), name, task=task_of(name)), prediction, math.ceil(120 / rate))


@by_name
def test_answers_that_never_come_do_not_make_it_starve(name: str) -> None:
    assert_spends(SamplingPlan(BudgetPlan(RATE), name, task=task_of(name)), {"a": 0.9, "b": 0.1}, 1_500, silent=1)


@pytest.mark.parametrize("name", sorted(name for name in STRATEGIES if task_of(name) == "classification"))
@pytest.mark.parametrize("delay", [0, 300])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_model_that_becomes_ever_surer_never_makes_it_starve(name: str, delay: int, noise: float) -> None:
    random = Random(0)
    shown = [
        seen._replace(features={**seen.features, "log_odds": 0.1 * seen.offset + random.gauss(0.0, noise)})
        for seen in stream(6_000)
    ]
    assert_spends_on(Partition(SamplingPlan(BudgetPlan(0.05), name), Surer(), delay=delay), shown)


def assert_spends(plan: SamplingPlan, prediction: Prediction, count: int, *, silent: int = 0) -> None:
    """Check from a cold start with a model that always says the same."""
    assert_spends_on(Partition(plan, Constant(prediction, task=plan.task), silent=silent), list(stream(count)))


def assert_spends_on(partition: Partition, shown: list[Instance]) -> None:
    """Check from a cold start that the bound holds at every prefix, and that at least 90 % of the allowance is used.

    A prefix ends with the instance upon which a request is made. That is the one it is about, or where the strategy
    pools, any one up to the end of its window; what the open window has earned is not due yet.
    """
    partition.run(shown)
    plan = partition.lane.plan
    budget, pools = plan.budget, plan.build_strategy(partition.fold).pools
    latest = fitting(pools.size, budget) if pools else 1
    for number, value in enumerate(partition.requests, start=1):
        request = LabelRequest.decode(value)
        seen = int(request.budget["seen"])
        assert request.offset < seen <= request.offset + latest
        bound = max(budget.loan, budget.rate * seen + 1.0) if budget.loan else budget.rate * seen
        assert number <= bound + 1e-9
    gathered = partition.lane.ledger()["window"]["count"] if pools else 0
    assert partition.lane.asked >= 0.9 * (partition.lane.allowed - budget.rate * gathered)


@pytest.mark.parametrize("name", POOLING)
def test_choosing_changes_nothing_and_takes_different_ones_within_the_count(name: str) -> None:
    strategy, random = new(name), Random(0)
    show(strategy, list(cases(200)))
    outcomes: list[Outcome] = []
    show(new("random"), list(cases(200, seed=1)), outcomes=outcomes)
    assert strategy.pools is not None
    for odd in (*ODD, None):
        seen = [(features, odd or prediction) for features, prediction, _ in cases(60, seed=2)]
        candidates = [Candidate(features, prediction, random.random()) for features, prediction in seen]
        for count in (1, 7, 60):
            state = copy.deepcopy(strategy.state())
            chosen, again = (strategy.pools.choose(candidates, iter(outcomes), count, STANDINGS[0]) for _ in "ab")
            assert chosen == again
            assert strategy.state() == state
            assert len({choice.place for choice in chosen}) == len(chosen) <= count
            assert all(0 <= choice.place < 60 and 0.0 < choice.propensity <= 1.0 for choice in chosen)


MODELS = {kind: presets.build(kind, parameters={}, scaling="all", seed=0) for kind in presets.PRESETS}
SETTLED = "logistic_regression"
RESTLESS = ("hoeffding_adaptive_tree", "linear_regression", "hoeffding_tree_regressor")
"""What does not say the same for good on a stream that never changes: all strategies meet these, and one of the others.

Strategies that ask the members of an ensemble meet the forest, and the default strategy meets all."""
COMBINATIONS = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for kind, model in MODELS.items()
    for name, entry in sorted(STRATEGIES.items())
    if model.task in entry.tasks
    if (model.ensemble if entry.ensemble else kind in (SETTLED, *RESTLESS) or name == "class_conditional")
]


def simulated(kind: str, name: str, rows: list[Row], *, loan: int = 20) -> Simulation:
    model = presets.build(kind, parameters={}, scaling="all", seed=0)
    plan = SamplingPlan(BudgetPlan(RATE, loan), name, task=model.task, serve=True)
    return simulate(rows, len(rows), plan, model, Oracle(), model_name=kind, classes=["a", "b"])


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - RESTLESS))
def test_presets_that_settle_say_the_same_so_that_one_stands_for_all(kind: str) -> None:
    model = presets.build(kind, parameters={}, scaling="all", seed=0)
    features: Features = {"x": 1.0, "text": "the same"}
    assert model.predict([features]) == [{}]
    for _ in range(300):
        model.learn(features, "a")
        assert model.predict([features]) == [{"a": 1.0}]


@pytest.mark.parametrize(("kind", "name"), COMBINATIONS)
def test_no_preset_starves_any_strategy_on_a_stream_that_never_changes(kind: str, name: str) -> None:
    label: Label = 1.5 if kind.endswith(("linear_regression", "regressor")) else "a"
    rows = [Row({"x": 1.0, "text": "the same"}, label)] * 2_000
    found = simulated(kind, name, rows)
    assert found.max_overshoot <= 0.0
    assert found.asked >= 0.9 * found.allowed
    assert found.learned == found.asked


@by_name
def test_the_ledger_stays_small(name: str) -> None:
    plan = SamplingPlan(BudgetPlan(0.123456789), name, task=task_of(name))
    partition = Partition(plan, settled(plan.task))
    partition.run(stream(2_000))
    ledger = partition.lane.ledger()
    ledger["budget"] |= {"seen": 10**12 + 1, "asked": 10**11 + 1, "refunded": 10**10 + 1, "clock": 1_795_255_200.123}
    assert len(encode_metadata(ledger, Pointers(10**12, 10**12, 10**12)).encode()) < 1_024


@by_name
def test_memory_is_bounded_as_stated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 200,000 instances, with classes that come and go, and more names of features than there may be columns.

    Proposing changes nothing, so it is left out where nobody is asked; `update` is told a former proposal there.
    """
    monkeypatch.setattr(vectors, "MOST_COLUMNS", 4)
    task, sizes = task_of(name), {}
    seen = changing(task)
    model = MODEL if task == "classification" else Constant({VALUE: 1.0}, task=task)
    strategy = build(name, StrategySpec(RATE, WINDOW, {}, lambda: model), task)
    assert re.search(r"\b[Mm]emory:\s", type(strategy).__doc__ or "")
    proposal = strategy.propose(*seen[0][:2], STANDINGS[0])
    for number in range(200_000):
        features, prediction, label = seen[number % len(seen)]
        asked = number % 20 == 0
        if asked:
            proposal = strategy.propose(features, prediction, STANDINGS[number // 20 % len(STANDINGS)])
        strategy.update(features, prediction, proposal, asked=asked)
        if asked and number % 60:
            outcome = outcome_about(number, features, prediction, proposal)
            ended = replace(outcome, label=label) if number % 40 else replace(outcome, kind="expired", label=None)
            strategy.resolved(ended)
        if number + 1 in (20_000, 200_000):
            sizes[number + 1] = size_of(strategy, model)
    assert sizes[200_000] - sizes[20_000] < ROUNDING


@cache
def changing(task: Task) -> list[tuple[Features, Prediction, Label]]:
    """Return instances that each bring a new feature; predictions and labels are of three classes out of twelve."""
    random, found = Random(0), list[tuple[Features, Prediction, Label]]()
    for number, instance in enumerate(stream(5_000)):
        features: Features = {**instance.features, f"name{number}": random.random()}
        usual, rare, third = (f"c{(number // 50 + shift) % 12}" for shift in range(3))
        share = random.random()
        if task == "classification":
            prediction: Prediction = {usual: share, rare: 0.9 - 0.9 * share, third: 0.1 - 0.1 * share}
            found.append((features, prediction, random.choice([usual, rare])))
        else:
            found.append((features, {VALUE: share}, random.random()))
    return found


def size_of(strategy: QueryStrategy, model: object) -> int:
    """Return the bytes of all that a strategy keeps, without the model and what belongs to the program."""
    met, found, left = {id(model)}, 0, list[object]([strategy])
    while left:
        one = left.pop()
        if id(one) not in met and not isinstance(one, type | ModuleType | FunctionType):
            met.add(id(one))
            found += sys.getsizeof(one)
            left += [one.base] if isinstance(one, np.ndarray) else gc.get_referents(one)
    return found


def test_a_name_or_parameter_that_is_wrong_is_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'class_conditional'"):
        check("class_conditonal", {}, "classification")
    with pytest.raises(ConfigError, match=r"parameters\.stpe is unknown to 'split'.*'step'\? It takes: spill, step"):
        check("split", {"stpe": 1}, "classification")
    with pytest.raises(ConfigError, match=r"needs class probabilities.*random, periodic"):
        check("split", {}, "regression")
    with pytest.raises(ConfigError, match="It takes: none"):
        check("random", {"step": 1}, "classification")
