"""Both parts get their share of the allowance, and each goes on as it would alone."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from statistics import fmean

import pytest
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Features, Prediction
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.coreset import Coreset
from streamal.selection.duo import Duo
from streamal.selection.strategy import Proposal, QueryStrategy, Standing, StrategySpec
from streamal.selection.threshold import steered_rate

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
NOTHING = Constant({})


def nothing() -> Constant:
    return NOTHING


def spec(**parameters: object) -> StrategySpec:
    return StrategySpec(RATE, WINDOW, parameters, nothing)


def crowd(count: int, seed: int = 0) -> list[tuple[Features, Prediction]]:
    """Return instances whose predictions have nothing to do with where they lie; the second class is rare."""
    random = Random(seed)
    found: list[tuple[Features, Prediction]] = []
    for _ in range(count):
        best = random.uniform(0.5, 1.0)
        label = "rare" if random.random() < 0.1 else "usual"
        found.append(({"x": random.gauss(0.0, 1.0)}, {label: best, "other": 1.0 - best}))
    return found


def see(chosen: QueryStrategy, case: tuple[Features, Prediction], *, asked: bool) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(*case, STANDING)
    chosen.update(*case, proposal, asked=asked)
    return proposal


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_the_propensity_is_that_of_two_independent_draws_at_their_shares(share: float) -> None:
    duo, doubt, coverage = Duo(spec(coverage=share)), ClassConditional(spec()), Coreset(spec())
    for number, case in enumerate(crowd(400)):
        asked = number % 7 == 3
        p = doubt.propose(*case, replace(STANDING, rate=(1.0 - share) * RATE))
        q = coverage.propose(*case, replace(STANDING, rate=share * RATE))
        proposal = see(duo, case, asked=asked)
        assert proposal.propensity == pytest.approx(1.0 - (1.0 - p.propensity) * (1.0 - q.propensity))
        assert proposal.utility == p.utility
        doubt.update(*case, p, asked=asked)
        coverage.update(*case, q, asked=asked)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_rate_is_met_and_shared(share: float) -> None:
    """Coverage asks about the far ones, doubt about the unsure ones; here no instance is both more than by chance."""
    random, duo, asked = Random(1), Duo(spec(coverage=share)), list[tuple[Features, Prediction]]()
    for case in (cases := crowd(4_000)):
        proposal = duo.propose(*case, STANDING)
        if wanted := random.random() < proposal.propensity:
            asked.append(case)
        duo.update(*case, proposal, asked=wanted)
    assert len(asked) == pytest.approx(steered_rate(STANDING) * len(cases), rel=0.2)
    unsure = fmean(max(prediction.values()) < 0.65 for _, prediction in asked)
    assert unsure == pytest.approx((1.0 - share) + share * 0.3, abs=0.1)


def test_coverage_finds_what_the_model_is_sure_about() -> None:
    duo, doubt = Duo(spec()), ClassConditional(spec())
    for number, case in enumerate(crowd(500)):
        see(duo, case, asked=number % 10 == 0)
        see(doubt, case, asked=number % 10 == 0)
    island: tuple[Features, Prediction] = ({"x": 50.0}, {"usual": 1.0, "other": 1e-9})
    assert doubt.propose(*island, STANDING).propensity == 0.0
    assert duo.propose(*island, STANDING).propensity == 1.0


def test_a_model_that_says_nothing_leaves_the_choice_to_coverage() -> None:
    duo = Duo(spec())
    found = [see(duo, (features, {}), asked=number % 10 == 0) for number, (features, _) in enumerate(crowd(500))]
    assert {proposal.utility for proposal in found} == {math.inf}
    assert fmean(proposal.propensity for proposal in found[WINDOW:]) == pytest.approx(steered_rate(STANDING), rel=0.2)


def test_recalled_requests_do_not_make_the_rest_look_easy() -> None:
    """They are the least sure of their time; a rare class would be compared with them for ages."""
    duo, fresh, cases = Duo(spec(coverage=0.0)), ClassConditional(spec()), crowd(300)
    for features, _ in crowd(500, seed=3):
        unsure: Prediction = {"rare": 0.5, "other": 0.5}
        duo.update(features, unsure, Proposal(1.0, 0.0), asked=True)
    for case in cases:
        see(duo, case, asked=False)
        see(fresh, case, asked=False)
    for case in crowd(100, seed=5):
        assert duo.propose(*case, STANDING).propensity == pytest.approx(fresh.propose(*case, STANDING).propensity)
    assert duo._coverage._points.shape[1] > 0


@pytest.mark.parametrize("parameters", [{"coverage": -0.1}, {"coverage": 1.1}, {"points": 1}])
def test_a_parameter_out_of_bounds_is_explained(parameters: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"strategy.parameters.{next(iter(parameters))} = .* expected a"):
        Duo(spec(**parameters))
