"""Drift: tests of whether what the model meets has changed, and a model that takes its place when it has.

What influences the model is part of it. `WatchedModel` stands in the place of the model that it watches, so that
whatever folds, copies and saves a model does so with its detector and its background model: all workers replace at the
same record, a replay does so again, and an example that cannot be learned leaves no trace in any of them. The detector
is HDDM_W (Frías-Blanco et al., 2015), McDiarmid's bound on how far the fading mean of the errors may rise above its
lowest; a model that is made ready from the warning on is the scheme of Gama et al. (2004).

What only informs is soft state of whoever owns a partition. `StreamWatch` looks at what needs no label: at utilities
by ADWIN (Bifet and Gavaldà, 2007), and at the means of features, which come rarely and stand for many instances each,
by the test of Page (1954) and Hinkley. Each detector is there twice, and the looser one warns, as in adaptive random
forests (Gomes et al., 2017).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from river.base import DriftDetector
from river.drift import ADWIN, PageHinkley
from river.drift.binary import HDDMW

from streamal.events import DriftDetected, DriftWarned, Event, InstancesDecided, ModelReplaced, MomentsTaken
from streamal.learning.model import Model
from streamal.learning.moments import merge_moments
from streamal.messages import VALUE, Features, Label, Moment, Moments, Outcome, Prediction, Task, best_label

Heard = Literal["answers", "exploration"]
"""Whose errors count: those on all answered requests, or on those that chance made."""
Alarm = DriftWarned | DriftDetected

LEAST_LEARNED: Final = 20
"""Examples that a background model must have learned before it is served: as many as a cold start gets on loan."""
FAR_OFF: Final = 2.0
"""Times the usual miss beyond which a regression is said to err: of normal ones, every ninth lies there."""
STRETCH: Final = 32
"""Utilities that are averaged before they are tested: single ones depend too much on those before them."""
STRICT: Final = 0.002
"""ADWIN's bound on the chance that a drift is none; River's default."""
LOOSE: Final = 0.05
"""The same for a warning."""
TOLERATED: Final = 0.2
"""Standard deviations by which the mean of a feature may differ between records without counting for anything."""
RECORDS: Final = 5
"""Records of moments before the first test."""
FAR: Final = 1.0
"""Standard deviations beyond that, summed over the records, which make a drift."""
NEAR: Final = 0.5
"""The same for a warning."""
SETTLED: Final = 1_000
"""Instances by which the spread of a feature is known well enough to measure changes of its mean in it."""
MOST_FEATURES: Final = 100
"""Features watched on a partition, the first ones it met; each takes 2 kB."""
FARTHEST: Final = 10.0
"""Standard deviations to which the mean of a feature is cut, so that one broken record does not hide what follows."""


class WatchedModel:
    """A model whose errors are watched; one that `adapts` is replaced by another when they rise.

    `heard` says whose errors count, None that nobody's do. Requests are made about hard instances, so the mean error on
    their answers is not that of the stream, but it rises with it; on exploration alone it is unbiased, and at the usual
    rates comes too seldom to find a drift within thousands of instances. `gathers` asks for moments where the model
    itself has no use for them.

    The background model begins untrained, with what needed no label of all instances so far, and learns each example
    from the warning on; it is dropped when the warning passes. After a drift it is served as soon as it has learned
    `LEAST_LEARNED` examples and has erred no more on them than the served one, each scored before it was learned.
    """

    def __init__(self, served: Model, *, heard: Heard | None, adapts: bool = False, gathers: bool = False) -> None:
        self.served = served
        self._heard = heard
        self._gathers = gathers
        self._detector: Any = HDDMW()
        self._warned = False
        self._missed = 0.0
        self._scored = 0
        self._fresh = served.copy() if adapts else None
        self._background: Model | None = None
        self._learned = 0
        self._lead = 0.0
        self._due = False

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self.served.task

    @property
    def lookahead(self) -> bool:
        """Whether the served model is cheap to copy."""
        return self.served.lookahead

    @property
    def scales(self) -> bool:
        """Whether moments are wanted, by the model or by who watches the features."""
        return self._gathers or self.served.scales

    @property
    def observes(self) -> bool:
        """Whether the served model learns from instances without a label."""
        return self.served.observes

    @property
    def classes(self) -> Collection[str]:
        """The classes that the served model has learned."""
        return self.served.classes

    @property
    def examples(self) -> int:
        """How many the served model has learned."""
        return self.served.examples

    @property
    def ensemble(self) -> bool:
        """Whether the served model is made of several."""
        return self.served.ensemble

    def members(self, features: Features) -> list[Prediction]:
        """Predict one instance by each member of the served model."""
        return self.served.members(features)

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """Predict each instance by the served model."""
        return self.served.predict(batch)

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        """Let the served model learn an example; `heed` does the rest.

        Only the served one learns its own pseudo-labels: of one that is to replace it, they are no examples.
        """
        self.served.learn(features, label, weight)

    def observe(self, features: Features) -> None:
        """Let all models observe an instance."""
        for model in self._all():
            model.observe(features)

    def merge(self, moments: Mapping[str, Moment]) -> None:
        """Merge the moments of instances into all models."""
        for model in self._all():
            model.merge(moments)

    def _all(self) -> list[Model]:
        return [model for model in (self.served, self._fresh, self._background) if model is not None]

    def copy(self) -> WatchedModel:
        """Return an independent copy of all of it."""
        copied = copy.copy(self)
        vars(copied).update(
            served=self.served.copy(),
            _fresh=self._fresh and self._fresh.copy(),
            _background=self._background and self._background.copy(),
            _detector=copy.deepcopy(self._detector),
        )
        return copied

    def heed(self, outcome: Outcome, prediction: Prediction) -> list[Alarm | ModelReplaced]:
        """Take note of what the served model said of an example before it learned it; called once, after `learn`.

        Corrected and synthetic examples are learned but not scored: the one was learned before, the other never met.
        """
        label, error = outcome.label, None
        if label is not None and prediction and outcome.kind == "learned" and not outcome.synthetic:
            error = error_of(prediction, label, self._usual)
            if math.isfinite(miss := miss_of(prediction, label)):
                self._missed += miss
                self._scored += 1
        found: list[Alarm | ModelReplaced] = []
        if error is not None and self._heard in ("answers", outcome.reason):
            found += self._watch(error, outcome.resolved_at)
        if self._fresh is not None and label is not None:
            found += self._prepare(self._fresh, outcome, label, error)
        return found

    @property
    def _usual(self) -> float:
        """The mean miss of the served models so far."""
        return self._missed / self._scored if self._scored else 0.0

    def _watch(self, error: float, at: float) -> list[Alarm]:
        warned = self._warned
        self._detector.update(error)
        self._warned = self._detector.warning_detected
        if self._detector.drift_detected:
            self._due = self._fresh is not None
            return [DriftDetected("errors", at)]
        return [DriftWarned("errors", at)] if self._warned and not warned else []

    def _prepare(self, fresh: Model, outcome: Outcome, label: Label, error: float | None) -> list[ModelReplaced]:
        """Begin the background model, let it learn, drop it or serve it."""
        if not (self._warned or self._due):
            self._background = None
            return []
        if self._background is None:
            self._background, self._learned, self._lead = fresh.copy(), 0, 0.0
        if error is not None:
            said = self._background.predict([outcome.features])[0]
            self._lead += error - error_of(said, label, self._usual)
        self._background.learn(outcome.features, label, outcome.weight)
        self._learned += 1
        if not self._due or self._learned < LEAST_LEARNED or self._lead < 0.0:
            return []
        self.served, self._background, self._due = self._background, None, False
        return [ModelReplaced(outcome.resolved_at, self._learned)]


class StreamWatch:
    """The detectors of the partitions that a worker owns; one that comes back is compared with what it was before."""

    def __init__(self, *, utilities: bool, features: bool) -> None:
        self._watches_utilities = utilities
        self._watches_features = features
        self._utilities: dict[int, UtilityWatch] = {}
        self._features: dict[int, FeatureWatch] = {}

    def observe(self, event: Event, now: float) -> list[Alarm]:
        """Return what an event makes evident; `now` is in seconds since 1970."""
        if isinstance(event, InstancesDecided) and self._watches_utilities:
            return self._utilities.setdefault(event.partition, UtilityWatch(event.partition)).see(event.utilities, now)
        if isinstance(event, MomentsTaken) and self._watches_features:
            partition = event.moments.partition
            return self._features.setdefault(partition, FeatureWatch(partition)).see(event.moments, now)
        return []


class UtilityWatch:
    """Watches the mean utility of one partition's instances; a model that learns fast moves it without a drift."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._detector = TwoLevels(ADWIN(LOOSE, clock=1), ADWIN(STRICT, clock=1))
        self._waiting: list[float] = []

    def see(self, utilities: Sequence[float], now: float) -> list[Alarm]:
        """Take in the utilities of instances, whose scale may be any."""
        found: list[Alarm] = []
        waiting = self._waiting
        waiting += utilities
        whole = len(waiting) - len(waiting) % STRETCH
        for start in range(0, whole, STRETCH):
            level = self._detector.update(sum(map(squeezed, waiting[start : start + STRETCH])) / STRETCH)
            if level is not None:
                found.append(level("utilities", now, self._partition))
        del waiting[:whole]
        return found


