from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client.samples import Sample
from specimens import Settled, stream

from streamal.events import (
    AnswerForwarded,
    DriftDetected,
    DriftSource,
    DriftWarned,
    ExampleSkipped,
    InstancesDecided,
    LabelRequested,
    ModelReplaced,
    RecordRefused,
    RequestResolved,
    RequestSkipped,
    UnlabelledTaken,
    VoteTaken,
)
from streamal.lane import Lane, SamplingPlan
from streamal.learning.fold import Fold
from streamal.messages import DeadLetter, LabelRequest, Outcome, OutcomeKind, Reason, Received, Unlabelled, Vote
from streamal.selection.budget import BudgetPlan, Permit
from streamal.web.metrics import MAX_CLASSES, REASONS, Metrics
from streamal.web.status import Estimate, Estimates, Improvement, PartitionStatus, Status

STATUS = Status(
    pipeline="fraud",
    phase="running",
    beat=1.0,
    started_at=1000.0,
    rate=0.05,
    partitions={
        0: PartitionStatus(seen=1000, asked=40, allowed=50.0, loan=5, pending=3, lag={"instances": 7, "answers": 1}),
        1: PartitionStatus(seen=600, asked=25, allowed=30.0, loan=5, pending=2, lag={"instances": 0, "answers": 0}),
    },
    model_version=33,
    accuracy=0.75,
    rebalances=2,
    oldest_pending_at=1500.0,
    last_commit_at=1600.0,
)
ESTIMATES = Estimates(
    instances=80_000,
    audit_labels=200,
    measures={
        "accuracy": Estimate(0.87, 0.84, 0.9, 200),
        "macro_f1": Estimate(0.7, None, None, 200),
        "log_loss": Estimate(0.41, None, None, 200),
    },
    recall={"fraud": Estimate(0.55, None, None, 12)},
    improvement=Improvement(0.01, -0.02, 0.04, 8_000, 800, False),
    naive={"accuracy": 0.78, "macro_f1": 0.6, "log_loss": 0.9},
    response={"selected": 0.9},
)
REQUEST = LabelRequest(
    partition=0,
    offset=41,
    instance_id="tx-1",
    features={"amount": 12.5},
    display=None,
    prediction={"ok": 0.52, "fraud": 0.48},
    utility=-0.08,
    propensity=1.0,
    reason="uncertainty",
    would_select=True,
    strategy="class_conditional",
    model_version=3,
    requested_at=1000.0,
    expires_at=None,
    budget={"seen": 1, "asked": 1, "allowed": 0.05},
)


def outcome(kind: OutcomeKind, label: str | float | None = None) -> Outcome:
    return Outcome(
        kind=kind,
        partition=0,
        offset=41,
        instance_id="tx-1",
        features={"amount": 12.5},
        label=label,
        weight=1.0,
        prediction={},
        utility=1.0,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="class_conditional",
        model_version=3,
        requested_at=1000.0,
        resolved_at=1060.0,
        annotator=None,
    )


def refused(topic: str, reason: str) -> RecordRefused:
    return RecordRefused(DeadLetter(Received(topic, 0, 1, 0, None, b"", ()), reason, "refused"))


def decided(count: int, asked: int, **declined: int) -> InstancesDecided:
    return InstancesDecided(0, count, asked, declined, range(count), (), (0.5,) * count)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("fraud", ("ok", "fraud"), config_hash="abc")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"streamal_{name}", {"pipeline": "fraud", **labels})


def test_a_decided_batch_counts_all_its_instances(metrics: Metrics) -> None:
    metrics.observe(decided(100, 5, low_utility=86, near_duplicate=4, rate=3, queue_full=2))
    assert value(metrics, "instances_total", decision="request") == 5
    assert value(metrics, "instances_total", decision="pass") == 95
    assert value(metrics, "budget_denied_total", permit="rate") == 3
    assert value(metrics, "budget_denied_total", permit="queue_full") == 2
    assert value(metrics, "budget_denied_total", permit="low_utility") is None
    assert value(metrics, "near_duplicates_total") == 4


@pytest.mark.parametrize("together", [1, 7, 1_000])
def test_what_a_window_chose_and_left_counts_when_it_ends(metrics: Metrics, together: int) -> None:
    """Its end comes with an instance that may be alone in its batch, and more are asked about than came."""
    budget = BudgetPlan(0.1, loan=0, burst=60.0)
    lane = Lane(SamplingPlan(budget, "pool", {"pool_window": 100}), 0, Fold(Settled()))
    instances = stream(1_000)
    for start in range(0, len(instances), together):
        for event in lane.decide(instances[start : start + together], 0.0):
            metrics.observe(event)
    requests, passes = (value(metrics, "instances_total", decision=said) for said in ("request", "pass"))
    assert (requests, passes) == (lane.asked, 1_000 - lane.asked)
    assert lane.asked > 90


