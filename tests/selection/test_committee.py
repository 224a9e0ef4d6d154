"""Each measure of disagreement against its definition, and members that say nothing, odd things, or come from River."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean, pvariance
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import ensemble, forest, linear_model, preprocessing
from specimens import Constant

from streamal.errors import ConfigError
from streamal.learning import presets
from streamal.learning.online import FactoryModel
from streamal.messages import VALUE, Features, Prediction
from streamal.selection.committee import MEASURES, Committee, Variance, opinions
from streamal.selection.registry import check
from streamal.selection.strategy import Standing, StrategySpec
from streamal.selection.threshold import steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
CLASSES = "abc"


class Members(Constant):
    """A model whose members say what the features tell them to."""

    def __init__(self, said: Callable[[Features], list[Prediction]]) -> None:
        super().__init__({"a": 1.0})
        self.ensemble = True
        self._said = said

    def members(self, features: Features) -> list[Prediction]:
        return self._said(features)


def committee(said: Callable[[Features], list[Prediction]], **parameters: object) -> Committee:
    model = Members(said)
    return Committee(StrategySpec(RATE, WINDOW, parameters, lambda: model))


def variance(model: Any) -> Variance:
    return Variance(StrategySpec(RATE, WINDOW, {}, lambda: model))


shares = st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3).map(
    lambda found: {label: share / sum(found) for label, share in zip(CLASSES, found, strict=True)}
)
committees = st.lists(shares, min_size=1, max_size=6)


def table(said: Sequence[Prediction]) -> list[list[float]]:
    return [[member[label] for label in CLASSES] for member in said]


@given(said=committees)
def test_vote_entropy(said: list[Prediction]) -> None:
    best = [row.index(max(row)) for row in table(said)]
    parts = [best.count(place) / len(said) for place in range(3)]
    expected = -sum(part * math.log(part) for part in parts if part)
    assert MEASURES["vote_entropy"](said) == pytest.approx(expected, abs=1e-12)


@given(said=committees)
def test_consensus_entropy_and_the_largest_divergence_from_the_consensus(said: list[Prediction]) -> None:
    mean = [fmean(column) for column in zip(*table(said), strict=True)]
    assert MEASURES["consensus_entropy"](said) == pytest.approx(-sum(p * math.log(p) for p in mean), abs=1e-12)
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True)) for row in table(said)]
    assert MEASURES["max_kl"](said) == pytest.approx(max(divergences), abs=1e-12)


@given(
    one=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
    other=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
)
def test_the_smaller_the_smallest_margin_the_higher_with_two_classes(one: list[float], other: list[float]) -> None:
    margins = [min(abs(2.0 * share - 1.0) for share in found) for found in (one, other)]
    utilities = [MEASURES["min_margin"]([{"a": share, "b": 1.0 - share} for share in found]) for found in (one, other)]
    if abs(margins[0] - margins[1]) > 1e-9:
        assert (margins[0] < margins[1]) == (utilities[0] > utilities[1])


def test_a_margin_that_rounds_to_one_keeps_its_order() -> None:
    nearly, as_good_as = ([{"a": 1.0, "b": share}] for share in (1e-50, 1e-200))
    assert MEASURES["min_margin"](nearly) > MEASURES["min_margin"](as_good_as)


@given(said=committees, order=st.permutations(range(6)))
def test_no_measure_depends_on_the_order_of_the_members(said: list[Prediction], order: list[int]) -> None:
    mixed = [said[place] for place in order if place < len(said)]
    for measure in MEASURES.values():
        assert measure(mixed) == pytest.approx(measure(said), abs=1e-12)


@pytest.mark.parametrize("name", ["vote_entropy", "max_kl"])
def test_members_that_agree_are_not_asked_about(name: str) -> None:
    assert MEASURES[name]([{"a": 0.6, "b": 0.4}] * 4) == 0.0


def test_members_that_say_nothing_do_not_count() -> None:
    silent: list[Prediction] = [{}, {"a": 0.0}, {"a": math.nan, "b": 1.0}, {"a": math.inf}, {"a": -1.0}]
    assert opinions(silent) == []
    assert opinions([*silent, {"a": 2.0, "b": 2.0}]) == [{"a": 0.5, "b": 0.5}]
    quiet = committee(lambda features: silent)
    assert quiet.propose({}, {"a": 1.0}, STANDING) == (steered_rate(STANDING), math.inf)


@pytest.mark.parametrize("measure", MEASURES)
def test_it_asks_where_they_disagree_at_the_rate(measure: str) -> None:
    def said(features: Features) -> list[Prediction]:
        spread = features["spread"]
        assert isinstance(spread, float)
        return [
            {"a": 0.5 + sign * (0.45 - spread / 2.2), "b": 0.5 - sign * (0.45 - spread / 2.2)} for sign in (1, 1, -1)
        ]

    def agreed(features: Features) -> list[Prediction]:
        return [{"a": 0.99, "b": 0.01}] * 3

    random = Random(0)
    chosen = committee(lambda features: said(features) if "spread" in features else agreed(features), measure=measure)
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3_000):
        apart = random.random() < 0.05
        features: Features = {"spread": random.random()} if apart else {}
        proposal = chosen.propose(features, {"a": 1.0}, STANDING)
        chosen.update(features, {"a": 1.0}, proposal, asked=False)
        found[apart].append(proposal.propensity)
    assert fmean(found[True][20:]) > 0.9
    together = found[True] + found[False]
    assert fmean(together) == pytest.approx(steered_rate(STANDING), rel=0.15)


def test_the_members_are_those_of_the_model_as_it_stands_now() -> None:
    models = [Members(lambda features: [{"a": 1.0}]), Members(lambda features: [{"a": 0.5, "b": 0.5}])]
    chosen = Committee(StrategySpec(RATE, WINDOW, {}, lambda: models[-1]))
    assert chosen.utility({}, {}) == 0.0
    models.pop()
    assert chosen.utility({}, {}) != 0.0


def test_a_measure_that_does_not_exist_is_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"measure = 'kl': expected one of min_margin, vote_entropy, .* such as min_m"
    ):
        committee(lambda features: [], measure="kl")


@pytest.mark.parametrize(("name", "task"), [("committee", "classification"), ("variance", "regression")])
def test_a_single_model_is_refused(name: str, task: Any) -> None:
    with pytest.raises(ConfigError, match="several members"):
        check(name, {}, task, ensemble=False)


def test_the_forest_is_a_committee() -> None:
    model = presets.build("adaptive_forest", parameters={"models": 5}, seed=3)
    chosen = Committee(StrategySpec(RATE, WINDOW, {"measure": "vote_entropy"}, lambda: model))
    assert chosen.utility({"x": 0.0}, {}) is None
    random = Random(0)
    for _ in range(300):
        x = random.gauss(0.0, 1.0)
        model.learn({"x": x}, "above" if x > 0.0 else "below")
    unsure, sure = (
        [chosen.utility({"x": sign * x / 200}, {"a": 1.0}) for x in range(*span) for sign in (1, -1)]
        for span in ((0, 5), (400, 405))
    )
    assert max(map(float, filter(None, unsure)), default=0.0) > 0.0
    assert sure == [0.0] * 10


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_variance_is_that_of_the_members_numbers(values: list[float]) -> None:
    model = Members(lambda features: [{VALUE: value} for value in values])
    assert variance(model).utility({}, {VALUE: 0.0}) == pytest.approx(pvariance(values), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    "said", [[], [{}], [{VALUE: 1.0}], [{VALUE: 1.0}, {}, {VALUE: math.nan}, {VALUE: math.inf}]], ids=len
)
def test_fewer_than_two_numbers_have_no_variance(said: list[Prediction]) -> None:
    chosen = variance(Members(lambda features: said))
    assert chosen.propose({}, {VALUE: 0.0}, STANDING) == (steered_rate(STANDING), math.inf)


def test_numbers_too_large_to_be_squared_count_as_the_highest() -> None:
    chosen = variance(Members(lambda features: [{VALUE: 1e200}, {VALUE: -1e200}]))
    proposal = chosen.propose({}, {VALUE: 0.0}, STANDING)
    chosen.update({}, {VALUE: 0.0}, proposal, asked=True)
    assert proposal == (steered_rate(STANDING), math.inf)


@pytest.mark.parametrize(
    "estimator",
    [
        ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=5, seed=1),
        preprocessing.StandardScaler() | ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=5, seed=1),
        forest.ARFRegressor(n_models=5, seed=1),
        preprocessing.StandardScaler() | forest.ARFRegressor(n_models=5, seed=1),
        ensemble.EWARegressor([linear_model.LinearRegression(), linear_model.LinearRegression(l2=0.1)]),
    ],
    ids=["bagging", "scaled bagging", "forest", "scaled forest", "weighted average"],
)
def test_river_s_regression_ensembles_are_committees(estimator: Any) -> None:
    model = FactoryModel(estimator.clone(), task="regression", weighted=False)
    check("variance", {}, model.task, ensemble=model.ensemble)
    chosen, random = variance(model), Random(0)
    assert chosen.utility({"x": 1.0}, {}) is None
    for _ in range(300):
        x, y = random.gauss(0.0, 1.0), random.gauss(0.0, 1.0)
        model.learn({"x": x, "y": y, "word": None}, 3.0 * x - y + random.gauss(0.0, 0.1))
    features: Features = {"x": 1.0, "y": 0.5, "new": "red"}
    said = model.members(features)
    assert len(said) in (2, 5)
    found = chosen.utility(features, {VALUE: 0.0})
    assert found == pytest.approx(pvariance([member[VALUE] for member in said]))
    assert found is not None
    assert found > 0.0
    far = chosen.utility({"x": 8.0, "y": -8.0}, {VALUE: 0.0})
    assert far is not None
