"""River's estimators as a `Model`: encode, scale, predict; learn, observe and merge in the order of the log.

`OnlineModel` is what every preset is made of. River gets classes as 0, 1, ... in the order they were first learned: it
keeps them in sets, and a set of strings is ordered by the process's hash seed, which would make two workers differ in
the last bit. Predictions are bound once between two mutations (`streamal.learning.scorer`).

`FactoryModel` is a user's own estimator or pipeline, taken as it is: it gets the features without nulls, and classes as
strings.
"""

from __future__ import annotations

import copy
import math
import pickle
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, Self

from river.base import AnomalyFilter, Ensemble, Transformer
from river.compose import Pipeline, TransformerUnion

from streamal.learning.encoding import Columns, Encoding
from streamal.learning.model import FAILURES
from streamal.learning.scaling import Scaling
from streamal.learning.scorer import Layout, Scorer, make_scorer
from streamal.messages import VALUE, Features, Label, Moment, Prediction, Task

PROTOCOL: Final = 5
BIND_AFTER: Final = 8
"""Instances predicted one by one before a scorer is bound, which costs about as much as predicting four to eight."""
MAX_OBSERVED: Final = 1_000
"""Feature names that a factory's model takes from instances without a label: a stream of random names would fill it."""
MAX_LEARNED: Final = 10_000
"""Feature names that a model learns, the first ones; what examples bring beyond them is left out."""
UNWEIGHTED: Final = 1.0
"""A weight of 1 is not passed on, since many estimators take none."""


class OnlineModel:
    """An encoding, optional scaling, and a River estimator, as one `Model`.

    `scaling_rows` says what feeds the scaling: moments of all instances, or the labelled examples. `weighted`
    estimators learn with the importance weight; the others learn each example once, whatever its weight.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        task: Task,
        encoding: Encoding,
        scaling: Scaling | None = None,
        scaling_rows: Literal["all", "labelled"] = "all",
        weighted: bool = False,
        lookahead: bool = False,
    ) -> None:
        self.estimator = estimator
        self._task = task
        self._encoding = encoding
        self._scaling = scaling
        self._scaling_rows = scaling_rows
        self._weighted = weighted
        self._lookahead = lookahead
        self._labels: dict[str, int] = {}
        self._known: dict[str, None] = {}
        self._learned = 0
        self._layout: Layout | None = None
        self._scorer: Scorer | None = None
        self._candidate: Layout = ()
        self._unbound = 0

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self._task

    @property
    def lookahead(self) -> bool:
        """Whether a copy costs a millisecond or two at most."""
        return self._lookahead

    @property
    def scales(self) -> bool:
        """Whether the scaling is fed by moments."""
        return self._scaling is not None and self._scaling_rows == "all"

    @property
    def observes(self) -> bool:
        """Never: what the scaling learns of instances without a label comes to it as moments."""
        return False

    @property
    def classes(self) -> Collection[str]:
        """The classes, in the order they were first learned."""
        return self._labels.keys()

    @property
    def examples(self) -> int:
        """How many labelled examples it has learned."""
        return self._learned

    @property
    def ensemble(self) -> bool:
        """Whether the estimator is made of several."""
        return isinstance(self.estimator, Ensemble)

    def members(self, features: Features) -> list[Prediction]:
        """Predict one instance by each member of the ensemble."""
        if not (self.ensemble and self._learned):
            return []
        columns, labels = self._columns(self._encoding.encode(features), features), list(self._labels)
        if self._task == "regression":
            return [{VALUE: float(member.predict_one(columns))} for member in self.estimator]
        found = (member.predict_proba_one(columns) for member in self.estimator)
        return [{labels[code]: float(share) for code, share in sorted(said.items())} for said in found]

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """Predict each instance; `{}` before the first example. Only the scorer is kept for the next batch."""
        if not self._learned:
            return [{} for _ in batch]
        if not batch:
            return []
        layout = tuple(batch[0])
        if layout != self._layout:
            if not self._worth_binding(layout, batch):
                return [self.predict_one(features) for features in batch]
            self._layout = layout
            self._scorer = make_scorer(self.estimator, self._scaling, layout, tuple(self._labels), self._slow_path())
        return self._scorer(batch) if self._scorer else [self.predict_one(features) for features in batch]

    def _slow_path(self) -> Callable[[Features], Prediction]:
        """Return `predict_one` without a cycle between model and scorer, so that a dropped copy is freed at once."""
        model = weakref.proxy(self)
        return lambda features: model.predict_one(features)

    def predict_one(self, features: Features) -> Prediction:
        """Predict by the estimator's own method, which the scorers must agree with."""
        columns = self._columns(self._encoding.encode(features), features)
        if self._task == "regression":
            return {VALUE: float(self.estimator.predict_one(columns))}
        found = self.estimator.predict_proba_one(columns)
        labels = list(self._labels)
        return {labels[code]: float(probability) for code, probability in sorted(found.items())}

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        """Learn one labelled example."""
        self._forget_scorer()
        features = admitted(features, self._known, MAX_LEARNED)
        encoded = self._encoding.learn(features)
        if self._scaling is not None and self._scaling_rows == "labelled":
            self._scaling.learn(features)
        columns = self._columns(encoded, features)
        target = label if self._task == "regression" else self._labels.setdefault(str(label), len(self._labels))
        if self._weighted and weight != UNWEIGHTED:
            self.estimator.learn_one(columns, target, w=weight)
        else:
            self.estimator.learn_one(columns, target)
        self._learned += 1

    def observe(self, features: Features) -> None:
        """Ignore the instance."""

    def merge(self, moments: Mapping[str, Moment]) -> None:
        """Merge the moments of instances into the scaling, if it is fed by them."""
        if self._scaling is not None and self._scaling_rows == "all":
            self._forget_scorer()
            self._scaling.merge(moments)

    def copy(self) -> Self:
        """Return an independent copy; a pickle round trip takes a half to a sixth of the time of `deepcopy`."""
        copied: Self = pickle.loads(pickle.dumps(self, PROTOCOL))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None, "_scorer": None, "_candidate": (), "_unbound": 0}

    def _worth_binding(self, layout: Layout, batch: Sequence[Features]) -> bool:
        """Whether enough instances had this layout; a stream whose layout never stays would compile without end."""
        if layout != self._candidate:
            self._candidate, self._unbound = layout, 0
        self._unbound += len(batch)
        return self._unbound >= BIND_AFTER and tuple(batch[-1]) == layout

    def _forget_scorer(self) -> None:
        self._layout = self._scorer = None
        self._unbound = 0

    def _columns(self, encoded: Columns, features: Features) -> Columns:
        return encoded if self._scaling is None else self._scaling.scale(encoded, features)


