"""What watches for drift finds it and seldom cries wolf; a model is replaced by one that is a function of the log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from statistics import median

import pytest
from specimens import Constant, dump, stream, truth

from streamal.annotate.oracle import Oracle
from streamal.evaluate.simulate import Simulator
from streamal.evaluate.stream import Row
from streamal.events import (
    DriftDetected,
    DriftWarned,
    Event,
    ExampleLearned,
    ExampleSkipped,
    FoldEvent,
    InstancesDecided,
    ModelReplaced,
    MomentsTaken,
)
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets
from streamal.learning.allowed import ALLOWED, WATCHED
from streamal.learning.drift import LEAST_LEARNED, MOST_FEATURES, STRETCH, Heard, StreamWatch, WatchedModel
from streamal.learning.fold import CHECKPOINT_EVERY, Fold
from streamal.learning.lookahead import Lookahead
from streamal.learning.model import Model
from streamal.learning.snapshot import load
from streamal.messages import VALUE, Features, Label, Moment, Moments, Outcome, Prediction, Reason, Recorded, Unlabelled
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan

KEY = b"k" * 32
PROBES: list[Features] = [instance.features for instance in stream(50, seed=9)]
OTHERS = {"rare": "usual", "usual": "rare"}
SEEDS = range(20)


def outcome(number: int, features: Features, label: Label, reason: Reason = "uncertainty") -> Outcome:
    return Outcome(
        kind="learned",
        partition=0,
        offset=number,
        instance_id=f"i{number}",
        features=features,
        label=label,
        weight=1.0,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason=reason,
        would_select=True,
        strategy="class_conditional",
        model_version=0,
        requested_at=0.0,
        resolved_at=float(number),
        annotator=None,
    )


def turning(count: int, at: int, seed: int = 0) -> list[Outcome]:
    """Return examples whose classes are the other way round from `at` on."""
    found = []
    for number, instance in enumerate(stream(count, seed)):
        label = truth(instance.features)
        found.append(outcome(number, instance.features, OTHERS[label] if number >= at else label))
    return found


def gaussian() -> Model:
    return presets.build("gaussian_nb", parameters={}, seed=0)


def active(model: Model, heard: Heard = "answers") -> Fold:
    return Fold(WatchedModel(model, heard=heard, adapts=True))


def numbered(records: Sequence[Recorded], start: int = 0) -> Iterator[tuple[int, Recorded]]:
    return iter(enumerate(records, start))


def signals(events: Sequence[FoldEvent | Event]) -> list[DriftWarned | DriftDetected | ModelReplaced]:
    return [event for event in events if isinstance(event, DriftWarned | DriftDetected | ModelReplaced)]


def errors(rates: Sequence[tuple[int, float]], seed: int, reason: Reason = "uncertainty") -> list[Outcome]:
    """Return examples of which a model that always says `a` gets these shares wrong."""
    random = Random(seed)
    labels = [("b" if random.random() < rate else "a") for count, rate in rates for _ in range(count)]
    return [outcome(number, {}, label, reason) for number, label in enumerate(labels)]


def drifts(records: Sequence[Outcome], heard: Heard = "answers") -> list[float]:
    """Return after how many examples a drift was told."""
    events = Fold(WatchedModel(Constant({"a": 1.0}), heard=heard)).fold(numbered(records))
    return [event.at for event in events if isinstance(event, DriftDetected)]


@pytest.mark.parametrize(("before", "after", "most"), [(0.1, 0.4, 60), (0.2, 0.5, 60), (0.05, 0.9, 15)])
def test_a_rise_of_the_errors_is_found_soon(before: float, after: float, most: float) -> None:
    delays = []
    for seed in SEEDS:
        found = [at - 300.0 for at in drifts(errors([(300, before), (300, after)], seed)) if at >= 300.0]
        delays.append(found[0] if found else math.inf)
    assert median(delays) <= most
    assert sum(map(math.isinf, delays)) <= 1


@pytest.mark.parametrize(("rate", "most"), [(0.05, 2.0), (0.2, 4.0), (0.4, 15.0)])
def test_steady_errors_seldom_make_an_alarm(rate: float, most: float) -> None:
    false = sum(len(drifts(errors([(1_000, rate)], seed))) for seed in SEEDS)
    assert false / (len(SEEDS) * 1_000) * 10_000 <= most


def test_errors_that_become_fewer_are_no_drift() -> None:
    fallen = [errors([(300, 0.6), (100, 0.1)], seed) for seed in SEEDS]
    assert [at for records in fallen for at in drifts(records) if at >= 300.0] == []


def test_a_warning_comes_before_the_drift_and_once() -> None:
    first: list[type[Event]] = []
    for seed in SEEDS:
        events = Fold(WatchedModel(Constant({"a": 1.0}), heard="answers")).fold(
            numbered(errors([(300, 0.1), (200, 0.5)], seed))
        )
        told = signals(events)
        assert not any(
            isinstance(a, DriftWarned) and isinstance(b, DriftWarned) and b.at == a.at + 1.0 for a, b in pairwise(told)
        )
        first.append(type(told[0]))
    assert first.count(DriftWarned) >= 15


def test_only_answers_to_exploration_are_heard_where_that_is_asked_for() -> None:
    rising: list[tuple[int, float]] = [(300, 0.05), (300, 0.9)]
    assert drifts(errors(rising, 0), heard="exploration") == []
    assert drifts(errors(rising, 0, "exploration"), heard="exploration") != []
    assert drifts(errors(rising, 0, "exploration")) != []


def test_what_was_learned_before_or_made_up_is_not_scored() -> None:
    rising = errors([(300, 0.05), (300, 0.9)], 0)
    assert drifts([replace(record, synthetic=True) for record in rising]) == []
    assert drifts([replace(record, kind="corrected") for record in rising]) == []


def test_a_model_that_knows_nothing_makes_no_errors() -> None:
    assert signals(Fold(WatchedModel(Constant({}), heard="answers")).fold(numbered(errors([(600, 0.9)], 0)))) == []


def test_a_regression_is_watched_by_its_usual_error() -> None:
    random, records = Random(1), []
    for number in range(600):
        spread = 1.0 if number < 300 else 8.0
        records.append(outcome(number, {}, 5.0 + random.gauss(0.0, spread)))
    records.insert(150, outcome(150, {}, math.nan))
    found = drifts_of(Constant({VALUE: 5.0}, task="regression"), records)
    assert len(found) >= 1
    assert 300.0 <= found[0] < 400.0


def drifts_of(model: Model, records: Sequence[Outcome]) -> list[float]:
    return [event.at for event in signals(Fold(WatchedModel(model, heard="answers")).fold(numbered(records)))]


def test_a_passive_model_is_that_which_nobody_watches() -> None:
    records: list[Outcome | Moments] = [*turning(600, 300)]
    records.insert(100, Moments(0, 50, {"x": Moment(50, 0.1, 40.0), "y": Moment(50, -0.3, 60.0)}))
    plain = presets.build("logistic_regression", parameters={}, seed=0)
    watched, alone = Fold(WatchedModel(plain.copy(), heard="answers")), Fold(plain.copy())
    events = watched.fold(numbered(records))
    learned = alone.fold(numbered(records))
    assert [event for event in events if isinstance(event, ExampleLearned)] == learned
    assert any(isinstance(event, DriftDetected) for event in events)
    assert not any(isinstance(event, ModelReplaced) for event in events)
    assert watched.model.predict(PROBES) == watched.served.predict(PROBES) == alone.model.predict(PROBES)
    assert (watched.model.classes, watched.model.scales) == (alone.model.classes, True)


def test_moments_are_gathered_for_who_watches_the_features() -> None:
    assert not WatchedModel(gaussian(), heard="answers").scales
    assert WatchedModel(gaussian(), heard=None, gathers=True).scales


@pytest.mark.parametrize("kind", ["logistic_regression", "gaussian_nb"])
def test_the_model_after_a_drift_has_learned_what_came_since_the_warning(kind: str) -> None:
    model = presets.build(kind, parameters={}, seed=0)
    moments = Moments(0, 50, {"x": Moment(50, 0.1, 40.0), "y": Moment(50, -0.3, 60.0)})
    records: list[Outcome | Moments] = [moments, *turning(800, 400)]
    fold = active(model.copy())
    events: list[list[FoldEvent]] = []
    for at, record in numbered(records):
        events.append(fold.fold([(at, record)]))
        if any(isinstance(event, ModelReplaced) for event in events[-1]):
            break
    replaced = len(events) - 1
    [made] = [event for event in events[-1] if isinstance(event, ModelReplaced)]
    drifted = max(at for at, told in enumerate(events) if any(isinstance(event, DriftDetected) for event in told))
    assert 400 < drifted <= replaced < 500
    assert made.learned >= LEAST_LEARNED
    since = Fold(model)
    since.fold(numbered([moments, *records[replaced - made.learned + 1 : replaced + 1]]))
    assert fold.served.predict(PROBES) == since.model.predict(PROBES)
    begun = events[replaced - made.learned + 1]
    assert any(isinstance(event, DriftWarned | DriftDetected) for event in begun)


class Replaceable(Constant):
    """A model that says `a` whatever it learns, and whose copies say something else."""

    def __init__(self, other: str) -> None:
        super().__init__({"a": 1.0})
        self._other = other

    def copy(self) -> Constant:
        return Constant({self._other: 1.0})


@pytest.mark.parametrize(("other", "served"), [("b", True), ("a", True), ("c", False)])
def test_a_background_model_that_errs_more_is_not_served(other: str, served: bool) -> None:
    for seed in SEEDS:
        told = signals(active(Replaceable(other)).fold(numbered(errors([(300, 0.1), (300, 0.8)], seed))))
        assert any(isinstance(event, DriftDetected) for event in told)
        assert any(isinstance(event, ModelReplaced) for event in told) is served


def test_the_same_records_replace_at_the_same_one_however_they_are_cut() -> None:
    records = turning(900, 400)
    at_once, in_parts = active(gaussian()), active(gaussian())
    events = at_once.fold(numbered(records))
    random, found, rest = Random(3), list[FoldEvent](), list(numbered(records))
    while rest:
        size = random.randint(1, 40)
        found += in_parts.fold(rest[:size])
        rest = rest[size:]
    assert found == events
    assert any(isinstance(event, ModelReplaced) for event in events)
    assert at_once.model.predict(PROBES) == in_parts.model.predict(PROBES)


def places(records: Sequence[Outcome]) -> dict[type, int]:
    """Return at which record the first drift was told, and the first model replaced."""
    found: dict[type, int] = {}
    fold = active(gaussian())
    for at, record in numbered(records):
        for event in fold.fold([(at, record)]):
            found.setdefault(type(event), at)
    return found


@pytest.mark.parametrize("kind", ["gaussian_nb", "logistic_regression"])
@pytest.mark.parametrize("moment", ["early", "ready", "after"])
def test_a_snapshot_carries_the_detector_and_the_background_model(kind: str, moment: str) -> None:
    records = turning(900, 400)
    place = places(records)
    cut = {"early": 100, "ready": place[DriftDetected] + 1, "after": place[ModelReplaced] + 1}[moment]
    whole = active(presets.build(kind, parameters={}, seed=0))
    whole.fold(numbered(records[:cut]))
    allowed = ALLOWED[kind] | WATCHED
    blob = dump(whole.model, version=cut, allowed=allowed, key=KEY, last=whole.last)
    restored = Fold(presets.build(kind, parameters={}, seed=0))
    restored.resume(*load(blob, config_hash="c", key=KEY, allowed=allowed))
    assert restored.fold(numbered(records[cut:], cut)) == whole.fold(numbered(records[cut:], cut))
    assert restored.served.predict(PROBES) == whole.served.predict(PROBES)
    assert restored.version == whole.version == len(records)


def test_a_copy_goes_its_own_way() -> None:
    records = turning(900, 400)
    cut = places(records)[DriftDetected] + 1
    fold = active(gaussian())
    fold.fold(numbered(records[:cut]))
    before, copied = fold.model.copy(), Fold(fold.model.copy(), cut)
    expected = fold.fold(numbered(records[cut:], cut))
    assert Fold(before, cut).fold(numbered(records[cut:], cut)) == expected
    assert copied.fold(numbered(records[cut:], cut)) == expected
    assert any(isinstance(event, ModelReplaced) for event in expected)


def test_utilities_come_from_the_new_model_at_once() -> None:
    """Its copy that has learnt the pending instances is made anew, though only one record was folded."""
    records = turning(900, 400)
    at, fold = places(records)[ModelReplaced], active(gaussian())
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(0.5))], fold)
    lane = sampler.open(0, Handover())
    sampler.fold(numbered(records[:300]))
    sampler.see(0, stream(400, seed=5), 0.0)
    assert len(lane.pending) > 100
    sampler.fold(numbered(records[300:at], 300))
    before = lane._foreseeing().predict(PROBES)
    sampler.fold([(at, records[at])])
    pending = ((request.features, request.prediction) for request in lane.pending)
    expected = Lookahead().model(fold.served, pending, len(lane.pending))
    assert lane._foreseeing().predict(PROBES) == expected.predict(PROBES) != before


def test_pseudo_labels_are_no_errors_and_the_background_model_learns_none() -> None:
    """However wrong they are: they are the served model's own."""
    records = turning(900, 400)
    at = places(records)
    assert at.keys() >= {DriftWarned, DriftDetected, ModelReplaced}
    wrong = [Unlabelled(0, n, "", record.features, 0, "rare", 0.99) for n, record in enumerate(records)]
    told = active(Constant({"rare": 1.0})).fold(numbered(wrong))
    assert told == []
    plain, mixed = active(gaussian()), active(gaussian())
    before, after = records[: at[ModelReplaced]], records[at[ModelReplaced] :]
    plain.fold(numbered(before))
    mixed.fold(numbered(before))
    for fold in (plain, mixed):
        assert isinstance(fold.model, WatchedModel)
        assert fold.model._background is not None
    expected = mixed.model._background.predict(PROBES)  # type: ignore[attr-defined]
    mixed.fold(numbered(wrong[:50], len(before)))
    assert mixed.model._background.predict(PROBES) == expected  # type: ignore[attr-defined]
    assert mixed.served.predict(PROBES) != plain.served.predict(PROBES)
    assert signals(plain.fold(numbered(after[:1], 999)))[0] == ModelReplaced(after[0].resolved_at, LEAST_LEARNED)


