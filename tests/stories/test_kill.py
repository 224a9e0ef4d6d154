"""Workers die in the midst of their work, ten times, and the log shows nothing of it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from auditor import audit, check_models
from broker import Broker
from story import Feeder, Place, Stage, electricity, until

KILLS = 10
LEAST = 50
"""Instances a new owner must have decided before the next worker may die."""


def kill_one(stage: Stage, slot: int, draw: random.Random) -> float:
    """Kill a worker at a random moment of its work, start it again; returns the seconds until its share moved on."""
    worker = stage.worker(slot)
    until(lambda: stage.covered(stage.workers), "both workers own partitions")
    owned = worker.partitions
    goal = stage.decided(owned) + draw.randrange(LEAST, 4 * LEAST)
    until(lambda: stage.decided(owned) >= goal, f"worker {slot} makes progress")
    worker.kill()
    before, begun = stage.decided(owned), time.monotonic()
    worker.start()
    until(lambda: stage.decided(owned) > before, "its partitions move on")
    return time.monotonic() - begun


@pytest.mark.slow
def test_ten_kills_leave_no_trace(place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(place)
    rows, pace = (20_000, 400.0) if place.bootstrap else (len(electricity()), 800.0)
    draw = random.Random(20)
    stage.start(0, 1)
    feeder = Feeder(stage, per_second=pace)
    with stage.annotator(10 * rows):
        try:
            moved = [kill_one(stage, kill % 2, draw) for kill in range(KILLS)]
        finally:
            fed = feeder.finish(rows)
        took = until(stage.drained, "all instances decided", 120.0)
        until(lambda: stage.answers_given() >= stage.answers_to_come(), "every answer given")
    until(lambda: stage.drained() and stage.caught_up(), "every answer matched, every outcome folded")
    ends = [stage.worker(slot).end(signal.SIGTERM) for slot in (0, 1)]
    assert [code for code, _ in ends] == [0, 0]
    found = audit(stage)
    check_models(stage, 0, 1)
    assert found.instances == fed
    assert found.requests > 0.03 * fed
    assert {"duplicate", "conflict", "unknown"} <= set(found.letters)
    assert {"learned", "abstained", "invalid"} <= set(found.outcomes)
    assert found.forwarded
    assert found.skipped
    print(f"{found}\nmoved on after {[round(s, 1) for s in moved]} s, the rest drained in {took:.1f} s, ends {ends}")
    print(f"ended by themselves: {stage.endings}")


def freeze_one(stage: Stage, slot: int) -> None:
    """Freeze a worker until the other one has gone on with its partitions, then let it wake up."""
    until(lambda: stage.covered(stage.workers), "both workers own partitions")
    sleeper = stage.worker(slot)
    owned = sleeper.partitions
    sleeper.freeze()
    until(lambda: stage.covered([1 - slot]), "the other worker owns everything")
    goal = stage.decided(owned) + LEAST
    until(lambda: stage.decided(owned) > goal, "the other worker goes on")
    sleeper.thaw()


@pytest.mark.kafka
def test_a_worker_that_was_frozen_repeats_nothing_when_it_wakes(
    broker: Broker, tmp_path: Path, staged: Callable[..., Stage]
) -> None:
    """It wakes up believing that it owns what others have gone on with; whatever it then commits must be refused."""
    stage = staged(Place(tmp_path, broker.bootstrap))
    rows = 6_000
    stage.start(0, 1)
    feeder = Feeder(stage, per_second=400.0)
    with stage.annotator(10 * rows):
        try:
            for slot in (0, 1):
                freeze_one(stage, slot)
        finally:
            fed = feeder.finish(rows)
        until(lambda: stage.covered((0, 1)), "both workers work again")
        until(stage.drained, "all instances decided")
        until(lambda: stage.answers_given() >= stage.answers_to_come(), "every answer given")
    until(lambda: stage.drained() and stage.caught_up(), "every answer matched, every outcome folded")
    assert [stage.worker(slot).end()[0] for slot in (0, 1)] == [0, 0]
    assert audit(stage).instances == fed
    check_models(stage, 0, 1)
    print(f"ended by themselves: {stage.endings}")