def test_requests_count_by_reason_and_show_their_utility(metrics: Metrics) -> None:
    for utility in (-0.08, 0.3, math.inf, math.nan):
        metrics.observe(LabelRequested(replace(REQUEST, utility=utility, reason="exploration")))
    assert value(metrics, "label_requests_total", reason="exploration") == 4
    assert value(metrics, "utility_count") == 2
    assert value(metrics, "utility_bucket", le="-0.05") == 1
    assert value(metrics, "utility_non_finite_total") == 2


def test_every_answer_that_is_read_has_one_result(metrics: Metrics) -> None:
    metrics.observe(RequestResolved(outcome("learned", "fraud"), 60.0))
    metrics.observe(RequestResolved(outcome("abstained"), 60.0))
    metrics.observe(RequestResolved(outcome("invalid"), 60.0))
    metrics.observe(RequestSkipped(0, "0-41"))
    metrics.observe(VoteTaken(Vote(0, 41, "ada", "label", "ok", 0, 1.0)))
    metrics.observe(AnswerForwarded(0, 1, None, b"{}"))
    for reason in ("duplicate", "conflict", "expired", "ended", "unknown", "bad_label", "missing_annotator"):
        metrics.observe(refused("answers", reason))
    results = "learned abstained invalid skipped vote forwarded duplicate conflict orphan".split()
    assert [value(metrics, "labels_total", result=result) for result in results] == [1.0] * 9
    assert [value(metrics, "labels_total", result=result) for result in ("late", "refused")] == [2.0] * 2
    assert value(metrics, "class_labels_total", **{"class": "fraud"}) == 1
    assert value(metrics, "class_labels_total", **{"class": "ok"}) == 0
    assert value(metrics, "label_latency_seconds_count") == 3
    assert value(metrics, "label_latency_seconds_bucket", le="60.0") == 3


def test_an_expired_request_is_no_label(metrics: Metrics) -> None:
    metrics.observe(RequestResolved(outcome("expired"), 604800.0))
    assert value(metrics, "requests_expired_total") == 1
    assert value(metrics, "label_latency_seconds_count") == 0
    assert sum(sample.value for sample in samples(metrics, "streamal_labels_total")) == 0


def test_a_refused_instance_is_counted_as_invalid(metrics: Metrics) -> None:
    metrics.observe(refused("instances", "decode_error"))
    metrics.observe(refused("instances", "something new"))
    metrics.observe(refused("outcomes", "learning_failed"))
    assert value(metrics, "instances_total", decision="invalid") == 2
    assert value(metrics, "dead_letters_total", topic="instances", reason="decode_error") == 1
    assert value(metrics, "dead_letters_total", topic="instances", reason="other") == 1
    assert value(metrics, "dead_letters_total", topic="other", reason="learning_failed") == 1


def test_topics_may_have_other_names() -> None:
    metrics = Metrics("fraud", instances="transactions", answers="labels")
    metrics.observe(refused("transactions", "tombstone"))
    metrics.observe(refused("labels", "duplicate"))
    assert value(metrics, "instances_total", decision="invalid") == 1
    assert value(metrics, "dead_letters_total", topic="labels", reason="duplicate") == 1
    assert value(metrics, "labels_total", result="duplicate") == 1


def test_a_skipped_example_is_a_fault(metrics: Metrics) -> None:
    metrics.observe(ExampleSkipped(outcome("learned", "ok"), "ValueError"))
    metrics.fault("commit_refused")
    metrics.fault("commit_refused")
    assert value(metrics, "faults_total", kind="example_skipped") == 1
    assert value(metrics, "faults_total", kind="commit_refused") == 2


def test_what_has_no_answer_is_counted_by_itself(metrics: Metrics) -> None:
    before = value(metrics, "labels_total", result="learned")
    for label, probability in ((None, None), ("ok", 0.9), ("ok", 0.8)):
        metrics.observe(UnlabelledTaken(Unlabelled(0, 3, "i", {}, 7, label, probability)))
    assert value(metrics, "unlabelled_instances_total", kind="unlabelled") == 1
    assert value(metrics, "unlabelled_instances_total", kind="pseudo_labelled") == 2
    assert value(metrics, "labels_total", result="learned") == before
    assert value(metrics, "class_labels_total", **{"class": "ok"}) == 0


