"""A worker that is asked to end does so in time, with what it has begun finished, and leaves nothing to repair."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from auditor import audit, check_models, saved
from story import EXIT_WITHIN, Feeder, Place, Stage, electricity, until

from streamal.messages import Outcome
from streamal.transport.log import Append

BACKLOG = 40_000
"""Instances that wait when the worker starts: a second of work."""
ROWS = 6_000
PACE = 2_000.0


def finish(stage: Stage, feeder: Feeder) -> int:
    """Let the stream end and everything be decided, folded and matched; returns the rows fed."""
    fed = feeder.finish(ROWS)
    until(stage.drained, "all instances decided and all answers matched")
    return fed


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_under_load_loses_and_repeats_nothing(
    how: signal.Signals, place: Place, staged: Callable[..., Stage]
) -> None:
    stage = staged(place)
    worker = stage.worker(0)
    for first in range(0, BACKLOG, 2_000):
        stage.append(stage.rows(range(first, min(BACKLOG, first + 2_000))))
    with stage.annotator(BACKLOG):
        worker.start()
        until(lambda: stage.decided() > 0, "the worker is under load")
        code, seconds = worker.end(how)
        before = stage.decided()
        stage.start(0)
        until(stage.drained, "the new worker goes on to the end")
    until(lambda: stage.drained() and stage.caught_up(), "every answer matched, every outcome folded")
    assert worker.end(how)[0] == 0
    assert code == 0
    assert seconds < EXIT_WITHIN
    assert before < BACKLOG, "there was nothing left to do when the signal came"
    assert worker.starts == 2
    assert audit(stage).instances == BACKLOG
    check_models(stage, 0)
    print(f"{how.name}: ended after {seconds:.2f} s")


def test_the_others_take_over_at_once(place: Place, staged: Callable[..., Stage]) -> None:
    """Who leaves in order is not waited for: its partitions move on before its session could have timed out."""
    stage = staged(place, transport={"session_timeout": 60.0})
    stage.start(0, 1)
    feeder = Feeder(stage, per_second=PACE / 10)
    try:
        owned = stage.worker(0).partitions
        assert stage.worker(0).end()[0] == 0
        before = stage.decided(owned)
        took = until(lambda: stage.decided(owned) > before, "the other worker takes over", 30.0)
    finally:
        fed = finish(stage, feeder)
    assert stage.worker(1).end()[0] == 0
    assert audit(stage).instances == fed
    print(f"taken over after {took:.2f} s")


def test_the_supervisor_passes_the_signal_on_and_restarts_what_crashed(
    place: Place, staged: Callable[..., Stage]
) -> None:
    stage = staged(place)
    parent = stage.worker(0, "supervisor")
    stage.start(0)
    feeder = Feeder(stage, per_second=PACE)
    with stage.annotator(10 * ROWS):
        try:
            until(lambda: stage.decided() > ROWS // 10, "the worker is under load")
            (child,) = parent.children
            os.kill(child, signal.SIGKILL)
            until(lambda: parent.children not in ([], [child]), "the supervisor starts another worker")
            before = stage.decided()
            until(lambda: stage.decided() > before, "the new worker goes on")
        finally:
            fed = finish(stage, feeder)
    until(lambda: stage.drained() and stage.caught_up(), "every answer matched, every outcome folded")
    (child,) = parent.children
    code, seconds = parent.end()
    assert code == 0
    assert not os.path.exists(f"/proc/{child}")
    assert audit(stage).instances == fed
    check_models(stage, 0)
    print(f"supervisor and worker ended after {seconds:.2f} s")


def test_a_long_fold_at_the_start_can_be_interrupted(embedded: Place, staged: Callable[..., Stage]) -> None:
    """The fold of a long history takes a minute; who is asked to end meanwhile does not go on with it."""
    stage = staged(embedded, model={"factory": "fragile:build_slow"})
    outcome = Outcome(
        kind="learned",
        partition=0,
        offset=0,
        instance_id="half-hour-0",
        features=electricity()[0].features,
        label="up",
        weight=1.0,
        prediction={},
        utility=1.0,
        propensity=1.0,
        reason="cold_start",
        would_select=True,
        strategy="class_conditional",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    ).encode()
    stage.append([Append(stage.topics.outcomes, 0, outcome)] * 6_000)
    worker = stage.worker(0).start(PYTHONPATH=str(Path(__file__).parents[1]))
    until(lambda: any(line.get("phase") == "fold" for line in worker.lines()), "the fold begins")
    code, seconds = worker.end()
    assert code == 0
    assert seconds < EXIT_WITHIN
    _, version = saved(stage, 0)
    assert 0 < version < 6_000, "what was folded must be kept, and the fold cannot be complete"
