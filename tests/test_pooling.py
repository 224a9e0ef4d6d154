"""A window of a partition: how it ends, what it asks about, what it never exceeds, and how it goes on elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import SAME, Constant, Partition, Settled, logistic, repeating, stream

from streamal.events import InstancesDecided, LabelRequested
from streamal.lane import REPLAY, Handover, Lane, SamplingPlan
from streamal.learning.fold import Fold
from streamal.messages import Instance, LabelRequest, Outcome, decode_outcome
from streamal.pooling import Window, begin, fitting
from streamal.selection.budget import BudgetPlan, Limit
from streamal.selection.pool import METHODS, Pool
from streamal.selection.strategy import StrategySpec
from streamal.service.ledgers import Pointers, encode_metadata

RATE = 0.1
SIZE = 100
LENGTH = 1_000


def plan(strategy: str = "pool", *, seed: int = 0, window: int = SIZE, **parameters: Any) -> SamplingPlan:
    own = {"pool_window": window, **parameters}
    return SamplingPlan(BudgetPlan(RATE, loan=0, burst=60.0), strategy, own, seed=seed)


def played(chosen: SamplingPlan, count: int = LENGTH, *, delay: int = 0, replay: bool = False) -> Partition:
    partition = Partition(chosen, logistic(), delay=delay)
    partition.run(stream(count, chosen.seed, replay=replay))
    return partition


def requests_of(partition: Partition) -> list[LabelRequest]:
    return [LabelRequest.decode(value) for value in partition.requests]


def window() -> Window:
    return Window(Pool(StrategySpec(RATE, 512, {}, lambda: Constant({}))))


def instance(offset: int) -> Instance:
    return Instance(offset, float(offset), str(offset), {"x": float(offset)})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delay", [0, 130])
def test_every_window_spends_all_that_it_has(method: str, delay: int) -> None:
    """Exactly: less than one token is left over; besides, the strict bound keeps one and exploration may owe one."""
    partition = played(plan(method=method), delay=delay)
    requests = requests_of(partition)
    chosen = [request for request in requests if request.reason == "uncertainty"]
    assert {int(request.budget["seen"]) for request in chosen} == set(range(SIZE, LENGTH + 1, SIZE))
    for end in range(SIZE, LENGTH + 1, SIZE):
        asked = sum(request.budget["seen"] <= end for request in requests)
        assert RATE * end - 3.0 < asked <= RATE * end + 1e-9
    assert 0.0 <= partition.lane.ledger()["budget"]["tokens"] < 1.0
    assert partition.lane.asked >= 0.95 * partition.lane.allowed


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([0.004, 0.05, 0.3, 1.0]),
    loan=st.sampled_from([0, 20]),
    burst=st.sampled_from([3.0, 4.5, 25.0, 60.0]),
    strategy=st.sampled_from(["pool", "synthesis"]),
    size=st.integers(50, 300),
    delay=st.sampled_from([0, 70]),
    seed=st.integers(0, 2**32),
)
def test_the_bound_holds_whenever_a_request_is_made(
    rate: float, loan: int, burst: float, strategy: str, size: int, delay: int, seed: int
) -> None:
    budget = BudgetPlan(rate, loan=loan, burst=burst)
    partition = Partition(SamplingPlan(budget, strategy, {"pool_window": size}, seed=seed), logistic(), delay=delay)
    partition.run(stream(800, seed))
    requests = requests_of(partition)
    moments = [int(request.budget["seen"]) for request in requests]
    assert moments == sorted(moments)
    assert [request.budget["asked"] for request in requests] == list(range(1, len(requests) + 1))
    for made, (request, seen) in enumerate(zip(requests, moments, strict=True), start=1):
        assert made <= (max(loan, rate * seen + 1.0) if loan else rate * seen) + 1e-9
        assert request.offset < seen <= request.offset + fitting(size, budget)
    for number in range(len(moments)):
        upto = sum(moment < moments[number] + 50 for moment in moments)
        assert upto - number <= max(loan, burst) + rate * 50 + 1e-9
    assert len({request.offset for request in requests}) == len(requests)


@settings(max_examples=20, deadline=None)
@given(
    method=st.sampled_from([*METHODS, "synthesis"]),
    delay=st.sampled_from([0, 70]),
    cuts=st.sets(st.integers(1, 499), max_size=40),
    seed=st.integers(0, 2**32),
)
def test_however_a_window_is_cut_into_batches_the_same_are_chosen(
    method: str, delay: int, cuts: set[int], seed: int
) -> None:
    synthetic = plan("synthesis", seed=seed, mode="synthetic")
    chosen = synthetic if method == "synthesis" else plan(seed=seed, method=method)
    whole, cut = (Partition(chosen, logistic(), delay=delay) for _ in "ab")
    whole.run(stream(500, seed))
    cut.run(stream(500, seed), cuts)
    assert cut.requests == whole.requests
    assert cut.utilities == whole.utilities
    assert cut.lane.ledger() == whole.lane.ledger()


def test_exploration_and_the_loan_ask_at_once_and_are_not_chosen_again() -> None:
    chosen = SamplingPlan(BudgetPlan(RATE), "pool", {"pool_window": SIZE})
    requests = requests_of(played(chosen, 2_000))
    reasons = Counter(request.reason for request in requests)
    assert reasons["exploration"] == 10
    assert reasons["cold_start"] > 10
    for request in requests:
        at_once = request.budget["seen"] == request.offset + 1
        if request.reason == "uncertainty":
            assert request.would_select is True
            assert request.budget["seen"] % SIZE == 0
        else:
            assert at_once
            assert request.would_select is None
    assert len({request.offset for request in requests}) == len(requests)


def test_it_asks_about_the_least_sure_of_the_window_by_the_model_at_its_end() -> None:
    requests = requests_of(played(plan()))
    last = [r for r in requests if r.budget["seen"] == LENGTH and r.reason == "uncertainty"]
    asked = {request.offset for request in requests} - {request.offset for request in last}
    partition = Partition(plan(), logistic())
    partition.run(stream(LENGTH - 50))  # outcomes are folded every 50 instances
    rows = [found for found in stream(LENGTH)[LENGTH - SIZE :] if found.offset not in asked]
    predictions = partition.fold.model.predict([row.features for row in rows])
    closeness = {row.offset: abs(p["usual"] - p["rare"]) for row, p in zip(rows, predictions, strict=True)}
    assert [request.offset for request in last] == sorted(closeness, key=closeness.__getitem__)[: len(last)]
    assert [request.prediction for request in last] == [
        partition.fold.model.predict([request.features])[0] for request in last
    ]


def test_a_window_that_is_asked_by_lot_says_with_what_chance() -> None:
    partition = Partition(plan(), Constant({"a": 0.5, "b": 0.5}))
    partition.run(stream(20 * SIZE))
    chosen = [request for request in requests_of(partition) if request.reason == "uncertainty"]
    by_window = Counter(request.budget["seen"] for request in chosen)
    for request in chosen:
        count = by_window[request.budget["seen"]]
        assert count / SIZE <= request.propensity <= count / (SIZE - 2)
    assert len({request.offset % SIZE for request in chosen}) > SIZE / 2


@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
def test_every_instance_is_counted_once_as_asked_or_declined(strategy: str) -> None:
    chosen = plan(strategy)
    lane = Lane(chosen, 0, Fold(Settled()))
    declined: Counter[str] = Counter()
    asked = 0
    for found in stream(7 * SIZE + 30):
        for event in lane.decide([found], 0.0):
            if isinstance(event, InstancesDecided):
                declined.update(event.declined)
                asked += event.asked
    waiting = lane.ledger()["window"]
    open_yet = waiting["count"] - f"{int(waiting['decided'], 16):b}".count("1")
    immediate = strategy == "pool"
    assert waiting["count"] == 30
    assert asked == lane.asked
    assert asked + declined.total() + open_yet == 7 * SIZE + 30
    assert immediate == (declined.keys() == {"low_utility"})


@pytest.mark.parametrize("method", METHODS)
def test_a_window_asks_about_nothing_that_is_nearly_the_same_as_what_waits_and_spends_all_the_same(method: str) -> None:
    chosen = replace(plan(method=method), duplicate_digits=4)
    partition = Partition(chosen, logistic(), delay=250)
    partition.run(repeating(LENGTH, 4))
    requests = requests_of(partition)
    by_choice = [request for request in requests if request.reason == "uncertainty"]
    repeated = [request.budget["seen"] for request in by_choice if request.features == SAME]
    assert all(later - earlier >= 250 for earlier, later in pairwise(repeated))
    assert RATE * LENGTH - 4.0 < len(requests) <= RATE * LENGTH


@pytest.mark.parametrize("distinct", [2, 50, 100_000])
@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
def test_windows_that_the_burst_just_holds_spend_their_allowance_on_a_stream_that_repeats_itself(
    strategy: str, distinct: int
) -> None:
    chosen = SamplingPlan(BudgetPlan(0.05), strategy, duplicate_digits=4)
    partition = Partition(chosen, Settled(), delay=100)
    partition.run(repeating(10_000, distinct))
    assert 0.95 * partition.lane.allowed <= partition.lane.asked <= partition.lane.allowed + 1
    chosen_of = Counter(
        r.budget["seen"] for r in requests_of(partition) if r.budget["seen"] > r.offset + 1 and r.features == SAME
    )
    assert distinct > 2 or max(chosen_of.values(), default=0) <= 1


@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
def test_every_instance_is_counted_once_where_half_of_them_repeat_each_other(strategy: str) -> None:
    lane = Lane(replace(plan(strategy), duplicate_digits=4), 0, Fold(Settled()))
    [event] = [event for event in lane.decide(repeating(7 * SIZE, 2), 0.0) if isinstance(event, InstancesDecided)]
    assert event.declined["near_duplicate"] > SIZE
    assert event.asked + sum(event.declined.values()) == 7 * SIZE


def test_limits_and_a_full_queue_have_the_last_word() -> None:
    for budget, cause, most in (
        (BudgetPlan(RATE, loan=0, max_pending=3), "queue_full", 3),
        (BudgetPlan(RATE, loan=0, limits=(Limit("count", 2, 1e9),)), "limit_count", 2),
        (BudgetPlan(RATE, loan=0, paused=True), "paused", 0),
    ):
        lane = Lane(SamplingPlan(budget, "pool", {"pool_window": SIZE}), 0, Fold(Settled()))
        event = lane.decide(stream(5 * SIZE), 0.0)[-1]
        assert isinstance(event, InstancesDecided)
        assert (event.asked, event.declined[cause] > 0) == (most, True)
        assert event.asked + sum(event.declined.values()) == 5 * SIZE


def test_the_labels_that_instances_brought_are_learned_at_the_windows_end() -> None:
    partition = played(plan(), replay=True)
    outcomes = [decode_outcome(value) for value in partition.outcomes]
    assert len(partition.requests) == len(outcomes) == partition.lane.asked
    labels = {found.offset: found.label for found in stream(LENGTH, replay=True)}
    for outcome in outcomes:
        assert isinstance(outcome, Outcome)
        assert (outcome.label, outcome.annotator) == (labels[outcome.offset], REPLAY)


def test_a_synthetic_request_does_not_take_the_label_of_its_neighbour() -> None:
    partition = Partition(plan("synthesis", mode="synthetic", share=0.9), logistic(), silent=1)
    partition.run(stream(LENGTH, replay=True))
    made = [request for request in requests_of(partition) if request.synthetic]
    assert made
    assert {request.offset for request in partition.lane.pending} == {request.offset for request in made}
    rows = {found.offset: found for found in stream(LENGTH)}
    for request in made:
        assert request.features != rows[request.offset].features
        assert (request.instance_id, request.display) == (rows[request.offset].id, None)


def test_a_synthetic_outcome_is_marked_and_learned_like_any_other() -> None:
    partition = played(plan("synthesis", mode="synthetic", share=0.9))
    outcomes = [found for value in partition.outcomes if isinstance(found := decode_outcome(value), Outcome)]
    requests = {request.offset: request for request in requests_of(partition)}
    assert {outcome.synthetic for outcome in outcomes} == {False, True}
    fold = Fold(logistic())
    learned = fold.fold(list(enumerate(outcomes)))
    assert len(learned) == len(outcomes)
    for outcome in outcomes:
        assert outcome.synthetic == requests[outcome.offset].synthetic
        assert outcome.features == requests[outcome.offset].features


def test_another_rate_changes_how_long_windows_are() -> None:
    lane = Lane(plan(window=500), 0, Fold(Settled()))
    instances = stream(900)
    lane.decide(instances[:150], 0.0)
    assert lane.ledger()["window"]["count"] == 150
    lane.replan(SamplingPlan(BudgetPlan(0.4, loan=0, burst=60.0), "pool", {"pool_window": 500}))
    ends = []
    for found in instances[150:]:
        lane.decide([found], 0.0)
        if lane.ledger()["window"]["count"] == 0:
            ends.append(found.offset + 1)
    assert ends == [151, *range(151 + 142, 901, 142)]


def test_a_smaller_window_after_a_restart_ends_at_once() -> None:
    former = Lane(plan(window=400), 0, Fold(Settled()))
    instances = stream(320)
    former.decide(instances[:300], 0.0)
    heir = Lane(plan(window=60), 0, Fold(Settled()))
    heir.take_over(Handover(former.ledger(), recent=instances[:300]))
    events = heir.decide(instances[300:301], 0.0)
    chosen = [e.request for e in events if isinstance(e, LabelRequested) and e.request.reason == "uncertainty"]
    assert len(chosen) > 10
    assert heir.ledger()["window"]["count"] == 0


def test_another_strategys_ledger_begins_a_window() -> None:
    former, heir = Lane(SamplingPlan(BudgetPlan(RATE)), 0, Fold(Settled())), Lane(plan(), 0, Fold(Settled()))
    former.decide(stream(150), 0.0)
    heir.take_over(Handover(former.ledger()))
    assert heir.ledger()["window"]["count"] == 0
    back = Lane(SamplingPlan(BudgetPlan(RATE)), 0, Fold(Settled()))
    heir.decide(stream(170)[150:], 0.0)
    back.take_over(Handover(heir.ledger()))
    assert "window" not in back.ledger()


@given(
    decided=st.lists(st.booleans(), max_size=80),
    gaps=st.lists(st.integers(1, 3), min_size=80, max_size=80),
    forgotten=st.integers(0, 90),
    before=st.integers(0, 5),
)
def test_a_window_is_read_back_as_it_was_but_for_what_the_log_has_forgotten(
    decided: list[bool], gaps: list[int], forgotten: int, before: int
) -> None:
    former, offset, instances = window(), 100, []
    for gap, one in zip(gaps, decided, strict=False):
        instances.append(instance(offset))
        former.add(instances[-1], decided=one)
        offset += gap
    state = orjson.loads(orjson.dumps(former.state()))
    recent = [instance(number) for number in range(100 - before, 100)] + instances
    kept = recent[forgotten:]
    heir = window()
    heir.restore(state, kept)
    assert len(heir) == len(decided)
    assert (heir.state() == state) or forgotten > before
    assert begin({"window": state}, 7) == (100 if decided else 7)
    alive = {found.offset for found in kept}
    assert heir.end() == [found for found in former.end() if found.offset in alive]


def test_a_window_with_all_decided_leaves_the_ledger_small() -> None:
    for strategy in ("pool", "synthesis"):
        budget = BudgetPlan(0.123456789, burst=1e6, limits=(Limit("count", 500, 86_400.0),))
        chosen = SamplingPlan(budget, strategy, {"pool_window": 2_000}, explore=1.0)
        lane = Lane(chosen, 0, Fold(Settled()))
        lane.decide(stream(1_999), 0.0)
        ledger = lane.ledger()
        ledger["budget"] |= {"seen": 10**12 + 1, "asked": 10**11 + 1, "clock": 1_795_255_200.123}
        assert ledger["window"]["count"] == 1_999
        assert len(encode_metadata(ledger, Pointers(10**12, 10**12, 10**12)).encode()) < 1_200


@pytest.mark.parametrize(("rate", "burst", "expected"), [(0.01, 25.0, 500), (0.05, 25.0, 440), (1.0, 4.0, 1)])
def test_a_window_is_no_longer_than_the_burst_allows(rate: float, burst: float, expected: int) -> None:
    budget = BudgetPlan(rate, burst=burst, loan=0)
    assert fitting(500, budget) == expected
    lane = Lane(SamplingPlan(budget, "pool", explore=0.001), 0, Fold(Settled()))
    lane.decide(stream(1_500), 0.0)
    assert lane.asked >= rate * (1_500 - 1_500 % expected) - 3.0


def test_synthesis_keeps_its_share_for_the_windows_ends() -> None:
    for share in (0.2, 0.6):
        requests = [r for r in requests_of(played(plan("synthesis", share=share), 3_000)) if r.offset >= 300]
        late = sum(request.budget["seen"] > request.offset + 1 for request in requests)
        assert share - 0.05 <= late / len(requests) <= share + 0.05
        assert len(requests) >= 0.97 * RATE * 2_700