def test_classes_are_capped(metrics: Metrics) -> None:
    for i in range(100):
        metrics.observe(RequestResolved(outcome("learned", f"class {i}"), 1.0))
    found = samples(metrics, "streamal_class_labels_total")
    assert len(found) == MAX_CLASSES + 1
    assert sum(sample.value for sample in found) == 100
    assert value(metrics, "class_labels_total", **{"class": "other"}) == 100 - (MAX_CLASSES - 2)


def test_a_regression_label_is_no_class(metrics: Metrics) -> None:
    before = len(samples(metrics, "streamal_class_labels_total"))
    metrics.observe(RequestResolved(outcome("learned", 2.5), 1.0))
    assert len(samples(metrics, "streamal_class_labels_total")) == before


def test_gauges_follow_the_status(metrics: Metrics) -> None:
    metrics.reflect(STATUS)
    expected = {
        "budget_limit_ratio": 0.05,
        "budget_spent_ratio": 65 / 1600,
        "budget_remaining_labels": 15.0,
        "pending_requests": 5,
        "oldest_pending_request_timestamp_seconds": 1500.0,
        "last_commit_timestamp_seconds": 1600.0,
        "last_poll_timestamp_seconds": 0.0,
        "assigned_partitions": 2,
        "ready": 1,
        "model_updates": 33,
        "rebalances_total": 2,
    }
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "model_error_ratio", estimator="prequential") == 0.25
    assert value(metrics, "consumer_lag_records", topic="instances", partition="0") == 7
    assert value(metrics, "partition_asked_labels", partition="1") == 25
    assert value(metrics, "partition_bound_labels", partition="1") == 31


def test_an_unknown_accuracy_is_no_error_of_zero(metrics: Metrics) -> None:
    metrics.reflect(replace(STATUS, accuracy=None))
    error = value(metrics, "model_error_ratio", estimator="prequential")
    assert error is not None
    assert math.isnan(error)


def test_the_estimate_stands_beside_the_naive_figure(metrics: Metrics) -> None:
    metrics.reflect(replace(STATUS, estimates=ESTIMATES))
    bounds = ("value", "low", "high")
    assert [value(metrics, "accuracy_estimate_ratio", bound=bound) for bound in bounds] == [0.87, 0.84, 0.9]
    assert value(metrics, "accuracy_answered_ratio") == 0.78
    assert value(metrics, "loss_estimate", bound="value") == 0.41
    assert value(metrics, "macro_f1_estimate_ratio") == 0.7
    assert value(metrics, "class_recall_estimate_ratio", **{"class": "fraud"}) == 0.55
    assert value(metrics, "response_ratio", stratum="selected") == 0.9
    assert value(metrics, "audit_labels") == 200
    unknown = (
        value(metrics, "loss_estimate", bound="low"),
        value(metrics, "class_recall_estimate_ratio", **{"class": "ok"}),
        value(metrics, "response_ratio", stratum="rest"),
    )
    assert all(found is not None and math.isnan(found) for found in unknown)


@pytest.mark.parametrize(("pays", "shown"), [(True, 1.0), (False, 0.0), (None, math.nan)])
def test_whether_labels_pay_is_told_with_the_improvement(metrics: Metrics, pays: bool | None, shown: float) -> None:
    gain = Improvement(0.01, -0.02, 0.04, 8_000, 800, pays)
    metrics.reflect(replace(STATUS, estimates=replace(ESTIMATES, improvement=gain)))
    bounds = ("value", "low", "high")
    assert [value(metrics, "improvement_estimate", bound=bound) for bound in bounds] == [0.01, -0.02, 0.04]
    assert value(metrics, "labels_pay") == pytest.approx(shown, nan_ok=True)


def test_what_can_no_longer_be_said_is_not_said(metrics: Metrics) -> None:
    before = series(metrics)
    metrics.reflect(replace(STATUS, partitions={}, estimates=ESTIMATES))
    metrics.reflect(replace(STATUS, partitions={}))
    assert series(metrics) == before
    for name, labels in (
        ("accuracy_estimate_ratio", {"bound": "value"}),
        ("accuracy_answered_ratio", {}),
        ("class_recall_estimate_ratio", {"class": "fraud"}),
        ("response_ratio", {"stratum": "selected"}),
        ("improvement_estimate", {"bound": "high"}),
        ("labels_pay", {}),
    ):
        found = value(metrics, name, **labels)
        assert found is not None
        assert math.isnan(found)
    assert value(metrics, "audit_labels") == 0


