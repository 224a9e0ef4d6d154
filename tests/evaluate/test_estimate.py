"""The estimates are right on average over all draws there could have been, and their intervals hold the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.datasets import synth
from specimens import Constant, stream, truth

from streamal.annotate.oracle import Oracle
from streamal.evaluate.estimate import AUDITS, LEAST, LEAST_OF_CLASS, STEADY, WORTH, Estimator, wilson
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.simulate import Simulator
from streamal.evaluate.stream import Row
from streamal.events import Event, ExampleLearned, InstancesDecided, LabelRequested, RequestResolved
from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.learning.model import Model
from streamal.messages import VALUE, Label, LabelRequest, Outcome, Prediction, Reason, best_label
from streamal.selection.budget import BudgetPlan, Limit
from streamal.web.status import Estimates, Improvement

BLOCK = 4
SURE: Prediction = {"a": 1.0}


def request(offset: int, reason: Reason = "uncertainty", *, partition: int = 0, **changes: Any) -> LabelRequest:
    """Return a request; one of exploration stands for a block of `BLOCK` and would not have been made anyhow."""
    found = LabelRequest(
        partition=partition,
        offset=offset,
        instance_id="i",
        features={},
        display=None,
        prediction=SURE,
        utility=0.0,
        propensity=1.0 / BLOCK if reason == "exploration" else 1.0,
        reason=reason,
        would_select=reason != "exploration",
        strategy="random",
        model_version=0,
        requested_at=0.0,
        expires_at=None,
        budget={"seen": offset + 1},
    )
    return replace(found, **changes)


def outcome(made: LabelRequest, label: Label | None, revision: int = 0) -> Outcome:
    """Return the outcome of a request."""
    shared = {name: getattr(made, name) for name in ("partition", "offset", "instance_id", "features", "prediction")}
    kind = "abstained" if label is None else "corrected" if revision else "learned"
    return Outcome(
        **shared,
        kind=kind,  # type: ignore[arg-type]
        label=label,
        weight=1.0,
        utility=made.utility,
        propensity=made.propensity,
        reason=made.reason,
        would_select=made.would_select,
        strategy=made.strategy,
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
        revision=revision,
    )


def decided(first: int, following: int, partition: int = 0) -> InstancesDecided:
    return InstancesDecided(partition, following - first, 0, {}, range(first, following), (), ())


def answered(made: LabelRequest, label: Label | None, revision: int = 0) -> RequestResolved:
    return RequestResolved(outcome(made, label, revision), 0.0)


def told(events: Iterable[Event], **bounds: float) -> Estimator:
    estimator = Estimator(**bounds)
    for event in events:
        estimator.observe(event)
    return estimator


def accuracy(estimator: Estimator) -> float:
    return estimator.estimate().measures["accuracy"].value


def test_requests_made_before_anything_was_learned_are_wrong_and_counted() -> None:
    events: list[Event] = []
    for offset in range(12):
        made = request(offset, "exploration", prediction={} if offset < 9 else SURE)
        events += [LabelRequested(made), decided(offset, offset + 1)]
        events += [answered(made, "a")] if offset > 1 else []
    found = told(events).estimate()
    assert (found.answered, found.untaught) == (10, 7)
    assert found.naive["accuracy"] == pytest.approx(0.3)


@pytest.mark.parametrize("wanted", [(), (1, 6), (0, 1, 5, 9, 13, 18)])
def test_over_all_draws_there_could_have_been_it_is_right(wanted: Sequence[int]) -> None:
    """Five blocks, of which exploration draws one position each: 1,024 ways, all as likely as another."""
    right = [offset % 3 > 0 and offset not in wanted for offset in range(5 * BLOCK)]
    found, naive = [], []
    for places in product(range(BLOCK), repeat=5):
        drawn = {block * BLOCK + place for block, place in enumerate(places)}
        requests = [
            request(offset, "exploration" if offset in drawn else "uncertainty", would_select=offset in wanted)
            for offset in sorted(drawn | set(wanted))
        ]
        if drawn <= set(wanted):
            continue  # nothing is known of the rest, and nothing is said of it
        labels = [answered(made, "a" if right[made.offset] else "b") for made in requests]
        estimates = told([*map(LabelRequested, requests), decided(0, 5 * BLOCK), *labels]).estimate()
        found.append(estimates.measures["accuracy"].value)
        naive.append(estimates.naive["accuracy"])
    assert fmean(found) == pytest.approx(fmean(right), abs=0.004)
    if wanted:
        assert fmean(naive) < fmean(right) - 0.1


def test_blocks_of_different_lengths_count_by_their_lengths() -> None:
    short = [request(offset, "exploration", propensity=0.5) for offset in range(0, 20, 2)]
    long = [request(offset, "exploration", propensity=0.1) for offset in range(20, 120, 10)]
    labels = [answered(made, "a") for made in short] + [answered(made, "b") for made in long]
    found = told([*map(LabelRequested, short + long), decided(0, 120), *labels]).estimate()
    assert found.measures["accuracy"].value == pytest.approx(20 / 120)
    assert found.naive["accuracy"] == 0.5


def test_what_the_strategy_would_have_asked_anyhow_stands_for_itself_only() -> None:
    drawn = [request(offset, "exploration", would_select=offset < 20) for offset in range(0, 40, BLOCK)]
    chosen = [request(offset) for offset in range(20) if offset % BLOCK]
    requests = sorted(drawn + chosen, key=lambda made: made.offset)
    labels = [answered(made, "b" if made.offset < 20 else "a") for made in requests]
    found = told([*map(LabelRequested, requests), decided(0, 40), *labels]).estimate()
    assert found.measures["accuracy"].value == pytest.approx(0.5)
    assert found.response == {"selected": 1.0, "rest": 1.0}


def test_where_nobody_knows_what_was_wanted_the_drawn_ones_stand_for_all() -> None:
    drawn = [request(offset, "exploration", would_select=None) for offset in range(0, 80, BLOCK)]
    chosen = [request(offset) for offset in range(1, 80, BLOCK)]
    labels = [answered(made, "a" if made.offset < 20 else "b") for made in drawn]
    found = told([*map(LabelRequested, drawn + chosen), decided(0, 80), *labels]).estimate()
    assert found.measures["accuracy"].value == pytest.approx(0.25)
    assert found.response == {"selected": 0.0, "rest": 1.0}
    low, high = found.measures["accuracy"].low, found.measures["accuracy"].high
    assert (low, high) == pytest.approx(wilson(0.25, 20 / (1 - 20 / 80)))


def test_a_window_s_choice_counts_when_it_was_made_and_a_synthetic_one_never() -> None:
    drawn = [request(offset, "exploration", would_select=None) for offset in range(0, 80, BLOCK)]
    estimator = told([*map(LabelRequested, drawn), decided(0, 80), *(answered(made, "a") for made in drawn)])
    before = estimator.estimate()
    for made in (request(77), request(70), request(3), request(79, synthetic=True)):
        estimator.observe(LabelRequested(made))
    estimator.observe(decided(80, 90))
    for made in (request(77), request(79, synthetic=True)):
        estimator.observe(answered(made, "b"))
    found = estimator.estimate()
    assert found.instances == before.instances + 10 == 90
    assert found.response == {"selected": pytest.approx(1 / 3), "rest": 1.0}
    assert found.measures["accuracy"].value == before.measures["accuracy"].value
    assert found.naive["accuracy"] == pytest.approx(20 / 21)


def test_a_recall_has_an_interval_where_enough_audit_labels_are_of_the_class() -> None:
    labels = "aaab" * 2 * LEAST_OF_CLASS
    drawn = [request(offset * BLOCK, "exploration", prediction={"a": 1.0}) for offset in range(len(labels))]
    answers = [answered(made, label) for made, label in zip(drawn, labels, strict=True)]
    for following, known in ((len(labels), True), (4 * (LEAST_OF_CLASS - 1), False)):
        requests = map(LabelRequested, drawn[:following])
        recall = told([*requests, decided(0, BLOCK * following), *answers[:following]]).estimate().recall
        assert [recall[label].value for label in "ab"] == [1.0, 0.0]
        assert recall["b"].labels == following // 4
        assert (recall["b"].low, recall["b"].high) == (wilson(0.0, following / 4) if known else (None, None))


class History:
    """A stream of one partition in which each block of ten has two chosen requests and one of exploration."""

    def __init__(self, blocks: int, seed: int = 0) -> None:
        random = Random(seed)
        self.count = 10 * blocks
        self.requests = []
        for block in range(blocks):
            offsets = sorted(random.sample(range(10), 3))
            drawn = random.choice(offsets)
            self.requests += [
                request(10 * block + at, "exploration" if at == drawn else "uncertainty", propensity=0.1)
                for at in offsets
            ]
        self.labels = {made.offset: random.choice("aab") for made in self.requests}

    def batches(self, cuts: Iterable[int] = ()) -> list[Event]:
        """Return what is told when it is cut into batches."""
        events: list[Event] = []
        first = 0
        for following in [*sorted(cuts), self.count]:
            events += [LabelRequested(made) for made in self.requests if first <= made.offset < following]
            events.append(decided(first, following))
            first = following
        return events

    def answers(self) -> list[Event]:
        return [answered(made, self.labels[made.offset]) for made in self.requests]


@given(
    cuts=st.sets(st.integers(1, 299)), order=st.randoms(use_true_random=False), audits=st.sampled_from([10, math.inf])
)
@settings(deadline=None, max_examples=50)
def test_neither_the_cuts_nor_the_order_of_answers_matter(cuts: set[int], order: Random, audits: float) -> None:
    history = History(30)
    mixed = history.answers()
    order.shuffle(mixed)
    ending = decided(history.count, history.count)
    whole = told([*history.batches(), *history.answers(), ending], audits=audits)
    cut = told([*history.batches(cuts), *mixed, ending], audits=audits)
    assert cut.estimate() == whole.estimate()
    assert cut.estimate().instances == (history.count if math.isinf(audits) else pytest.approx(100, abs=10))


def test_an_instance_counts_when_it_was_decided_on_and_not_when_its_answer_came() -> None:
    history = History(50)
    late = told(history.batches())
    assert (late.estimate().instances, late.estimate().measures) == (500, {})
    for event in history.answers():
        late.observe(event)
    at_once = Estimator()
    for event in history.batches(range(1, 500)):
        at_once.observe(event)
        if isinstance(event, LabelRequested):
            at_once.observe(answered(event.request, history.labels[event.request.offset]))
    assert at_once.estimate() == late.estimate()


def test_partitions_do_not_get_in_each_others_way() -> None:
    one, other = History(20, seed=1), History(20, seed=2)
    moved = [replace(made, partition=1) for made in other.requests]
    events: list[Event] = []
    for block in range(20):
        events += [LabelRequested(made) for made in one.requests[3 * block : 3 * block + 3]]
        events.append(decided(10 * block, 10 * block + 10))
        events += [LabelRequested(made) for made in moved[3 * block : 3 * block + 3]]
        events.append(decided(10 * block, 10 * block + 10, partition=1))
    both = told([*events, *one.answers(), *(answered(made, other.labels[made.offset]) for made in moved)])
    alone = [accuracy(told([*history.batches(), *history.answers()])) for history in (one, other)]
    assert both.estimate().instances == 400
    assert accuracy(both) == pytest.approx(fmean(alone))


def test_the_window_is_as_long_as_its_audit_labels_say() -> None:
    history = History(AUDITS + 300)
    labels = {made.offset: "b" if made.offset < 3_000 else "a" for made in history.requests}
    events = history.batches(range(10, history.count, 10))
    whole = told(event for event in events)
    assert whole.estimate().instances == history.count
    for made in history.requests:
        whole.observe(answered(made, labels[made.offset]))
    whole.observe(decided(history.count, history.count))
    found = whole.estimate()
    assert found.audit_labels == AUDITS
    assert found.instances == pytest.approx(10 * AUDITS, abs=20)
    assert found.measures["accuracy"].value > 0.99


@pytest.mark.parametrize("share", [0, 2])
def test_the_window_has_an_end_though_nobody_answers(share: int) -> None:
    estimator = Estimator(requests=100)
    history = History(500)
    for event in history.batches(range(7, history.count, 7)):
        estimator.observe(event)
        if isinstance(event, LabelRequested) and share and event.request.offset % share:
            estimator.observe(answered(event.request, "a"))
    assert estimator.estimate().instances == pytest.approx(100 / 3 * 10, abs=20)
    assert len(estimator._asked) <= 100


def test_answers_to_what_is_not_in_the_window_change_nothing() -> None:
    history = History(50)
    estimator = told([*history.batches(), *history.answers()])
    before = estimator.estimate()
    for stranger in (request(1_000), request(3, partition=7), replace(history.requests[0], partition=1)):
        estimator.observe(answered(stranger, "b"))
    assert estimator.estimate() == before


def test_a_request_that_is_made_again_counts_once() -> None:
    history = History(50)
    once, again = (told([*history.batches(), *history.answers()]) for _ in "ab")
    for made in history.requests[-2:]:
        again.observe(LabelRequested(made))
    again.observe(decided(history.count, history.count))
    assert again.estimate().measures == once.estimate().measures
    assert again.estimate().audit_labels == once.estimate().audit_labels


def test_what_is_answered_after_the_partition_went_elsewhere_counts() -> None:
    history = History(50)
    here, there = told([*history.batches(), *history.answers()]), told(history.batches())
    for made in history.requests:
        learned = outcome(made, history.labels[made.offset])
        there.observe(ExampleLearned(learned, {"b": 1.0}, None))
    assert there.estimate() == here.estimate()


def test_of_several_revisions_the_last_counts_in_whatever_order_they_come() -> None:
    history = History(20)
    rest = told([*history.batches(), *history.answers()])
    [first, *_] = [made for made in history.requests if made.reason == "exploration"]
    for label in ("a", None):
        rest.observe(answered(first, label, revision=1 if label else 2))
        rest.observe(ExampleLearned(outcome(first, "b"), {}, None))
        without = {made.offset: history.labels[made.offset] for made in history.requests if made is not first}
        history.labels = without | ({first.offset: label} if label else {})
        known = [made for made in history.requests if made.offset in history.labels]
        again = told([*history.batches(), *(answered(made, history.labels[made.offset]) for made in known)])
        assert rest.estimate() == again.estimate()
    assert rest.estimate().audit_labels == 19


def test_what_is_not_answered_is_taken_to_be_like_what_is_and_shown() -> None:
    history = History(60)
    silent = {made.offset for number, made in enumerate(history.requests) if number % 3 == 0}
    events = [
        answered(made, None) if made.offset in silent else answered(made, "a" if made.would_select else "b")
        for made in history.requests
    ]
    found = told([*history.batches(), *events]).estimate()
    for name, chosen in (("selected", True), ("rest", False)):
        asked = [made.offset not in silent for made in history.requests if made.would_select is chosen]
        assert found.response[name] == pytest.approx(fmean(asked))
    assert found.measures["accuracy"].value == pytest.approx(120 / 600)
    low, high = found.measures["accuracy"].low, found.measures["accuracy"].high
    full = told(
        [*history.batches(), *(answered(m, "a" if m.would_select else "b") for m in history.requests)]
    ).estimate()
    assert low is not None
    assert high is not None
    assert low < (full.measures["accuracy"].low or 0.0) == 0.2 < (full.measures["accuracy"].high or 0.0) < high


def test_nothing_is_claimed_before_there_are_a_few_audit_labels() -> None:
    history = History(LEAST)
    estimator = told(history.batches())
    assert estimator.estimate().response == {"selected": 0.0, "rest": 0.0}
    for made in history.requests[:-1]:
        found = estimator.estimate()
        assert (found.measures, found.recall, found.naive) == ({}, {}, {})
        estimator.observe(answered(made, "a"))
    estimator.observe(answered(history.requests[-1], "a"))
    found = estimator.estimate()
    assert found.audit_labels == found.measures["accuracy"].labels == LEAST
    assert (found.measures["accuracy"].low or 1.0) < 0.7
    assert Estimator().estimate().response == {}


def test_an_answer_of_each_stratum_is_needed() -> None:
    history = History(30)
    answers = [event for event in history.answers() if event.outcome.reason == "exploration"]  # type: ignore[union-attr]
    found = told([*history.batches(), *answers]).estimate()
    assert (found.audit_labels, found.measures) == (30, {})


@pytest.mark.parametrize("seed", range(3))
def test_where_everything_was_asked_the_figures_are_the_true_ones(seed: int) -> None:
    random, scores = Random(seed), Prequential()
    events: list[Event] = []
    for offset in range(300):
        share = random.random()
        prediction = {} if offset < 5 else {"a": share, "b": 0.9 * (1.0 - share), "c": 0.1 * (1.0 - share)}
        made = request(offset, random.choice(["uncertainty", "exploration"]), prediction=prediction)
        label = random.choice("aab")
        scores.score(prediction, label)
        events += [LabelRequested(replace(made, propensity=1.0)), decided(offset, offset + 1), answered(made, label)]
    found = told(events, audits=math.inf).estimate()
    true = {name: score for name, score in scores.summary().items() if name in found.measures}
    assert {name: estimate.value for name, estimate in found.measures.items()} == pytest.approx(true)
    assert true.keys() == {"accuracy", "macro_f1", "log_loss"}
    assert found.measures["accuracy"].low == found.measures["accuracy"].high == pytest.approx(true["accuracy"])
    assert found.naive == pytest.approx(true)
    recalls = [estimate.value for estimate in found.recall.values()]
    assert fmean(recalls) == pytest.approx(scores.summary()["balanced_accuracy"])


@pytest.mark.parametrize("blocks", [STEADY - 1, STEADY])
def test_a_regression_has_its_mean_absolute_error(blocks: int) -> None:
    history = History(blocks)
    errors = {made.offset: -3.0 if made.would_select else float(made.offset % 2) for made in history.requests}
    requests = [replace(made, prediction={VALUE: 7.0}) for made in history.requests]
    found = told([*history.batches(), *(answered(made, 7.0 + errors[made.offset]) for made in requests)]).estimate()
    mean = fmean(errors[made.offset] for made in requests if not made.would_select)
    expected = 0.2 * 3.0 + 0.8 * mean
    assert found.measures.keys() == found.naive.keys() == {"mae"}
    assert found.measures["mae"].value == pytest.approx(expected)
    assert found.naive["mae"] == pytest.approx((2.0 * 3.0 + mean) / 3.0)
    half = 1.96 * 0.8 * math.sqrt(mean * (1.0 - mean) / blocks * (1.0 - blocks / (8 * blocks)))
    low, high = found.measures["mae"].low, found.measures["mae"].high
    if blocks < STEADY:
        assert (low, high) == (None, None)
    else:
        assert (low, high) == pytest.approx((expected - half, expected + half), rel=1e-4)
    assert found.recall == {}


def test_a_model_that_diverged_has_an_error_that_is_huge_and_a_number() -> None:
    history = History(STEADY)
    requests = [replace(made, prediction={VALUE: 1e308}) for made in history.requests]
    found = told([*history.batches(), *(answered(made, -1.0) for made in requests)]).estimate()
    figures = (found.naive["mae"], found.measures["mae"].low, found.measures["mae"].value, found.measures["mae"].high)
    assert figures == pytest.approx((1e100,) * 4)


@given(share=st.floats(0.0, 1.0), count=st.floats(1.0, 1e9))
def test_the_interval_of_a_share_lies_around_it_and_is_an_interval_of_shares(share: float, count: float) -> None:
    low, high = wilson(share, count)
    assert -1e-12 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1.0 + 1e-12
    wider = wilson(share, count / 2)
    assert wider[1] - wider[0] >= high - low


def simulated(seed: int) -> tuple[Estimates, float]:
    """Return what is estimated of a run whose answers are late and now and then missing, and its true accuracy."""
    random = Random(seed)
    rows = []
    for instance in stream(1_200, seed):
        label = truth(instance.features if instance.offset < 700 else {"x": instance.features["y"], "y": 0.0})
        rows.append(Row(instance.features, random.choice(["rare", "usual"]) if random.random() < 0.2 else label))
    plan = SamplingPlan(BudgetPlan(0.1), explore=0.2, seed=seed)
    model = presets.build("logistic_regression", parameters={}, seed=seed)
    simulator = Simulator(plan, model, Oracle(delay=20, silence=0.1, seed=seed), ["rare", "usual"])
    for number, row in enumerate(rows):
        simulator.step(number, row)
    return simulator.estimator.estimate(), simulator.scores.accuracy


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    errors, naive, held, narrow = [], [], [], []
    for seed in range(60):
        found, true = simulated(seed)
        estimate = found.measures["accuracy"]
        assert estimate.low is not None
        assert estimate.high is not None
        errors.append(estimate.value - true)
        naive.append(found.naive["accuracy"] - true)
        held.append(estimate.low <= true <= estimate.high)
        narrow.append(abs(estimate.value - true) <= (estimate.high - estimate.low) / 4)
    assert fmean(errors) == pytest.approx(0.0, abs=0.02)
    assert fmean(naive) < -0.1
    assert 0.90 <= fmean(held) <= 0.99
    assert fmean(narrow) < 0.85, "half the interval would do, so it claims too little"


@pytest.mark.parametrize(
    ("budget", "oracle"),
    [
        (BudgetPlan(0.1, max_pending=10, spare=1), Oracle(delay=300)),
        (BudgetPlan(0.1, max_pending=30, spare=1), Oracle(delay=900, distribution="exponential")),
        (BudgetPlan(0.1, limits=(Limit("count", 10, 200.0),), spare=1), Oracle()),
    ],
)
def test_the_interval_holds_the_truth_where_the_strategy_seldom_gets_what_it_wants(
    budget: BudgetPlan, oracle: Oracle
) -> None:
    """Queue or limit, not the rate, decide on most requests: a third of what it allows is made."""
    errors, held = [], []
    for seed in range(8):
        plan = SamplingPlan(budget, explore=0.3, seed=seed)
        model = presets.build("logistic_regression", parameters={}, seed=seed)
        simulator = Simulator(plan, model, replace(oracle, seed=seed), ["false", "true"])
        hits = []
        for number, (features, label) in enumerate(synth.SEA(seed % 4, noise=0.1, seed=seed).take(8_000)):
            row = Row({str(name): float(value) for name, value in features.items()}, str(label).lower())
            hits.append(best_label(simulator.step(number, row).prediction) == row.label)
        found = simulator.estimator.estimate()
        estimate, true = found.measures["accuracy"], fmean(hits[-found.instances :])
        assert estimate.low is not None
        assert estimate.high is not None
        assert simulator.lane.asked < 0.6 * simulator.lane.allowed
        errors.append(estimate.value - true)
        held.append(estimate.low <= true <= estimate.high)
    assert fmean(errors) == pytest.approx(0.0, abs=0.05)
    assert sum(held) >= 6


def compared(before: float, after: float, audits: int, seed: int, **changes: Any) -> Improvement:
    """Return what is told of a model that is right with one chance, and from the middle on with another."""
    random, estimator = Random(seed), Estimator()
    for block in range(audits):
        made = request(10 * block + random.randrange(10), "exploration", **{"propensity": 0.1} | changes)
        right = random.random() < (before if block < audits // 2 else after)
        for event in (
            LabelRequested(made),
            decided(10 * block, 10 * block + 10),
            answered(made, "a" if right else "b"),
        ):
            estimator.observe(event)
    found = estimator.estimate().improvement
    assert found is not None
    assert (found.audit_labels, found.labels) == (audits, audits - audits // 2)
    return found


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.9), (0.6, 0.8), (0.5, 0.95), (0.8, 0.7)])
def test_the_interval_of_the_improvement_holds_the_truth_as_often_as_it_says(before: float, after: float) -> None:
    found = [compared(before, after, 60, seed) for seed in range(100)]
    assert 0.91 <= fmean(gain.low <= after - before <= gain.high for gain in found) <= 1.0
    assert fmean(gain.value for gain in found) == pytest.approx(after - before, abs=0.03)


def test_labels_of_a_model_that_learns_no_more_are_said_not_to_pay() -> None:
    found = [compared(0.95, 0.95, 600, seed) for seed in range(20)]
    assert sum(gain.pays is False for gain in found) >= 14
    assert sum(gain.pays is True for gain in found) <= 2
    assert all(gain.high < WORTH and gain.low <= 0.0 for gain in found if gain.pays is False)


def test_labels_of_a_model_that_still_learns_are_never_said_not_to_pay() -> None:
    found = [compared(0.7, 0.8, 400, seed) for seed in range(25)]
    assert [gain for gain in found if gain.pays is False] == []
    assert sum(gain.pays is True for gain in found) >= 12


def test_a_model_that_has_become_worse_is_not_worth_further_labels() -> None:
    found = compared(0.9, 0.6, 200, 0)
    assert found.high < 0.0
    assert found.pays is False


@pytest.mark.parametrize("untaught", [300, 600])
def test_a_model_that_has_learned_nothing_yet_is_not_said_to_learn_no_more(untaught: int) -> None:
    """Answers come late: the requests before the first one are about a model that says nothing."""
    estimator = Estimator()
    for offset in range(600):
        made = request(offset, "exploration", propensity=1.0, prediction={} if offset < untaught else SURE)
        for event in (LabelRequested(made), decided(offset, offset + 1), answered(made, "a")):
            estimator.observe(event)
    found = estimator.estimate()
    assert found.measures["accuracy"].value == (untaught == 300)
    assert (found.improvement.pays if found.improvement else None) == (True if untaught == 300 else None)


def test_with_few_audit_labels_nobody_can_tell() -> None:
    found = [compared(0.8, 0.8, 40, seed) for seed in range(20)]
    assert all(gain.pays is None for gain in found if gain.low <= 0.0)
    assert all(gain.high > WORTH for gain in found)


def test_the_improvement_is_told_too_where_nobody_knows_what_would_have_been_asked() -> None:
    assert compared(0.5, 0.9, 200, 1, would_select=None).value == pytest.approx(0.4, abs=0.12)


@pytest.mark.parametrize("audits", [2 * LEAST - 1, 2 * LEAST])
def test_each_half_needs_a_few_audit_labels(audits: int) -> None:
    history = History(audits)
    found = told([*history.batches(), *(answered(made, "a") for made in history.requests)]).estimate().improvement
    assert (found is None) == (audits < 2 * LEAST)


@pytest.mark.parametrize(("later", "pays"), [(1.0, True), (2.0, False), (3.0, False)])
def test_a_regression_improves_when_its_error_falls(later: float, pays: bool) -> None:
    history = History(2 * STEADY)
    middle = 10 * STEADY
    requests = [replace(made, prediction={VALUE: 0.0}) for made in history.requests]
    errors = [later if made.offset >= middle else 2.0 for made in requests]
    answers = [answered(made, error) for made, error in zip(requests, errors, strict=True)]
    found = told([*history.batches(), *answers]).estimate().improvement
    assert found is not None
    assert found.value == pytest.approx(2.0 - later, abs=0.01)
    assert found.low == pytest.approx(found.high, abs=0.05)
    assert found.pays is pays


def test_a_regression_of_few_labels_is_not_compared() -> None:
    history = History(2 * STEADY - 1)
    requests = [replace(made, prediction={VALUE: 0.0}) for made in history.requests]
    assert told([*history.batches(), *(answered(made, 1.0) for made in requests)]).estimate().improvement is None


def test_the_improvement_looks_back_further_than_the_figures_and_not_for_ever() -> None:
    history = History(300)
    found = told([*history.batches(range(10, 3_000, 10)), *history.answers()], audits=50, compared=200)
    found.observe(decided(history.count, history.count))
    estimates = found.estimate()
    assert estimates.audit_labels == 50
    assert estimates.improvement is not None
    assert estimates.improvement.audit_labels == 200
    assert len(found._asked) == pytest.approx(600, abs=3)


def test_a_model_that_learns_and_one_that_has_learned_are_told_apart() -> None:
    def pays(model: Model, count: int) -> bool | None:
        plan = SamplingPlan(BudgetPlan(0.5), explore=0.8)
        simulator = Simulator(plan, model, Oracle(), ["rare", "usual"])
        for number, instance in enumerate(stream(count)):
            simulator.step(number, Row(instance.features, truth(instance.features)))
        found = simulator.estimator.estimate().improvement
        assert found is not None
        return found.pays

    assert pays(Constant({"usual": 1.0}), 3_000) is False
    assert pays(presets.build("logistic_regression", parameters={"learning_rate": 0.002}, seed=0), 400) is not False
