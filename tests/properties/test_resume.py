"""A partition may change its owner anywhere: what the log holds is enough to go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import STEP, Constant, Partition, Settled, logistic, stream

from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.learning.model import Model
from streamal.pooling import begin
from streamal.selection.budget import BudgetPlan, Limit
from streamal.selection.pool import LEAST_SIZE, METHODS
from streamal.selection.registry import STRATEGIES, build
from streamal.selection.strategy import QueryStrategy, StrategySpec

LENGTH = 400


def unsure() -> Model:
    return Constant({"usual": 0.7, "rare": 0.3})


def neighbours() -> Model:
    return presets.build("knn", parameters={}, scaling="labelled", seed=0)


def built(strategy: str) -> QueryStrategy:
    return build(strategy, StrategySpec(0.2, 256, {}, unsure), "classification")


def warmup(strategy: str) -> int:
    return built(strategy).warmup


EXACT = sorted(n for n, entry in STRATEGIES.items() if entry.exact and "classification" in entry.tasks)
WITHOUT_SOFT_STATE = [name for name in EXACT if not warmup(name) and not built(name).recalls]
SYNTHESIS = (("synthesis", "mode", "nearest"), ("synthesis", "mode", "synthetic"))
BLIND = ("random", "periodic")
"""They never look at a prediction, so it does not matter that the copy with the pending instances is built anew."""

budgets = st.builds(
    BudgetPlan,
    rate=st.sampled_from([0.1, 0.3]),
    loan=st.sampled_from([0, 20]),
    limits=st.sampled_from([(), (Limit("count", 12, 100.0), Limit("cost", 30.0, 170.0))]),
    max_pending=st.sampled_from([5, 10_000]),
    expiry=st.sampled_from([None, 3.0]),
    refund_expired=st.booleans(),
)


def check(plan: SamplingPlan, model: Callable[[], Model], crashes: set[int], delay: int, silent: int) -> None:
    """Run a stream with and without changes of ownership and compare all that became visible."""
    instances = stream(LENGTH, plan.seed)
    calm = Partition(plan, model(), delay=delay, silent=silent)
    shaken = Partition(plan, model(), delay=delay, silent=silent)
    calm.run(instances, crashes)
    start = 0
    for stop in [*sorted(crashes), LENGTH]:
        shaken.run(instances[start:stop])
        if stop < LENGTH:
            first = min(begin(shaken.lane.ledger(), stop), stop - warmup(plan.strategy))
            shaken.crash(model(), instances[max(0, first) : stop])
        start = stop
    assert shaken.requests == calm.requests
    assert shaken.outcomes == calm.outcomes
    assert shaken.utilities == calm.utilities
    assert shaken.lane.ledger() == calm.lane.ledger()
    assert list(shaken.lane.pending) == list(calm.lane.pending)
    for request in calm.lane.pending:
        assert shaken.lane.pending.votes(request.offset) == calm.lane.pending.votes(request.offset)
    probes = [instance.features for instance in instances[:20]]
    assert shaken.fold.model.predict(probes) == calm.fold.model.predict(probes)


crash_points = st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=4)
delays = st.sampled_from([0, 30, 2 * STEP])


@settings(max_examples=40, deadline=None)
@given(
    strategy=st.sampled_from(WITHOUT_SOFT_STATE),
    budget=budgets,
    model=st.sampled_from([unsure, neighbours]),
    seed=st.integers(0, 2**32),
    crashes=crash_points,
    delay=delays,
    silent=st.sampled_from([0, 3]),
    answers=st.sampled_from([1, 2, 3]),
)
def test_a_strategy_without_soft_state_goes_on_exactly(
    strategy: str,
    budget: BudgetPlan,
    model: Callable[[], Model],
    seed: int,
    crashes: set[int],
    delay: int,
    silent: int,
    answers: int,
) -> None:
    check(SamplingPlan(budget, strategy, seed=seed, answers=answers), model, crashes, delay, silent)


@settings(max_examples=15, deadline=None)
@given(strategy=st.sampled_from(BLIND), budget=budgets, seed=st.integers(0, 2**32), crashes=crash_points, delay=delays)
def test_also_with_a_model_that_looks_ahead(
    strategy: str, budget: BudgetPlan, seed: int, crashes: set[int], delay: int
) -> None:
    check(SamplingPlan(budget, strategy, seed=seed), logistic, crashes, delay, 3)


@settings(max_examples=30, deadline=None)
@given(
    strategy=st.sampled_from(EXACT),
    budget=budgets,
    seed=st.integers(0, 2**32),
    crashes=crash_points,
    silent=st.sampled_from([0, 3]),
)
def test_soft_state_is_rebuilt_from_the_last_instances(
    strategy: str, budget: BudgetPlan, seed: int, crashes: set[int], silent: int
) -> None:
    """Exactly, since the stream is shorter than the warm-up and the model does not change."""
    assert warmup(strategy) in range(LENGTH, 10 * LENGTH) or not warmup(strategy)
    check(SamplingPlan(budget, strategy, seed=seed), Settled, crashes, 30, silent)


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from([*(("pool", "method", method) for method in METHODS), *SYNTHESIS]),
    window=st.integers(LEAST_SIZE, 150),
    budget=budgets,
    model=st.sampled_from([Settled, neighbours]),
    seed=st.integers(0, 2**32),
    crashes=crash_points,
    delay=delays,
    silent=st.sampled_from([0, 3]),
)
def test_an_open_window_goes_on_exactly(
    how: tuple[str, str, str],
    window: int,
    budget: BudgetPlan,
    model: Callable[[], Model],
    seed: int,
    crashes: set[int],
    delay: int,
    silent: int,
) -> None:
    """Also where the model learns meanwhile: the window is compared by the model at its end, whoever gathered it.

    Not with synthesis, since the default strategy's soft state is rebuilt by the model of the takeover.
    """
    strategy, name, value = how
    plan = SamplingPlan(budget, strategy, {"pool_window": window, name: value}, seed=seed)
    check(plan, Settled if strategy == "synthesis" else model, crashes, delay, silent)
