"""One partition's decisions: independent of batches, within every permit, with the propensity that was executed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import SAME, Constant, Partition, answer_to, logistic, repeating, stream, truth

from streamal.events import Event, InstancesDecided, LabelRequested, MomentsTaken, RequestResolved, UnlabelledTaken
from streamal.lane import LEAST_TAUGHT, MOMENTS_EVERY, REPLAY, Handover, Lane, SamplingPlan
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import Instance, LabelRequest, Moment, Moments, Prediction, Unlabelled, decode_outcome
from streamal.selection.budget import LOAN_SPREAD, Budget, BudgetPlan, Limit
from streamal.selection.coin import Coin
from streamal.selection.exploration import Exploration
from streamal.selection.registry import STRATEGIES
from streamal.selection.strategy import Standing
from streamal.selection.threshold import steered_rate

RATE = 0.2
UNSURE: Prediction = {"usual": 0.6, "rare": 0.4}


def plan(strategy: str = "random", *, seed: int = 0, serve: bool = False, **budget: object) -> SamplingPlan:
    return SamplingPlan(BudgetPlan(**{"rate": RATE, **budget}), strategy, seed=seed, serve=serve)  # type: ignore[arg-type]


def new_lane(chosen: SamplingPlan, prediction: Prediction | None = None, *, scales: bool = False) -> Lane:
    return Lane(chosen, 0, Fold(Constant(UNSURE if prediction is None else prediction, scales=scales)))


def requests_of(lane: Lane, instances: list[Instance], now: float = 0.0) -> list[LabelRequest]:
    """Decide on instances one by one; their answers never come, unless they brought their label."""
    found = []
    for instance in instances:
        found += [event.request for event in lane.decide([instance], now) if isinstance(event, LabelRequested)]
    return found


def declined(lane: Lane, instances: list[Instance]) -> dict[str, int]:
    event = lane.decide(instances, 0.0)[-1]
    assert isinstance(event, InstancesDecided)
    assert event.count == len(instances) == event.asked + sum(event.declined.values())
    return dict(event.declined)


@settings(max_examples=25, deadline=None)
@given(
    strategy=st.sampled_from(sorted(name for name, entry in STRATEGIES.items() if "classification" in entry.tasks)),
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0, 30, 120]),
    silent=st.sampled_from([0, 3]),
    serve=st.booleans(),
    digits=st.sampled_from([0, 1, 4]),
    cuts=st.sets(st.integers(1, 399), max_size=60),
)
def test_however_a_stream_is_cut_into_batches_the_decisions_are_the_same(
    strategy: str, seed: int, delay: int, silent: int, serve: bool, digits: int, cuts: set[int]
) -> None:
    instances = stream(400, seed)
    chosen = replace(plan(strategy, seed=seed, serve=serve), duplicate_digits=digits)
    whole, cut = (Partition(chosen, logistic(), delay=delay, silent=silent) for _ in "ab")
    whole.run(instances)
    cut.run(instances, cuts)
    assert cut.requests == whole.requests
    assert cut.outcomes == whole.outcomes
    assert cut.utilities == whole.utilities
    assert cut.lane.ledger() == whole.lane.ledger()


def test_with_answers_under_way_the_copy_decides_and_the_served_model_is_what_is_told() -> None:
    here, there = (Partition(plan("class_conditional"), logistic(), delay=delay) for delay in (0, 60))
    for partition in (here, there):
        partition.run(stream(400))
    assert here.utilities != there.utilities
    for value in there.requests:
        request = LabelRequest.decode(value)
        served = Fold(logistic())
        served.fold(
            [(at, outcome) for at, outcome in enumerate(there.handover().outcomes) if at < request.model_version]
        )
        assert request.prediction == served.model.predict([request.features])[0]


def test_each_block_is_explored_exactly_once_and_as_drawn() -> None:
    lane = new_lane(plan("fixed_uncertainty", loan=0))
    explored = [request for request in requests_of(lane, stream(3_000)) if request.reason == "exploration"]
    blocks = Exploration(RATE, 0.05, Coin(0, 0), begin=5)
    budget = Budget(BudgetPlan(rate=RATE, loan=0))
    asked = {request.offset for request in requests_of(new_lane(plan("fixed_uncertainty", loan=0)), stream(3_000))}
    drawn, pending = {}, 0
    for instance in stream(3_000):
        unanswered = pending / (budget.asked + 1) if budget.tokens >= 0.0 else 0.0
        hit = blocks.step(instance.offset + 1, unanswered)
        budget.accrue(blocks.floor, instance.timestamp)
        if hit:
            drawn[instance.offset] = blocks.floor
        if instance.offset in asked:
            budget.spend(1.0, explored=hit)
            pending += 1
    assert {request.offset: request.propensity for request in explored} == drawn
    assert blocks.block + 1 in (len(drawn), len(drawn) + 1)
    assert len(drawn) > 100


def test_a_cold_start_is_paid_by_the_loan_dense_at_first_and_ever_thinner() -> None:
    requests = requests_of(new_lane(plan(rate=0.01)), stream(2_000))
    first = [request for request in requests if request.reason == "cold_start"]
    assert all(request.propensity == 1.0 for request in first)
    assert 15 <= len(first) <= 20
    assert first[0].offset == 0
    for request in first:
        seen, asked = request.offset + 1, request.budget["asked"]
        assert asked <= 20 * (seen / 2_000) ** LOAN_SPREAD < asked + 2
    strict = requests_of(new_lane(plan(rate=0.01, loan=0)), stream(2_000))
    assert strict
    assert all(request.reason != "cold_start" for request in strict)
    assert strict[0].budget["asked"] <= strict[0].budget["allowed"]


@pytest.mark.parametrize(("rate", "seed"), [(0.2, 0), (0.2, 3), (0.6, 0), (0.6, 1)])
def test_the_propensity_of_a_selected_instance_is_what_the_strategy_wanted(rate: float, seed: int) -> None:
    """Rebuild how things stood from the requests alone, and compare with the rate of `random`, and the coin."""
    chosen = plan("random", rate=rate, seed=seed)
    requests = {request.offset: request for request in requests_of(new_lane(chosen), stream(2_000))}
    budget = Budget(chosen.budget)
    blocks = Exploration(rate, chosen.explore, Coin(seed, 0))
    coin = Coin(seed, 0)
    pending = 0
    for instance in stream(2_000):
        hit = blocks.step(instance.offset + 1, pending / (budget.asked + 1) if budget.tokens >= 0.0 else 0.0)
        budget.accrue(blocks.floor, instance.timestamp)
        standing = Standing(rate, budget.cap, blocks.epsilon, level=budget.tokens + blocks.owed)
        wanted = min(1.0, steered_rate(standing))
        request = requests.get(instance.offset)
        may = budget.tokens >= 1.0
        if request is None:
            assert not (may and coin.toss(instance.offset) < wanted)
            continue
        expected = {"exploration": blocks.floor, "cold_start": 1.0, "uncertainty": wanted}
        assert request.propensity == expected[request.reason]
        assert request.would_select == (may and coin.toss(instance.offset) < wanted)
        budget.spend(1.0, explored=hit)
        blocks.done |= hit
        pending += 1
    assert {request.reason for request in requests.values()} == {"exploration", "cold_start", "uncertainty"}


def test_would_select_says_whether_the_strategy_would_have_asked_anyhow() -> None:
    requests = requests_of(new_lane(plan("random")), stream(20_000, replay=True))
    assert all(request.would_select for request in requests if request.reason == "uncertainty")
    audited = [bool(request.would_select) for request in requests if request.reason == "exploration"]
    assert len(audited) == pytest.approx(0.05 * RATE * 20_000, abs=2)
    assert 0.05 < sum(audited) / len(audited) < 0.4


def test_without_a_token_nothing_would_have_been_selected() -> None:
    greedy = new_lane(plan("fixed_uncertainty", loan=0), {"a": 0.5, "b": 0.5})
    requests = requests_of(greedy, stream(4_000, replay=True))
    audited = [bool(request.would_select) for request in requests if request.reason == "exploration"]
    assert 0 < sum(audited) < len(audited) / 2


def test_a_plan_that_spares_nothing_is_told_as_it_was_before_there_was_any_sparing() -> None:
    without, sparing = plan(), plan(spare=1)
    assert "spare" not in without.as_json()["budget"]
    assert sparing.as_json()["budget"]["spare"] == 1
    assert [SamplingPlan.from_json(one.as_json()) for one in (without, sparing)] == [without, sparing]


def test_the_queue_may_fill_up_and_empties_again() -> None:
    lane = new_lane(plan(max_pending=7, loan=0))
    instances = stream(900)
    assert declined(lane, instances[:400])["queue_full"] > 0
    assert (len(lane.pending), lane.asked) == (7, 7)
    for request in list(lane.pending):
        lane.resolve(request.offset, answer_to(request.request_id), 0.0)
    declined(lane, instances[400:])
    assert (len(lane.pending), lane.asked) == (7, 14)


@pytest.mark.parametrize(("kind", "most", "cost", "per_period"), [("count", 4, 1.0, 4), ("cost", 10.0, 3.0, 3)])
def test_a_limit_holds_in_each_period_of_the_log_s_time(kind: str, most: float, cost: float, per_period: int) -> None:
    lane = new_lane(plan(limits=(Limit(kind, most, 100.0),)))  # type: ignore[arg-type]
    instances = [replace_cost(instance, cost) for instance in stream(1_000)]
    requests = requests_of(lane, instances, now=2_000.0)
    counts = [sum(100 * period <= request.offset < 100 * period + 100 for request in requests) for period in range(10)]
    assert max(counts) == per_period
    assert counts.count(per_period) >= 8
    assert declined(lane, [replace_cost(i, cost) for i in stream(1_100)[1_000:]]).get(f"limit_{kind}", 0) > 0


def replace_cost(instance: Instance, cost: float) -> Instance:
    return instance._replace(cost=cost)


def test_what_is_asked_is_numbered_as_it_stands() -> None:
    lane = new_lane(plan(expiry=60.0))
    instances = stream(500)
    requests = requests_of(lane, instances, now=1.0004)
    assert [request.budget["asked"] for request in requests] == list(range(1, len(requests) + 1))
    assert [request.budget["seen"] for request in requests] == [request.offset + 1 for request in requests]
    assert all(request.budget["allowed"] == pytest.approx(RATE * (request.offset + 1)) for request in requests)
    assert {(request.requested_at, request.expires_at) for request in requests} == {(1.0, 61.0)}
    assert (lane.seen, lane.asked) == (500, len(requests))
    assert lane.allowed == pytest.approx(100.0)
    assert [request.features for request in requests] == [instances[request.offset].features for request in requests]


@pytest.mark.parametrize("refund", [False, True])
def test_requests_expire_and_may_be_refunded(refund: bool) -> None:
    lane = new_lane(plan("periodic", expiry=60.0, refund_expired=refund))
    asked = requests_of(lane, stream(200), now=0.0)
    assert lane.expire(59.999) == []
    ended = lane.expire(60.0)
    assert [event.outcome.offset for event in ended] == [request.offset for request in asked]
    assert {(event.outcome.kind, event.outcome.label, event.latency) for event in ended} == {("expired", None, 60.0)}
    assert (len(lane.pending), lane.asked) == (0, len(asked))
    assert lane.allowed == pytest.approx(RATE * 200 + (len(asked) if refund else 0))
    later = stream(400)[200:]
    more = sum(isinstance(event, LabelRequested) for event in lane.decide(later, 61.0))
    assert (more > RATE * 200 + 10) == refund
    assert lane.asked <= max(20.0, lane.allowed + 1.0)


def test_the_guesses_about_requests_that_expired_are_forgotten() -> None:
    model = logistic()
    for instance in stream(20, seed=1):
        model.learn(instance.features, truth(instance.features))
    lane = Lane(plan(expiry=50.0), 0, Fold(model))
    for instance in stream(1_000):
        lane.expire(float(instance.offset))
        lane.decide([instance], float(instance.offset))
    assert lane.asked > 150
    assert 20 < lane._foreseeing().examples < 50


def test_a_bucket_of_any_size_can_be_full() -> None:
    paused = replace(BudgetPlan(0.5, burst=20_000.0), paused=True)
    lane = new_lane(SamplingPlan(paused, "class_conditional"))
    for offset in range(0, 30_000, 1_000):
        lane.decide([instance._replace(offset=offset + number) for number, instance in enumerate(stream(1_000))], 0.0)
    assert lane.asked == 0
    lane.replan(SamplingPlan(BudgetPlan(0.5, burst=20_000.0), "class_conditional"))
    assert len(requests_of(lane, stream(30_100)[30_000:])) == 100


def test_an_instance_that_brought_its_label_is_learned_at_once() -> None:
    lane = new_lane(plan())
    events = [event for instance in stream(300, replay=True) for event in lane.decide([instance], 4.0)]
    requests = [event.request for event in events if isinstance(event, LabelRequested)]
    outcomes = [event.outcome for event in events if isinstance(event, RequestResolved)]
    labels = {instance.offset: instance.label for instance in stream(300, replay=True)}
    assert requests
    assert [outcome.request_id for outcome in outcomes] == [request.request_id for request in requests]
    assert all(outcome.label == labels[outcome.offset] for outcome in outcomes)
    assert {(outcome.kind, outcome.annotator) for outcome in outcomes} == {("learned", REPLAY)}
    assert len(lane.pending) == 0


def test_decisions_do_not_depend_on_replayed_labels_but_for_the_queue() -> None:
    plain, replayed = new_lane(plan(max_pending=3)), new_lane(plan(max_pending=3))
    assert declined(plain, stream(300))["queue_full"] > 0
    assert "queue_full" not in declined(replayed, stream(300, replay=True))


def test_moments_come_at_each_doubling_and_then_every_thousand() -> None:
    lane = new_lane(plan(), scales=True)
    places = []
    for number, instance in enumerate(stream(5_000), start=1):
        lane.decide([instance], 0.0)
        if lane.moments_due(float(number)) is not None:
            places.append(number)
    assert places == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, *range(2_024, 5_001, MOMENTS_EVERY)]


def test_moments_hold_every_row_since_the_last() -> None:
    lane = new_lane(plan(), scales=True)
    assert lane.moments_due(0.0) is None
    lane.decide([Instance(at, 0.0, "", {"x": float(at)}) for at in range(3)], 0.0)
    assert lane.moments_due(10.0) == Moments(0, 3, {"x": Moment(3, 1.0, 2.0)})
    assert lane.moments_due(99.0) is None
    lane.decide([Instance(at, 0.0, "", {"x": 7.0}) for at in range(3, 9)], 0.0)
    assert lane.moments_due(10.0) == Moments(0, 6, {"x": Moment(6, 7.0, 0.0)})


def test_on_a_fast_stream_moments_keep_their_distance() -> None:
    lane = new_lane(plan(), scales=True)
    lane.decide(stream(3_000), 0.0)
    assert lane.moments_due(10.0) is not None
    lane.decide([Instance(at, 0.0, "", {"x": 7.0}) for at in range(3_000, 3_000 + MOMENTS_EVERY)], 0.0)
    assert lane.moments_due(10.999) is None
    assert lane.moments_due(11.0) == Moments(0, MOMENTS_EVERY, {"x": Moment(MOMENTS_EVERY, 7.0, 0.0)})


def test_a_model_that_does_not_scale_gathers_nothing() -> None:
    lane = new_lane(plan(), scales=False)
    lane.decide(stream(100), 0.0)
    assert lane.moments_due(1e9) is None


def test_moments_reach_the_log_through_a_tick() -> None:
    partition = Partition(plan(), Constant(UNSURE, scales=True))
    partition.take(partition.sampler.see(0, stream(10), 0.0))
    [event] = partition.sampler.tick(0.0)
    assert isinstance(event, MomentsTaken)
    assert event.moments.count == 10


@pytest.mark.parametrize("utility", [math.nan, math.inf, -math.inf])
def test_a_utility_that_is_no_number_counts_as_the_highest(utility: float) -> None:
    prediction = {"a": math.nan, "b": 0.5} if math.isnan(utility) else {"a": abs(utility), "b": 0.5}
    lane = new_lane(plan("class_conditional"), prediction)
    event = lane.decide(stream(60), 0.0)[-1]
    assert isinstance(event, InstancesDecided)
    assert event.utilities == [math.inf] * 60
    assert event.asked > 0


def test_predictions_are_told_only_when_they_are_served() -> None:
    for serve, expected in ((False, ()), (True, [UNSURE] * 20)):
        event = new_lane(plan(serve=serve)).decide(stream(20), 0.0)[-1]
        assert isinstance(event, InstancesDecided)
        assert event.predictions == expected
        assert event.offsets == list(range(20))


def test_to_resolve_what_does_not_wait_is_an_error_of_the_caller() -> None:
    with pytest.raises(LookupError, match="0-7 does not wait"):
        new_lane(plan()).resolve(7, answer_to("0-7"), 0.0)


def test_seeds_and_partitions_decide_differently() -> None:
    def offsets(seed: int, partition: int) -> list[int]:
        lane = Lane(plan(seed=seed), partition, Fold(Constant(UNSURE)))
        return [request.offset for request in requests_of(lane, stream(500))]

    assert offsets(0, 0) == offsets(0, 0)
    assert len({tuple(offsets(*place)) for place in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_a_timestamp_from_the_future_does_not_end_the_period() -> None:
    lane = new_lane(plan(limits=(Limit("count", 4, 100.0),)))
    instances = stream(400)
    instances[0] = instances[0]._replace(timestamp=1e12)
    requests = [
        request for instance in instances for request in requests_of(lane, [instance], now=float(instance.offset))
    ]
    assert {request.offset // 100 for request in requests} == {0, 1, 2, 3}


def kept_of(events: Iterable[Event]) -> list[Unlabelled]:
    return [event.record for event in events if isinstance(event, UnlabelledTaken)]


def taught() -> Model:
    """Return a model that knows enough to give pseudo-labels."""
    model = logistic()
    for instance in stream(LEAST_TAUGHT, seed=7):
        model.learn(instance.features, truth(instance.features))
    return model


def observing(share: float, strategy: str = "random", *, most: int = 10_000) -> Lane:
    chosen = replace(plan(strategy, max_pending=most), unlabelled=share)
    return Lane(chosen, 0, Fold(Constant(UNSURE, observes=True)))


def test_of_the_instances_that_nobody_is_asked_about_those_that_chance_picks_go_to_the_log() -> None:
    instances = stream(3_000)
    lane, coin = observing(0.3), Coin(0, 0)
    events = lane.decide(instances, 0.0)
    asked = {event.request.offset for event in events if isinstance(event, LabelRequested)}
    expected = [one for one in instances if one.offset not in asked and coin.pick(one.offset) < 0.3]
    assert kept_of(events) == [Unlabelled(0, one.offset, one.id, one.features, 0) for one in expected]
    assert 0.27 < len(expected) / (3_000 - len(asked)) < 0.33
    assert isinstance(events[-1], InstancesDecided)


def test_what_picks_them_owes_nothing_to_what_asks() -> None:
    coin = Coin(0, 0)
    tossed, picked = ([draw(offset) for offset in range(20_000)] for draw in (coin.toss, coin.pick))
    both = sum(a < 0.2 and b < 0.2 for a, b in zip(tossed, picked, strict=True))
    assert both / 20_000 == pytest.approx(0.04, abs=0.005)
    assert Coin(0, 1).pick(7) != coin.pick(7) != Coin(1, 0).pick(7)


@pytest.mark.parametrize("strategy", ["class_conditional", "pool"])
def test_they_change_no_decision(strategy: str) -> None:
    def requests(share: float) -> list[Event]:
        events = observing(share, strategy).decide(stream(1_500), 0.0)
        return [event for event in events if isinstance(event, LabelRequested | InstancesDecided)]

    assert requests(1.0) == requests(0.0)


@pytest.mark.parametrize("strategy", ["random", "pool", "synthesis"])
@pytest.mark.parametrize("most", [2, 10_000])
def test_with_a_share_of_one_each_instance_is_asked_about_or_kept_once_it_is_decided(strategy: str, most: int) -> None:
    lane = observing(1.0, strategy, most=most)
    events = lane.decide(stream(1_000), 0.0)
    found = [event.request.offset for event in events if isinstance(event, LabelRequested)]
    found += [record.offset for record in kept_of(events)]
    assert len(found) == len(set(found))
    waiting = lane._window.state()["count"] if lane._window else 0
    assert 1_000 - waiting <= len(found) <= 1_000
    assert waiting < 500


def test_a_model_that_would_not_learn_from_them_gets_none() -> None:
    lane = Lane(replace(plan(), unlabelled=1.0), 0, Fold(Constant(UNSURE)))
    assert kept_of(lane.decide(stream(200), 0.0)) == []


@pytest.mark.parametrize(("bar", "label"), [(0.6, "usual"), (0.61, None)])
@pytest.mark.parametrize("observes", [False, True])
@pytest.mark.parametrize("serve", [False, True])
def test_a_prediction_that_reaches_the_bar_is_a_pseudo_label(
    bar: float, label: str | None, observes: bool, serve: bool
) -> None:
    chosen = replace(plan(serve=serve), unlabelled=1.0, self_training=bar)
    found = kept_of(Lane(chosen, 0, Fold(Constant(UNSURE, observes=observes))).decide(stream(50), 0.0))
    assert bool(found) is (observes or label is not None)
    assert {(one.label, one.probability) for one in found} <= {(label, None if label is None else 0.6)}


@pytest.mark.parametrize("prediction", [{}, {"usual": 1.0}, {"usual": math.nan, "rare": math.nan}])
def test_a_model_that_knows_nothing_or_one_class_gives_no_pseudo_label(prediction: Prediction) -> None:
    chosen = replace(plan(), unlabelled=1.0, self_training=0.9)
    assert kept_of(Lane(chosen, 0, Fold(Constant(prediction))).decide(stream(50), 0.0)) == []


@pytest.mark.parametrize(("examples", "given"), [(LEAST_TAUGHT - 1, False), (LEAST_TAUGHT, True)])
def test_a_model_that_has_learned_little_gives_no_pseudo_label(examples: int, given: bool) -> None:
    chosen = replace(plan(), unlabelled=1.0, self_training=0.6)
    lane = Lane(chosen, 0, Fold(Constant(UNSURE, examples=examples)))
    assert bool(kept_of(lane.decide(stream(50), 0.0))) is given


def test_a_pseudo_label_is_what_the_served_model_says_and_not_the_copy_that_guesses() -> None:
    partition = Partition(replace(plan(), unlabelled=1.0, self_training=0.6), logistic(), delay=60)
    partition.run(stream(1_200))
    records = [decode_outcome(value) for value in partition.outcomes]
    found = [record for record in records if isinstance(record, Unlabelled)]
    assert len(found) > 40
    for record in found[::5]:
        served = Fold(logistic())
        served.fold((at, earlier) for at, earlier in enumerate(records[: record.model_version]))
        prediction = served.model.predict([record.features])[0]
        assert (record.label, record.probability) == max(prediction.items(), key=lambda item: item[1])
        assert record.probability is not None
        assert record.probability >= 0.6


@settings(max_examples=20, deadline=None)
@given(
    strategy=st.sampled_from(["random", "class_conditional", "pool"]),
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0, 120]),
    bar=st.sampled_from([None, 0.55]),
    answers=st.sampled_from([1, 3]),
    cuts=st.sets(st.integers(1, 399), max_size=40),
)
def test_however_a_stream_is_cut_the_same_instances_lie_at_the_same_places(
    strategy: str, seed: int, delay: int, bar: float | None, answers: int, cuts: set[int]
) -> None:
    chosen = replace(plan(strategy, seed=seed), unlabelled=0.4, self_training=bar, answers=answers)
    instances = stream(400, seed)
    whole, cut = (Partition(chosen, taught() if bar else Constant(UNSURE, observes=True), delay=delay) for _ in "ab")
    whole.run(instances)
    cut.run(instances, cuts)
    assert cut.outcomes == whole.outcomes
    assert any(isinstance(decode_outcome(value), Unlabelled) for value in whole.outcomes)
    assert cut.requests == whole.requests


@pytest.mark.parametrize("strategy", ["random", "pool"])
def test_beside_labels_that_instances_brought_they_lie_in_the_order_of_the_stream(strategy: str) -> None:
    instances = stream(600, replay=True)
    whole, cut = observing(0.5, strategy), observing(0.5, strategy)
    expected = whole.decide(instances, 0.0)[:-1]
    found = [event for start in range(0, 600, 7) for event in cut.decide(instances[start : start + 7], 0.0)[:-1]]
    assert found == expected
    assert {RequestResolved, UnlabelledTaken} <= set(map(type, found))


def test_what_a_torn_transaction_kept_is_not_kept_again_nor_asked_about() -> None:
    instances = stream(400)
    former = observing(0.5)
    left = kept_of(former.decide(instances[:200], 0.0))
    heir = observing(0.5)
    heir.take_over(Handover(kept=frozenset(record.offset for record in left[:60])))
    events = heir.decide(instances, 0.0)
    found = {record.offset for record in kept_of(events)}
    asked = {event.request.offset for event in events if isinstance(event, LabelRequested)}
    assert found.isdisjoint(record.offset for record in left[:60])
    assert asked
    assert min(asked) > left[59].offset


def test_what_is_nearly_the_same_as_what_waits_is_not_chosen_until_that_has_its_answer() -> None:
    kept_apart = replace(plan("random", loan=0), duplicate_digits=3)
    lane = new_lane(kept_apart)
    near, waits = {**SAME, "x": 1.0004}, False
    for instance in repeating(600, 2):
        if waits and instance.features == SAME:
            instance = instance._replace(features=near)
        for request in requests_of(lane, [instance]):
            assert not waits or request.features != near or request.reason == "exploration"
            waits |= request.features == SAME
    assert waits
    assert declined(lane, repeating(2_000, 2)[600:]).get("near_duplicate", 0) > 0
    for request in list(lane.pending):
        lane.resolve(request.offset, answer_to(request.request_id), 0.0)
    later = requests_of(lane, [found._replace(offset=found.offset + 2_000) for found in repeating(200, 2)])
    assert any(request.features == SAME and request.reason != "exploration" for request in later)


def test_without_the_setting_the_same_thing_is_asked_as_often_as_it_comes() -> None:
    asked = [request.features for request in requests_of(new_lane(plan("random", loan=0)), repeating(600, 2))]
    assert asked.count(SAME) > 10


@pytest.mark.parametrize("strategy", sorted(name for name, e in STRATEGIES.items() if "classification" in e.tasks))
def test_a_stream_of_nothing_but_the_same_still_spends_its_allowance(strategy: str) -> None:
    lane = new_lane(replace(plan(strategy), duplicate_digits=4))
    asked = requests_of(lane, [found._replace(features={"x": 1.0}) for found in stream(1_000)])
    assert 0.85 * RATE * 1_000 <= len(asked) <= RATE * 1_000 + 1


@pytest.mark.parametrize("distinct", [2, 10_000])
@pytest.mark.parametrize("strategy", sorted(name for name, e in STRATEGIES.items() if "classification" in e.tasks))
def test_a_stream_that_repeats_itself_still_spends_its_allowance(strategy: str, distinct: int) -> None:
    partition = Partition(replace(plan(strategy), duplicate_digits=4), logistic(), delay=100)
    partition.run(repeating(2_500, distinct))
    assert 0.95 * partition.lane.allowed <= partition.lane.asked <= partition.lane.allowed + 1


@pytest.mark.parametrize("digits", [0, 4])
@pytest.mark.parametrize("burst", [3.5, 6.25, 25.0])
def test_a_small_burst_loses_nothing_on_a_stream_that_is_nearly_always_sure(burst: float, digits: int) -> None:
    chosen = replace(plan("class_conditional"), budget=BudgetPlan(0.05, burst=burst), duplicate_digits=digits)
    partition = Partition(chosen, logistic(), delay=100)
    partition.run(repeating(10_000, 50))
    assert 0.95 * partition.lane.allowed <= partition.lane.asked <= partition.lane.allowed + 1


def test_exploration_asks_although_the_same_waits_and_says_that_the_strategy_would_not() -> None:
    lane = new_lane(replace(plan("random", loan=0), duplicate_digits=4))
    same = [request for request in requests_of(lane, repeating(400, 2)) if request.features == SAME]
    assert {request.reason for request in same[1:]} == {"exploration"}
    assert not any(request.would_select for request in same[1:])


def test_who_takes_a_partition_over_knows_what_waits() -> None:
    chosen = replace(plan("random", loan=0), duplicate_digits=4)
    former = new_lane(chosen)
    made = requests_of(former, repeating(200, 2))
    assert any(request.features == SAME for request in made)
    heir = new_lane(chosen)
    heir.take_over(Handover(ledger=former.ledger(), requests=made))
    rest = repeating(800, 2)[200:]
    assert requests_of(heir, rest) == requests_of(former, rest)
