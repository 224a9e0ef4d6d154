"""The gain against the paper's closed form summed over all answers, and what evidence and density do to the utility."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Features, Label, Outcome, OutcomeKind
from streamal.selection.probabilistic import MOST_REQUESTS, PRIOR, Probabilistic, expected_accuracy, gain
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
SURE = {"a": 0.9, "b": 0.1}


def strategy(**parameters: object) -> Probabilistic:
    return Probabilistic(StrategySpec(RATE, WINDOW, parameters, lambda: Constant({})))


def see(chosen: Probabilistic, features: Features, *, asked: bool = False) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(features, SURE, STANDING)
    chosen.update(features, SURE, proposal, asked=asked)
    return proposal


def outcome(features: Features, label: Label | None, kind: OutcomeKind = "learned") -> Outcome:
    return Outcome(
        kind=kind,
        partition=0,
        offset=0,
        instance_id="",
        features=features,
        label=label,
        weight=1.0,
        prediction=SURE,
        utility=0.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="probabilistic",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def answered(chosen: Probabilistic, features: Features, label: str) -> None:
    see(chosen, features, asked=True)
    chosen.resolved(outcome(features, label))


def worth(chosen: Probabilistic, x: float) -> float:
    found = chosen.utility({"x": x}, SURE)
    assert found is not None
    return found


def crowded(*parts: tuple[float, int], **parameters: object) -> Probabilistic:
    """Return a strategy that has seen so many instances around each centre."""
    chosen, random = strategy(**parameters), Random(0)
    instances = [centre + random.gauss(0.0, 0.05) for centre, count in parts for _ in range(count)]
    random.shuffle(instances)
    for x in instances:
        see(chosen, {"x": x})
    return chosen


def counts(classes: int, total: int) -> Iterator[list[int]]:
    """Return every way to share a number of answers out to the classes."""
    if classes == 1:
        yield [total]
        return
    for first in range(total + 1):
        yield from ([first, *rest] for rest in counts(classes - 1, total - first))


def log_beta(parameters: Sequence[float]) -> float:
    return sum(map(math.lgamma, parameters)) - math.lgamma(sum(parameters))


def direct(parameters: Sequence[float], answers: int) -> float:
    """Return the paper's expectation: over all answers, the mean share of the class that is then predicted."""
    found = 0.0
    for drawn in counts(len(parameters), answers):
        together = [a + n for a, n in zip(parameters, drawn, strict=True)]
        best = together.index(max(together))
        ways = math.factorial(answers) / math.prod(map(math.factorial, drawn))
        after = [a + (place == best) for place, a in enumerate(together)]
        found += ways * math.exp(log_beta(after) - log_beta(parameters))
    return found


@given(
    parameters=st.lists(
        st.sampled_from([0.001, 0.5, 1.0, 1.001, 2.5, 7.0]) | st.floats(0.01, 50.0), min_size=1, max_size=5
    ),
    answers=st.integers(0, 2),
)
def test_the_expected_accuracy_is_the_paper_s_sum(parameters: list[float], answers: int) -> None:
    assert expected_accuracy(parameters, answers) == pytest.approx(direct(parameters, answers), rel=1e-9)


@given(parameters=st.lists(st.floats(0.001, 50.0), min_size=1, max_size=5))
def test_more_answers_never_make_it_worse(parameters: list[float]) -> None:
    now, one, two = (expected_accuracy(parameters, answers) for answers in range(3))
    assert now <= one * (1.0 + 1e-12) <= two * (1.0 + 1e-9)
    assert gain(parameters, 1) == pytest.approx(one - now, abs=1e-12)
    assert gain(parameters, 2) == pytest.approx(max(one - now, (two - now) / 2.0), abs=1e-12)


def test_unexplored_is_worth_more_than_contradictory_and_that_more_than_agreed() -> None:
    unexplored, contradictory, agreed = ([k + PRIOR for k in evidence] for evidence in ((0, 0), (2, 2), (4, 0)))
    assert gain(unexplored, 2) > 4 * gain(contradictory, 2) > 0.0
    assert gain(contradictory, 2) > 10 * gain(agreed, 2)


def test_two_answers_ahead_see_what_one_cannot_change() -> None:
    assert gain([3.0, 1.5], 1) == 0.0
    assert gain([3.0, 1.5], 2) > 0.005


def test_a_place_is_worth_less_once_answers_agree_there() -> None:
    chosen = crowded((-1.0, 100), (1.0, 100))
    for _ in range(3):
        answered(chosen, {"x": -1.0}, "a")
    assert worth(chosen, 1.0) > 20 * worth(chosen, -1.0)
    for _ in range(3):
        answered(chosen, {"x": -1.0}, "b")
    for _ in range(6):
        answered(chosen, {"x": 1.0}, "a")
    assert worth(chosen, -1.0) > 5 * worth(chosen, 1.0)


def test_the_utility_is_gain_times_density() -> None:
    """At a point with one answer on it and others far away the evidence is 1 for its class and 0 for the other."""
    chosen = crowded((-1.0, 32), (1.0, 32))
    answered(chosen, {"x": -1.0}, "a")
    vector = chosen._scale.vector({"x": -1.0})
    density = fmean(chosen._recent.kernel(vector).tolist())
    assert 0.3 < density < 0.6
    [near] = chosen._asked.kernel(vector)
    assert worth(chosen, -1.0) == pytest.approx(density * gain([near + PRIOR, PRIOR], 2))


def test_an_outlier_is_worth_little() -> None:
    chosen = crowded((0.0, 200), (5.0, 1))
    assert worth(chosen, 0.0) > 20 * worth(chosen, 5.0)


