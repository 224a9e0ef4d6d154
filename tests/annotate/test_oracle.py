"""The simulated annotator errs and keeps silent as often as it is told to, and always about the same instances."""

from __future__ import annotations

from collections import Counter

import pytest

from streamal.annotate.oracle import Oracle

CLASSES = ["a", "b", "c"]
MANY = range(20_000)


def test_a_perfect_one_says_the_truth() -> None:
    assert {Oracle().answer(offset, "a", CLASSES) for offset in MANY} == {"a"}
    assert Oracle().answer(3, 1.5, []) == 1.5


@pytest.mark.parametrize("error", [0.1, 0.5, 1.0])
def test_mistakes_are_as_frequent_as_told_and_spread_over_the_other_classes(error: float) -> None:
    found = Counter(Oracle(error=error).answer(offset, "a", CLASSES) for offset in MANY)
    assert 1.0 - found["a"] / len(MANY) == pytest.approx(error, abs=0.01)
    assert found["b"] / len(MANY) == pytest.approx(error / 2, abs=0.01)
    assert set(found) <= set(CLASSES)


def test_silence_is_as_frequent_as_told_and_owes_nothing_to_mistakes() -> None:
    found = [Oracle(error=0.3, silence=0.4).answer(offset, "a", CLASSES) for offset in MANY]
    answered = [label for label in found if label is not None]
    assert 1.0 - len(answered) / len(MANY) == pytest.approx(0.4, abs=0.01)
    assert sum(label != "a" for label in answered) / len(answered) == pytest.approx(0.3, abs=0.015)


def test_without_another_class_there_is_no_mistake() -> None:
    assert Oracle(error=1.0).answer(0, "a", ["a"]) == "a"
    assert Oracle(error=1.0).answer(0, "a", []) == "a"
    assert Oracle(error=1.0).answer(0, 1.5, CLASSES) == 1.5


def test_the_draws_depend_on_seed_and_instance_alone() -> None:
    def said(seed: int) -> list[object]:
        return [Oracle(error=0.5, silence=0.2, seed=seed).answer(offset, "a", CLASSES) for offset in range(100)]

    assert said(1) == said(1)
    assert said(1) != said(2)
