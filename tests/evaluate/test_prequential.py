"""The scores are those of the textbook, also before anything was learned."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean

import pytest

from streamal.evaluate.prequential import Prequential, Recall
from streamal.messages import VALUE, Prediction

NAMES = {"accuracy", "kappa", "macro_f1", "balanced_accuracy", "log_loss", "mae", "rmse", "r2"}


def expected(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Compute the scores of (truth, guess) from their definitions; an empty guess names no class."""
    classes = sorted({label for pair in pairs for label in pair} - {""})
    count = len(pairs)
    accuracy = fmean(truth == guess for truth, guess in pairs)
    chance = sum(sum(t == c for t, _ in pairs) / count * sum(g == c for _, g in pairs) / count for c in classes)
    recalls, scores = [], []
    for label in classes:
        hits = sum(truth == guess == label for truth, guess in pairs)
        real, said = sum(truth == label for truth, _ in pairs), sum(guess == label for _, guess in pairs)
        scores.append(2 * hits / (real + said))
        if real:
            recalls.append(hits / real)
    return {
        "accuracy": accuracy,
        "kappa": (accuracy - chance) / (1.0 - chance),
        "macro_f1": fmean(scores),
        "balanced_accuracy": fmean(recalls),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("silent", [0, 30])
def test_scores_are_those_of_their_definitions(seed: int, silent: int) -> None:
    random, scores, pairs, loss = Random(seed), Prequential(), [], 0.0
    for number in range(200):
        truth = random.choice("aaaab" if seed % 2 else "aabc")
        weights = {label: random.random() + (label == truth) for label in "abcd"}
        total = sum(weights.values())
        prediction: Prediction = {} if number < silent else {label: w / total for label, w in weights.items()}
        scores.score(prediction, truth)
        pairs.append((truth, max(prediction, key=prediction.__getitem__) if prediction else ""))
        loss -= math.log(max(1e-15, prediction.get(truth, 0.0)))
    found = scores.summary()
    for name, value in expected(pairs).items():
        assert found[name] == pytest.approx(value), name
    assert found["log_loss"] == pytest.approx(loss / 200)
    assert scores.accuracy == found["accuracy"]
    assert (found["mae"], found["rmse"], found["r2"], scores.count) == (None, None, None, 200)


def test_the_recall_of_each_class_is_told_the_rarest_first() -> None:
    scores = Prequential()
    for truth, guess in (("b", "b"), ("b", "a"), ("b", "b"), ("b", "b"), ("a", "a"), ("a", "c"), ("a", "")):
        scores.score({guess: 1.0} if guess else {}, truth)
    assert scores.recall() == {"a": Recall(1 / 3, 3 / 7), "b": Recall(0.75, 4 / 7)}
    assert list(scores.recall()) == ["a", "b"]
    assert fmean(one.value for one in scores.recall().values()) == pytest.approx(scores.summary()["balanced_accuracy"])


def test_regression_and_nothing_have_no_recall() -> None:
    scores = Prequential()
    assert scores.recall() == {}
    scores.score({VALUE: 1.0}, 1.5)
    assert scores.recall() == {}


def test_regression_has_its_own_scores() -> None:
    scores = Prequential()
    pairs = [(1.0, 1.5), (2.0, 2.0), (3.0, 5.0), (4.0, 3.5)]
    for truth, guess in pairs:
        scores.score({VALUE: guess}, truth)
    found = scores.summary()
    errors = [guess - truth for truth, guess in pairs]
    assert found["mae"] == pytest.approx(fmean(map(abs, errors)))
    assert found["rmse"] == pytest.approx(math.sqrt(fmean(error**2 for error in errors)))
    assert found["r2"] == pytest.approx(1.0 - sum(error**2 for error in errors) / 5.0)
    assert {name for name, value in found.items() if value is None} == NAMES - {"mae", "rmse", "r2"}


def test_a_regression_that_says_nothing_yet_is_taken_for_zero() -> None:
    scores = Prequential()
    scores.score({}, 3.0)
    assert scores.summary()["mae"] == 3.0


def test_before_anything_was_scored_nothing_is_claimed() -> None:
    found = Prequential().summary()
    assert set(found) == NAMES
    assert set(found.values()) == {None}


def test_only_silence_is_all_wrong_and_finite() -> None:
    scores = Prequential()
    for _ in range(3):
        scores.score({}, "a")
    found = scores.summary()
    assert (found["accuracy"], found["macro_f1"], found["balanced_accuracy"]) == (0.0, 0.0, 0.0)
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_a_prediction_that_is_no_number_costs_and_does_not_spread() -> None:
    scores = Prequential()
    scores.score({"a": math.nan, "b": 0.5}, "a")
    scores.score({"a": 0.9, "b": 0.1}, "a")
    assert scores.summary()["log_loss"] == pytest.approx(-(math.log(1e-15) + math.log(0.9)) / 2)