def test_all_models_observe_what_has_no_label() -> None:
    model = WatchedModel(Constant({}, observes=True), heard="answers", adapts=True)
    assert model.observes
    assert not WatchedModel(Constant({}), heard="answers").observes
    model.observe({"x": 1.0})
    copied = model.copy()
    model.observe({"x": 2.0})
    for found, seen in ((model, 2), (copied, 1)):
        assert [len(inner.observed) for inner in found._all() if isinstance(inner, Constant)] == [seen, seen]


class Brittle(Constant):
    """A real model that cannot learn one label, and has changed when it finds out; `shy` ones cannot from nothing."""

    def __init__(self, model: Model, *, shy: bool = False) -> None:
        super().__init__({})
        self._model = model
        self._shy = shy
        self._taught = 0

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        return self._model.predict(batch)

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        self._model.learn(features, "rare" if label == "poison" else label, weight)
        if label == "poison" and not (self._shy and self._taught > 200):
            raise ValueError(label)
        self._taught += 1

    def copy(self) -> Brittle:
        copied = Brittle(self._model.copy(), shy=self._shy)
        copied._taught = self._taught
        return copied


@pytest.mark.parametrize("shy", [False, True])
@pytest.mark.parametrize("length", [900, CHECKPOINT_EVERY + 900])
def test_an_example_that_fails_leaves_no_trace_in_any_of_them(shy: bool, length: int) -> None:
    """A `shy` model fails in the background only, after the served one has learned."""
    records = turning(length, length - 500)
    at = places(records)[DriftDetected] + 5
    poison = replace(records[at], label="poison")
    spoilt, clean = active(Brittle(gaussian(), shy=shy)), active(Brittle(gaussian(), shy=shy))
    events = spoilt.fold(numbered([*records[:at], poison, *records[at:]]))
    expected = clean.fold(numbered(records))
    assert [event for event in events if isinstance(event, ExampleSkipped)] == [ExampleSkipped(poison, "ValueError")]
    assert [event for event in events if not isinstance(event, ExampleSkipped)] == expected
    assert any(isinstance(event, ModelReplaced) for event in expected)
    assert spoilt.served.predict(PROBES) == clean.served.predict(PROBES)


