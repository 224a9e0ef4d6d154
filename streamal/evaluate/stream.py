"""Labelled streams from files: CSV or JSON lines, plain or gzipped, one row at a time in the order of the file.

In CSV a field that reads as a number is one, an empty field is missing, anything else is a string. A row of JSON lines
is an instance as on the wire with its label, or like one of CSV an object of scalars; either way what `InstanceFormat`
names as id and display describes it, and is no feature.
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

from streamal.decoding import CALLED, MISSING, InstanceFormat, finder, outermost
from streamal.errors import BadRecord, ConfigError
from streamal.messages import MAX_NUMBER, SCALARS, Features, Label, Task, Value, canonical_label

KINDS: Final[Mapping[str, str]] = {"csv": "CSV", "jsonl": "JSON lines"}
WIRE: Final = InstanceFormat()
MOST_CLASSES: Final = 50
FEW_CLASSES: Final = 10
"""Distinct numbers among the labels from which on they are hardly classes in any file, and up to which in none."""
NUMBERS: Final = frozenset({float, int})


class Row(NamedTuple):
    """One labelled instance."""

    features: Features
    label: Label


def read(
    path: Path, *, label: str = "target", task: Task = "classification", form: InstanceFormat = WIRE
) -> Iterator[Row]:
    """Yield the rows of a file; `label` is the name of a column, or in JSON lines a dotted path.

    Raises:
        ConfigError: the file cannot be read as a labelled stream; names file, row and cause.
        BadRecord: a label is none; names file and row.
    """
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in KINDS:
        message = f"{path.name}: expected a file ending in .csv or .jsonl, plain or with .gz"
        raise ConfigError(message)
    layout = Layout(label, form)
    number = 0
    with _open(path) as file:
        try:
            rows = csv.DictReader(file) if kind == "csv" else map(_row, file)
            for number, row in enumerate(rows, start=1):
                yield _labelled(row, layout, task, f"{path.name}, row {number}", parse=kind == "csv")
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


class Layout:
    """Where in a row label and features stand."""

    def __init__(self, label: str, form: InstanceFormat) -> None:
        self.label = label
        self._find_label, self._find_features = finder(label), finder(form.features)
        self._beside = outermost(label, form.id, form.display)

    def split(self, row: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Any]:
        """Return features and label, which may stand among them; `MISSING` where there is none."""
        features = self._find_features(row) if self._find_features else None
        if type(features) is not dict:
            features = {name: value for name, value in row.items() if name not in self._beside}
        elif self.label in features:
            label = features[self.label]
            return {name: value for name, value in features.items() if name != self.label}, label
        if self.label in row:
            return features, row[self.label]
        found = self._find_label(row) if self._find_label else None
        return features, MISSING if found is None else found


def _row(line: str) -> dict[str, Any]:
    found = orjson.loads(line)
    if not isinstance(found, dict):
        message = "the line must be a JSON object"
        raise ValueError(message)
    return found


def _labelled(row: Mapping[Any, Any], layout: Layout, task: Task, where: str, *, parse: bool) -> Row:
    given, label = layout.split(row)
    if label is MISSING:
        names = [str(name) for name in row if name is not None]
        cure = "name it by --label"
        if parse and len(names) == 1 and not {";", "\t"}.isdisjoint(names[0]):
            cure = "the fields must be separated by commas, and here semicolons or tabs seem to separate them"
        message = f"{where}: no column '{layout.label}' for the label; there are {', '.join(names)}: {cure}"
        raise ConfigError(message)
    if None in row:
        message = f"{where}: more fields than the header names; quote those that hold a comma"
        raise ConfigError(message)
    features = {name: number(value) for name, value in given.items()} if parse else given
    for name, value in features.items():
        if type(value) not in SCALARS or (isinstance(value, int | float) and abs(value) > MAX_NUMBER):
            message = (
                f"{where}: '{name}' must be a number within +-{MAX_NUMBER:g}, a string, a boolean or missing; where "
                "features stand in an object of their own, [instance] in the config says in which"
            )
            raise ConfigError(message)
    found = number(label) if parse and task == "regression" else label
    if task == "regression" and type(found) not in NUMBERS:
        cure = (
            "leave such rows out" if found is None else "choose a classifier by --model, or another column by --label"
        )
        message = f"{where}, column '{layout.label}': expected a number, came {CALLED[type(found)]}; {cure}"
        raise ConfigError(message)
    try:
        return Row(features, canonical_label(found, task))
    except BadRecord as bad:
        said = "expected a label, came nothing; leave such rows out" if found is None or found == "" else bad
        raise BadRecord(bad.reason, f"{where}, column '{layout.label}': {said}") from None


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
