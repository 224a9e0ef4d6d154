"""The promises under fire: one long stream through hundreds of faults, with everything that was counted, and audited.

Here nothing is timed for its own sake: the figures say what was survived, and how long it took to go on. It is the
engine of `tests/stories/test_chaos.py` (`tests/chaos.py`) with twenty times as many faults. Under at-least-once
delivery repetitions are no violation; they are counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import Progress

from benchmarks.measure import HERE

sys.path.append(str(HERE.parent / "tests"))

from chaos import FAULTS, Chaos, Dose, check
from cluster import Cluster
from story import Place, Stage

BROKERS: Final = 3
LATE: Final = 45.0
"""Seconds by which some answers come late; requests expire after 30."""
EXACTLY_ONCE: Final = Dose(kill=100, zombie=100, broker=10, outage=2, join=4, slow=2, cut=2, hole=2, overlapping=0.7)
EXACTLY_ONCE_ROWS: Final = 500_000
AT_LEAST_ONCE: Final = Dose(kill=20, zombie=12, broker=2, overlapping=0.5)
AT_LEAST_ONCE_ROWS: Final = 60_000
PER_SECOND: Final = 250.0
"""So the rows last about as long as the faults, and the group is always under load, on a machine of two cores."""


def exactly_once(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Count what exactly-once delivery survives; once, whatever `repeats`."""
    return [survive(EXACTLY_ONCE, EXACTLY_ONCE_ROWS, "exactly_once")]


def at_least_once(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Count what at-least-once delivery repeats under the same faults; once, whatever `repeats`."""
    return [survive(AT_LEAST_ONCE, AT_LEAST_ONCE_ROWS, "at_least_once")]


def survive(dose: Dose, rows: int, mode: str) -> dict[str, Any]:
    """Let a stream go through a dose of faults; returns all that was counted."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamal-chaos-") as directory, Cluster(BROKERS) as cluster:
        place = Place(Path(directory), cluster.bootstrap)
        with closing(Stage(place, budget={"expiry": LATE * 2 / 3}, delivery={"mode": mode})) as stage:
            chaos = Chaos(stage, cluster, seed=20)
            with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
                shown = bar.add_task("faults survived", total=len(dose.kinds))
                try:
                    chaos.run(
                        dose,
                        rows=rows,
                        per_second=PER_SECOND,
                        late=LATE,
                        progress=lambda survived: bar.update(shown, completed=survived),
                    )
                except AssertionError:
                    click.echo(stage.tell(), err=True)
                    raise
            if mode == "exactly_once":
                return check(chaos).row() | {"total_s": round(time.monotonic() - begun)}
            row = {name: figure for name, figure in chaos.report.row().items() if name != "violations"}
            return row | repetitions(stage) | {"total_s": round(time.monotonic() - begun)}


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


@click.command()
@click.option("--mode", type=click.Choice(["exactly_once", "at_least_once"]), default="exactly_once")
@click.option("--rows", type=click.IntRange(1), default=10_000, show_default=True, help="Instances at least.")
@click.option("--overlapping", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of the faults.")
@click.argument("faults", nargs=-1, metavar="FAULT=COUNT...")
def main(mode: str, rows: int, overlapping: float, faults: tuple[str, ...]) -> None:
    """Run a part of the chaos, such as kill=5 zombie=5 broker=1, and print what was counted; nothing is kept."""
    counts = {name: int(count) for name, _, count in (fault.partition("=") for fault in faults)}
    if strange := counts.keys() - FAULTS.keys():
        message = f"expected faults among {', '.join(FAULTS)}, came {', '.join(sorted(strange))}"
        raise click.UsageError(message)
    row = survive(replace(Dose(overlapping=overlapping), **counts), rows, mode)
    click.echo(orjson.dumps(row, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.chaos")