def test_a_stream_that_turns_round_is_learned_anew_sooner() -> None:
    gains = []
    for seed in range(2):
        rows = [
            Row(record.features, record.label) for record in turning(5_000, 2_500, seed) if record.label is not None
        ]
        found = {}
        for adapts in (False, True):
            model = WatchedModel(gaussian(), heard="answers", adapts=adapts)
            plan = SamplingPlan(BudgetPlan(rate=0.1), seed=seed)
            simulator = Simulator(plan, model, Oracle(), ["rare", "usual"])
            for number, row in enumerate(rows):
                simulator.step(number, row)
            found[adapts] = simulator.scores.accuracy
        gains.append(found[True] - found[False])
    assert min(gains) > 0.03


def utilities(count: int, mean: float, seed: int) -> list[float]:
    random = Random(seed)
    return [random.gauss(mean, 1.0) for _ in range(count)]


def decided(values: Sequence[float], partition: int = 0) -> InstancesDecided:
    return InstancesDecided(partition, len(values), 0, {}, range(len(values)), (), values)


def watched(watch: StreamWatch, values: Sequence[float], partition: int = 0, size: int = 100) -> list[int]:
    """Return after how many utilities a drift was told."""
    found = []
    for start in range(0, len(values), size):
        for event in watch.observe(decided(values[start : start + size], partition), now=7.0):
            assert (event.source, event.partition, event.feature, event.at) == ("utilities", partition, None, 7.0)
            if isinstance(event, DriftDetected):
                found.append(start + size)
    return found


