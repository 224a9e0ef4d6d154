"""The conformal rank is uniform whatever the scores, and the rate leans towards what is predicted rarely."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.messages import Prediction
from streamal.selection.class_conditional import LATE_FROM, ClassConditional, Shares
from streamal.selection.strategy import Standing, StrategySpec
from streamal.selection.threshold import steered_rate
from streamal.selection.window import Ranking

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
NOTHING = Constant({})


def strategy() -> ClassConditional:
    return ClassConditional(StrategySpec(RATE, WINDOW, {}, lambda: NOTHING))


def see(chosen: ClassConditional, prediction: Prediction, standing: Standing = STANDING) -> float:
    """Propose and update, as a lane does; returns the propensity."""
    proposal = chosen.propose({}, prediction, standing)
    chosen.update({}, prediction, proposal, asked=False)
    return proposal.propensity


def sure(best: float, label: str = "a") -> Prediction:
    return {label: best, "other": 1.0 - best}


@given(
    scores=st.lists(st.sampled_from([-math.inf, -3.0, -1.0, -1.0, 0.0, 2.5, math.inf]), max_size=40),
    size=st.integers(1, 8),
)
def test_the_place_of_a_score_is_its_conformal_p_value(scores: list[float], size: int) -> None:
    ranking = Ranking(size)
    for number, score in enumerate(scores):
        window = scores[max(0, number - size) : number]
        above = sum(other > score for other in window)
        ties = sum(other == score for other in window)
        low, high = ranking.place(score)
        assert low == above / (len(window) + 1)
        assert high == pytest.approx((above + ties + 1) / (len(window) + 1))
        ranking.add(score)


def test_the_rank_among_scores_of_any_shape_is_uniform() -> None:
    for shape in (
        lambda r: r.random(),
        lambda r: -math.exp(r.gauss(0, 3)),
        lambda r: float(r.randint(0, 2)),
        lambda r: 1.0,
    ):
        random, ranking, places = Random(0), Ranking(WINDOW), []
        for number in range(6_000):
            score = shape(random)
            low, high = ranking.place(score)
            ranking.add(score)
            if number > WINDOW:
                places.append(low + random.random() * (high - low))
        for share in (0.05, 0.2, 0.5, 0.9):
            assert fmean(place < share for place in places) == pytest.approx(share, abs=0.03)


def test_equal_scores_are_asked_about_at_exactly_the_rate() -> None:
    chosen = strategy()
    for _ in range(300):
        propensity = see(chosen, sure(0.9))
    assert propensity == pytest.approx(steered_rate(STANDING))


@pytest.mark.parametrize("standing", [STANDING, Standing(rate=RATE, cap=23.0, level=5.0)])
def test_the_mean_propensity_is_the_steered_rate(standing: Standing) -> None:
    random, chosen = Random(0), strategy()
    found = [see(chosen, sure(random.uniform(0.5, 1.0)), standing) for _ in range(6_000)]
    assert fmean(found[WINDOW:]) == pytest.approx(steered_rate(standing), rel=0.1)


def test_the_most_uncertain_of_a_class_are_asked_about() -> None:
    random, chosen = Random(0), strategy()
    for _ in range(500):
        see(chosen, sure(random.uniform(0.6, 1.0)))
    assert chosen.propose({}, sure(0.55), STANDING).propensity == 1.0
    assert chosen.propose({}, sure(0.99), STANDING).propensity == 0.0


def test_each_class_is_ranked_among_its_own() -> None:
    random, chosen = Random(0), strategy()
    for _ in range(1_000):
        see(chosen, sure(random.uniform(0.5, 0.6), "unsure"))
        see(chosen, sure(random.uniform(0.9, 1.0), "safe"))
    assert chosen.propose({}, sure(0.88, "safe"), STANDING).propensity == 1.0
    assert chosen.propose({}, sure(0.59, "unsure"), STANDING).propensity == 0.0


def test_a_class_predicted_rarely_is_asked_about_more_often() -> None:
    random, chosen = Random(0), strategy()
    found: dict[str, list[float]] = {"rare": [], "usual": []}
    for number in range(8_000):
        label = "rare" if number % 20 == 0 else "usual"
        found[label].append(see(chosen, sure(random.uniform(0.5, 1.0), label)))
    rare, usual = fmean(found["rare"][100:]), fmean(found["usual"][100:])
    rate = steered_rate(STANDING)
    assert usual == pytest.approx(rate * (0.5 + 0.5 / (2 * 0.95)), rel=0.1)
    assert rare == pytest.approx(min(1.0, rate * (0.5 + 0.5 / (2 * 0.05))), rel=0.15)


def test_shares_look_back_about_five_hundred_instances() -> None:
    shares = Shares()
    for label in ["old"] * 1_000 + ["new"] * 5_000:
        shares.add(label)
    assert shares.present == 1
    assert shares.tilt("new") == pytest.approx(1.0, abs=0.01)


def test_shares_never_overflow() -> None:
    """Weights grow by 1/0.998 per instance and are rescaled once they pass 1e100, after about 115,000."""
    shares = Shares()
    for number in range(250_000):
        shares.add("a" if number % 4 else "b")
    assert shares.tilt("a") == pytest.approx(0.5 + 0.5 / (2 * 0.75), rel=0.01)
    assert shares.tilt("b") == pytest.approx(0.5 + 0.5 / (2 * 0.25), rel=0.01)


def test_with_many_answers_under_way_the_threshold_is_soft_but_the_rate_stays() -> None:
    late = Standing(rate=RATE, cap=23.0, pending=LATE_FROM)
    random, chosen = Random(0), strategy()
    found = [see(chosen, sure(random.uniform(0.5, 1.0)), late) for _ in range(6_000)][WINDOW:]
    assert fmean(found) == pytest.approx(steered_rate(late), rel=0.1)
    assert max(found) == pytest.approx(5.0 * steered_rate(late), rel=0.15)
    assert fmean(0.0 < propensity < 0.5 for propensity in found) > 0.9


def test_a_rate_of_one_asks_about_everything_even_then() -> None:
    flush = Standing(rate=RATE, cap=23.0, level=23.0, pending=LATE_FROM)
    assert steered_rate(flush) > 1.0
    chosen = strategy()
    for _ in range(100):
        see(chosen, sure(0.9))
    assert chosen.propose({}, sure(1.0), flush).propensity == 1.0


def test_a_prediction_that_says_nothing_is_asked_about_at_the_rate() -> None:
    chosen = strategy()
    for prediction in ({}, {"a": 0.0}, {"a": 0.0, "b": 0.0}):
        assert see(chosen, prediction) == steered_rate(STANDING)


def test_certainty_beyond_what_floats_hold_keeps_its_order() -> None:
    """Naive Bayes says 1 - 1e-200; the margin of the probabilities has long rounded to 1."""
    chosen = strategy()
    for exponent in range(100, 300):
        see(chosen, {"a": 1.0, "b": 10.0**-exponent})
    assert chosen.propose({}, {"a": 1.0, "b": 1e-50}, STANDING).propensity == 1.0
    assert chosen.propose({}, {"a": 1.0, "b": 1e-299}, STANDING).propensity == 0.0


def test_a_class_that_was_not_predicted_for_ages_is_like_a_new_one() -> None:
    shares = Shares()
    shares.add("rare")
    for _ in range(400_000):
        shares.add("usual")
    assert shares.tilt("rare") == 1.0
    assert set(shares._weights) == {"usual"}
