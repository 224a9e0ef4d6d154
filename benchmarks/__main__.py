"""`python -m benchmarks list` and `python -m benchmarks run [CASE...]`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.measure import STREAM, keep, surroundings


@click.group()
def main() -> None:
    """Measure speed and memory; every run prints where it was made and is kept in benchmarks/history."""


@main.command("list")
def show() -> None:
    """List the cases."""
    found = Table("case", "measures", "aim")
    for case, (what, aim, _) in CASES.items():
        found.add_row(case, what, aim)
    Console().print(found)


@main.command()
@click.argument("cases", nargs=-1, type=click.Choice(sorted(CASES)))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Repetitions, interleaved.")
@click.option("--stream", type=click.Path(path_type=Path, exists=True), default=STREAM, help="The Electricity stream.")
@click.option("--keep/--no-keep", "kept", default=True, help="Append the results to the history.")
def run(cases: tuple[str, ...], repeats: int, stream: Path, kept: bool) -> None:
    """Run CASES, all of them by default; each in a process of its own, so that its peak memory is its own."""
    if len(cases) != 1:
        options = ["--repeats", str(repeats), "--stream", str(stream), "--keep" if kept else "--no-keep"]
        failed = [
            case
            for case in cases or CASES
            if subprocess.run([sys.executable, "-m", "benchmarks", "run", case, *options], check=False).returncode
        ]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    # Without the path of the stream, which is the same stream wherever it lies.
    made = surroundings("run", cases[0], "--repeats", str(repeats))
    results = CASES[cases[0]].run(stream, repeats)
    console = Console()
    console.print(table(cases[0], results))
    console.print(", ".join(f"{name} {value}" for name, value in made.items()), style="dim")
    if kept:
        keep(cases[0], made, results)


def table(case: str, results: Sequence[Mapping[str, Any]]) -> Table:
    """Return results as a table; a single one upright, for it has many figures."""
    shown = [{name: shown_as(value) for name, value in result.items()} for result in results]
    if len(shown) == 1:
        found = Table("figure", "value", title=case)
        for pair in shown[0].items():
            found.add_row(*pair)
        return found
    found = Table(*shown[0], title=case)
    for result in shown:
        found.add_row(*result.values())
    return found


def shown_as(value: object) -> str:
    """Return a figure as it is printed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown_as(inner)}" for name, inner in value.items())
    return str(value)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