def test_utilities_that_change_are_found_without_a_label() -> None:
    for seed in range(5):
        watch = StreamWatch(utilities=True, features=False)
        found = watched(watch, utilities(6_000, -3.0, seed) + utilities(4_000, -1.0, seed))
        assert len([at for at in found if at <= 6_000]) == 0
        assert found[0] <= 6_000 + 1_500


def test_steady_utilities_make_no_alarm() -> None:
    for seed in range(5):
        assert watched(StreamWatch(utilities=True, features=False), utilities(10_000, 0.0, seed)) == []


def test_what_is_told_does_not_depend_on_the_cuts_nor_on_other_partitions() -> None:
    values = utilities(6_000, -3.0, 1) + utilities(4_000, -1.0, 1)
    alone = watched(StreamWatch(utilities=True, features=False), values, size=STRETCH)
    both = StreamWatch(utilities=True, features=False)
    found = []
    for at in range(0, len(values), 8):
        watched(both, utilities(8, 0.0, at), partition=1)
        if watched(both, values[at : at + 8]):
            found.append(at + 8)
    assert found == alone


def test_an_infinite_utility_counts_as_the_highest() -> None:
    watch = StreamWatch(utilities=True, features=False)
    assert len(watched(watch, [0.0] * 4_000 + [math.inf] * 4_000)) == 1


