"""Labelled streams from files: CSV or JSON lines, plain or gzipped, one row at a time in the order of the file.

In CSV a field that reads as a number is one, an empty field is missing, anything else is a string. In JSON lines a
row is an object of scalars, or has a `features` object beside the label.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from streamal.errors import BadRecord, ConfigError
from streamal.messages import Features, Label, Task, Value, canonical_label


class Row(NamedTuple):
    """One labelled instance."""

    features: Features
    label: Label


def read(path: Path, *, label: str = "target", task: Task = "classification") -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        ConfigError: the file cannot be read as a labelled stream; names file, row and cause.
    """
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("csv", "jsonl"):
        message = f"{path.name}: expected a file ending in .csv or .jsonl, plain or with .gz"
        raise ConfigError(message)
    number = 0
    with _open(path) as file:
        try:
            rows = csv.DictReader(file) if kind == "csv" else map(_row, file)
            for number, row in enumerate(rows, start=1):
                yield _labelled(row, label, task, f"{path.name}, row {number}", parse=kind == "csv")
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, orjson.JSONDecodeError) as error:
            message = f"{path.name}, after row {number}: expected {kind}, came something else: {error}"
            raise ConfigError(message) from None
    if not number:
        message = f"{path.name}: expected labelled rows, found none"
        raise ConfigError(message)


def _open(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); expected a labelled stream"
        raise ConfigError(message) from None


def _row(line: str) -> dict[str, Any]:
    found = orjson.loads(line)
    if not isinstance(found, dict):
        message = "a line is not a JSON object"
        raise ConfigError(message)
    features: dict[str, Any] = found.pop("features", {})
    return {**found, **features}


def _labelled(row: Mapping[str, Any], label: str, task: Task, where: str, *, parse: bool) -> Row:
    if label not in row:
        message = (
            f"{where}: no column '{label}' for the label; there are {', '.join(map(str, row))}: name it by --label"
        )
        raise ConfigError(message)
    features = {name: number(value) if parse else value for name, value in row.items() if name != label}
    found = number(row[label]) if parse and task == "regression" else row[label]
    try:
        return Row(features, canonical_label(found, task))
    except BadRecord as bad:
        message = f"{where}: column '{label}' cannot be learned as a label: {bad}"
        raise ConfigError(message) from None


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
