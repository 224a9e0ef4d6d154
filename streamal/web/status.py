"""What the worker says of itself: one frozen value per turn of its loop, and the board where it is left for readers.

The worker publishes, everybody else only reads: probes, metrics and the status page never touch the loop, take no lock
it could wait for, and see all figures of one and the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Phase = Literal["starting", "restoring", "joining", "running", "standby", "stopping"]
"""`restoring` folds the model, `joining` waits for the group, `standby` is a member that owns no partition."""
READY: Final[frozenset[Phase]] = frozenset({"running", "standby"})


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated figure: `low` and `high` end its 95 % interval, None where none would be honest.

    `labels` counts the audit labels it rests on.
    """

    value: float
    low: float | None
    high: float | None
    labels: int


@dataclass(frozen=True, slots=True)
class Improvement:
    """How much better the model became over the last `labels` answers: accuracy gained, or mean absolute error lost.

    `low` and `high` end its 95 % interval, which rests on `audit_labels`. `pays` is true if it lies above zero, false
    if it includes zero or lies below and no gain worth having can have gone unseen, and else None: nobody can tell yet.
    """

    value: float
    low: float
    high: float
    labels: int
    audit_labels: int
    pays: bool | None


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the answers say of the served model on all instances of a window, asked about or not.

    `measures` holds `accuracy`, `macro_f1` and `log_loss`, or for regression `mae`; `recall` is by class. Both are
    empty until there are a few audit labels, and so is `naive`: the same measures on the answered requests alone, which
    were chosen for being hard. `response` is the share of the requests answered so far, by stratum, `selected` or
    `rest`, where there are any. `improvement` looks back further, and is None until there is one with an interval,
    of a model that has learned. `alpha` is Krippendorff's, of the annotators' answers where several were asked; None
    where there is nothing to compare. Of the `answered` requests `untaught` were made before the model had learned any
    class: it said nothing, which counts as wrong.
    """

    instances: int = 0
    audit_labels: int = 0
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    recall: Mapping[str, Estimate] = field(default_factory=dict)
    naive: Mapping[str, float] = field(default_factory=dict)
    response: Mapping[str, float] = field(default_factory=dict)
    improvement: Improvement | None = None
    alpha: float | None = None
    answered: int = 0
    untaught: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """What the detectors of one source have told since the process started, what it folded at its start included.

    `at` is when a drift was last detected, in seconds since 1970, None for never, and `feature` the one that it was of.
    """

    warnings: int = 0
    drifts: int = 0
    at: float | None = None
    feature: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where one owned partition stands.

    `allowed` is what the rate alone allows by now, in labels; `loan` this partition's share of the cold start's loan.
    `lag` counts, by topic, the records that lie ahead; `stuck` is for how many seconds, as far as the log could be
    asked, there were some of a topic and none came.
    """

    seen: int
    asked: int
    allowed: float
    loan: int = 0
    pending: int = 0
    lag: Mapping[str, int] = field(default_factory=dict)
    stuck: float = 0.0

    @property
    def bound(self) -> float:
        """What `asked` never exceeds.

        >>> PartitionStatus(seen=100, asked=18, allowed=5.0, loan=20).bound
        20
        >>> PartitionStatus(seen=1000, asked=50, allowed=50.0, loan=20).bound
        51.0
        >>> PartitionStatus(seen=1000, asked=50, allowed=50.0).bound
        50.0
        """
        return max(self.loan, self.allowed + 1.0) if self.loan else self.allowed


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of the worker.

    `beat` is the monotonic clock's reading, in seconds, when the last turn of the loop ended; all other times are in
    seconds since 1970, None for never. `rate` is the budgeted labelling rate now, and `paused` says that
    nothing is asked at all; `accuracy` the prequential one on
    answered requests, which were chosen for being hard, and `estimates` what they say of all instances. `rebalances`,
    `answered`, `learned` and `replacements` (of the served model after a drift) count since the process started, and
    `estimates` looks back no further. `drift` is by source.
    """

    pipeline: str
    phase: Phase
    beat: float
    started_at: float
    rate: float
    partitions: Mapping[int, PartitionStatus] = field(default_factory=dict)
    paused: bool = False
    model_version: int = 0
    answered: int = 0
    learned: int = 0
    accuracy: float | None = None
    estimates: Estimates = field(default_factory=Estimates)
    drift: Mapping[str, Drift] = field(default_factory=dict)
    replacements: int = 0
    rebalances: int = 0
    oldest_pending_at: float | None = None
    last_poll_at: float | None = None
    last_commit_at: float | None = None
    snapshot_at: float | None = None

    @property
    def ready(self) -> bool:
        """Whether the model is restored and the group has settled."""
        return self.phase in READY

    @property
    def seen(self) -> int:
        """Instances seen on all owned partitions."""
        return sum(partition.seen for partition in self.partitions.values())

    @property
    def asked(self) -> int:
        """Labels asked for on all owned partitions."""
        return sum(partition.asked for partition in self.partitions.values())

    @property
    def allowed(self) -> float:
        """Labels the rate allows by now on all owned partitions."""
        return sum(partition.allowed for partition in self.partitions.values())

    @property
    def pending(self) -> int:
        """Requests that wait for an answer on all owned partitions."""
        return sum(partition.pending for partition in self.partitions.values())

    def as_json(self) -> dict[str, Any]:
        """Return all figures and their sums as a JSON object, without `beat`: its clock means nothing elsewhere.

        >>> partitions = {0: PartitionStatus(100, 4, 5.0), 1: PartitionStatus(60, 3, 3.0)}
        >>> found = Status("fraud", "running", 1.0, 0.0, 0.05, partitions).as_json()
        >>> found["asked"], found["allowed"], found["partitions"]["1"]["seen"]
        (7, 8.0, 60)
        """
        found = asdict(self)
        del found["beat"]
        found["partitions"] = {
            str(number): asdict(partition) | {"bound": partition.bound}
            for number, partition in sorted(self.partitions.items())
        }
        return found | {
            "ready": self.ready,
            "seen": self.seen,
            "asked": self.asked,
            "allowed": self.allowed,
            "pending": self.pending,
        }


class StatusBoard:
    """Holds the latest status; any thread may publish or read, since a reference is replaced as a whole."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def publish(self, status: Status) -> None:
        """Replace the status; called by the worker at the end of each turn, and at the start of each phase."""
        self._status = status

    def read(self) -> Status:
        """Return the latest status."""
        return self._status
