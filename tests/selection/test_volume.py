"""Volumes against the paper's formula with numpy's inverse, embeddings against the gradient they stand for."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from specimens import Constant

from streamal.errors import ConfigError
from streamal.messages import Features, Prediction
from streamal.selection.strategy import Proposal, Standing, StrategySpec
from streamal.selection.threshold import steered_rate
from streamal.selection.vectors import Standardiser
from streamal.selection.volume import MOST_ENTRIES, GradientEmbedding, Volume, place

RATE = 0.1
WINDOW = 64
STANDING = Standing(rate=RATE, cap=23.0)
UNFADING = 1_000_000


def strategy(parameters: Mapping[str, object] | None = None, window: int = WINDOW) -> Volume:
    return Volume(StrategySpec(RATE, window, parameters or {}, lambda: Constant({})))


def see(chosen: Volume, features: Features, prediction: Prediction, *, asked: bool = False) -> Proposal:
    """Propose and update, as a lane does."""
    proposal = chosen.propose(features, prediction, STANDING)
    chosen.update(features, prediction, proposal, asked=asked)
    return proposal


def cases(count: int, classes: int = 2, columns: int = 2, seed: int = 0) -> Iterator[tuple[Features, Prediction]]:
    random = Random(seed)
    for _ in range(count):
        parts = [random.random() ** 4 for _ in range(classes)]
        prediction = {f"c{place}": part / sum(parts) for place, part in enumerate(parts)}
        yield {f"x{place}": random.gauss(0.0, 3.0) for place in range(columns)}, prediction


def gradient(weights: Any, columns: Any, label: int) -> Any:
    """Return the gradient of the log loss of a softmax regression, by differences."""

    def loss(weights: Any) -> float:
        scores = weights @ columns
        return float(np.log(np.exp(scores).sum()) - scores[label])

    found, step = np.zeros_like(weights), 1e-6
    for at in np.ndindex(*weights.shape):
        off = np.zeros_like(weights)
        off[at] = step
        found[at] = (loss(weights + off) - loss(weights - off)) / (2.0 * step)
    return found


def test_the_embedding_is_the_gradient_if_the_prediction_were_right() -> None:
    random = np.random.default_rng(0)
    embedding, scale = GradientEmbedding(), Standardiser()
    for features, prediction in cases(50, classes=3):
        embedding.add(features, prediction)
        scale.add(features)
    features = {"x0": 1.0, "x1": -2.0}
    columns = np.concatenate(([1.0], scale.vector(features)))
    weights = random.normal(size=(3, 3))
    scores = np.exp(weights @ columns)
    prediction = {f"c{place}": float(share) for place, share in enumerate(scores / scores.sum())}
    whole = gradient(weights, columns, int(scores.argmax()))
    found = embedding.vector(features, prediction)
    assert found is not None
    assert whole.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)
    assert found == pytest.approx(whole[1:].ravel(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_propensity_is_that_of_the_paper(classes: int) -> None:
    """Nothing fades, the rate is the steered one, and the factor is held at 1."""
    chosen, embedding = strategy({"memory": UNFADING}, window=10_000), GradientEmbedding()
    width = 3 * (classes - 1)
    [(known, said)] = cases(1, classes)
    see(chosen, known, said)
    embedding.add(known, said)
    first = embedding.vector(known, said)
    assert first is not None
    matrix, moment = 0.01 * np.eye(width), np.outer(first, first)
    for number, (features, prediction) in enumerate(cases(300, classes, seed=1), start=2):
        chosen._calibration.factor = 1.0
        vector = embedding.vector(features, prediction)
        assert vector is not None
        moment = moment * (number - 1) / number + np.outer(vector, vector) / number
        inverse = np.linalg.inv(matrix)
        utility = float(vector @ inverse @ vector) / float(np.trace(inverse @ moment))
        proposal = see(chosen, features, prediction, asked=number % 5 == 0)
        assert proposal.utility == pytest.approx(utility, rel=0.01)
        if number % 5 == 0:
            matrix += np.outer(vector, vector)
        embedding.add(features, prediction)


def test_the_mean_volume_is_the_trace_at_every_moment_whether_anybody_is_asked_or_not() -> None:
    chosen, random = strategy(), Random(3)
    for number, (features, prediction) in enumerate(cases(400, classes=3, columns=4)):
        more: Features = {"late": random.gauss(0.0, 1.0)} if number > 200 else {}
        see(chosen, {**features, **more}, prediction, asked=number % 7 == 0)
        assert chosen._mean == pytest.approx(float((chosen._moment * chosen._asked.inverse).sum()), rel=1e-9)


def test_the_mean_propensity_is_the_steered_rate_also_where_few_are_unsure() -> None:
    random, chosen = Random(0), strategy()
    found = []
    for features, _ in cases(8_000):
        rest = 0.5 * math.exp(-20.0 * random.random())
        prediction = {"c0": 1.0 - rest, "c1": rest}
        proposal = chosen.propose(features, prediction, STANDING)
        chosen.update(features, prediction, proposal, asked=random.random() < proposal.propensity)
        found.append(proposal.propensity)
    assert max(found[1_000:]) == 1.0
    assert fmean(found[1_000:]) == pytest.approx(steered_rate(STANDING), rel=0.15)


def test_a_direction_that_was_asked_about_is_worth_less() -> None:
    chosen, unsure = strategy(), {"c0": 0.6, "c1": 0.4}
    for features, _ in cases(100):
        see(chosen, features, unsure)
    one, other = {"x0": 6.0, "x1": 0.0}, {"x0": 0.0, "x1": 6.0}
    before = [chosen.propose(features, unsure, STANDING).utility for features in (one, other)]
    for _ in range(10):
        see(chosen, one, unsure, asked=True)
    after = [chosen.propose(features, unsure, STANDING).utility for features in (one, other)]
    assert before[0] == pytest.approx(before[1], rel=0.5)
    assert after[1] > 5 * after[0]


def test_the_surer_the_less_it_is_worth() -> None:
    chosen = strategy()
    for features, prediction in cases(200):
        see(chosen, features, prediction, asked=True)
    features = {"x0": 3.0, "x1": 3.0}
    found = [chosen.propose(features, {"c0": p, "c1": 1.0 - p}, STANDING).utility for p in (0.5, 0.7, 0.9, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] / found[2] == pytest.approx((0.5 / 0.1) ** 2, rel=0.3)
    assert found[3] == 0.0


def test_it_takes_no_notice_of_which_class_is_which() -> None:
    """With two classes, whose embedding is one and the same up to its sign."""
    one, other = strategy(), strategy()
    for number, (features, prediction) in enumerate(cases(200)):
        turned = {"c0": prediction["c1"], "c1": prediction["c0"]}
        asked = number % 4 == 0
        found = [see(chosen, features, said, asked=asked) for chosen, said in ((one, prediction), (other, turned))]
        assert found[0].utility == pytest.approx(found[1].utility)


def test_where_all_are_sure_it_asks_at_the_rate() -> None:
    chosen, sure = strategy(), {"c0": 1.0, "c1": 0.0}
    see(chosen, {"x0": 1.0}, sure)
    for features, _ in cases(50):
        proposal = see(chosen, features, sure, asked=True)
        assert proposal.utility == 1.0
        assert proposal.propensity == pytest.approx(steered_rate(STANDING), rel=1e-9)


def test_unused_allowance_is_spent_where_none_is_unsure_any_more() -> None:
    chosen, sure = strategy(), {"c0": 1.0, "c1": 0.0}
    for features, prediction in cases(100):
        see(chosen, features, prediction, asked=True)
    full = Standing(rate=RATE, cap=23.0, level=22.0)
    assert chosen.propose({"x0": 1.0}, sure, STANDING).propensity < 0.02
    assert chosen.propose({"x0": 1.0}, sure, full).propensity == 1.0


def test_where_the_model_says_nothing_it_is_asked_at_the_rate() -> None:
    chosen = strategy()
    for features, prediction in cases(20):
        see(chosen, features, prediction)
    nothing: list[Prediction] = [{}, {"c0": 0.0}, {"c0": math.nan, "c1": 0.5}, {"c0": math.inf}, {"c0": -1.0}]
    for prediction in nothing:
        assert see(chosen, {"x0": 1.0}, prediction) == (steered_rate(STANDING), math.inf)
    assert see(strategy(), {"x0": 1.0}, {"c0": 1.0}) == (steered_rate(STANDING), math.inf)


def test_classes_and_columns_that_come_later_leave_the_others_in_their_places() -> None:
    embedding = GradientEmbedding()
    for features, prediction in cases(20):
        embedding.add(features, prediction)
    features, prediction = {"x0": 1.0, "x1": 2.0}, {"c0": 0.7, "c1": 0.3}
    before = embedding.vector(features, prediction)
    assert before is not None
    assert embedding.width == 3
    unmet = embedding.vector({**features, "new": 5.0}, {**prediction, "c2": 0.0})
    assert unmet is not None
    assert unmet.tolist() == before.tolist()
    embedding._classes["c2"] = None
    embedding._scale.add({"new": 5.0})
    embedding.add({}, {})
    after = embedding.vector(features, prediction)
    assert after is not None
    assert after[:3].tolist() == before.tolist()
    assert not after[3:].any()
    assert embedding.width == 2 * 4


def test_a_new_class_or_column_never_breaks_it() -> None:
    chosen = strategy()
    rows: list[Features] = [{}, {"x": None}, {"x": "red"}, {"x": 1.0, "y": True}, {"z": -1e100}, {"x": 2, "z": 1e100}]
    for number, row in enumerate(rows * 20):
        classes = 1 + number // 10
        prediction = {f"c{place}": 1.0 / classes for place in range(classes)} if number % 7 else {}
        proposal = see(chosen, row, prediction, asked=True)
        assert 0.0 <= proposal.propensity <= 1.0
    assert np.isfinite(chosen._asked.inverse).all()
    assert np.isfinite(chosen._moment).all()


def test_wide_embeddings_are_projected_and_keep_their_lengths_and_angles() -> None:
    embedding = GradientEmbedding()
    for features, prediction in cases(10, classes=8, columns=100):
        embedding.add(features, prediction)
    assert embedding.width == MOST_ENTRIES
    vectors, wholes = [], []
    for features, prediction in cases(100, classes=8, columns=100, seed=1):
        vector = embedding.vector(features, prediction)
        assert vector is not None
        shares = np.array([prediction[f"c{place}"] for place in range(8)])
        shares[shares.argmax()] -= 1.0
        columns = np.concatenate(([1.0], embedding._scale.vector(features)))
        vectors.append(vector)
        wholes.append(np.outer(shares[1:], columns).ravel())
    projected, whole = np.array(vectors), np.array(wholes)
    lengths = (projected**2).sum(axis=1) / (whole**2).sum(axis=1)
    assert float(lengths.mean()) == pytest.approx(1.0, abs=0.1)
    angles = [np.corrcoef(table @ table[0], range(100))[0, 1] for table in (projected, whole)]
    assert np.corrcoef(projected @ projected[0], whole @ whole[0])[0, 1] > 0.8, angles


def test_places_are_spread_evenly_and_signs_as_well() -> None:
    found = [place(entry) for entry in range(MOST_ENTRIES, 40 * MOST_ENTRIES)]
    counts = np.bincount([at for at, _ in found], minlength=MOST_ENTRIES)
    assert counts.min() > 15
    assert counts.max() < 70
    assert fmean(sign for _, sign in found) == pytest.approx(0.0, abs=0.05)


def test_its_state_is_the_factor() -> None:
    chosen = strategy()
    for features, prediction in cases(300):
        see(chosen, features, prediction)
    state = chosen.state()
    assert state == {"factor": chosen._calibration.factor}
    assert state["factor"] != 1.0
    heir = strategy()
    heir.restore(state)
    assert heir.state() == state


def test_a_new_owner_goes_on_roughly_as_before() -> None:
    former, heir, seen = strategy(), strategy(), list(cases(500))
    made = [see(former, *found, asked=number % 5 == 0) for number, found in enumerate(seen)]
    for (features, prediction), proposal in list(zip(seen, made, strict=True))[::5]:
        heir.update(features, prediction, Proposal(*proposal), asked=True)
    for features, prediction in seen[-heir.warmup :]:
        see(heir, features, prediction)
    heir.restore(former.state())
    for features, prediction in cases(20, seed=1):
        before, after = (chosen.propose(features, prediction, STANDING) for chosen in (former, heir))
        assert after.utility == pytest.approx(before.utility, rel=0.3)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({"ridge": 0.0}, "a number from 1e-06 to 1e"), ({"memory": 127}, "a whole number from 128 to 1000000")],
)
def test_a_parameter_out_of_bounds_is_explained(parameters: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy.parameters.{next(iter(parameters))} = .* expected {expected}"):
        strategy(parameters)


def test_memory_is_bounded() -> None:
    chosen, sizes = strategy(), []
    for number, (features, prediction) in enumerate(cases(2_000, classes=3)):
        name = f"name{number % 300}" if number < 1_000 else "name0"
        see(chosen, {**features, name: 1.0}, prediction, asked=number % 10 == 0)
        if number in (1_200, 1_999):
            sizes.append(len(pickle.dumps(vars(chosen))))
    assert chosen._asked.inverse.shape == chosen._moment.shape == (MOST_ENTRIES, MOST_ENTRIES)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