class FactoryModel:
    """A user's River estimator or pipeline as a `Model`; no moments reach it, its own transformers see examples.

    Those that need no label also learn from the instances it observes, in the order of the pipeline.

    An instance is predicted by the features that were learned before: River's transformers store every name they are
    asked about, and predicting must not change a model. With several workers its order of classes depends on the hash
    seed where River keeps them in a set; run them with the same `PYTHONHASHSEED` to be equal to the last bit.
    """

    def __init__(self, estimator: Any, *, task: Task, weighted: bool) -> None:
        self.estimator = estimator
        self._task = task
        self._weighted = weighted
        self._known: dict[str, None] = {}
        self._observed: dict[str, None] = {}
        self._learned = 0
        self._labels: dict[str, None] = {}

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self._task

    @property
    def lookahead(self) -> bool:
        """Never: what a copy costs is not known."""
        return False

    @property
    def scales(self) -> bool:
        """Never: its transformers are its own."""
        return False

    @property
    def observes(self) -> bool:
        """Whether some part of it learns without a label."""
        return needs_no_label(self.estimator)

    @property
    def classes(self) -> Collection[str]:
        """The classes, in the order they were first learned."""
        return self._labels.keys()

    @property
    def examples(self) -> int:
        """How many labelled examples it has learned."""
        return self._learned

    @property
    def ensemble(self) -> bool:
        """Whether the last step is made of several estimators."""
        return isinstance(last_step(self.estimator), Ensemble)

    def members(self, features: Features) -> list[Prediction]:
        """Predict one instance by each member of the ensemble, behind the transformers."""
        if not (self.ensemble and self._learned):
            return []
        columns = self._present(features)
        try:
            if isinstance(self.estimator, Pipeline):
                for step in list(self.estimator.steps.values())[:-1]:
                    columns = step.transform_one(columns)
            return [self._said(member, columns) for member in last_step(self.estimator)]
        except FAILURES:
            return []

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """Predict each instance; `{}` before the first example."""
        if not self._learned:
            return [{} for _ in batch]
        return [self._predict_one(features) for features in batch]

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        """Learn one labelled example, with its weight if the last step takes one."""
        present = admitted(present_in(features), self._known, MAX_LEARNED)
        if self._task == "classification":
            self._labels[str(label)] = None
        if self._weighted and weight != UNWEIGHTED:
            self.estimator.learn_one(present, label, w=weight)
        else:
            self.estimator.learn_one(present, label)
        self._learned += 1

    def observe(self, features: Features) -> None:
        """Let the parts that need no label learn from an instance, by the first `MAX_OBSERVED` names they meet."""
        if found := admitted(present_in(features), self._observed, MAX_OBSERVED):
            observe(self.estimator, found)

    def merge(self, moments: Mapping[str, Moment]) -> None:
        """Ignore the moments."""

    def copy(self) -> Self:
        """Return an independent copy; estimators with functions inside can be copied, though not pickled."""
        return copy.deepcopy(self)

    def _predict_one(self, features: Features) -> Prediction:
        try:
            return self._said(self.estimator, self._present(features))
        except FAILURES:
            # A pipeline that cannot take an instance knows nothing about it; the loop must not end over it.
            return {}

    def _present(self, features: Features) -> Features:
        """Return the features that are there and were learned before."""
        return {name: value for name, value in features.items() if value is not None and name in self._known}

    def _said(self, estimator: Any, columns: Mapping[str, Any]) -> Prediction:
        """Return what an estimator says, nothing if that is not finite."""
        if self._task == "regression":
            prediction = {VALUE: float(estimator.predict_one(columns))}
        else:
            found = estimator.predict_proba_one(columns)
            prediction = {str(label): float(probability) for label, probability in found.items()}
        return prediction if all(map(math.isfinite, prediction.values())) else {}