def test_a_class_beyond_the_cap_has_no_recall_of_its_own() -> None:
    metrics = Metrics("fraud", ("ok",))
    for i in range(100):
        metrics.observe(RequestResolved(outcome("learned", f"class {i}"), 1.0))
    recall = {f"class {i}": Estimate(0.5, None, None, 9) for i in range(100)}
    metrics.reflect(replace(STATUS, estimates=replace(ESTIMATES, recall=recall)))
    found = [sample.value for sample in samples(metrics, "streamal_class_recall_estimate_ratio")]
    assert len(found) == MAX_CLASSES
    assert found.count(0.5) == MAX_CLASSES - 1


def test_a_regression_shows_its_mean_absolute_error(metrics: Metrics) -> None:
    measures = {"mae": Estimate(12.5, 11.0, 14.0, 150)}
    metrics.reflect(replace(STATUS, estimates=Estimates(9_000, 150, measures, naive={"mae": 20.0})))
    assert value(metrics, "loss_estimate", bound="high") == 14.0
    found = value(metrics, "accuracy_estimate_ratio", bound="value")
    assert found is not None
    assert math.isnan(found)


def test_series_of_partitions_that_left_are_dropped(metrics: Metrics) -> None:
    metrics.reflect(STATUS)
    metrics.reflect(replace(STATUS, partitions={1: STATUS.partitions[1]}, rebalances=3))
    assert value(metrics, "consumer_lag_records", topic="instances", partition="0") is None
    assert value(metrics, "partition_seen_instances", partition="0") is None
    assert value(metrics, "partition_seen_instances", partition="1") == 600
    assert value(metrics, "rebalances_total") == 3
    metrics.reflect(replace(STATUS, partitions={}, rebalances=3))
    assert value(metrics, "budget_spent_ratio") == 0.0
    assert value(metrics, "rebalances_total") == 3


def test_drift_counts_by_what_is_watched_and_the_last_one_has_its_time(metrics: Metrics) -> None:
    assert value(metrics, "drift_timestamp_seconds", source="errors") == 0.0
    metrics.observe(DriftWarned("errors", 1000.0))
    metrics.observe(DriftDetected("errors", 1200.0))
    metrics.observe(DriftDetected("features", 1300.0, 0, "amount"))
    metrics.observe(ModelReplaced(1250.0, 24))
    for source, level, count in (("errors", "warning", 1), ("errors", "drift", 1), ("utilities", "drift", 0)):
        assert value(metrics, "drift_signals_total", source=source, level=level) == count
    assert [value(metrics, "drift_timestamp_seconds", source=source) for source in get_args(DriftSource)] == [
        1200.0,
        0.0,
        1300.0,
    ]
    assert value(metrics, "model_replacements_total") == 1


def test_events_make_no_new_series() -> None:
    metrics = Metrics("fraud", ("ok",))
    before = series(metrics)
    metrics.observe(decided(10, 1, low_utility=5, **dict.fromkeys(get_args(Permit), 1)))
    for reason in get_args(Reason):
        metrics.observe(LabelRequested(replace(REQUEST, reason=reason)))
    for kind in get_args(OutcomeKind):
        metrics.observe(RequestResolved(outcome(kind, "ok"), 1.0))
    for topic in ("instances", "answers", "elsewhere"):
        for reason in (*REASONS, "novel"):
            metrics.observe(refused(topic, reason))
    for source in get_args(DriftSource):
        metrics.observe(DriftWarned(source, 1.0, 0, "amount"))
        metrics.observe(DriftDetected(source, 1.0, 0, "amount"))
    metrics.observe(ModelReplaced(1.0, 20))
    for step in ("decision", "learn", "commit"):
        metrics.took(step, 0.001)
    assert series(metrics) == before


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    found = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))) for sample in found}


def test_the_objective_has_a_bucket_of_its_own(metrics: Metrics) -> None:
    metrics.took("decision", 0.01)
    assert value(metrics, "decision_duration_seconds_bucket", le="0.01024") == 1
    assert value(metrics, "learn_duration_seconds_count") == 0


def test_the_form_follows_the_accept_header(metrics: Metrics) -> None:
    text, kind = metrics.render()
    assert kind.startswith("text/plain")
    assert b'streamal_config_info{hash="abc",pipeline="fraud"} 1.0' in text
    assert b"streamal_build_info{" in text
    assert b"_created" not in text
    text, kind = metrics.render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


@pytest.mark.promtool
def test_prometheus_finds_nothing_to_complain_about(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
            pytest.fail("promtool is not installed, and STREAMAL_REQUIRE_ALL=1")
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    metrics.observe(decided(10, 1, low_utility=9))
    metrics.reflect(STATUS)
    text, _ = metrics.render()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def samples(metrics: Metrics, name: str) -> list[Sample]:
    return [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