def moments(means: dict[str, float], seed: int, partition: int = 0) -> MomentsTaken:
    random = Random(seed)
    found = {name: Moment(1_000, random.gauss(mean, 0.1), 9_000.0) for name, mean in means.items()}
    return MomentsTaken(Moments(partition, 1_000, found))


def test_a_feature_whose_mean_moves_is_named() -> None:
    watch, told = StreamWatch(utilities=False, features=True), []
    for number in range(80):
        moved = 2.0 if number >= 40 else 0.0
        for event in watch.observe(moments({"x": moved, "y": 5.0}, number), now=float(number)):
            told.append((type(event), event.source, event.feature, event.at))
    assert (DriftDetected, "features", "x") in {found[:3] for found in told}
    assert {feature for _, _, feature, _ in told} == {"x"}
    assert all(40.0 <= at <= 43.0 for _, _, _, at in told)


def test_features_are_watched_in_bounded_number_and_the_first_small_records_set_no_scale() -> None:
    watch = StreamWatch(utilities=False, features=True)
    names = [f"f{number}" for number in range(3 * MOST_FEATURES)]
    tiny = Moments(0, 1, {name: Moment(1, 3.0, 0.0) for name in names})
    assert watch.observe(MomentsTaken(tiny), now=0.0) == []
    told = set()
    for number in range(80):
        moved = 2.0 if number >= 40 else 0.0
        for event in watch.observe(moments(dict.fromkeys(names, moved), number), now=0.0):
            assert number >= 40
            told.add(event.feature)
    assert told == set(names[:MOST_FEATURES])


def test_what_is_off_is_not_watched() -> None:
    watch = StreamWatch(utilities=False, features=False)
    assert watched(watch, [0.0] * 4_000 + [5.0] * 4_000) == []
    assert all(watch.observe(moments({"x": 0.0 if at < 40 else 2.0}, at), 0.0) == [] for at in range(80))