def present_in(features: Features) -> Features:
    """Return the features that are not null.

    >>> present_in({"a": 1.0, "b": None})
    {'a': 1.0}
    """
    return {name: value for name, value in features.items() if value is not None}


def admitted(features: Features, known: dict[str, None], most: int) -> Features:
    """Return the features whose names are known; new names are noted as long as there are fewer than `most`.

    >>> admitted({"a": 1.0, "b": 2.0, "c": 3.0}, {"c": None}, 2)
    {'a': 1.0, 'c': 3.0}
    """
    for name in features:
        if len(known) >= most:
            break
        known[name] = None
    return {name: value for name, value in features.items() if name in known}


def last_step(estimator: Any) -> Any:
    """Return the last step of a pipeline, or the estimator itself."""
    while isinstance(estimator, Pipeline) and estimator.steps:
        estimator = list(estimator.steps.values())[-1]
    return estimator


def needs_no_label(step: Any) -> bool:
    """Say whether a step, or one within it, learns something from an instance without a label.

    >>> from river import linear_model, preprocessing
    >>> needs_no_label(preprocessing.StandardScaler() | linear_model.LogisticRegression())
    True
    >>> needs_no_label(linear_model.LogisticRegression())
    False
    """
    if isinstance(step, Pipeline):
        return any(map(needs_no_label, step.steps.values()))
    if isinstance(step, TransformerUnion):
        return any(map(needs_no_label, step.transformers.values()))
    # River's stateless transformers inherit a `learn_one` that does nothing
    return not supervised(step) and type(step).learn_one is not Transformer.learn_one


def observe(step: Any, columns: Mapping[str, Any]) -> None:
    """Let what needs no label learn from an instance, in the order in which River's pipelines learn.

    An anomaly filter that takes it for one keeps it from the steps behind, as it does with labelled examples.
    """
    if isinstance(step, Pipeline):
        *before, last = step.steps.values()
        for inner in before:
            observe(inner, columns)
            if not isinstance(inner, AnomalyFilter):
                columns = inner.transform_one(columns)
            elif not supervised(inner) and inner.classify(inner.score_one(columns)):
                return
        observe(last, columns)
    elif isinstance(step, TransformerUnion):
        for inner in step.transformers.values():
            observe(inner, columns)
    elif not supervised(step):
        step.learn_one(columns)


def supervised(step: Any) -> bool:
    """Say whether River lets a step learn with a label only."""
    return bool(getattr(step, "_supervised", True))
