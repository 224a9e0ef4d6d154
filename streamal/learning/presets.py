"""The models by name: a River estimator with the encoding, scaling and defaults that selective sampling needs.

Linear models and nearest neighbours are scaled; trees and naive Bayes are not. Classification trees predict by naive
Bayes leaves with the densities of `streamal.learning.estimators`, since stock leaves collapse on selected labels.

`lookahead` follows the cost of a copy: up to about 2 ms for linear models, naive Bayes and one Hoeffding tree; the
adaptive tree, the forest (tens of milliseconds) and nearest neighbours (their whole window) are too dear. An
importance weight reaches logistic and linear regression and the single trees; the others learn each example once.

A new preset is one builder and one line in `PRESETS`; its keyword arguments are its parameters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, Literal

from river import compose, forest, linear_model, multiclass, neighbors, optim, tree
from river.base import Classifier, Regressor

from streamal.errors import ConfigError, ModelError
from streamal.learning.encoding import Indicators, Words
from streamal.learning.estimators import FlooredSplitter, LeanGaussianNB, PortableSoftmax
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel, OnlineModel, last_step
from streamal.learning.scaling import Scaling
from streamal.messages import Task

ScalingRows = Literal["all", "labelled"]

LEARNING_RATE: Final = 0.01
"""River's default for its linear models; more learns faster and forgets faster."""
NEIGHBOURS_WINDOW: Final = 1_000
"""Labelled examples kept by nearest neighbours; each prediction looks at all of them."""


def build(kind: str, *, parameters: Mapping[str, Any], scaling: ScalingRows = "all", seed: int) -> Model:
    """Return a new model of a kind listed in `PRESETS`.

    `scaling` says what scaled kinds learn their means and spreads from: the moments of all instances, or the labelled
    ones only, as River does. `seed` makes random estimators repeatable.

    >>> build("softmax", parameters={"learning_rate": 0.05}, seed=1).task
    'classification'

    Raises:
        ConfigError: no such kind or parameter, or a parameter that does not fit.
    """
    if kind not in PRESETS:
        message = f"model.kind must be one of {', '.join(PRESETS)}; {kind!r} is none{suggest(kind, PRESETS)}"
        raise ConfigError(message)
    builder = PRESETS[kind]
    accepted = {name: found.default for name, found in inspect.signature(builder).parameters.items()}
    defaults = {name: default for name, default in accepted.items() if name not in ("scaling", "seed")}
    for name, value in parameters.items():
        check_parameter(kind, name, value, defaults)
    given = {"scaling": scaling, "seed": seed}
    return builder(**parameters, **{name: value for name, value in given.items() if name in accepted})


def from_factory(path: str, /, **parameters: Any) -> Model:
    """Return the River estimator or pipeline that `package.module:build` returns for these parameters, as a model.

    A classifier for two classes only is wrapped in one-vs-rest, which starts it untrained.

    Raises:
        ConfigError: it does not take these parameters, or needs others.
        ModelError: it cannot be imported or called, or what it returns neither classifies nor predicts a number.
    """
    estimator = call_factory(path, **parameters)
    last = last_step(estimator)
    task: Task = "classification" if isinstance(last, Classifier) else "regression"
    if not isinstance(last, Classifier | Regressor):
        message = (
            f"model.factory {path!r} must return a River classifier or regressor, or a pipeline that ends in one; "
            f"it returned {type(last).__name__}; return the estimator itself, not its class"
        )
        raise ModelError(message)
    weighted = takes_weight(last)
    if isinstance(last, Classifier) and not getattr(last, "_multiclass", True):
        estimator = replace_last(estimator, multiclass.OneVsRestClassifier(last))
    return FactoryModel(estimator, task=task, weighted=weighted)


