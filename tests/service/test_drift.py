"""What a worker tells of drift; and a model that is replaced, across a restart and once more from the topics alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson
import pytest
from served import PARTITIONS, settings_in, until, working
from specimens import stream, truth

from streamal import assemble
from streamal.events import DriftDetected, DriftWarned, InstancesDecided, ModelReplaced
from streamal.lane import SamplingPlan
from streamal.learning.drift import StreamWatch
from streamal.learning.fold import Fold
from streamal.messages import SCHEMA_HEADERS
from streamal.selection.budget import BudgetPlan
from streamal.service.own_records import outcome_of
from streamal.service.reporter import Reporter
from streamal.service.verify import verify
from streamal.settings import Settings
from streamal.transport.log import Append, Log, TopicPartition
from streamal.web.metrics import Metrics
from streamal.web.status import Drift, Status

OTHERS = {"rare": "usual", "usual": "rare"}
TURN = 1_200


def feed(log: Log, first: int, end: int) -> None:
    """Append instances that carry their class, which is the other one from `TURN` on."""
    appends = []
    for instance in stream(end)[first:]:
        label = truth(instance.features)
        told = {"features": instance.features, "label": OTHERS[label] if instance.offset >= TURN else label}
        appends.append(Append("instances", instance.offset % PARTITIONS, orjson.dumps(told), None, SCHEMA_HEADERS))
    writer = log.writer("feeder")
    writer.append(appends)
    writer.close()


def serve(settings: Settings, log: Log, seen: int) -> Status:
    """Let a worker decide on all instances and learn what it asked for; returns its last status."""
    with working(settings, log) as board:
        until(lambda: board.read().seen == seen, "all instances decided")
        until(lambda: (now := board.read()).model_version == now.asked > 0, "all that was asked for is folded")
    return board.read()


def test_a_replaced_model_survives_a_restart_and_every_decision_replays(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path,
        instance={"label": "label"},
        model={"kind": "gaussian_nb"},
        drift={"adaptation": "active"},
    )
    log = assemble.open_log(settings)
    feed(log, 0, TURN + 40)
    serve(settings, log, TURN + 40)
    log = assemble.open_log(settings)
    feed(log, TURN + 40, 3 * TURN)
    status = serve(settings, log, 3 * TURN)
    assert status.replacements >= 1
    assert status.drift["errors"].drifts >= 1
    log = assemble.open_log(settings)
    report = verify(assemble.subject_of(settings, log))
    assert report.sound, report
    assert [part.takeovers for part in report.partitions] == [2] * PARTITIONS
    restored = assemble.snapshot_store(settings).restore(lambda version, last: None)
    assert restored is not None
    fold, outcomes = Fold(assemble.build_model(settings)), TopicPartition("outcomes", 0)
    fold.fold([(r.offset, outcome_of(r)) for r in log.reader().read(outcomes, 0, restored.version)])
    probes = [instance.features for instance in stream(50, seed=9)]
    assert restored.model.predict(probes) == fold.model.predict(probes)
    log.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("fraud")


@pytest.fixture
def reporter(metrics: Metrics) -> Reporter:
    watch = StreamWatch(utilities=True, features=True)
    return Reporter("fraud", [SamplingPlan(BudgetPlan(0.2))], metrics, lambda: 0, lambda: 0.0, watch)


def told(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[Any, ...]]:
    return [(record.getMessage(), *(getattr(record, name, None) for name in names)) for record in caplog.records]


def test_drift_is_told_in_log_and_status(reporter: Reporter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for event in (
            DriftWarned("errors", 1.0),
            DriftDetected("errors", 2.0),
            DriftDetected("features", 3.0, 1, "amount"),
            ModelReplaced(4.0, 24),
        ):
            reporter.observe(event)
    assert told(caplog, "source", "at", "partition", "feature", "examples") == [
        ("the stream may be changing", "errors", "1970-01-01T00:00:01.000Z", None, None, None),
        ("the stream has changed", "errors", "1970-01-01T00:00:02.000Z", None, None, None),
        ("the stream has changed", "features", "1970-01-01T00:00:03.000Z", 1, "amount", None),
        ("another model is served after a drift", None, "1970-01-01T00:00:04.000Z", None, None, 24),
    ]
    reporter.beat("running", None)
    status = reporter.board.read()
    assert status.drift == {
        "errors": Drift(warnings=1, drifts=1, at=2.0),
        "utilities": Drift(),
        "features": Drift(drifts=1, at=3.0, feature="amount"),
    }
    assert status.replacements == 1
    assert status.as_json()["drift"]["errors"] == {"warnings": 1, "drifts": 1, "at": 2.0, "feature": None}


def test_what_a_worker_finds_in_old_outcomes_is_counted_and_not_told_again(
    reporter: Reporter, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.beat("restoring", None)
    reporter.observe(DriftDetected("errors", 2.0))
    reporter.beat("joining", None)
    assert told(caplog) == []
    assert reporter.board.read().drift["errors"].drifts == 1
    labels = {"pipeline": "fraud", "source": "errors"}
    assert metrics.registry.get_sample_value("streamal_drift_timestamp_seconds", labels) == 2.0


def test_the_utilities_of_what_was_decided_are_watched(reporter: Reporter, metrics: Metrics) -> None:
    for utility in (-3.0, 3.0):
        reporter.observe(InstancesDecided(1, 4_000, 0, {}, range(4_000), (), [utility] * 4_000))
    labels = {"pipeline": "fraud", "source": "utilities", "level": "drift"}
    assert metrics.registry.get_sample_value("streamal_drift_signals_total", labels) == 1
