"""How long a worker takes to come back: with a snapshot, and by folding a million outcomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.measure import Spread, electricity, own_peak, rounds
from streamal import assemble
from streamal.messages import Outcome
from streamal.service.process import Service
from streamal.settings import Settings, load, revised
from streamal.transport.log import Append, Log
from streamal.web.status import READY

OUTCOMES: Final = 1_000_000
TAIL: Final = 1_000
"""Outcomes after the snapshot: those of one interval of `snapshot.every_outcomes`."""
CHUNK: Final = 10_000
KINDS: Final = ("logistic_regression", "hoeffding_tree")


def restart(stream: Path, repeats: int) -> Sequence[Mapping[str, Any]]:
    """Fill an embedded log, and let a worker of each kind come up without a snapshot once, then with it."""
    with TemporaryDirectory() as folder:
        log = assemble.open_log(settings_of(KINDS[0], Path(folder)))
        fill(log, stream, 0, OUTCOMES - TAIL)
        folds = {kind: until_ready(settings_of(kind, Path(folder))) for kind in KINDS}
        fill(log, stream, OUTCOMES - TAIL, OUTCOMES)
        log.close()
        results = []
        for kind in KINDS:
            snapshot = Path(folder, "snapshots", f"{kind}-0.snapshot")
            kept, times = snapshot.read_bytes(), []
            for _ in range(repeats):
                times.append(until_ready(settings_of(kind, Path(folder))))
                snapshot.write_bytes(kept)
            results.append(
                {
                    "kind": kind,
                    "outcomes": OUTCOMES,
                    "fold_s": round(folds[kind], 2),
                    "tail": TAIL,
                    "snapshot_bytes": len(kept),
                    "with_snapshot_s": Spread.of(times),
                    "peak_mib": round(own_peak()),
                }
            )
        return results


def settings_of(kind: str, folder: Path) -> Settings:
    """Return settings whose log and snapshots lie in a folder."""
    settings = load(None).model_copy(update={"pipeline": kind})
    given: Mapping[str, dict[str, Any]] = {
        "transport": {"path": str(folder / "log.db"), "partitions": 1, "group": kind},
        "model": {"kind": kind},
        "snapshot": {"directory": str(folder / "snapshots")},
        "http": {"port": 0},
    }
    for section, values in given.items():
        settings = revised(settings, section, values)
    return settings


def fill(log: Log, stream: Path, first: int, following: int) -> None:
    """Append outcomes as if each row of the stream had been asked about and answered."""
    writer = log.writer("filler")
    chunk: list[Append] = []
    for append in outcomes(stream, first, following):
        chunk.append(append)
        if len(chunk) == CHUNK:
            writer.append(chunk)
            chunk = []
    writer.append(chunk)
    writer.close()


def outcomes(stream: Path, first: int, following: int) -> Iterator[Append]:
    """Yield the records."""
    for number, row in rounds(electricity(stream), following):
        if number < first:
            continue
        outcome = Outcome(
            kind="learned",
            partition=0,
            offset=number,
            instance_id=str(number),
            features=row.features,
            label=row.label,
            weight=1.0,
            prediction={"up": 0.5, "down": 0.5},
            utility=0.5,
            propensity=0.5,
            reason="uncertainty",
            would_select=True,
            strategy="split",
            model_version=number,
            requested_at=1.0,
            resolved_at=2.0,
            annotator="oracle",
        )
        yield Append("outcomes", 0, outcome.encode(), outcome.request_id.encode())


def until_ready(settings: Settings) -> float:
    """Start a worker, return the seconds until it is ready, and end it in order, so that it saves a snapshot."""
    begun = time.perf_counter()
    log = assemble.open_log(settings)
    service: Service = assemble.build_service(settings, log)
    worker = threading.Thread(target=service.worker.run, name="worker")
    worker.start()
    while service.reporter.board.read().phase not in READY:
        if not worker.is_alive():
            message = "the worker ended before it was ready; its error stands above"
            raise RuntimeError(message)
        time.sleep(0.002)
    taken = time.perf_counter() - begun
    service.worker.stop()
    worker.join()
    return taken
