"""The table of query strategies, by their field-standard names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from streamal.errors import ConfigError
from streamal.messages import Task
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.random import Periodic, Random
from streamal.selection.strategy import QueryStrategy, StrategySpec
from streamal.selection.uncertainty import FixedUncertainty, RandomisedUncertainty, Split, VariableUncertainty


@dataclass(frozen=True, slots=True)
class Entry:
    """How a strategy is built, which parameters it takes, and for which tasks it is meant."""

    build: Callable[[StrategySpec], QueryStrategy]
    parameters: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("classification",)


BOTH: Final[tuple[Task, ...]] = ("classification", "regression")

STRATEGIES: Final[Mapping[str, Entry]] = {
    "class_conditional": Entry(ClassConditional),
    "random": Entry(Random, tasks=BOTH),
    "periodic": Entry(Periodic, tasks=BOTH),
    "fixed_uncertainty": Entry(FixedUncertainty, ("spill",)),
    "variable_uncertainty": Entry(VariableUncertainty, ("spill", "step")),
    "randomised_uncertainty": Entry(RandomisedUncertainty, ("spill", "step")),
    "split": Entry(Split, ("spill", "step", "random")),
}


def check(name: str, parameters: Mapping[str, object], task: Task) -> None:
    """Refuse a strategy that does not exist, does not know a parameter, or does not fit the task.

    >>> check("randm", {}, "classification")
    Traceback (most recent call last):
    ...
    streamal.errors.ConfigError: strategy.name = 'randm' does not exist; did you mean 'random'? There are: \
class_conditional, random, periodic, fixed_uncertainty, variable_uncertainty, randomised_uncertainty, split
    """
    if name not in STRATEGIES:
        near = get_close_matches(name, STRATEGIES, 1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        message = f"strategy.name = '{name}' does not exist{hint} There are: {', '.join(STRATEGIES)}"
        raise ConfigError(message)
    entry = STRATEGIES[name]
    if unknown := sorted(set(parameters) - set(entry.parameters)):
        known = ", ".join(entry.parameters) or "none"
        message = f"strategy.parameters.{unknown[0]} is unknown to '{name}'; it takes: {known}"
        raise ConfigError(message)
    if task not in entry.tasks:
        fitting = ", ".join(other for other, found in STRATEGIES.items() if task in found.tasks)
        message = (
            f"strategy.name = '{name}' needs class probabilities and the model is for {task}; use one of: {fitting}"
        )
        raise ConfigError(message)


def build(name: str, spec: StrategySpec, task: Task) -> QueryStrategy:
    """Build a strategy for one partition.

    Raises:
        ConfigError: see `check`.
    """
    check(name, spec.parameters, task)
    return STRATEGIES[name].build(spec)
