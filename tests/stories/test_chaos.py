"""Chaos in short: workers and brokers die, freeze and are cut off under load, and the log shows nothing of it.

The long form, with twenty times as many faults, is `python -m benchmarks run chaos/exactly-once`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from broker import BrokerUnavailable
from chaos import Chaos, Dose, Report, check
from cluster import Cluster
from story import Place, Stage

PACE: Final = 300.0
SESSION: Final = 2.0
LATE: Final = 12.0
"""Seconds; requests expire after two thirds of it, so some answers come too late."""

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def survive(size: int, dose: Dose, rows: int, tmp_path: Path, staged: Callable[..., Stage]) -> Report:
    """Let a stream on so many brokers go through a dose of faults; returns what was counted, and found in order."""
    try:
        cluster = Cluster(size)
    except BrokerUnavailable as error:
        if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    with cluster:
        stage = staged(
            Place(tmp_path, cluster.bootstrap), transport={"session_timeout": SESSION}, budget={"expiry": LATE * 2 / 3}
        )
        chaos = Chaos(stage, cluster, seed=size)
        chaos.run(dose, rows=rows, per_second=PACE, late=LATE)
        report = check(chaos)
        print(report.row())
        stage.close()
    gc.collect()  # here, where those sockets are forgiven
    assert report.violations == []
    assert report.instances >= rows
    assert {"learned", "abstained", "invalid", "duplicate", "conflict", "unknown"} <= set(report.answers)
    assert report.answers["forwarded"]
    return report


def test_workers_die_and_come_back_from_the_dead(tmp_path: Path, staged: Callable[..., Stage]) -> None:
    dose = Dose(kill=5, zombie=4, join=1, overlapping=0.9)
    report = survive(1, dose, 6_000, tmp_path, staged)
    assert report.overlapping >= 2
    assert report.answers["expired"]


def test_brokers_die(tmp_path: Path, staged: Callable[..., Stage]) -> None:
    report = survive(3, Dose(broker=2, outage=1, kill=2, overlapping=0.3), 5_000, tmp_path, staged)
    assert report.faults["outage"] == 1


def test_a_connection_is_slow_then_cut_then_silent_then_healed(tmp_path: Path, staged: Callable[..., Stage]) -> None:
    report = survive(1, Dose(slow=1, cut=1, hole=1), 4_000, tmp_path, staged)
    assert set(report.failovers) == {"slow", "cut", "hole"}
