"""The table of query strategies, by their field-standard names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from streamal.errors import ConfigError
from streamal.messages import Task
from streamal.selection.bandit import Bandit, arms_of
from streamal.selection.class_balanced import ClassBalanced
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.cognitive import Cognitive
from streamal.selection.committee import Committee, Variance
from streamal.selection.coreset import Coreset
from streamal.selection.density import Density
from streamal.selection.duo import Duo
from streamal.selection.importance_weighted import ImportanceWeighted
from streamal.selection.leverage import Improvement, Leverage
from streamal.selection.pool import Pool
from streamal.selection.probabilistic import Probabilistic
from streamal.selection.random import Periodic, Random
from streamal.selection.reinforced import Reinforced
from streamal.selection.selective_sampling import SelectiveSampling
from streamal.selection.strategy import QueryStrategy, StrategySpec
from streamal.selection.synthesis import Synthesis
from streamal.selection.uncertainty import FixedUncertainty, RandomisedUncertainty, Split, VariableUncertainty
from streamal.selection.volume import Volume


@dataclass(frozen=True, slots=True)
class Entry:
    """How a strategy is built, which parameters it takes, for which tasks it is meant, and what it needs.

    Some need an ensemble as their model; some need features that are numbers, always or with some parameters. `exact`
    ones go on after a takeover as if nothing had happened, once their windows are filled; the others go on with what
    could be rebuilt.
    """

    build: Callable[[StrategySpec], QueryStrategy]
    parameters: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("classification",)
    ensemble: bool = False
    numbers: bool | Callable[[Mapping[str, object]], bool] = False
    exact: bool = True

    def measures(self, parameters: Mapping[str, object]) -> bool:
        """Say whether with these parameters it needs features that are numbers."""
        return self.numbers if isinstance(self.numbers, bool) else self.numbers(parameters)


BOTH: Final[tuple[Task, ...]] = ("classification", "regression")

STRATEGIES: Final[Mapping[str, Entry]] = {
    "class_conditional": Entry(ClassConditional),
    "random": Entry(Random, tasks=BOTH),
    "periodic": Entry(Periodic, tasks=BOTH),
    "fixed_uncertainty": Entry(FixedUncertainty, ("spill",)),
    "variable_uncertainty": Entry(VariableUncertainty, ("spill", "step")),
    "randomised_uncertainty": Entry(RandomisedUncertainty, ("spill", "step")),
    "split": Entry(Split, ("spill", "step", "random")),
    "selective_sampling": Entry(SelectiveSampling, ("adaptive",)),
    "importance_weighted": Entry(ImportanceWeighted),
    "class_balanced": Entry(ClassBalanced, ("step",), exact=False),
    "bandit": Entry(
        lambda spec: Bandit(spec, _build_arm),
        ("arms", "horizon"),
        numbers=lambda given: any(arm in STRATEGIES and STRATEGIES[arm].measures({}) for arm in arms_of(given)),
        exact=False,
    ),
    "reinforced": Entry(Reinforced, ("step", "threshold", "penalty"), ensemble=True),
    "density": Entry(Density, ("neighbours",), numbers=True),
    "cognitive": Entry(Cognitive, ("memory", "density"), numbers=True),
    "coreset": Entry(Coreset, ("points",), tasks=BOTH, numbers=True, exact=False),
    "pool": Entry(Pool, ("pool_window", "method"), numbers=lambda given: given.get("method") == "k_centre"),
    "synthesis": Entry(Synthesis, ("pool_window", "share", "mode"), numbers=True),
    "duo": Entry(Duo, ("coverage", "points"), numbers=True, exact=False),
    "volume": Entry(Volume, ("ridge", "memory"), numbers=True, exact=False),
    "probabilistic": Entry(Probabilistic, ("prior", "m_max", "bandwidth"), numbers=True, exact=False),
    "committee": Entry(Committee, ("measure",), ensemble=True),
    "variance": Entry(Variance, tasks=("regression",), ensemble=True),
    "leverage": Entry(Leverage, ("ridge", "memory"), tasks=("regression",), numbers=True, exact=False),
    "improvement": Entry(
        Improvement, ("ridge", "memory", "bandwidth"), tasks=("regression",), numbers=True, exact=False
    ),
}


def check(
    name: str, parameters: Mapping[str, object], task: Task, *, ensemble: bool = True, numbers: bool = True
) -> None:
    """Refuse a strategy that does not exist, does not know a parameter, or does not fit the model and the features.

    >>> check("randm", {}, "classification")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    streamal.errors.ConfigError: strategy.name = 'randm' does not exist; did you mean 'random'? There are: class_...
    """
    if name not in STRATEGIES:
        message = f"strategy.name = '{name}' does not exist{_hint(name, STRATEGIES)} There are: {', '.join(STRATEGIES)}"
        raise ConfigError(message)
    entry = STRATEGIES[name]
    if unknown := sorted(set(parameters) - set(entry.parameters)):
        known = ", ".join(entry.parameters) or "none"
        hint = _hint(unknown[0], entry.parameters)
        message = f"strategy.parameters.{unknown[0]} is unknown to '{name}'{hint} It takes: {known}"
        raise ConfigError(message)
    if task not in entry.tasks:
        needs = "class probabilities" if "classification" in entry.tasks else "a number as its prediction"
        fitting = ", ".join(other for other, found in STRATEGIES.items() if task in found.tasks)
        message = f"strategy.name = '{name}' needs {needs} and the model is for {task}; use one of: {fitting}"
        raise ConfigError(message)
    if entry.ensemble and not ensemble:
        cure = (
            "set model.kind = 'adaptive_forest', or give a model.factory that returns one of River's ensembles"
            if task == "classification"
            else "give a model.factory that returns an ensemble, such as 'river.forest:ARFRegressor'"
        )
        needs = f"strategy.name = '{name}' needs a model with several members, which disagree, and this one is single"
        message = f"{needs}; {cure}"
        raise ConfigError(message)
    if not numbers and entry.measures(parameters):
        given = ", ".join(f"{key} = {value!r}" for key, value in parameters.items())
        message = (
            f"strategy.name = '{name}'{f' with {given}' if given else ''} measures distances between numbers, and "
            "instance.types declares none; declare numeric features, or use class_conditional, which looks at "
            "predictions only"
        )
        raise ConfigError(message)


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else "."


def build(name: str, spec: StrategySpec, task: Task) -> QueryStrategy:
    """Build a strategy for one partition.

    Raises:
        ConfigError: see `check`.
    """
    check(name, spec.parameters, task)
    return STRATEGIES[name].build(spec)


def _build_arm(name: str, spec: StrategySpec) -> QueryStrategy:
    """Build a strategy that another one mixes."""
    check(name, spec.parameters, "classification", ensemble=spec.model().ensemble)
    return STRATEGIES[name].build(spec)
