"""The budget holds at every prefix and in every window, whatever is wished for, and never refuses exploration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from specimens import Constant, stream

from streamal.errors import ConfigError
from streamal.events import LabelRequested
from streamal.lane import Handover, Lane, SamplingPlan
from streamal.learning.fold import Fold
from streamal.selection.budget import Budget, BudgetPlan, Limit, deal
from streamal.selection.coin import Coin, mix
from streamal.selection.exploration import Exploration

rates = st.one_of(st.floats(0.002, 1.0), st.sampled_from([0.01, 0.05, 0.2, 0.5, 1.0]))
wishes = st.sampled_from([0.0, 0.02, 0.2, 1.0])


def run(
    plan: BudgetPlan, share: float, wish: Callable[[int], bool], answered: float, seed: int, length: int
) -> tuple[list[bool], int, Budget]:
    """Decide on `length` instances as a lane does; returns the requests and how often exploration was refused."""
    budget = Budget(plan)
    exploration = Exploration(plan.rate, share, Coin(seed, 0), begin=budget.first_exploration)
    requests, refused = [], 0
    for number in range(1, length + 1):
        pending = int(budget.asked * (1.0 - answered))
        drawn = exploration.step(number, pending / (budget.asked + 1) if budget.tokens >= 0.0 else 0.0)
        budget.accrue(exploration.floor, float(number))
        borrow = not drawn and budget.may_borrow(exploration.to_come)
        asked = drawn or borrow or wish(number)
        if asked and budget.refusal(1.0, 0, free=drawn or borrow) is not None:
            refused += drawn
            asked = False
        if asked:
            budget.spend(1.0, explored=drawn)
            exploration.done |= drawn
        requests.append(asked)
        bound = max(plan.loan, plan.rate * number + 1.0) if plan.loan else plan.rate * number
        assert budget.asked <= bound + 1e-9
    return requests, refused, budget


@settings(max_examples=120, deadline=None)
@given(
    rate=rates,
    loan=st.integers(0, 60),
    share=st.floats(0.02, 0.5),
    part=wishes,
    answered=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
    burst=st.floats(3.0, 60.0),
)
def test_no_prefix_and_no_window_exceeds_its_bound(
    rate: float, loan: int, share: float, part: float, answered: float, seed: int, burst: float
) -> None:
    plan = BudgetPlan(rate=rate, loan=loan, burst=burst)
    requests, refused, _ = run(plan, share, lambda n: mix(seed + n) / 2**64 < part, answered, seed, 3_000)
    assert refused == 0
    total = [0]
    for asked in requests:
        total.append(total[-1] + asked)
    for window in (1, 7, 100, 1_000):
        most = max(total[i + window] - total[i] for i in range(len(requests) - window))
        assert most <= max(loan, burst) + rate * window + 1e-9


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0.05, 0.5), loan=st.integers(0, 20), seed=st.integers(0, 2**32))
def test_full_demand_spends_the_allowance(rate: float, loan: int, seed: int) -> None:
    _, _, budget = run(BudgetPlan(rate=rate, loan=loan), 0.05, lambda _: True, 1.0, seed, math.ceil(500 / rate))
    assert budget.asked >= 0.99 * budget.allowed


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 50),
    cost=st.floats(0.0, 30.0),
    per=st.floats(1.0, 500.0),
    times=st.lists(st.floats(0.0, 2_000.0), min_size=1, max_size=300),
)
def test_no_period_exceeds_its_limits_even_when_the_clock_jumps_back(
    count: int, cost: float, per: float, times: list[float]
) -> None:
    limits = (Limit("count", count, per), Limit("cost", cost, per))
    budget = Budget(BudgetPlan(rate=1.0, loan=0, limits=limits, spare=1))
    spent: dict[int, list[float]] = {}
    for number, time in enumerate(times):
        budget.accrue(0.0, time)
        price = float(number % 3)
        explored = number % 2 == 0
        if budget.refusal(price, 0, free=True, explored=explored) is None:
            budget.spend(price, explored=explored)
            spent.setdefault(int(budget.clock // per), []).append(price)
    for prices in spent.values():
        assert len(prices) <= count
        assert sum(prices) <= cost


def test_the_queue_is_bounded_and_its_last_place_is_for_exploration() -> None:
    budget = Budget(BudgetPlan(rate=1.0, max_pending=3, spare=1))
    budget.accrue(0.0, 0.0)
    assert budget.refusal(1.0, 1, free=False) is None
    assert budget.refusal(1.0, 2, free=False) == budget.refusal(1.0, 2, free=True) == "queue_full"
    assert budget.refusal(1.0, 2, free=True, explored=True) is None
    assert budget.refusal(1.0, 3, free=True, explored=True) == "queue_full"


def test_a_queue_of_one_is_for_whoever_comes_first() -> None:
    budget = Budget(BudgetPlan(rate=1.0, max_pending=1, spare=1))
    budget.accrue(0.0, 0.0)
    assert budget.refusal(1.0, 0, free=False) is None
    assert budget.refusal(1.0, 1, free=True, explored=True) == "queue_full"


@pytest.mark.parametrize(("kind", "cost"), [("count", 7.0), ("cost", 1.0)])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_last_place_of_a_period_is_for_exploration(kind: Literal["count", "cost"], cost: float, most: int) -> None:
    budget = Budget(BudgetPlan(rate=1.0, limits=(Limit(kind, most, 100.0),), spare=1))
    for number in range(max(1, most - 1)):
        budget.accrue(0.0, number)
        assert budget.refusal(cost, 0, free=False) is None
        budget.spend(cost, explored=False)
    budget.accrue(0.0, most)
    assert budget.refusal(cost, 0, free=False) == budget.refusal(cost, 0, free=True) == f"limit_{kind}"
    assert (budget.refusal(cost, 0, free=True, explored=True) is None) == (most > 1)


def test_an_expired_request_is_refunded_only_if_the_plan_says_so() -> None:
    for refund, expected in ((True, 1.0), (False, 0.0)):
        budget = Budget(BudgetPlan(rate=0.5, refund_expired=refund))
        budget.refund()
        assert budget.tokens == expected
        assert budget.allowed == expected


@given(total=st.integers(0, 10_000), partitions=st.integers(1, 64))
def test_dealing_loses_nothing(total: int, partitions: int) -> None:
    parts = deal(total, partitions)
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


def test_a_share_of_the_burst_that_can_never_ask_is_refused() -> None:
    with pytest.raises(Exception, match=r"set it to 12 or more"):
        BudgetPlan(rate=0.1).deal(4, burst=8.0)


@given(
    rate=rates,
    seed=st.integers(0, 2**32),
    cut=st.integers(1, 400),
)
@settings(max_examples=50, deadline=None)
def test_state_goes_on_exactly(rate: float, seed: int, cut: int) -> None:
    plan = BudgetPlan(rate=rate, limits=(Limit("count", 10, 50.0),))
    budget, exploration = Budget(plan), Exploration(rate, 0.05, Coin(seed, 3))
    for number in range(1, 500):
        if number == cut:
            state, blocks = budget.state(), exploration.state()
            budget, exploration = Budget(plan), Exploration(rate, 0.05, Coin(seed, 3))
            budget.restore(state)
            exploration.restore(blocks)
            assert (budget.state(), exploration.state()) == (state, blocks)
        drawn = exploration.step(number, 0.0)
        budget.accrue(exploration.floor, float(number))
        if drawn and budget.refusal(1.0, 0, free=True) is None:
            budget.spend(1.0, explored=True)
            exploration.done = True
    reference, blocks_once = Budget(plan), Exploration(rate, 0.05, Coin(seed, 3))
    for number in range(1, 500):
        drawn = blocks_once.step(number, 0.0)
        reference.accrue(blocks_once.floor, float(number))
        if drawn and reference.refusal(1.0, 0, free=True) is None:
            reference.spend(1.0, explored=True)
            blocks_once.done = True
    assert (budget.state(), exploration.state()) == (reference.state(), blocks_once.state())


def test_another_rate_counts_from_where_it_begins() -> None:
    before = Budget(BudgetPlan(rate=0.1))
    for number in range(5_000):
        before.accrue(0.0, float(number))
    after = Budget(BudgetPlan(rate=0.02))
    after.restore(before.state())
    assert after.allowed == pytest.approx(500.0)
    for number in range(1_000):
        after.accrue(0.0, float(number))
    assert after.allowed == pytest.approx(520.0)


def test_what_a_limit_has_used_stays_with_that_limit() -> None:
    daily, hourly = Limit("count", 5, 86_400.0), Limit("cost", 9.0, 3_600.0)
    before = Budget(BudgetPlan(rate=1.0, limits=(daily,)))
    before.accrue(0.0, 10.0)
    before.spend(3.0, explored=False)
    after = Budget(BudgetPlan(rate=1.0, limits=(hourly, daily)))
    after.restore(before.state())
    assert after.used == [(0, 0.0), (0, 1.0)]


def test_a_limit_that_comes_back_within_its_period_has_not_forgotten() -> None:
    daily = Limit("count", 1, 86_400.0)
    first = Budget(BudgetPlan(rate=1.0, limits=(daily,)))
    first.accrue(0.0, 10.0)
    first.spend(1.0, explored=False)
    without = Budget(BudgetPlan(rate=1.0))
    without.restore(first.state())
    again = Budget(BudgetPlan(rate=1.0, limits=(daily,)))
    again.restore(without.state())
    assert again.refusal(1.0, 0, free=True) == "limit_count"
    without.accrue(0.0, 90_000.0)  # the period has ended, and the ledger stays small
    assert without.state()["used"] == []


def test_a_block_is_drawn_from_once_even_under_another_seed() -> None:
    for seed in range(50):
        blocks = Exploration(0.05, 0.05, Coin(seed, 0))
        drawn = 0
        for number in range(1, 401):
            if number == 200:
                state, blocks = blocks.state(), Exploration(0.05, 0.05, Coin(seed + 1, 0))
                blocks.restore(state)
            if blocks.step(number, 0.0):
                blocks.done = True
                drawn += 1
        assert drawn <= 1


@pytest.mark.parametrize(
    "plan", [BudgetPlan(rate=0.1, max_pending=3), BudgetPlan(rate=0.1, limits=(Limit("count", 3, 1.0),))]
)
def test_a_share_of_nothing_is_refused(plan: BudgetPlan) -> None:
    with pytest.raises(ConfigError, match="some could never ask; expected 4 or more"):
        plan.deal(4)


@example(loan=20, share=1.0, stretches=[(0.005, False, 60), (0.2, False, 400)], seed=0, restarts=False)
@example(loan=20, share=1.0, stretches=[(0.005, False, 60), (0.2, False, 400)], seed=1, restarts=True)
@settings(max_examples=150, deadline=None)
@given(
    loan=st.sampled_from([0, 0, 5, 20]),
    share=st.sampled_from([0.05, 0.3, 1.0]),
    stretches=st.lists(st.tuples(rates, st.booleans(), st.integers(1, 400)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    restarts=st.booleans(),
)
def test_no_prefix_exceeds_its_bound_while_the_rate_changes(
    loan: int, share: float, stretches: list[tuple[float, bool, int]], seed: int, restarts: bool
) -> None:
    fold = Fold(Constant({"usual": 0.5, "rare": 0.5}))
    lane: Lane | None = None
    seen = 0
    for rate, paused, count in stretches:
        budget = BudgetPlan(rate=rate, loan=loan, paused=paused)
        plan = SamplingPlan(budget, strategy="random", explore=share, seed=seed)
        if lane is None or restarts:
            before, lane = lane, Lane(plan, 0, fold)
            lane.take_over(Handover(before.ledger() if before else None))
        else:
            lane.replan(plan)
        instances = [instance._replace(offset=seen + instance.offset) for instance in stream(count)]
        seen += count
        for event in lane.decide(instances, 0.0):
            if isinstance(event, LabelRequested):
                spent = event.request.budget
                bound = max(loan, spent["allowed"] + 1.0) if loan else spent["allowed"]
                assert spent["asked"] <= bound + 1e-6
                assert not paused
