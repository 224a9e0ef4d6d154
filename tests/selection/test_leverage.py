"""Leverages against numpy's inverse, what asking by them gains, and the expected change against a refitted model."""

from __future__ import annotations

import math
import pickle
from random import Random
from typing import Any

import numpy as np
import pytest
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import VALUE, Features, Label, Outcome, OutcomeKind, Prediction
from streamal.selection.leverage import MOST_ANSWERS, Improvement, Leverage, local_mean, with_constant
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import spill, steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
FIVE = {VALUE: 5.0}
UNFADING = 1_000_000


def spec(**parameters: object) -> StrategySpec:
    return StrategySpec(RATE, WINDOW, parameters, lambda: Constant({}, task="regression"))


def see(chosen: Leverage, features: Features, *, asked: bool = False, prediction: Prediction = FIVE) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(features, prediction, STANDING)
    chosen.update(features, prediction, proposal, asked=asked)
    return proposal


def outcome(
    features: Features, label: Label | None, prediction: Prediction = FIVE, kind: OutcomeKind = "learned"
) -> Outcome:
    return Outcome(
        kind=kind,
        partition=0,
        offset=0,
        instance_id="",
        features=features,
        label=label,
        weight=1.0,
        prediction=prediction,
        utility=0.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="improvement",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def crowd(count: int, seed: int = 0) -> list[Features]:
    random = Random(seed)
    return [{"x": random.gauss(0.0, 1.0), "y": random.gauss(3.0, 5.0)} for _ in range(count)]


def off_where_positive(features: Features) -> float:
    """Return a label that the constant prediction misses by 3 on one side and by 0.1 on the other."""
    x = features["x"]
    assert isinstance(x, float)
    return 8.0 if x > 0.0 else 5.1


def utility(chosen: Leverage, features: Features) -> float:
    found = chosen.utility(features, FIVE)
    assert found is not None
    return found


def test_the_utility_is_the_leverage_among_all_that_was_asked_about() -> None:
    chosen = Leverage(spec(ridge=2.0, memory=UNFADING))
    matrix: Any = 2.0 * np.eye(3)
    for number, features in enumerate(crowd(200)):
        see(chosen, features, asked=number % 3 == 0)
        if number % 3 == 0:
            vector = with_constant(chosen._scale.vector(features))
            matrix += np.outer(vector, vector)
        probe = with_constant(chosen._scale.vector({"x": 2.0, "y": -4.0}))
        expected = float(probe @ np.linalg.inv(matrix) @ probe)
        assert utility(chosen, {"x": 2.0, "y": -4.0}) == pytest.approx(expected, rel=1e-3)


def test_what_was_asked_about_is_worth_less() -> None:
    chosen = Leverage(spec())
    for features in crowd(100):
        see(chosen, features)
    there, elsewhere = {"x": 2.0, "y": 3.0}, {"x": 0.0, "y": 20.0}
    before = utility(chosen, there), utility(chosen, elsewhere)
    for _ in range(5):
        see(chosen, there, asked=True)
    assert utility(chosen, there) < 0.3 * before[0]
    assert utility(chosen, elsewhere) > 0.7 * before[1]


def test_its_requests_determine_a_linear_model_better_than_random_ones() -> None:
    """D-optimality: the determinant of the information of as many requests, on the same instances."""
    chosen, random = Leverage(spec(memory=UNFADING)), Random(1)
    taken: list[Any] = []
    rows = crowd(3_000)
    for features in rows:
        proposal = chosen.propose(features, FIVE, STANDING)
        asked = random.random() < proposal.propensity
        chosen.update(features, FIVE, proposal, asked=asked)
        if asked:
            taken.append(with_constant(chosen._scale.vector(features)))
    drawn = [with_constant(chosen._scale.vector(features)) for features in random.sample(rows, len(taken))]
    chosen_table, random_table = np.array(taken), np.array(drawn)
    gained = np.linalg.slogdet(chosen_table.T @ chosen_table)[1] - np.linalg.slogdet(random_table.T @ random_table)[1]
    assert len(taken) == pytest.approx(RATE * len(rows), rel=0.3)
    assert gained > 1.0


def test_the_highest_leverages_are_asked_about() -> None:
    chosen = Leverage(spec())
    for features in crowd(500):
        see(chosen, features)
    assert chosen.propose({"x": 5.0, "y": 30.0}, FIVE, STANDING).propensity == 1.0
    assert chosen.propose({"x": 0.0, "y": 3.0}, FIVE, STANDING).propensity == spill(STANDING)


def test_requests_are_forgotten() -> None:
    chosen, random = Leverage(spec(memory=257)), Random(0)
    for _ in range(300):
        see(chosen, {"x": random.choice((-1.0, 1.0)), "y": random.gauss(0.0, 1.0)}, asked=True)
    known = utility(chosen, {"x": 1.0, "y": 0.0})
    for _ in range(1_500):
        see(chosen, {"y": random.gauss(0.0, 1.0)}, asked=True)
    assert utility(chosen, {"x": 1.0, "y": 0.0}) > 10 * known


@pytest.mark.parametrize("rule", [Leverage, Improvement])
def test_where_the_model_says_nothing_it_is_asked_at_the_rate(rule: type[Leverage]) -> None:
    chosen = rule(spec())
    for features in crowd(50):
        assert see(chosen, features, prediction={}) == (steered_rate(STANDING), math.inf)
    assert chosen.utility({"x": 1.0}, {VALUE: 0.0}) is None or rule is Leverage


@pytest.mark.parametrize("rule", [Leverage, Improvement])
def test_features_that_are_no_numbers_or_come_later_do_not_stop_it(rule: type[Leverage]) -> None:
    chosen = rule(spec())
    rows: list[Features] = [{}, {"x": None}, {"x": "red"}, {"x": 1.0, "y": True}, {"z": -1e100}, {"x": 2, "z": 1e100}]
    for number, row in enumerate(rows * 20):
        proposal = see(chosen, row, asked=True, prediction={VALUE: math.nan} if number % 7 == 0 else FIVE)
        chosen.resolved(outcome(row, float(number), {VALUE: math.nan} if number % 7 == 0 else FIVE))
        assert math.isfinite(proposal.utility) or number <= 1
    assert np.isfinite(chosen._asked.inverse).all()


def test_the_change_is_that_of_a_least_squares_model_s_predictions() -> None:
    """Fit a model to what was asked about, learn one more, and compare the predictions of all of them."""
    random = np.random.default_rng(0)
    asked = random.normal(size=(40, 3))
    labels = asked @ (1.0, -2.0, 0.5) + random.normal(size=40)
    matrix = np.eye(3) + asked.T @ asked
    before = np.linalg.solve(matrix, asked.T @ labels)
    new, label = np.array([1.0, 2.0, -0.3]), 7.0
    after = np.linalg.solve(matrix + np.outer(new, new), asked.T @ labels + new * label)
    # the ridge stands for one answer of 0 at a distance of 1 along each coordinate
    every = np.vstack([asked, np.eye(3), new])
    changed = float(((every @ (after - before)) ** 2).sum())
    leverage = float(new @ np.linalg.inv(matrix) @ new)
    error = label - float(new @ before)
    assert changed == pytest.approx(error**2 * leverage / (1.0 + leverage))


def test_the_improvement_is_local_error_times_leverage() -> None:
    chosen, plain = Improvement(spec(memory=UNFADING)), Leverage(spec(memory=UNFADING))
    for number, features in enumerate(crowd(300)):
        see(chosen, features, asked=number % 5 == 0)
        see(plain, features, asked=number % 5 == 0)
        if number % 5 == 0:
            chosen.resolved(outcome(features, off_where_positive(features)))
    probe: Features = {"x": 1.0, "y": 3.0}
    near = chosen._answered.kernel(chosen._scale.vector(probe))
    leverage = utility(plain, probe)
    expected = local_mean(near, chosen._errors[: len(near)]) * leverage / (1.0 + leverage)
    assert utility(chosen, probe) == expected
    assert utility(chosen, probe) > 4 * utility(chosen, {"x": -1.0, "y": 3.0})


def test_far_from_every_answer_the_mean_error_counts() -> None:
    near = np.array([1e-9, 1e-12])
    assert local_mean(near, np.array([9.0, 1.0])) == pytest.approx(5.0)
    assert local_mean(np.ones(100), np.full(100, 4.0)) == pytest.approx(4.0)


def test_what_is_no_error_is_left_out() -> None:
    chosen = Improvement(spec())
    features: Features = {"x": 1.0}
    see(chosen, features, asked=True)
    chosen.resolved(outcome(features, None, kind="expired"))
    chosen.resolved(outcome(features, 3.0, kind="abstained"))
    chosen.resolved(outcome(features, "usual"))
    chosen.resolved(outcome(features, 3.0, {}))
    chosen.resolved(outcome(features, 3.0, {VALUE: math.nan}))
    assert chosen.utility(features, FIVE) is None
    chosen.resolved(outcome(features, 3.0))
    assert chosen._errors[0] == 4.0
    assert chosen.utility(features, FIVE) is not None


def test_a_correction_takes_the_place_of_the_error_and_one_that_diverged_stays_a_number() -> None:
    chosen = Improvement(spec())
    features: Features = {"x": 1.0}
    see(chosen, features, asked=True)
    chosen.resolved(outcome(features, 3.0))
    chosen.resolved(outcome(features, 4.0, kind="corrected"))
    assert chosen._errors[:2].tolist() == [1.0, 0.0]
    chosen.resolved(outcome(features, 3.0, {VALUE: 1e200}))
    assert math.isfinite(utility(chosen, features))


@pytest.mark.parametrize(
    ("rule", "parameters", "expected"),
    [
        (Leverage, {"ridge": 0.0}, "a number from 1e-06 to 1e"),
        (Leverage, {"memory": 256}, "a whole number from 257 to 1000000"),
        (Improvement, {"bandwidth": -1.0}, "a number from 0.01 to 100"),
    ],
)
def test_a_parameter_out_of_bounds_is_explained(
    rule: type[Leverage], parameters: dict[str, float], expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"strategy.parameters.{next(iter(parameters))} = .* expected {expected}"):
        rule(spec(**parameters))


@pytest.mark.parametrize("rule", [Leverage, Improvement])
def test_a_new_owner_goes_on_roughly_as_before(rule: type[Leverage]) -> None:
    former, heir, rows = rule(spec()), rule(spec()), crowd(500)
    made = [(features, see(former, features, asked=number % 5 == 0)) for number, features in enumerate(rows)]
    outcomes = [outcome(features, off_where_positive(features)) for features in rows[::5]]
    for found in outcomes:
        former.resolved(found)
    for features, proposal in made[::5]:
        heir.update(features, FIVE, proposal, asked=True)
    for found in outcomes:
        heir.resolved(found)
    for features in rows[-heir.warmup :]:
        see(heir, features)
    before, after = ([utility(chosen, probe) for probe in crowd(100, seed=1)] for chosen in (former, heir))
    assert sum(after) == pytest.approx(sum(before), rel=0.1)
    assert np.corrcoef(before, after)[0, 1] > 0.97


def test_memory_is_bounded() -> None:
    chosen, random, sizes = Improvement(spec()), Random(0), []
    for number in range(2_000):
        features: Features = {"x": random.random(), f"name{number % 300}": 1.0}
        see(chosen, features, asked=number % 4 == 0)
        if number % 4 == 0:
            chosen.resolved(outcome(features, random.random()))
        if number in (1_200, 1_999):
            sizes.append(len(pickle.dumps(vars(chosen))))
    assert len(chosen._answered) == MOST_ANSWERS
    assert chosen._asked.inverse.shape == (257, 257)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
