"""A constant model, generated streams, and one partition driven the way a worker drives it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

import orjson
from river import naive_bayes, preprocessing

from streamal.events import Event, InstancesDecided, LabelRequested, recorded
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets, snapshot
from streamal.learning.allowed import Allowed
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import (
    Answer,
    Features,
    Instance,
    Label,
    LabelRequest,
    Moment,
    Outcome,
    Prediction,
    Received,
    Recorded,
    Task,
    Unlabelled,
    Value,
    Vote,
    decode_outcome,
)
from streamal.sampler import SelectiveSampler

STEP: Final = 50
"""Instances between two times at which answers come in and outcomes are folded."""


class Constant:
    """A model that always says the same, and keeps what it was told."""

    def __init__(
        self,
        prediction: Prediction,
        *,
        task: Task = "classification",
        scales: bool = False,
        observes: bool = False,
        examples: int = 1_000,
    ) -> None:
        self._prediction = prediction
        self.task = task
        self.lookahead = self.ensemble = False
        self.scales = scales
        self.observes = observes
        self.examples = examples
        self.classes: Collection[str] = ()
        self.learned: list[tuple[Features, Label, float]] = []
        self.merged: list[Mapping[str, Moment]] = []
        self.observed: list[Features] = []

    def members(self, features: Features) -> list[Prediction]:
        return [self._prediction] * 3

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        return [self._prediction] * len(batch)

    def learn(self, features: Features, label: Label, weight: float = 1.0) -> None:
        self.learned.append((features, label, weight))

    def observe(self, features: Features) -> None:
        self.observed.append(features)

    def merge(self, moments: Mapping[str, Moment]) -> None:
        self.merged.append(moments)

    def copy(self) -> Constant:
        copied = Constant(
            self._prediction, task=self.task, scales=self.scales, observes=self.observes, examples=self.examples
        )
        copied.classes = self.classes
        copied.learned, copied.merged, copied.observed = list(self.learned), list(self.merged), list(self.observed)
        return copied


class Surer(Constant):
    """A model of two classes that an instance tells what to say: `log_odds`, up to what a float can hold."""

    def __init__(self) -> None:
        super().__init__({})

    def members(self, features: Features) -> list[Prediction]:
        return self.predict([features]) * 3

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        odds = [math.exp(min(700.0, max(0.0, _number(features["log_odds"])))) for features in batch]
        return [{"a": odd / (1.0 + odd), "b": 1.0 / (1.0 + odd)} for odd in odds]

    def copy(self) -> Surer:
        return self


class Settled(Constant):
    """A model that knows the concept of `stream` fairly well and learns no more; three members see it a bit apart."""

    def __init__(self) -> None:
        super().__init__({})
        self.ensemble = True

    def members(self, features: Features) -> list[Prediction]:
        x = _number(features["x"])
        return [self.predict([{**features, "x": x + shift}])[0] for shift in (-0.3, 0.0, 0.2)]

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        rare = [1.0 / (1.0 + math.exp(1.2 - 2.0 * _number(row["x"]) + _number(row["y"]))) for row in batch]
        return [{"usual": 1.0 - probability, "rare": probability} for probability in rare]

    def copy(self) -> Settled:
        return self


def logistic() -> Model:
    """Return a logistic regression that scales by labelled rows, so that it is a function of the answers alone."""
    return presets.build("logistic_regression", parameters={}, scaling="labelled", seed=0)


def scaled() -> Any:
    """Return a pipeline as a user's `model.factory` may: its scaler needs no label."""
    return preprocessing.StandardScaler() | naive_bayes.GaussianNB()


def stream(count: int, seed: int = 0, *, replay: bool = False) -> list[Instance]:
    """Return instances of a noisy linear concept with a rarer class; with `replay` they carry their label."""
    random = Random(seed)
    found = []
    for offset in range(count):
        features = {"x": random.gauss(0.0, 1.0), "y": random.gauss(0.0, 1.0)}
        label = truth(features) if replay else None
        found.append(Instance(offset, float(offset), f"i{offset}", features, label=label))
    return found


SAME: Final[Features] = {"x": 1.0, "y": 2.0}


def repeating(count: int, distinct: int) -> list[Instance]:
    """Return a `stream` of which all but every `distinct`-th instance are `SAME`."""
    return [found._replace(features=SAME) if found.offset % distinct else found for found in stream(count)]


def truth(features: Features) -> str:
    """Return the class of an instance of `stream`."""
    return "rare" if 2.0 * _number(features["x"]) - _number(features["y"]) > 1.5 else "usual"


def _number(value: Value) -> float:
    assert isinstance(value, float)
    return value