class FeatureWatch:
    """Watches the mean of each numeric feature on one partition, from record to record of its moments."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._detectors: dict[str, tuple[Moment, TwoLevels]] = {}

    def see(self, moments: Moments, now: float) -> list[Alarm]:
        """Take in the moments of the instances since the last ones."""
        found: list[Alarm] = []
        known = self._detectors
        for name, moment in moments.moments.items():
            if name not in known:
                if len(known) >= MOST_FEATURES:
                    continue
                levels = (PageHinkley(RECORDS, TOLERATED, threshold, alpha=1.0) for threshold in (NEAR, FAR))
                known[name] = Moment(0, 0.0, 0.0), TwoLevels(*levels)
            first, detector = known[name]
            if first.size < SETTLED:
                known[name] = merge_moments(first, moment), detector
            elif (level := detector.update(distance(moment, first))) is not None:
                found.append(level("features", now, self._partition, name))
        return found


class TwoLevels:
    """Two detectors on the same values, of which one is readier than the other."""

    def __init__(self, loose: DriftDetector, strict: DriftDetector) -> None:
        self._loose, self._strict = loose, strict

    def update(self, value: float) -> type[Alarm] | None:
        """Take in a value and say what it makes evident."""
        self._loose.update(value)
        self._strict.update(value)
        if self._strict.drift_detected:
            return DriftDetected
        return DriftWarned if self._loose.drift_detected else None


def miss_of(prediction: Prediction, label: Label) -> float:
    """Return how far a prediction was off: 0 or 1 for classes; for regression the absolute error.

    >>> miss_of({"a": 0.7, "b": 0.3}, "a"), miss_of({}, "a"), miss_of({VALUE: 2.0}, 5.0)
    (0.0, 1.0, 3.0)
    """
    return abs(prediction[VALUE] - float(label)) if VALUE in prediction else float(best_label(prediction) != label)


def error_of(prediction: Prediction, label: Label, usual: float) -> float:
    """Return 1 for a wrong class, else 0; for regression 1 for a miss of more than `FAR_OFF` times the usual one.

    >>> error_of({"a": 0.7, "b": 0.3}, "b", 0.0), error_of({VALUE: 2.0}, 5.0, 3.0), error_of({VALUE: 2.0}, 5.0, 1.0)
    (1.0, 0.0, 1.0)
    """
    miss = miss_of(prediction, label)
    return float(not miss <= FAR_OFF * usual) if VALUE in prediction else miss


def squeezed(utility: float) -> float:
    """Return a utility between -1 and 1, in the same order.

    >>> squeezed(-3.0), squeezed(1.0), squeezed(math.inf)
    (-0.75, 0.5, 1.0)
    """
    return utility / (1.0 + abs(utility)) if utility < math.inf else 1.0


def distance(moment: Moment, first: Moment) -> float:
    """Return how far a mean lies from the first one, in standard deviations of the first, cut at `FARTHEST`.

    >>> distance(Moment(100, 5.0, 400.0), Moment(100, 4.0, 400.0))
    0.5
    >>> distance(Moment(100, 5.0, 0.0), Moment(100, 4.0, 0.0))
    10.0
    """
    away, spread = moment.mean - first.mean, math.sqrt(first.deviation / first.size)
    return max(-FARTHEST, min(FARTHEST, away / spread if spread else math.copysign(FARTHEST, away) if away else 0.0))
