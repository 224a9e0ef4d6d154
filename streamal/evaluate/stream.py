"""Labelled streams from files: CSV or JSON lines, plain or gzipped, one row at a time in the order of the file.

In CSV a field that reads as a number is one, an empty field is missing, anything else is a string. In JSON lines a
row is an object of scalars, or has a `features` object beside the label.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import orjson

from streamal.errors import BadRecord, ConfigError
from streamal.messages import MAX_NUMBER, Features, Label, Task, Value, canonical_label

KINDS: Final[Mapping[str, str]] = {"csv": "CSV", "jsonl": "JSON lines"}
DESCRIPTIVE: Final = frozenset({"id", "display"})
CALLED: Final[Mapping[type, str]] = {
    str: "text",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    type(None): "nothing",
}
"""What a value that is no number is called."""
MOST_CLASSES: Final = 50
FEW_CLASSES: Final = 10
"""Distinct numbers among the labels from which on they are hardly classes in any file, and up to which in none."""
SCALARS: Final = frozenset({float, int, str, bool, type(None)})


class Row(NamedTuple):
    """One labelled instance."""

    features: Features
    label: Label


def read(path: Path, *, label: str = "target", task: Task = "classification") -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        ConfigError: the file cannot be read as a labelled stream; names file, row and cause.
        BadRecord: a label is none; names file and row.
    """
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in KINDS:
        message = f"{path.name}: expected a file ending in .csv or .jsonl, plain or with .gz"
        raise ConfigError(message)
    number = 0
    with _open(path) as file:
        try:
            rows = csv.DictReader(file) if kind == "csv" else map(_row, file)
            for number, row in enumerate(rows, start=1):
                yield _labelled(row, label, task, f"{path.name}, row {number}", parse=kind == "csv")
        except (OSError, EOFError, ValueError, csv.Error) as error:
            message = f"{path.name}, row {number + 1}: expected {KINDS[kind]} in UTF-8, came something else: {error}"
            raise ConfigError(message) from None


def _open(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); expected a labelled stream"
        raise ConfigError(message) from None


def _row(line: str) -> dict[str, Any]:
    found = orjson.loads(line)
    if not isinstance(found, dict) or not isinstance(features := found.pop("features", {}), dict):
        message = "the line must be a JSON object, and its features, if there are any, an object as well"
        raise ValueError(message)
    if features:
        # an instance as on the wire: what else it carries describes it, and is not learned from
        found = {name: value for name, value in found.items() if name not in DESCRIPTIVE}
    return {**found, **features}


def _labelled(row: Mapping[Any, Any], label: str, task: Task, where: str, *, parse: bool) -> Row:
    if label not in row:
        message = (
            f"{where}: no column '{label}' for the label; there are {', '.join(map(str, row))}: name it by --label"
        )
        raise ConfigError(message)
    if None in row:
        message = f"{where}: more fields than the header names; quote those that hold a comma"
        raise ConfigError(message)
    features = {name: number(value) if parse else value for name, value in row.items() if name != label}
    for name, value in features.items():
        if type(value) not in SCALARS or (isinstance(value, int | float) and abs(value) > MAX_NUMBER):
            message = f"{where}: '{name}' must be a number within +-{MAX_NUMBER:g}, a string, a boolean or missing"
            raise ConfigError(message)
    found = number(row[label]) if parse and task == "regression" else row[label]
    if task == "regression" and (called := CALLED.get(type(found))):
        cure = (
            "leave such rows out" if found is None else "choose a classifier by --model, or another column by --label"
        )
        message = f"{where}, column '{label}': expected a number, came {called}; {cure}"
        raise ConfigError(message)
    try:
        return Row(features, canonical_label(found, task))
    except BadRecord as bad:
        raise BadRecord(bad.reason, f"{where}, column '{label}': {bad}") from None


def number(text: str) -> Value:
    """Return a CSV field as a number if it reads as a finite one, as missing if empty, else as it is.

    >>> number("1.5"), number(""), number("NL"), number("nan")
    (1.5, None, 'NL', 'nan')
    """
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        return text
    return found if math.isfinite(found) else text


def numeric(rows: Iterable[Row]) -> int:
    """Return how many distinct numbers the labels are if they are hardly meant as classes, else 0.

    >>> numeric(Row({}, str(n / 2)) for n in range(60)), numeric(Row({}, str(n % 4)) for n in range(60))
    (60, 0)
    """
    counts = Counter(row.label for row in rows)
    if not all(isinstance(label, str) and isinstance(number(label), float) for label in counts):
        return 0
    bound = min(MOST_CLASSES, max(FEW_CLASSES, counts.total() / 2))
    return len(counts) if len(counts) > bound else 0
