"""The model is a function of the records of `outcomes`; one it cannot learn leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from specimens import Constant, logistic, stream, truth

from streamal.events import ExampleLearned, ExampleSkipped
from streamal.learning import presets
from streamal.learning.fold import CHECKPOINT_EVERY, Fold
from streamal.learning.model import Model
from streamal.messages import (
    VALUE,
    Features,
    Instance,
    Label,
    Moment,
    Moments,
    Outcome,
    OutcomeKind,
    Prediction,
    Recorded,
    Unlabelled,
)

POISON = "poison"
PROBES: list[Features] = [instance.features for instance in stream(50, seed=9)]


class Fragile:
    """A real model that breaks half-way through learning one class: it has changed by then."""

    def __init__(self, model: Model, error: type[Exception] = ValueError) -> None:
        self._model = model
        self._error = error
        self.task = model.task
        self.lookahead = model.lookahead
        self.ensemble = model.ensemble
        self.scales = model.scales
        self.observes = model.observes
        self.examples = model.examples
        self.classes = model.classes

    def members(self, features: Features) -> list[Prediction]:
        return self._model.members(features)

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        return self._model.predict(batch)

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        self._model.learn(features, label, weight)
        if label == POISON:
            raise self._error

    def observe(self, features: Features) -> None:
        self._model.observe(features)
        if POISON in features:
            raise self._error

    def merge(self, moments: Mapping[str, Moment]) -> None:
        self._model.merge(moments)
        if POISON in moments:
            raise self._error

    def copy(self) -> Model:
        return Fragile(self._model.copy(), self._error)


def outcome(instance: Instance, label: Label | None, kind: OutcomeKind = "learned", weight: float = 1.0) -> Outcome:
    return Outcome(
        kind=kind,
        partition=0,
        offset=instance.offset,
        instance_id=instance.id,
        features=instance.features,
        label=label,
        weight=weight,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason="exploration",
        would_select=False,
        strategy="random",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def examples(count: int, seed: int = 0) -> list[Outcome]:
    return [outcome(instance, truth(instance.features)) for instance in stream(count, seed)]


def numbered(records: Sequence[Recorded]) -> Iterator[tuple[int, Recorded]]:
    return iter(enumerate(records))


def preset(kind: str) -> Model:
    return presets.build(kind, parameters={}, scaling="all", seed=0)


@pytest.mark.parametrize("kind", ["logistic_regression", "gaussian_nb", "hoeffding_tree", "hoeffding_adaptive_tree"])
def test_the_same_records_give_the_same_model_however_they_are_cut(kind: str) -> None:
    random = Random(kind)
    records: list[Outcome | Moments] = list(examples(300))
    for at in (10, 100, 200):
        records.insert(at, Moments(0, 50, {"x": Moment(50, 0.1 * at, 40.0), "y": Moment(50, -0.3, 60.0)}))
    at_once, in_parts = Fold(preset(kind)), Fold(preset(kind))
    at_once.fold(numbered(records))
    rest = list(numbered(records))
    while rest:
        size = random.randint(1, 40)
        in_parts.fold(rest[:size])
        rest = rest[size:]
    assert at_once.version == in_parts.version == len(records)
    assert at_once.model.predict(PROBES) == in_parts.model.predict(PROBES)


def test_an_example_is_scored_before_it_is_learned() -> None:
    first, second = examples(2)
    events = Fold(logistic()).fold([(0, first), (1, second)])
    assert isinstance(events[0], ExampleLearned)
    assert isinstance(events[1], ExampleLearned)
    assert (events[0].prediction, events[0].hit) == ({}, False)
    assert events[1].prediction == {truth(first.features): 1.0}
    assert events[1].hit == (truth(first.features) == truth(second.features))


def test_only_learned_outcomes_reach_the_model_and_all_count() -> None:
    instance = stream(1)[0]
    model = Constant({"a": 1.0})
    fold = Fold(model)
    records = [
        outcome(instance, "a", weight=2.5),
        outcome(instance, None, "abstained"),
        outcome(instance, None, "invalid"),
        outcome(instance, None, "expired"),
    ]
    assert len(fold.fold(numbered(records))) == 1
    assert model.learned == [(instance.features, "a", 2.5)]
    assert fold.version == 4


def test_the_version_follows_the_offsets() -> None:
    fold = Fold(Constant({}), version=7)
    assert fold.version == 7
    fold.fold([(9, examples(1)[0])])
    assert fold.version == 10
    assert fold.fold([]) == []
    assert fold.version == 10


def test_moments_are_merged_and_are_no_event() -> None:
    model = Constant({}, scales=True)
    fold = Fold(model)
    assert fold.fold([(0, Moments(0, 2, {"x": Moment(2, 1.0, 0.5)}))]) == []
    assert model.merged == [{"x": Moment(2, 1.0, 0.5)}]
    assert fold.version == 1


def test_moments_change_what_the_next_example_teaches() -> None:
    plain, scaled = Fold(preset("logistic_regression")), Fold(preset("logistic_regression"))
    moments = Moments(0, 9, {"x": Moment(9, 5.0, 90.0), "y": Moment(9, 5.0, 90.0)})
    records = examples(20)
    plain.fold(numbered(records))
    scaled.fold(numbered([moments, *records]))
    assert plain.model.predict(PROBES) != scaled.model.predict(PROBES)


ERRORS = [
    ArithmeticError,
    AssertionError,
    AttributeError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_example_that_fails_leaves_no_trace(error: type[Exception]) -> None:
    records = examples(60)
    poison = outcome(stream(1, seed=5)[0], POISON)
    spoilt, clean = Fold(Fragile(logistic(), error)), Fold(Fragile(logistic(), error))
    events = spoilt.fold(numbered([*records[:30], poison, *records[30:]]))
    expected = clean.fold(numbered(records))
    assert events[30] == ExampleSkipped(poison, error.__name__)
    assert [*events[:30], *events[31:]] == expected
    assert spoilt.model.predict(PROBES) == clean.model.predict(PROBES)
    assert spoilt.version == clean.version + 1


@pytest.mark.parametrize("at", [CHECKPOINT_EVERY - 1, CHECKPOINT_EVERY, CHECKPOINT_EVERY + 1, 2 * CHECKPOINT_EVERY + 7])
def test_it_goes_back_to_the_last_checkpoint_wherever_that_is(at: int) -> None:
    records = examples(at + 5)
    poison = outcome(stream(1, seed=5)[0], POISON)
    spoilt, clean = Fold(Fragile(logistic())), Fold(Fragile(logistic()))
    spoilt.fold(numbered([*records[:at], poison, poison, *records[at:]]))
    clean.fold(numbered(records))
    assert spoilt.model.predict(PROBES) == clean.model.predict(PROBES)


def test_an_example_without_a_label_is_left_out() -> None:
    fold = Fold(logistic())
    records: list[Any] = [*examples(3), outcome(stream(1)[0], None)]
    assert isinstance(fold.fold(numbered(records))[3], ExampleSkipped)


def test_moments_that_fail_leave_no_trace() -> None:
    records: list[Outcome | Moments] = list(examples(20))
    bad = Moments(0, 3, {"x": Moment(3, 1e9, 1.0), POISON: Moment(1, 0.0, 0.0)})
    spoilt, clean = Fold(Fragile(preset("logistic_regression"))), Fold(Fragile(preset("logistic_regression")))
    events = spoilt.fold(numbered([*records[:10], bad, *records[10:]]))
    clean.fold(numbered(records))
    assert len(events) == 20
    assert spoilt.model.predict(PROBES) == clean.model.predict(PROBES)


def test_for_regression_there_is_no_hit() -> None:
    events = Fold(preset("linear_regression")).fold([(0, outcome(stream(1)[0], 1.5)), (1, outcome(stream(1)[0], 2.5))])
    assert isinstance(events[1], ExampleLearned)
    assert events[1].hit is None
    assert set(events[1].prediction) == {VALUE}


def unlabelled(instance: Instance, label: str | None = None) -> Unlabelled:
    return Unlabelled(0, instance.offset, instance.id, instance.features, 0, label, None if label is None else 0.99)


def test_an_instance_without_a_label_is_observed_and_one_with_a_pseudo_label_learned_and_neither_is_scored() -> None:
    first, second = stream(2)
    model = Constant({"a": 1.0})
    fold = Fold(model)
    assert fold.fold([(4, unlabelled(first)), (5, unlabelled(second, "a"))]) == []
    assert model.observed == [first.features]
    assert model.learned == [(second.features, "a", 1.0)]
    assert fold.version == 6


def test_a_pseudo_label_teaches_as_much_as_an_answer() -> None:
    answered, trained = Fold(logistic()), Fold(logistic())
    records = examples(50)
    answered.fold(numbered(records))
    trained.fold(numbered([unlabelled(one, truth(one.features)) for one in stream(50)]))
    assert trained.model.predict(PROBES) == answered.model.predict(PROBES)


@pytest.mark.parametrize("label", [None, POISON])
def test_an_instance_that_cannot_be_observed_or_learned_leaves_no_trace(label: str | None) -> None:
    records = examples(40)
    bad = unlabelled(stream(1, seed=5)[0]._replace(features={"x": 1.0, POISON: 1.0}), label)
    spoilt, clean = Fold(Fragile(logistic())), Fold(Fragile(logistic()))
    events = spoilt.fold(numbered([*records[:20], bad, *records[20:]]))
    assert events[20] == ExampleSkipped(bad, "ValueError")
    assert [*events[:20], *events[21:]] == clean.fold(numbered(records))
    assert spoilt.model.predict(PROBES) == clean.model.predict(PROBES)
