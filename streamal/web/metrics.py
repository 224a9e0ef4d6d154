"""What happened and how things stand, as Prometheus series: counters follow events, gauges follow the status.

`observe` is called in the worker's loop, once per event, and touches a handful of counters; `reflect` is called when
somebody scrapes, in the HTTP thread. Every series exists from the start, at zero: `rate()` would miss a first event
that brings its series along. Labels are closed sets, so that no record can make the number of series grow.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from typing import Final, Literal, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder

from streamal.events import (
    AnswerForwarded,
    DriftDetected,
    DriftSource,
    DriftWarned,
    Event,
    ExampleSkipped,
    InstancesDecided,
    LabelRequested,
    ModelReplaced,
    RecordRefused,
    RequestResolved,
    RequestSkipped,
    TornRepaired,
    UnlabelledTaken,
    VoteTaken,
)
from streamal.messages import LabelRequest, Outcome, Reason, UnlabelledKind
from streamal.selection.budget import Permit
from streamal.web.status import Estimate, Estimates, Status

REASONS: Final = (
    *("decode_error", "non_finite", "out_of_range", "too_deep", "too_large", "tombstone", "not_an_object"),
    *("missing_features", "too_many_features", "bad_feature_name", "bad_feature_type", "type_mismatch", "bad_id"),
    *("bad_label", "schema_version", "missing_request_id", "bad_request_id", "missing_label", "label_not_number"),
    *("unknown_class", "too_many_classes", "bad_kind", "bad_annotator", "bad_cost", "unknown", "duplicate"),
    *("conflict", "expired", "cancelled", "bad_revision", "skipped", "learning_failed", "missing_annotator", "ended"),
)
"""Why records are refused; a reason that is not listed counts as `other`."""
OTHER: Final = "other"
UNMATCHED: Final = {
    "duplicate": "duplicate",
    "conflict": "conflict",
    "expired": "late",
    "cancelled": "late",
    "ended": "late",
    "unknown": "orphan",
}
RESULTS: Final = (
    *("learned", "abstained", "invalid", "cancelled", "corrected", "confirmed", "vote"),
    *("skipped", "forwarded", "refused"),
    *dict.fromkeys(UNMATCHED.values()),
)
BOUNDS: Final = ("value", "low", "high")
STRATA: Final = ("selected", "rest")
LEVELS: Final = ("warning", "drift")
MAX_CLASSES: Final = 20
"""Classes with a series of their own; the rest counts as `other`."""

Fault = Literal["example_skipped", "commit_refused", "torn_transaction"]
Step = Literal["decision", "learn", "commit"]

SHORT: Final = (0.00001, 0.00004, 0.00016, 0.00064, 0.00256, 0.01024, 0.04096, 0.16384, 0.65536, 2.62144)
"""Seconds; 0.01024 is the bound of the objective "99 % of the decisions within 10 ms"."""
LONG: Final = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 604800)
UTILITIES: Final = (-20, -10, -5, -2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.2, 0.4, 0.6, 0.8, 1, 2, 5)
"""Utilities have their strategy's own scale: log margins are negative, entropies and shares lie from 0 on."""

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the package leaves it bare


