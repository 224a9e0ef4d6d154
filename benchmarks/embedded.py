"""Every strategy in the running service: workers on the embedded log, late answers, a crash, and then the audit.

Each strategy decides on `ROWS` instances of Electricity, whose answers come from the oracle `DELAY` instances late or
later. At `CRASH_AT` the worker is killed and another one takes over. At the end `tests/auditor.py` reads the log: every
instance decided on once, no request beyond the budget at any prefix, no answer lost, and every decision made again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, cast

import orjson
from rich.console import Console
from rich.progress import track

from benchmarks.measure import HERE, cpu_seconds, memory, rounds
from streamal.annotate.oracle import Oracle
from streamal.evaluate.stream import Row
from streamal.selection.registry import STRATEGIES
from streamal.transport.log import Append

sys.path.append(str(HERE.parent / "tests"))

from auditor import audit, ledger_of
from story import Place, Stage, electricity, until, until_still

TESTS: Final = str(HERE.parent / "tests")
"""Where workers find the one model that is no preset."""
ROWS: Final = 20_000
CHUNK: Final = 500
"""Rows that are fed at once; answers come in between."""
DELAY: Final = 200
CRASH_AT: Final = 5_000
RATE: Final = 0.05
PARTITIONS: Final = 2
ERROR: Final = 0.03
CLASSES: Final = ["down", "up"]
TARGET: Final = "nswdemand"
"""What a regression predicts, from the other features."""


def embedded(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Let each strategy live through it once, whatever `repeats`; always on the stream that ships."""
    return [lived(name) for name in track(STRATEGIES, "strategies", console=Console(stderr=True))]


def lived(name: str) -> dict[str, Any]:
    """Let one strategy live through it; the last column names the first promise that was broken, if one was."""
    model = model_of(name)
    rows = rows_of(name)
    sections: dict[str, Mapping[str, Any]] = {
        "transport": {"partitions": PARTITIONS},
        "instance": {"types": dict.fromkeys(rows[0].features, "number")},
        "model": model,
        "budget": {"rate": RATE},
        "strategy": {"name": name},
    }
    found: dict[str, Any] = {"strategy": name, "model": "".join(model.values())}
    with tempfile.TemporaryDirectory(prefix="streamal-strategies-") as directory:
        with closing(Stage(Place(Path(directory)), **sections)) as stage:
            try:
                found |= run(stage, rows)
                audit(stage)
            except AssertionError as error:
                print(stage.tell(), file=sys.stderr)
                return found | {"violations": str(error) or repr(error)}
    return found | {"violations": "none"}


def model_of(name: str) -> dict[str, str]:
    """Return the settings of the model that a strategy runs with: a single one, unless it needs several members."""
    regression = "classification" not in STRATEGIES[name].tasks
    if STRATEGIES[name].ensemble:
        return {"factory": "fragile:build_regressors"} if regression else {"kind": "adaptive_forest"}
    return {"kind": "linear_regression" if regression else "logistic_regression"}


def rows_of(name: str) -> Sequence[Row]:
    """Return the rows that a strategy decides on, with labels of its task."""
    rows = [row for _, row in rounds(electricity(), ROWS)]
    if "classification" in STRATEGIES[name].tasks:
        return rows
    kept = [{key: value for key, value in row.features.items() if key != TARGET} for row in rows]
    return [Row(features, cast(float, row.features[TARGET])) for features, row in zip(kept, rows, strict=True)]


def run(stage: Stage, rows: Sequence[Row]) -> dict[str, Any]:
    """Feed the rows and answer what is asked; returns what was spent, and what it took from the crash on."""
    oracle, answered = Oracle(error=ERROR), set[str]()
    stage.start(0, PYTHONPATH=TESTS)
    for fed in range(CHUNK, ROWS + 1, CHUNK):
        feed(stage, rows, range(fed - CHUNK, fed))
        answer(stage, rows, oracle, answered, fed - DELAY)
        if fed == CRASH_AT:
            stage.worker(0).kill()
            stage.start(0, PYTHONPATH=TESTS)
            pid = stage.worker(0).pid
            before = cpu_seconds(pid)
    answer(stage, rows, oracle, answered, ROWS)
    until_still(stage.drained, stage.positions, "all answers matched")
    until(stage.caught_up, "all outcomes folded")
    spent, (_, peak) = cpu_seconds(pid) - before, memory(pid)
    assert stage.worker(0).end()[0] == 0
    asked = sum(ledger_of(stage, partition)["budget"]["asked"] for partition in range(PARTITIONS))
    return {
        "asked": asked,
        "spent": round(asked / (RATE * ROWS), 4),
        "cpu_us": round(spent / (ROWS - CRASH_AT) * 1e6),
        "peak_mib": round(peak, 1),
    }


def feed(stage: Stage, rows: Sequence[Row], numbers: range) -> None:
    """Append rows, and wait until they are decided on."""
    stage.append(
        [
            Append(
                stage.topics.instances,
                number % PARTITIONS,
                orjson.dumps({"id": str(number), "features": rows[number].features}),
            )
            for number in numbers
        ]
    )
    until_still(stage.drained, stage.positions, "all rows decided on")


def answer(stage: Stage, rows: Sequence[Row], oracle: Oracle, answered: set[str], until: int) -> None:
    """Answer all requests about the rows before one that were not answered yet."""
    for request in stage.read(stage.topics.label_requests):
        identity, number = request["request_id"], int(request["instance_id"])
        if number < until and identity not in answered:
            answered.add(identity)
            label = oracle.answer(number, rows[number].label, CLASSES)
            stage.answer(request["partition"], {"request_id": identity, "label": label})
