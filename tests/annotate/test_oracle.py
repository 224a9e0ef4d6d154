"""The simulated annotator errs, keeps silent and is late as it is told to, and always about the same instances."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean, median, stdev
from typing import get_args

import pytest

from streamal.annotate.oracle import DelayDistribution, Oracle
from streamal.cli.simulating import DELAYS
from streamal.errors import ConfigError

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


def test_numbers_are_never_mistaken_and_who_asks_for_it_is_told() -> None:
    Oracle(error=0.1).check("classification")
    Oracle().check("regression")
    with pytest.raises(ConfigError, match="a regression has none: leave it out"):
        Oracle(error=0.1).check("regression")


def test_without_another_class_there_is_no_mistake() -> None:
    assert Oracle(error=1.0).answer(0, "a", ["a"]) == "a"
    assert Oracle(error=1.0).answer(0, "a", []) == "a"
    assert Oracle(error=1.0).answer(0, 1.5, CLASSES) == 1.5


def test_the_draws_depend_on_seed_and_instance_alone() -> None:
    def said(seed: int) -> list[object]:
        return [Oracle(error=0.5, silence=0.2, seed=seed).answer(offset, "a", CLASSES) for offset in range(100)]

    assert said(1) == said(1)
    assert said(1) != said(2)


@pytest.mark.parametrize("distribution", get_args(DelayDistribution))
def test_delays_are_never_negative_and_have_the_mean_they_were_told(distribution: DelayDistribution) -> None:
    found = [Oracle(delay=200.0, distribution=distribution).latency(offset) for offset in MANY]
    assert min(found) >= 0.0
    assert fmean(found) == pytest.approx(200.0, rel=0.03)
    assert {Oracle(distribution=distribution).latency(offset) for offset in range(100)} == {0.0}


def test_each_distribution_has_its_shape() -> None:
    constant, exponential, lognormal = (
        [Oracle(delay=200.0, distribution=distribution).latency(offset) for offset in MANY]
        for distribution in get_args(DelayDistribution)
    )
    assert set(constant) == {200.0}
    assert median(exponential) == pytest.approx(200.0 * math.log(2.0), rel=0.03)
    assert stdev(exponential) == pytest.approx(200.0, rel=0.03)
    assert median(lognormal) == pytest.approx(200.0 / math.exp(0.5), rel=0.03)
    assert stdev([math.log(late) for late in lognormal]) == pytest.approx(1.0, rel=0.03)


def test_delays_depend_on_seed_and_instance_alone_and_owe_nothing_to_the_answer() -> None:
    def late(seed: int, error: float = 0.0) -> list[float]:
        oracle = Oracle(delay=9.0, error=error, seed=seed, distribution="exponential")
        return [oracle.latency(offset) for offset in MANY]

    assert late(1) == late(1, error=0.5)
    assert late(1) != late(2)
    mistaken = [Oracle(error=0.5, seed=1).answer(offset, "a", CLASSES) != "a" for offset in MANY]
    of_mistakes = fmean(late for late, wrong in zip(late(1), mistaken, strict=True) if wrong)
    assert of_mistakes == pytest.approx(9.0, rel=0.04)


def test_several_err_and_are_late_independently_and_the_first_is_the_one_there_always_was() -> None:
    alone = Oracle(delay=9.0, error=0.3, silence=0.1, seed=4, distribution="exponential")
    first, second = ([one.answer(offset, "a", CLASSES) for offset in MANY] for one in alone.team(2))
    assert first == [alone.answer(offset, "a", CLASSES) for offset in MANY]
    assert [label is None for label in first] == [label is None for label in second]
    answered = [(one, other) for one, other in zip(first, second, strict=True) if one is not None]
    both = sum(one != "a" != other for one, other in answered) / len(answered)
    assert both == pytest.approx(0.3 * 0.3, abs=0.01)
    latencies = [[one.latency(offset) for offset in range(100)] for one in alone.team(3)]
    assert latencies[0] != latencies[1] != latencies[2]
    assert len({one.name for one in alone.team(3)}) == 3


def test_the_command_offers_every_distribution() -> None:
    assert get_args(DelayDistribution) == DELAYS
