"""What the outside gets to know of a worker: metrics, status, scores; told by the loop, never asked by it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, get_args

from streamal.evaluate.estimate import Estimator
from streamal.evaluate.prequential import Prequential
from streamal.events import (
    DriftDetected,
    DriftSource,
    DriftWarned,
    Event,
    ExampleLearned,
    ModelReplaced,
    RequestResolved,
    TornRepaired,
)
from streamal.lane import SamplingPlan
from streamal.learning.drift import StreamWatch
from streamal.messages import to_iso
from streamal.service.loop import Loop, Step
from streamal.transport.log import TopicPartition
from streamal.web.metrics import Metrics
from streamal.web.status import READY, Drift, Estimates, PartitionStatus, Phase, Status, StatusBoard

logger = logging.getLogger(__name__)

TORN: Final = (
    "partition %d: a transaction left %d label requests and %d outcomes visible, but its positions never moved; they "
    "count as made, and nobody is asked twice"
)
PUBLISH_EVERY: Final = 0.2
"""Seconds between two statuses at least, unless the phase changes."""
ESTIMATE_EVERY: Final = 10.0
"""Seconds between two estimates at least: one takes the loop about 10 ms for 4,000 requests, and 30 for 20,000."""


class Reporter:
    """Observes one worker; `version` and `snapshot_at` are asked when a status is made.

    `watch` is shown all events, and what it says of them is told like an event. `started` says whether the worker has
    been ready once.
    """

    def __init__(
        self,
        pipeline: str,
        plans: list[SamplingPlan],
        metrics: Metrics,
        version: Callable[[], int],
        snapshot_at: Callable[[], float],
        watch: StreamWatch | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._plans = plans
        self._metrics = metrics
        self._version = version
        self._snapshot_at = snapshot_at
        self._scores = Prequential()
        self._estimator = Estimator()
        self._estimates = Estimates()
        self._estimated = -math.inf
        self._watch = watch
        self._drift = {source: Drift() for source in get_args(DriftSource)}
        self._replacements = 0
        self._progress = Progress()
        self._started_at = time.time()
        self._answered = 0
        self._learned = 0
        self._published = 0.0
        self._beaten = time.monotonic()
        self._phase: Phase = "starting"
        self.started = False
        self.board = StatusBoard(self._status(None))

    def observe(self, event: Event) -> None:
        """Count an event, and score what was learned."""
        self._metrics.observe(event)
        self._estimator.observe(event)
        if isinstance(event, RequestResolved):
            self._answered += event.outcome.kind != "expired"
        elif isinstance(event, ExampleLearned) and event.outcome.label is not None:
            self._learned += 1
            if not event.outcome.synthetic:
                self._scores.score(event.prediction, event.outcome.label)
        elif isinstance(event, TornRepaired):
            logger.error(TORN, event.partition, event.requests, event.outcomes)
        elif isinstance(event, DriftWarned | DriftDetected):
            self._changes(event)
        elif isinstance(event, ModelReplaced):
            self._replacements += 1
            self._tell(logging.WARNING, "another model is served after a drift", event.at, examples=event.learned)
        for found in self._watch.observe(event, time.time()) if self._watch else ():
            self.observe(found)

    def _changes(self, event: DriftWarned | DriftDetected) -> None:
        """Take note of what a detector told."""
        known, where = self._drift[event.source], {"partition": event.partition, "feature": event.feature}
        told = {"source": event.source, **{name: value for name, value in where.items() if value is not None}}
        if isinstance(event, DriftWarned):
            self._drift[event.source] = replace(known, warnings=known.warnings + 1)
            self._tell(logging.INFO, "the stream may be changing", event.at, **told)
        else:
            now = replace(known, drifts=known.drifts + 1, at=event.at, feature=event.feature)
            self._drift[event.source] = now
            self._tell(logging.WARNING, "the stream has changed", event.at, **told)

    def _tell(self, level: int, message: str, at: float, **extra: object) -> None:
        """Log what the fold or a detector made evident, unless it did so before this process."""
        if self._phase != "restoring":
            logger.log(level, message, extra={"at": to_iso(at), **extra})

    def took(self, step: Step, seconds: float) -> None:
        """Take note of how long a step took."""
        self._metrics.took(step, seconds)

    def refused(self) -> None:
        """Count a commit that was refused and survived."""
        self._metrics.fault("commit_refused")

    def idle_for(self) -> float:
        """Return the seconds since the last turn ended; may be called from any thread."""
        return time.monotonic() - self._beaten

    def beat(self, phase: Phase, loop: Loop | None) -> None:
        """Publish where the worker stands; called after every turn."""
        now = self._beaten = time.monotonic()
        self.started |= phase in READY
        if now - self._published >= PUBLISH_EVERY or phase != self._phase:
            self._published, self._phase = now, phase
            if now - self._estimated >= ESTIMATE_EVERY:
                self._estimated, self._estimates = now, self._estimator.estimate()
            self.board.publish(self._status(loop))

    def _status(self, loop: Loop | None) -> Status:
        oldest = [h.lane.pending.oldest for h in loop.holdings.values()] if loop else []
        waiting = [request.requested_at for request in oldest if request is not None]
        owned = [holding.lane.plan for holding in loop.holdings.values()] if loop else []
        budget = (owned or self._plans)[0].budget
        return Status(
            pipeline=self._pipeline,
            phase=self._phase,
            beat=time.monotonic(),
            started_at=self._started_at,
            rate=budget.rate,
            paused=budget.paused,
            partitions=self._partitions(loop) if loop else {},
            model_version=self._version(),
            answered=self._answered,
            learned=self._learned,
            accuracy=self._scores.accuracy if self._learned else None,
            estimates=self._estimates,
            drift=dict(self._drift),
            replacements=self._replacements,
            rebalances=loop.rebalances if loop else 0,
            oldest_pending_at=min(waiting, default=None),
            last_poll_at=time.time() if loop else None,
            last_commit_at=loop.last_commit or None if loop else None,
            snapshot_at=self._snapshot_at() or None,
        )

    def _partitions(self, loop: Loop) -> dict[int, PartitionStatus]:
        found: dict[int, dict[str, int]] = {p: {} for p in loop.holdings}
        lags = loop.lag()
        for place, lag in lags.items():
            if place.partition in found:
                found[place.partition][place.topic] = lag
        self._progress.look(lags, loop.reached, loop.lag_known_at, loop.rebalances)
        return {
            p: PartitionStatus(
                seen=holding.lane.seen,
                asked=holding.lane.asked,
                allowed=holding.lane.allowed,
                loan=holding.lane.plan.budget.loan,
                pending=len(holding.lane.pending),
                lag=found[p],
                stuck=self._progress.stuck(p),
            )
            for p, holding in loop.holdings.items()
        }


class Progress:
    """For how long records have waited on a partition while none came.

    What counts is the time in which the log said so: from the look at which a topic first had records ahead that nobody
    got, to the last one that the log answered. So an outage adds nothing, and a new assignment begins anew.
    """

    def __init__(self) -> None:
        self._since: dict[TopicPartition, float] = {}
        self._reached: dict[TopicPartition, int] = {}
        self._assignment = 0
        self._known_at = 0.0

    def look(
        self,
        lags: Mapping[TopicPartition, int],
        reached: Mapping[TopicPartition, int],
        known_at: float,
        assignment: int,
    ) -> None:
        """Compare with the last look; `known_at` is when the lags were last heard of, by any clock."""
        if assignment != self._assignment:
            self._since.clear()
        waiting = [place for place, lag in lags.items() if lag > 0]
        self._since = {
            place: self._since.get(place, known_at) if reached.get(place) == self._reached.get(place) else known_at
            for place in waiting
        }
        self._reached, self._assignment, self._known_at = dict(reached), assignment, known_at

    def stuck(self, partition: int) -> float:
        """Return the seconds for the topic of a partition that waits longest."""
        waits = [self._known_at - since for place, since in self._since.items() if place.partition == partition]
        return max(waits, default=0.0)
