"""Utilities come from a copy that has learnt what is pending; the served model never hears of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from specimens import Constant, logistic, stream, truth

from streamal.learning import presets
from streamal.learning.lookahead import STEPS_PER_ANSWER, Lookahead
from streamal.learning.model import Model
from streamal.messages import Features, Prediction

INSTANCES = [instance.features for instance in stream(80)]
PROBES: list[Features] = [instance.features for instance in stream(20, seed=3)]
Pending = list[tuple[Features, Prediction]]


@pytest.fixture
def served() -> Model:
    model = logistic()
    for features in INSTANCES[:40]:
        model.learn(features, truth(features))
    return model


def pending_of(model: Model, count: int) -> Pending:
    return list(zip(INSTANCES[40 : 40 + count], model.predict(INSTANCES[40 : 40 + count]), strict=True))


def never() -> Iterator[tuple[Features, Prediction]]:
    """Yield nothing, and fail when asked to."""
    pytest.fail("the copy was built anew although it was not due")
    yield {}, {}


def test_with_nothing_pending_the_served_model_is_used(served: Model) -> None:
    assert Lookahead().model(served, never(), 0) is served


def test_a_model_too_dear_to_copy_is_used_itself() -> None:
    model = Constant({"a": 1.0})
    assert Lookahead().model(model, never(), 5) is model


def test_the_copy_has_learnt_what_is_pending_and_the_served_model_has_not(served: Model) -> None:
    before = served.predict(PROBES)
    pending = pending_of(served, 10)
    expected = served.copy()
    for features, prediction in pending:
        expected.learn(features, max(prediction, key=prediction.__getitem__))
    copy = Lookahead().model(served, pending, len(pending))
    assert copy.predict(PROBES) == expected.predict(PROBES)
    assert served.predict(PROBES) == before != copy.predict(PROBES)


def test_asking_one_more_is_the_same_as_building_anew(served: Model) -> None:
    pending = pending_of(served, 11)
    grown = Lookahead()
    grown.model(served, pending[:10], 10)
    grown.asked(*pending[10])
    found = grown.model(served, never(), 11)
    assert found.predict(PROBES) == Lookahead().model(served, pending, 11).predict(PROBES)


def test_the_copy_is_kept_until_enough_answers_came(served: Model) -> None:
    pending = pending_of(served, 2 * STEPS_PER_ANSWER)
    lookahead = Lookahead()
    first = lookahead.model(served, pending, len(pending))
    lookahead.changed(2)
    assert lookahead.model(served, never(), len(pending)) is first
    lookahead.changed(1)
    assert lookahead.model(served, pending, len(pending)) is not first
    assert lookahead.model(served, never(), len(pending)) is not first


def test_when_all_is_answered_the_copy_is_dropped(served: Model) -> None:
    lookahead = Lookahead()
    first = lookahead.model(served, pending_of(served, 3), 3)
    assert lookahead.model(served, never(), 0) is served
    assert lookahead.model(served, pending_of(served, 3), 3) is not first


def test_what_the_model_knew_nothing_about_teaches_the_copy_nothing() -> None:
    cold = logistic()
    copy = Lookahead().model(cold, [(INSTANCES[0], {})], 1)
    assert copy.predict(PROBES) == cold.predict(PROBES) == [{}] * len(PROBES)


@pytest.mark.parametrize("kind", ["linear_regression", "hoeffding_tree_regressor"])
def test_a_regression_would_learn_nothing_from_itself_and_is_used_as_it_is(kind: str) -> None:
    model = presets.build(kind, parameters={}, scaling="all", seed=0)
    for number, features in enumerate(INSTANCES[:40]):
        model.learn(features, float(number))
    lookahead = Lookahead()
    assert lookahead.model(model, pending_of(model, 5), 5) is model
    lookahead.asked(*pending_of(model, 1)[0])
