"""The calls that are timed are those of a whole decision: made again, they end where the first pass ended."""

from __future__ import annotations

from itertools import islice
from typing import cast

import pytest

from benchmarks.strategies import RATE, WINDOW, Spoken, made, seconds, steps
from streamal.learning.model import Model
from streamal.selection.registry import STRATEGIES, build
from streamal.selection.strategy import QueryStrategy, Standing, StrategySpec


@pytest.mark.parametrize("name", ["class_conditional", "committee", "pool", "volume", "improvement"])
def test_calls_made_again_end_where_the_first_ones_did(name: str) -> None:
    task = STRATEGIES[name].tasks[0]
    instances = list(islice(made(3, 3 if task == "classification" else 0), 1_000))
    model = cast(Model, Spoken(instances))

    def new() -> QueryStrategy:
        return build(name, StrategySpec(RATE, WINDOW, {}, lambda: model), task)

    first, again = new(), new()
    calls = list(steps(first, instances))
    assert seconds(again, calls) > 0.0
    assert sum(step.asked for step in calls) <= RATE * len(calls)
    assert sum(len(step.answered) for step in calls) >= 0.6 * RATE * len(calls)
    assert sum(step.gathered is not None for step in calls) == 2 * (name == "pool")
    for features, prediction, _, _ in instances[:20]:
        expected = first.propose(features, prediction, Standing(RATE, 23.0))
        assert again.propose(features, prediction, Standing(RATE, 23.0)) == expected