class Metrics:
    """The series of one pipeline, in a registry of their own.

    `classes` get a series from the start; others follow as they come, up to `MAX_CLASSES`. `instances` and `answers`
    are the names of these topics.
    """

    def __init__(
        self,
        pipeline: str,
        classes: Sequence[str] = (),
        *,
        config_hash: str = "",
        instances: str = "instances",
        answers: str = "answers",
    ) -> None:
        self.registry = CollectorRegistry()
        self._pipeline = pipeline
        self._topics = (instances, answers)
        self._classes = set(classes[:MAX_CLASSES])
        self._rebalances = 0
        self._partitions: set[str] = set()
        self._lags: set[tuple[str, str]] = set()
        self._count_decisions()
        self._count_answers()
        self._count_drift()
        self._measure_state()
        self._measure_quality()
        self._measure_time()
        packages = {name: version(name) for name in ("streamal", "river")}
        build = {"version": packages["streamal"], "river": packages["river"], "python": platform.python_version()}
        Info("streamal_build", "What is running.", registry=self.registry).info(build)
        config = Info("streamal_config", "Hash of the settings.", ["pipeline"], registry=self.registry)
        config.labels(pipeline).info({"hash": config_hash})

    def _count_decisions(self) -> None:
        self._instances = self._counter(
            "instances", "Instances by the outcome of the decision.", decision=("request", "pass", "invalid")
        )
        self._requests = self._counter("label_requests", "Label requests by reason.", reason=get_args(Reason))
        self._denied = self._counter(
            "budget_denied", "Instances that were to be asked about and lacked a permit.", permit=get_args(Permit)
        )
        self._near_duplicates = self._counter(
            "near_duplicates", "Instances left out because of one that is nearly the same."
        )
        self._utility = self._histogram("utility", "Utility of the instances asked about.", UTILITIES)
        self._unbounded = self._counter(
            "utility_non_finite", "Requests whose utility was infinite or not a number, which counts as the highest."
        )

    def _count_answers(self) -> None:
        self._labels = self._counter("labels", "Answers by what became of them.", result=RESULTS)
        self._expired = self._counter("requests_expired", "Label requests that were never answered in time.")
        self._letters = self._counter(
            "dead_letters", "Refused records.", topic=(*self._topics, OTHER), reason=(*REASONS, OTHER)
        )
        self._class_labels = self._counter(
            "class_labels", "Labels per class.", **{"class": (*sorted(self._classes), OTHER)}
        )
        self._latency = self._histogram("label_latency_seconds", "From the request to its answer.", LONG)
        self._unlabelled = self._counter(
            "unlabelled_instances",
            "Instances not asked about that were put on the log, without a label or with the model's own.",
            kind=get_args(UnlabelledKind),
        )
        self._faults = self._counter("faults", "Faults that were survived.", kind=get_args(Fault))

    def _count_drift(self) -> None:
        sources = get_args(DriftSource)
        self._drift = self._counter(
            "drift_signals", "Warnings and drifts told by the detectors.", source=sources, level=LEVELS
        )
        self._drifted = self._gauge(
            "drift_timestamp_seconds", "When a drift was last detected in what is watched; 0 for never.", "source"
        )
        for source in sources:
            self._drifted.labels(self._pipeline, source).set(0.0)
        self._replaced = self._counter("model_replacements", "Models that took the place of the served one.")

    def _measure_state(self) -> None:
        self._limit = self._gauge("budget_limit_ratio", "Budgeted labels per instance.")
        self._spent = self._gauge("budget_spent_ratio", "Labels asked for per instance, since the stream began.")
        self._remaining = self._gauge(
            "budget_remaining_labels",
            "Labels allowed by the rate and not asked for yet; negative while a loan is unpaid.",
        )
        self._seen = self._gauge("partition_seen_instances", "Instances decided on.", "partition")
        self._asked = self._gauge("partition_asked_labels", "Labels asked for.", "partition")
        self._bound = self._gauge("partition_bound_labels", "What the labels asked for never exceed.", "partition")
        self._pending = self._gauge("pending_requests", "Label requests that wait for an answer.")
        self._oldest = self._gauge(
            "oldest_pending_request_timestamp_seconds", "When the oldest waiting request was made; 0 if none waits."
        )
        self._lag = self._gauge("consumer_lag_records", "Records behind the end of the log.", "topic", "partition")
        self._polled = self._gauge("last_poll_timestamp_seconds", "When the log was last polled.")
        self._committed = self._gauge("last_commit_timestamp_seconds", "When a transaction last went through.")
        self._assigned = self._gauge("assigned_partitions", "Partitions of the instances this worker owns.")
        self._ready = self._gauge("ready", "1 once the model is restored and the group has settled.")
        self._version = self._gauge("model_updates", "Records folded into the served model: its version.")
        self._snapshot = self._gauge("model_snapshot_timestamp_seconds", "When the model was last saved; 0 for never.")
        self._error = self._gauge(
            "model_error_ratio",
            "Estimated error; prequential is that on answered requests, which are hard.",
            "estimator",
        )
        self._error.labels(self._pipeline, "prequential").set(math.nan)

    def _measure_quality(self) -> None:
        self._accuracy = self._gauge(
            "accuracy_estimate_ratio",
            "Accuracy on all instances of the window, estimated, with its 95 % interval; NaN while unknown.",
            "bound",
        )
        self._naive = self._gauge(
            "accuracy_answered_ratio", "Accuracy on the answered requests of the window, which are hard."
        )
        self._recall = self._gauge(
            "class_recall_estimate_ratio",
            "Share of each class that is recognised, among all instances of the window.",
            "class",
        )
        self._macro_f1 = self._gauge("macro_f1_estimate_ratio", "Macro-F1 on all instances of the window.")
        self._loss = self._gauge(
            "loss_estimate",
            "Log loss, for regression mean absolute error, on all instances of the window; NaN for what is not known.",
            "bound",
        )
        self._responded = self._gauge(
            "response_ratio",
            "Answered share of the window's requests: of those the model chose, and of those only chance did.",
            "stratum",
        )
        self._audits = self._gauge("audit_labels", "Answered exploration requests in the window of the estimates.")
        self._improvement = self._gauge(
            "improvement_estimate",
            "Accuracy gained, or mean absolute error lost, over the last labels, estimated; NaN while unknown.",
            "bound",
        )
        self._pays = self._gauge(
            "labels_pay", "1 if labels still pay, 0 if they no longer do at this rate; NaN while nobody can tell."
        )
        self._alpha = self._gauge(
            "annotator_agreement_ratio",
            "Krippendorff's alpha in the estimates' window: 1 is full agreement, 0 that of chance; NaN if unknown.",
        )
        self._reflect_estimates(Estimates())

    def _measure_time(self) -> None:
        self._steps: dict[Step, Histogram] = {
            "decision": self._histogram("decision_duration_seconds", "From a poll to the decisions on it.", SHORT),
            "learn": self._histogram("learn_duration_seconds", "To fold what was read of the outcomes.", SHORT),
            "commit": self._histogram("commit_duration_seconds", "Of a transaction.", SHORT),
        }
        self._rebalanced = self._counter("rebalances", "Changes of the assignment.")

    def _counter(self, name: str, text: str, **labels: Sequence[str]) -> Counter:
        counter = Counter(f"streamal_{name}", text, ("pipeline", *labels), registry=self.registry)
        for values in product(*labels.values()):
            counter.labels(self._pipeline, *values)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        gauge = Gauge(f"streamal_{name}", text, ("pipeline", *labels), registry=self.registry)
        if not labels:
            gauge.labels(self._pipeline)
        return gauge

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(f"streamal_{name}", text, ("pipeline",), buckets=buckets, registry=self.registry)
        histogram.labels(self._pipeline)
        return histogram

    def observe(self, event: Event) -> None:
        """Count an event; called once per event, in the worker's thread. What the status tells is passed over."""
        match event:
            case InstancesDecided():
                self._decided(event)
            case LabelRequested(request):
                self._asked_for(request)
            case RequestResolved(outcome, latency):
                self._resolved(outcome, latency)
            case VoteTaken():
                self._labels.labels(self._pipeline, "vote").inc()
            case RequestSkipped():
                self._labels.labels(self._pipeline, "skipped").inc()
            case UnlabelledTaken(record):
                self._unlabelled.labels(self._pipeline, record.kind).inc()
            case AnswerForwarded():
                self._labels.labels(self._pipeline, "forwarded").inc()
            case RecordRefused(letter):
                self._refused(letter.received.topic, letter.reason)
            case ExampleSkipped():
                self.fault("example_skipped")
            case TornRepaired():
                self.fault("torn_transaction")
            case DriftWarned(source):
                self._drift.labels(self._pipeline, source, "warning").inc()
            case DriftDetected(source, at):
                self._drift.labels(self._pipeline, source, "drift").inc()
                self._drifted.labels(self._pipeline, source).set(at)
            case ModelReplaced():
                self._replaced.labels(self._pipeline).inc()

    def fault(self, kind: Fault) -> None:
        """Count a fault that was survived."""
        self._faults.labels(self._pipeline, kind).inc()

    def took(self, step: Step, seconds: float) -> None:
        """Take note of how long a step took: of the decisions on a poll, the fold of a read, or a commit."""
        self._steps[step].labels(self._pipeline).observe(seconds)

    def _decided(self, event: InstancesDecided) -> None:
        self._instances.labels(self._pipeline, "request").inc(event.asked)
        self._instances.labels(self._pipeline, "pass").inc(sum(event.declined.values()))
        for cause, count in event.declined.items():
            if cause == "near_duplicate":
                self._near_duplicates.labels(self._pipeline).inc(count)
            elif cause != "low_utility":
                self._denied.labels(self._pipeline, cause).inc(count)

    def _asked_for(self, request: LabelRequest) -> None:
        self._requests.labels(self._pipeline, request.reason).inc()
        if math.isfinite(request.utility):
            self._utility.labels(self._pipeline).observe(request.utility)
        else:
            # a NaN falls into no bucket, and an infinity says nothing about the others
            self._unbounded.labels(self._pipeline).inc()

    def _resolved(self, outcome: Outcome, latency: float) -> None:
        if outcome.kind == "expired":
            self._expired.labels(self._pipeline).inc()
            return
        self._labels.labels(self._pipeline, outcome.kind).inc()
        self._latency.labels(self._pipeline).observe(latency)
        if outcome.teaches and isinstance(outcome.label, str):
            self._class_labels.labels(self._pipeline, self._known(outcome.label)).inc()

    def _known(self, label: str) -> str:
        if label not in self._classes and len(self._classes) >= MAX_CLASSES:
            return OTHER
        self._classes.add(label)
        return label

    def _refused(self, topic: str, reason: str) -> None:
        known = topic if topic in self._topics else OTHER
        self._letters.labels(self._pipeline, known, reason if reason in REASONS else OTHER).inc()
        if topic == self._topics[0]:
            self._instances.labels(self._pipeline, "invalid").inc()
        elif topic == self._topics[1]:
            self._labels.labels(self._pipeline, UNMATCHED.get(reason, "refused")).inc()

    def reflect(self, status: Status) -> None:
        """Set the gauges to a status; one thread at a time."""
        for gauge, value in (
            (self._limit, status.rate),
            (self._spent, status.asked / status.seen if status.seen else 0.0),
            (self._remaining, status.allowed - status.asked),
            (self._pending, status.pending),
            (self._oldest, status.oldest_pending_at or 0.0),
            (self._polled, status.last_poll_at or 0.0),
            (self._committed, status.last_commit_at or 0.0),
            (self._assigned, len(status.partitions)),
            (self._ready, status.ready),
            (self._version, status.model_version),
            (self._snapshot, status.snapshot_at or 0.0),
        ):
            gauge.labels(self._pipeline).set(value)
        error = math.nan if status.accuracy is None else 1.0 - status.accuracy
        self._error.labels(self._pipeline, "prequential").set(error)
        self._reflect_estimates(status.estimates)
        self._rebalanced.labels(self._pipeline).inc(max(0, status.rebalances - self._rebalances))
        self._rebalances = status.rebalances
        self._reflect_partitions(status)

    def _reflect_estimates(self, estimates: Estimates) -> None:
        """Set what is estimated; NaN where nothing can be said."""
        found = estimates.measures
        for gauge, estimate in (
            (self._accuracy, found.get("accuracy")),
            (self._loss, found.get("log_loss", found.get("mae"))),
        ):
            for bound in BOUNDS:
                known: float | None = getattr(estimate, bound, None)
                gauge.labels(self._pipeline, bound).set(math.nan if known is None else known)
        self._naive.labels(self._pipeline).set(estimates.naive.get("accuracy", math.nan))
        self._macro_f1.labels(self._pipeline).set(_value(found.get("macro_f1")))
        for label in tuple(self._classes):
            self._recall.labels(self._pipeline, label).set(_value(estimates.recall.get(label)))
        for stratum in STRATA:
            self._responded.labels(self._pipeline, stratum).set(estimates.response.get(stratum, math.nan))
        self._audits.labels(self._pipeline).set(estimates.audit_labels)
        for bound in BOUNDS:
            self._improvement.labels(self._pipeline, bound).set(getattr(estimates.improvement, bound, math.nan))
        pays = getattr(estimates.improvement, "pays", None)
        self._pays.labels(self._pipeline).set(math.nan if pays is None else pays)
        self._alpha.labels(self._pipeline).set(math.nan if estimates.alpha is None else estimates.alpha)

    def _reflect_partitions(self, status: Status) -> None:
        """Set the series of owned partitions and drop those of partitions that went to another worker."""
        lags = {(topic, str(p)) for p, partition in status.partitions.items() for topic in partition.lag}
        owned = {str(p) for p in status.partitions}
        for p in self._partitions - owned:
            for gauge in (self._seen, self._asked, self._bound):
                gauge.remove(self._pipeline, p)
        for topic, p in self._lags - lags:
            self._lag.remove(self._pipeline, topic, p)
        self._partitions, self._lags = owned, lags
        for number, partition in status.partitions.items():
            self._seen.labels(self._pipeline, str(number)).set(partition.seen)
            self._asked.labels(self._pipeline, str(number)).set(partition.asked)
            self._bound.labels(self._pipeline, str(number)).set(partition.bound)
            for topic, lag in partition.lag.items():
                self._lag.labels(self._pipeline, topic, str(number)).set(lag)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type: OpenMetrics if the `Accept` header asks for it, else text."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type


def _value(estimate: Estimate | None) -> float:
    return math.nan if estimate is None else estimate.value
