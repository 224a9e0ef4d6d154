"""The promises under fire: one long stream through hundreds of faults, with everything that was counted, and audited.

Here nothing is timed for its own sake: the figures say what was survived, and how long it took to go on. It is the
engine of `tests/stories/test_chaos.py` (`tests/chaos.py`) with ten times as many faults. Under at-least-once delivery
repetitions are no violation; they are counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.measure import HERE

sys.path.append(str(HERE.parent / "tests"))

from chaos import Chaos, Dose, check
from cluster import Cluster
from story import Place, Stage

BROKERS: Final = 3
LATE: Final = 45.0
"""Seconds by which some answers come late; requests expire after 30."""
EXACTLY_ONCE: Final = Dose(kill=100, zombie=100, broker=10, outage=2, join=10, slow=4, cut=4, hole=4, overlapping=0.5)
EXACTLY_ONCE_ROWS: Final = 500_000
AT_LEAST_ONCE: Final = Dose(kill=20, zombie=12, broker=2, overlapping=0.3)
AT_LEAST_ONCE_ROWS: Final = 60_000
PER_SECOND: Final = 250.0
"""So the rows last about as long as the faults, and the group is always under load, on a machine of two cores."""


def exactly_once(
    stream: Path, repeats: int, dose: Dose = EXACTLY_ONCE, rows: int = EXACTLY_ONCE_ROWS
) -> list[dict[str, Any]]:
    """Count what exactly-once delivery survives; once, whatever `repeats`."""
    return [survive(dose, rows, "exactly_once")]


def at_least_once(
    stream: Path, repeats: int, dose: Dose = AT_LEAST_ONCE, rows: int = AT_LEAST_ONCE_ROWS
) -> list[dict[str, Any]]:
    """Count what at-least-once delivery repeats under the same faults; once, whatever `repeats`."""
    return [survive(dose, rows, "at_least_once")]


def survive(dose: Dose, rows: int, mode: str) -> dict[str, Any]:
    """Let a stream go through a dose of faults; returns all that was counted."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamal-chaos-") as directory, Cluster(BROKERS) as cluster:
        place = Place(Path(directory), cluster.bootstrap)
        with closing(Stage(place, budget={"expiry": LATE * 2 / 3}, delivery={"mode": mode})) as stage:
            chaos = Chaos(stage, cluster, seed=20)
            try:
                chaos.run(dose, rows=rows, per_second=PER_SECOND, late=LATE)
            except AssertionError:
                click.echo(stage.tell(), err=True)
                raise
            if mode == "exactly_once":
                return check(chaos).row() | {"total_s": round(time.monotonic() - begun)}
            return chaos.report.row() | repetitions(stage) | {"total_s": round(time.monotonic() - begun)}


def repetitions(stage: Stage) -> dict[str, int]:
    """Count what at-least-once delivery has done more than once, and whether it can be told by its id."""
    requests = stage.read(stage.topics.label_requests)
    named = Counter(request["request_id"] for request in requests)
    told = {(request["partition"], request["offset"], request["request_id"]) for request in requests}
    learned = Counter(
        outcome["request_id"] for outcome in stage.read(stage.topics.outcomes) if outcome["kind"] == "learned"
    )
    return {
        "repeated_requests": len(requests) - len(named),
        "repeats_with_another_id": len(told) - len(named),
        "answers_learned_twice": sum(count - 1 for count in learned.values()),
    }