def test_a_waiting_request_counts_as_an_answer() -> None:
    chosen = crowded((-1.0, 100), (1.0, 100))
    before = worth(chosen, 1.0)
    see(chosen, {"x": 1.0}, asked=True)
    assert worth(chosen, 1.0) < 0.1 * before


def test_an_answer_takes_the_place_of_its_request() -> None:
    chosen = crowded((-1.0, 100), (1.0, 100))
    for number in range(4):
        see(chosen, {"x": 1.0, "id": float(number)}, asked=True)
    pending = worth(chosen, 1.0)
    for number in (3, 1):
        chosen.resolved(outcome({"x": 1.0, "id": float(number)}, "b"))
    assert len(chosen._asked) == 4
    assert worth(chosen, 1.0) > 5 * pending


def test_a_request_that_taught_nothing_does_not_count() -> None:
    chosen = crowded((-1.0, 100), (1.0, 100))
    before = worth(chosen, 1.0)
    see(chosen, {"x": 1.0}, asked=True)
    chosen.resolved(outcome({"x": 1.0}, None, "expired"))
    assert worth(chosen, 1.0) == pytest.approx(before, rel=0.05)


def test_a_correction_takes_the_place_of_the_answer() -> None:
    chosen, told = crowded((-1.0, 100), (1.0, 100)), crowded((-1.0, 100), (1.0, 100))
    answered(chosen, {"x": 1.0}, "a")
    chosen.resolved(outcome({"x": 1.0}, "b", "corrected"))
    see(told, {"x": 1.0}, asked=True)
    told.resolved(outcome({"x": 1.0}, "b"))
    assert len(chosen._asked) == 1
    assert worth(chosen, 1.0) == worth(told, 1.0)


def test_an_answer_to_a_forgotten_request_counts_as_well() -> None:
    chosen = crowded((-1.0, 100), (1.0, 100))
    before = worth(chosen, 1.0)
    chosen.resolved(outcome({"x": 1.0}, None, "corrected"))
    assert worth(chosen, 1.0) == before
    chosen.resolved(outcome({"x": 1.0}, "a", "corrected"))
    assert worth(chosen, 1.0) < 0.1 * before


def test_it_asks_where_nothing_is_known_of() -> None:
    """One of two crowds is answered about now and then; the other one never is."""
    chosen, random = strategy(), Random(0)
    known: list[float] = []
    unknown: list[float] = []
    for number in range(1_500):
        x = random.gauss(-2.0 if random.random() < 0.5 else 2.0, 0.5)
        asked = x < 0.0 and number % 10 == 0
        (known if x < 0.0 else unknown).append(see(chosen, {"x": x}, asked=asked).propensity)
        if asked:
            chosen.resolved(outcome({"x": x}, "a"))
    assert fmean(unknown[200:]) > 1.5 * steered_rate(STANDING)
    assert fmean(known[200:]) < 1.5 * spill(STANDING)


def test_where_the_model_says_nothing_it_is_asked_at_the_rate() -> None:
    chosen = crowded((0.0, 100))
    for prediction in ({}, {"a": 0.0}, {"a": 0.0, "b": 0.0}):
        assert chosen.propose({"x": 0.0}, prediction, STANDING) == (steered_rate(STANDING), math.inf)


def test_features_that_are_no_numbers_or_come_later_do_not_stop_it() -> None:
    chosen = strategy()
    rows: list[Features] = [{}, {"x": None}, {"x": "red"}, {"x": 1.0, "y": True}, {"z": -1e100}, {"x": 2, "z": 1e100}]
    for row in rows * 20:
        proposal = see(chosen, row, asked=True)
        assert math.isfinite(proposal.utility)
        chosen.resolved(outcome(row, "a"))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"prior": 0.0}, "a number from 1e-06 to 10"),
        ({"m_max": 3}, "a whole number from 1 to 2"),
        ({"m_max": 1.0}, "a whole number"),
        ({"bandwidth": math.inf}, "a number from 0.01"),
    ],
)
def test_a_parameter_out_of_bounds_is_explained(parameters: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy.parameters.{next(iter(parameters))} = .* expected {expected}"):
        strategy(**parameters)


def test_a_new_owner_goes_on_roughly_as_before() -> None:
    former, heir, random = strategy(), strategy(), Random(0)
    rows: list[Features] = [{"x": random.gauss(random.choice((-2.0, 2.0)), 0.5)} for _ in range(500)]
    made = [(features, see(former, features, asked=number % 8 == 0)) for number, features in enumerate(rows)]
    outcomes = [outcome(features, "a" if number % 3 else "b") for number, features in enumerate(rows[:480:8])]
    for found in outcomes:
        former.resolved(found)
    for features, proposal in made[::8]:
        heir.update(features, SURE, proposal, asked=True)
    for found in outcomes:
        heir.resolved(found)
    for features in rows[-heir.warmup :]:
        see(heir, features)
    for x in (-2.5, -2.0, -1.5, 0.0, 1.5, 2.0, 2.5):
        assert worth(heir, x) == pytest.approx(worth(former, x), rel=0.3, abs=1e-4)
    assert len(heir._asked) == len(former._asked)


def test_memory_is_bounded() -> None:
    chosen, random, sizes = strategy(), Random(0), []
    for number in range(3_000):
        features = {"x": random.random()}
        see(chosen, features, asked=number % 2 == 0)
        if number % 3 == 0:
            chosen.resolved(outcome(features, random.choice("abc")))
        if number in (1_000, 2_999):
            state = {name: value for name, value in vars(chosen).items() if name != "_requests"}
            sizes.append(len(pickle.dumps(state)))
    assert len(chosen._requests) == MOST_REQUESTS
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