def answer_to(
    request_id: str,
    label: Label | None = "usual",
    kind: Any = "label",
    partition: int = 0,
    annotator: str | None = "someone",
    revision: int = 0,
) -> Answer:
    """Return a decoded answer; what it was decoded from is made up."""
    received = Received("answers", partition, 0, 0, b"key", b'{"made": "up"}', ())
    return Answer(request_id, kind, label if kind == "label" else None, annotator, received, revision)


class Partition:
    """One partition, whose answers come `delay` instances late; every `silent`-th request is never answered.

    Where several annotators answer, each needs `delay` longer than the one before, and the second always errs.
    The log is kept as bytes, so that a successor gets exactly what it would read.
    """

    def __init__(self, plan: SamplingPlan, model: Model, *, delay: int = 0, silent: int = 0) -> None:
        self.plan = plan
        self.fold = Fold(model)
        self.sampler = SelectiveSampler([plan], self.fold)
        self.lane = self.sampler.open(0, Handover())
        self.requests: list[bytes] = []
        self.outcomes: list[bytes] = []
        self.decided: list[InstancesDecided] = []
        self._due: list[tuple[int, int, str, str]] = []
        self._unfolded: list[Unlabelled] = []
        """What came of batches, and is folded at the next time at which answers come in, however they were cut."""
        self._delay = delay
        self._silent = silent

    def run(self, instances: Sequence[Instance], cuts: Iterable[int] = ()) -> None:
        """Decide on instances; `cuts` are further ends of batches besides every `STEP` instances."""
        first = instances[0].offset
        ends = {end - first for end in cuts} | {at.offset - first + 1 for at in instances if not (at.offset + 1) % STEP}
        start = 0
        for end in sorted(end for end in ends | {len(instances)} if 0 < end <= len(instances)):
            batch = instances[start:end]
            self.take(self.sampler.see(0, batch, float(batch[0].offset // STEP)))
            start = end
            if not (batch[-1].offset + 1) % STEP:
                self.settle(batch[-1].offset + 1)

    def take(self, events: Iterable[Event]) -> None:
        """Do with events what a worker does."""
        for event in events:
            if isinstance(event, InstancesDecided):
                self.decided.append(event)
            elif isinstance(event, LabelRequested):
                self.requests.append(event.request.encode())
                if not self._silent or len(self.requests) % self._silent:
                    self._await(event.request)
            elif isinstance(record := recorded(event), Unlabelled):
                self._unfolded.append(record)
            elif record is not None:
                self._append(record)

    def _await(self, request: LabelRequest) -> None:
        for number in range(request.answers):
            label = truth(request.features) if number != 1 else "rare"
            due = request.offset + (number + 1) * self._delay
            heappush(self._due, (due, len(self.requests) * request.answers + number, request.request_id, label))

    def settle(self, position: int) -> None:
        """Let what is due by now come in, and fold it."""
        for record in self._unfolded:
            self._append(record)
        self._unfolded.clear()
        while self._due and self._due[0][0] < position:
            _, number, request_id, label = heappop(self._due)
            answer = answer_to(request_id, label, annotator=f"annotator {number % self.plan.answers}")
            self.take(self.sampler.answer(0, [answer], float(position // STEP)))
        self.take(self.sampler.tick(float(position // STEP)))

    def _append(self, record: Recorded) -> None:
        self.outcomes.append(record.encode())
        self.sampler.fold([(len(self.outcomes) - 1, record)])

    def handover(self, recent: Sequence[Instance] = ()) -> Handover:
        """Return what a successor would read from the log."""
        oldest = self.lane.pending.oldest
        requests = [LabelRequest.decode(value) for value in self.requests]
        low = len(requests) if oldest is None else [request.offset for request in requests].index(oldest.offset)
        found = [decode_outcome(value) for value in self.outcomes]
        return Handover(
            ledger=orjson.loads(orjson.dumps(self.lane.ledger())),
            requests=requests[low:],
            outcomes=[outcome for outcome in found if isinstance(outcome, Outcome)],
            recent=recent,
            votes=[vote for vote in found if isinstance(vote, Vote) and self.lane.pending.get(vote.offset) is not None],
        )

    def crash(self, model: Model, recent: Sequence[Instance] = ()) -> None:
        """Go on as a new owner with nothing but the log; `model` is a fresh one."""
        handover = self.handover(recent)
        self.fold = Fold(model)
        self.sampler = SelectiveSampler([self.plan], self.fold)
        self.sampler.fold([(at, decode_outcome(value)) for at, value in enumerate(self.outcomes)])
        self.lane = self.sampler.open(0, handover)

    @property
    def utilities(self) -> list[float]:
        """The utilities of all instances."""
        return [utility for event in self.decided for utility in event.utilities]


def dump(model: Model, *, version: int, allowed: Allowed, key: bytes, config_hash: str = "c", last: str = "") -> bytes:
    """Return the snapshot of a model."""
    return snapshot.seal(snapshot.write(model, allowed), version=version, last=last, config_hash=config_hash, key=key)
