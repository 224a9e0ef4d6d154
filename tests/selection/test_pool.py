"""Each method chooses what it is to choose, as many as it is told to, whatever the predictions and features."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Features, LabelRequest, Prediction
from streamal.selection.pool import MOST_KNOWN, Method, Pool, badge, doubt, k_centre, top
from streamal.selection.strategy import Candidate, Standing, StrategySpec

RATE = 0.1
STANDING = Standing(rate=RATE, cap=23.0)
METHODS = (top, badge, k_centre)
SURE: Prediction = {"a": 0.95, "b": 0.05}
UNSURE: Prediction = {"a": 0.55, "b": 0.45}

predictions = st.sampled_from(
    [
        {},
        SURE,
        UNSURE,
        {"a": 1.0},
        {"a": math.nan, "b": 0.5},
        {"a": math.inf, "b": 0.5},
        {"a": -math.inf, "c": 0.0},
        {"a": 1e-320, "b": 1e-320},
    ]
)
numbers = st.sampled_from([0.0, 1.0, -2.5, 1e100, None, "text", True])
rows = st.dictionaries(st.sampled_from(["x", "y", "city"]), numbers, max_size=3)
pools = st.lists(
    st.builds(Candidate, rows, predictions, st.floats(0.0, 1.0, exclude_max=True)), min_size=1, max_size=40
)


def spec(**parameters: object) -> StrategySpec:
    return StrategySpec(RATE, 512, parameters, lambda: Constant({}))


def pool_of(points: list[Features], seed: int = 0, prediction: Prediction = UNSURE) -> list[Candidate]:
    random = Random(seed)
    return [Candidate(features, prediction, random.random()) for features in points]


def asked_about(features: Features) -> LabelRequest:
    return LabelRequest(
        partition=0,
        offset=0,
        instance_id="",
        features=features,
        display=None,
        prediction={},
        utility=0.0,
        propensity=1.0,
        reason="exploration",
        would_select=None,
        strategy="pool",
        model_version=0,
        requested_at=0.0,
        expires_at=None,
        budget={},
    )


@pytest.mark.parametrize("method", METHODS)
@given(pool=pools, part=st.floats(0.0, 1.0), known=st.lists(rows.map(asked_about), max_size=5))
def test_it_chooses_so_many_different_ones_and_always_the_same(
    method: Method, pool: list[Candidate], part: float, known: list[LabelRequest]
) -> None:
    count = max(1, math.ceil(part * len(pool)))
    chosen = method(pool, known, count)
    assert len({choice.place for choice in chosen}) == len(chosen) == count
    assert all(0 <= choice.place < len(pool) for choice in chosen)
    assert all(0.0 < choice.propensity <= 1.0 for choice in chosen)
    assert not any(math.isnan(choice.utility) for choice in chosen)
    assert chosen == method(pool, known, count)


@given(
    margins=st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8]), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
    part=st.floats(0.0, 1.0),
)
def test_top_takes_the_least_sure_and_draws_lots_at_the_bar(margins: list[float], seed: int, part: float) -> None:
    random = Random(seed)
    pool = [Candidate({}, {"a": p, "b": 1.0 - p}, random.random()) for p in margins]
    count = max(1, math.ceil(part * len(pool)))
    chosen = top(pool, (), count)
    assert [margins[choice.place] for choice in chosen] == sorted(margins)[:count]
    expected = Counter[float]()
    for choice in chosen:
        expected[margins[choice.place]] += 1
        assert choice.utility == doubt(pool[choice.place].prediction)
    for choice in chosen:
        level = margins[choice.place]
        assert choice.propensity == pytest.approx(expected[level] / margins.count(level))


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_tells_one_from_another_each_has_the_same_chance(method: Method) -> None:
    hits: Counter[int] = Counter()
    for seed in range(2_000):
        chosen = method(pool_of([{"x": 1.0}] * 10, seed, {"a": 1.0}), [asked_about({"x": 1.0})], 3)
        assert {choice.propensity for choice in chosen} == {0.3}
        hits.update(choice.place for choice in chosen)
    assert all(600 * 0.85 < hits[place] < 600 * 1.15 for place in range(10))


def test_k_centre_covers_each_group_before_it_returns_to_one() -> None:
    random = Random(3)
    centres = [(0.0, 0.0), (9.0, 0.0), (0.0, 9.0), (9.0, 9.0)]
    points: list[Features] = [
        {"x": centres[i % 4][0] + random.gauss(0.0, 0.1), "y": centres[i % 4][1] + random.gauss(0.0, 0.1)}
        for i in range(60)
    ]
    chosen = k_centre(pool_of(points), (), 8)
    assert {choice.place % 4 for choice in chosen[:4]} == {0, 1, 2, 3}
    assert all(a.utility >= b.utility for a, b in pairwise(chosen))
    known = [asked_about(points[number]) for number in (0, 1, 2)]
    assert k_centre(pool_of(points), known, 1)[0].place % 4 == 3
    old = [asked_about(points[0])] * MOST_KNOWN + [asked_about(points[3])]
    assert k_centre(pool_of(points), old, 1)[0].place % 4 == 3, "only the latest are looked at"


def test_k_centre_is_within_twice_of_the_best_cover() -> None:
    random = Random(1)
    points: list[Features] = [{"x": random.random()} for _ in range(80)]
    chosen = k_centre(pool_of(points), (), 8)

    def radius(places: list[int]) -> float:
        xs = [float(row["x"] or 0.0) for row in points]
        return max(min(abs(x - xs[place]) for place in places) for x in xs)

    xs = sorted(float(row["x"] or 0.0) for row in points)
    assert radius([choice.place for choice in chosen]) <= 2.0 * (xs[-1] - xs[0]) / 16


def test_badge_asks_about_no_doubt_twice_and_not_where_there_is_none() -> None:
    """Of two groups of twins in doubt and one without, it takes one twin of each."""
    points: list[Features] = [{"x": x} for x in (-1.0, 1.0, 0.0) for _ in range(20)]
    for seed in range(50):
        random = Random(seed)
        pool = [
            Candidate(row, UNSURE if number < 40 else {"a": 1.0, "b": 0.0}, random.random())
            for number, row in enumerate(points)
        ]
        chosen = badge(pool, (), 2)
        assert sorted(choice.place // 20 for choice in chosen) == [0, 1]


def test_badge_draws_in_proportion_to_the_squared_distance() -> None:
    """The first with the squared length of its gradient, which is ``2 * (1 - p1)^2 * (1 + x^2)`` of two classes."""
    lengths = [2.0 * (1.0 - p) ** 2 for p in (0.6, 0.7, 0.9)]
    first: Counter[int] = Counter()
    for seed in range(4_000):
        random = Random(seed)
        pool = [Candidate({}, {"a": p, "b": 1.0 - p}, random.random()) for p in (0.6, 0.7, 0.9)]
        [choice] = badge(pool, (), 1)
        first[choice.place] += 1
        assert choice.propensity == pytest.approx(lengths[choice.place] / sum(lengths))
        assert choice.utility == pytest.approx(lengths[choice.place])
    for place, length in enumerate(lengths):
        assert first[place] / 4_000 == pytest.approx(length / sum(lengths), abs=0.025)


def test_no_prediction_moves_the_strategy_at_once() -> None:
    pool = Pool(spec())
    proposal = pool.propose({"x": 1.0}, UNSURE, STANDING)
    assert proposal == (0.0, doubt(UNSURE))
    assert pool.pools is pool
    assert (pool.size, pool.warmup, pool.recalls, pool.state()) == (500, 0, False, {})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pool_window": 49}, r"pool_window = 49: expected a whole number from 50 to 2000"),
        ({"pool_window": 2_001}, r"from 50 to 2000"),
        ({"method": "best"}, r"method = 'best': expected one of top, badge, k_centre"),
    ],
)
def test_a_wrong_parameter_is_explained(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Pool(spec(**wrong))
