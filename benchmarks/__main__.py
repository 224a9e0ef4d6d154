"""`python -m benchmarks list` and `python -m benchmarks run [CASE...]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.measure import STREAM, Spread, keep, surroundings


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
    found = Table(*results[0], title=cases[0])
    for result in results:
        found.add_row(*(str(Spread(*value)) if isinstance(value, Spread) else f"{value}" for value in result.values()))
    console = Console()
    console.print(found)
    console.print(", ".join(f"{name} {value}" for name, value in made.items()), style="dim")
    if kept:
        keep(cases[0], made, results)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