def suggest(name: str, known: Mapping[str, Any]) -> str:
    """Return a question that names the nearest known name, or nothing.

    >>> suggest("gausian_nb", {"gaussian_nb": 1}), suggest("zzz", {"gaussian_nb": 1})
    ("; did you mean 'gaussian_nb'?", '')
    """
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_parameter(kind: str, name: str, value: object, defaults: Mapping[str, Any]) -> None:
    """Refuse a parameter the kind does not have, of another type than its default, negative or not finite."""
    if name not in defaults:
        listed = ", ".join(defaults) or "none"
        message = f"model.parameters: {kind} has no parameter {name!r}; it accepts: {listed}{suggest(name, defaults)}"
        raise ConfigError(message)
    default = defaults[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        fits, expected = isinstance(value, str), "a string"
    elif isinstance(default, int):
        fits, expected = number and isinstance(value, int) and value >= 1, "a whole number from 1 on"
    else:
        fits, expected = number, "a number from 0 on"
    if not fits:
        message = f"model.parameters.{name} of {kind} must be {expected}, as its default {default!r}; got {value!r}"
        raise ConfigError(message)


def call_factory(path: str, /, **parameters: Any) -> Any:
    """Import and call a factory."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        message = f"model.factory must have the form package.module:function, got {path!r}"
        raise ModelError(message)
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        message = f"model.factory {path!r} cannot be imported: {error}; is its package installed next to streamal?"
        raise ModelError(message) from error
    check_arguments(path, factory, parameters)
    try:
        return factory(**parameters)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, NotImplementedError) as error:
        given = ", ".join(f"{name} = {value!r}" for name, value in parameters.items()) or "no arguments"
        message = f"model.factory {path!r} failed: {type(error).__name__}: {error}; it was called with {given}"
        raise ModelError(message) from error


def check_arguments(path: str, factory: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that a factory does not take, and a factory that needs others; of some nobody can tell."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**parameters)
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        taken = ", ".join(name for name, found in signature.parameters.items() if found.kind in kinds)
        message = (
            f"model.parameters: model.factory {path!r} takes {taken or 'none'}, came {', '.join(parameters) or 'none'} "
            f"({error}); give those that it takes, or leave out what it does not"
        )
        raise ConfigError(message) from None


def replace_last(estimator: Any, last: Any) -> Any:
    """Return the pipeline with another last step, or that step when there is no pipeline."""
    if not isinstance(estimator, compose.Pipeline):
        return last
    return compose.Pipeline(*list(estimator.steps.values())[:-1], last)


def takes_weight(estimator: Any) -> bool:
    """Say whether `learn_one` takes an importance weight `w`, also through a wrapper such as one-vs-rest."""
    wrapped = getattr(estimator, "classifier", estimator)
    return "w" in inspect.signature(wrapped.learn_one).parameters


def logistic_regression(*, learning_rate: float = LEARNING_RATE, l2: float = 0.0, scaling: ScalingRows) -> OnlineModel:
    """One logistic regression for each class against the rest."""
    member = linear_model.LogisticRegression(optim.SGD(learning_rate), l2=l2)
    return scaled(multiclass.OneVsRestClassifier(member), "classification", scaling, weighted=True)


def softmax(*, learning_rate: float = LEARNING_RATE, l2: float = 0.0, scaling: ScalingRows) -> OnlineModel:
    """Multinomial logistic regression."""
    return scaled(PortableSoftmax(optim.SGD(learning_rate), l2=l2), "classification", scaling)


def linear_regression(*, learning_rate: float = LEARNING_RATE, l2: float = 0.0, scaling: ScalingRows) -> OnlineModel:
    """Linear regression."""
    member = linear_model.LinearRegression(optim.SGD(learning_rate), l2=l2)
    return scaled(member, "regression", scaling, weighted=True)


def text_logistic(
    *,
    learning_rate: float = LEARNING_RATE,
    l2: float = 0.0,
    on: str = "",
    tfidf: bool = False,
    scaling: ScalingRows,
) -> OnlineModel:
    """Bag of words of the feature `on`, or of all string features, and the numbers, into logistic regression."""
    member = linear_model.LogisticRegression(optim.SGD(learning_rate), l2=l2)
    return OnlineModel(
        multiclass.OneVsRestClassifier(member),
        task="classification",
        encoding=Words(on=on, tfidf=tfidf),
        scaling=Scaling(),
        scaling_rows=scaling,
        weighted=True,
        lookahead=True,
    )


def knn(*, neighbours: int = 5, window: int = NEIGHBOURS_WINDOW, scaling: ScalingRows) -> OnlineModel:
    """Exact nearest neighbours among the last labelled examples; the approximate search draws numbers to predict."""
    search = neighbors.LazySearch(window_size=window)
    estimator = neighbors.KNNClassifier(n_neighbors=neighbours, engine=search)
    return scaled(estimator, "classification", scaling, lookahead=False)


def gaussian_nb() -> OnlineModel:
    """Gaussian naive Bayes whose spreads start from those over all classes."""
    return unscaled(LeanGaussianNB(), lookahead=True)


def hoeffding_tree(*, grace_period: int = 200, delta: float = 1e-7, tau: float = 0.05, splits: int = 10) -> OnlineModel:
    """Hoeffding tree with such naive Bayes in its leaves."""
    splitter = FlooredSplitter(n_splits=splits)
    estimator = tree.HoeffdingTreeClassifier(
        grace_period=grace_period, delta=delta, tau=tau, leaf_prediction="nb", splitter=splitter
    )
    return unscaled(estimator, weighted=True, lookahead=True)


def hoeffding_adaptive_tree(
    *, grace_period: int = 200, delta: float = 1e-7, tau: float = 0.05, splits: int = 10, seed: int
) -> OnlineModel:
    """Hoeffding tree that replaces branches whose error has grown."""
    splitter = FlooredSplitter(n_splits=splits)
    estimator = tree.HoeffdingAdaptiveTreeClassifier(
        grace_period=grace_period, delta=delta, tau=tau, leaf_prediction="nb", splitter=splitter, seed=seed
    )
    return unscaled(estimator, weighted=True)


def adaptive_forest(
    *, models: int = 10, grace_period: int = 50, delta: float = 0.01, tau: float = 0.05, splits: int = 10, seed: int
) -> OnlineModel:
    """Adaptive random forest of such trees."""
    splitter = FlooredSplitter(n_splits=splits)
    estimator = forest.ARFClassifier(
        n_models=models,
        grace_period=grace_period,
        delta=delta,
        tau=tau,
        leaf_prediction="nb",
        splitter=splitter,
        seed=seed,
    )
    return unscaled(estimator)


def hoeffding_tree_regressor(
    *,
    grace_period: int = 200,
    delta: float = 1e-7,
    tau: float = 0.05,
    learning_rate: float = LEARNING_RATE,
    scaling: ScalingRows,
) -> OnlineModel:
    """Hoeffding tree with a linear regression or the mean in each leaf, whichever errs less; scaled for the former."""
    # One digit of scaled values bounds the splitter's search tree; a feature that only grows would make it a long list.
    estimator = tree.HoeffdingTreeRegressor(
        grace_period=grace_period,
        delta=delta,
        tau=tau,
        leaf_model=linear_model.LinearRegression(optim.SGD(learning_rate)),
        splitter=tree.splitter.TEBSTSplitter(digits=1),
    )
    return scaled(estimator, "regression", scaling, weighted=True, lookahead=False, dense=True)


def scaled(
    estimator: Any,
    task: Task,
    rows: ScalingRows,
    *,
    weighted: bool = False,
    lookahead: bool = True,
    dense: bool = False,
) -> OnlineModel:
    """Return a model on scaled numbers and indicator columns."""
    return OnlineModel(
        estimator,
        task=task,
        encoding=Indicators(dense=dense),
        scaling=Scaling(),
        scaling_rows=rows,
        weighted=weighted,
        lookahead=lookahead,
    )


def unscaled(estimator: Any, *, weighted: bool = False, lookahead: bool = False) -> OnlineModel:
    """Return a classifier on plain numbers and dense indicator columns."""
    return OnlineModel(
        estimator, task="classification", encoding=Indicators(dense=True), weighted=weighted, lookahead=lookahead
    )


PRESETS: Final[Mapping[str, Callable[..., OnlineModel]]] = {
    "logistic_regression": logistic_regression,
    "softmax": softmax,
    "gaussian_nb": gaussian_nb,
    "hoeffding_tree": hoeffding_tree,
    "hoeffding_adaptive_tree": hoeffding_adaptive_tree,
    "adaptive_forest": adaptive_forest,
    "knn": knn,
    "text_logistic": text_logistic,
    "linear_regression": linear_regression,
    "hoeffding_tree_regressor": hoeffding_tree_regressor,
}
