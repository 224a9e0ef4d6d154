"""What happened, in the past tense: all that the sampler and the fold tell the world, as plain facts.

Outputs, metrics and log lines are derived from these by observers; the core calls none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from streamal.messages import DeadLetter, LabelRequest, Moments, Outcome, Prediction, Recorded, Unlabelled, Vote

DriftSource = Literal["errors", "utilities", "features"]
"""What was seen to change: how often the model errs, how much the strategy wants answers, or the mean of a feature."""


@dataclass(frozen=True, slots=True)
class InstancesDecided:
    """A run of instances of one partition was decided on.

    `declined` counts why the others were not asked about: `low_utility`, `near_duplicate` of one that waits, or a
    permit that was refused (`rate`, `queue_full`, `limit_count`, `limit_cost`). Those that wait for the end of a window
    are counted there. `predictions` are the served model's, one per instance; `utilities` likewise, as each came.
    """

    partition: int
    count: int
    asked: int
    declined: Mapping[str, int]
    offsets: Sequence[int]
    predictions: Sequence[Prediction]
    utilities: Sequence[float]


@dataclass(frozen=True, slots=True)
class LabelRequested:
    """An instance's label was asked for; an `adopted` request lies in the log already, left by a torn transaction."""

    request: LabelRequest
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class RequestResolved:
    """A label request ended, by an answer or by expiry; the outcome goes to the log and is learned when read back.

    `latency` is in seconds from the request to its end.
    """

    outcome: Outcome
    latency: float


@dataclass(frozen=True, slots=True)
class VoteTaken:
    """One of several annotators answered a request that waits for more; the vote goes to the log."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class RequestSkipped:
    """An annotator passed a request on; it stays pending."""

    partition: int
    request_id: str


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """An instance or an answer was refused."""

    letter: DeadLetter


@dataclass(frozen=True, slots=True)
class AnswerForwarded:
    """An answer came on another partition than its request; it is passed on unchanged."""

    source: int
    partition: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class MomentsTaken:
    """The moments of the instances since the last ones are ready for the log."""

    moments: Moments


@dataclass(frozen=True, slots=True)
class UnlabelledTaken:
    """An instance that nobody is asked about goes to the log, for what learns without answers."""

    record: Unlabelled


@dataclass(frozen=True, slots=True)
class TornRepaired:
    """A new owner adopted so many requests and outcomes of a transaction whose positions never moved."""

    partition: int
    requests: int
    outcomes: int


@dataclass(frozen=True, slots=True)
class ExampleLearned:
    """The model scored, then learned a labelled example.

    `prediction` is what it said before learning; `hit` whether its best class was right (for regression: None).
    """

    outcome: Outcome
    prediction: Prediction
    hit: bool | None


@dataclass(frozen=True, slots=True)
class ExampleSkipped:
    """Learning an example, labelled or not, failed; the model was restored and goes on without it."""

    outcome: Outcome | Unlabelled
    error: str


@dataclass(frozen=True, slots=True)
class DriftWarned:
    """What a detector watches may be changing; told once, when it begins to look so.

    `at` is in seconds since 1970: for errors, which are those of the whole stream (`partition` None), when the answer
    was matched; else when it was seen. `feature` names the one whose mean moves.
    """

    source: DriftSource
    at: float
    partition: int | None = None
    feature: str | None = None


@dataclass(frozen=True, slots=True)
class DriftDetected:
    """What a detector watches has changed; as in `DriftWarned`."""

    source: DriftSource
    at: float
    partition: int | None = None
    feature: str | None = None


@dataclass(frozen=True, slots=True)
class ModelReplaced:
    """After a drift another model is served, which has learned so many examples, all of them since the warning."""

    at: float
    learned: int


FoldEvent = ExampleLearned | ExampleSkipped | DriftWarned | DriftDetected | ModelReplaced
"""What comes of folding records of `outcomes`."""
Event = (
    InstancesDecided
    | LabelRequested
    | RequestResolved
    | VoteTaken
    | RequestSkipped
    | RecordRefused
    | AnswerForwarded
    | MomentsTaken
    | UnlabelledTaken
    | TornRepaired
    | FoldEvent
)


def recorded(event: Event) -> Recorded | None:
    """Return what an event puts on `outcomes`, None where it puts nothing there.

    >>> recorded(MomentsTaken(Moments(0, 2, {}))), recorded(TornRepaired(0, 1, 1))
    (Moments(partition=0, count=2, moments={}), None)
    """
    match event:
        case RequestResolved(record) | VoteTaken(record) | MomentsTaken(record) | UnlabelledTaken(record):
            return record
        case _:
            return None
