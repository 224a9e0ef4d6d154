"""`python -m benchmarks.label_efficiency run`, `report` and `streams`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from benchmarks.label_efficiency.cells import DELAYS, MODELS, RATES, ROWS, SEEDS, find, grid, keep, kept, run_all
from benchmarks.label_efficiency.contenders import CONTENDERS, FULL
from benchmarks.label_efficiency.summary import Summary
from benchmarks.measure import HERE, commit, surroundings
from streamal.cli import Commands
from streamal.lane import SamplingPlan
from streamal.selection.budget import BudgetPlan

PROGRAM: Final = "python -m benchmarks.label_efficiency"
RESULTS: Final = HERE / "results" / "label_efficiency"
CELLS: Final = RESULTS / "cells.jsonl"


@click.group(cls=Commands)
def main() -> None:
    """Compare all strategies and their peers by what they reach with the same labels; most options may be repeated."""


cells_option = click.option(
    "--cells",
    type=click.Path(path_type=Path, dir_okay=False),
    default=CELLS,
    help="Where results are appended, one JSON object per cell; by default beside the report, out of the repository.",
)
shift_option = click.option(
    "--shift",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Rows from the start of one seed to that of the next; 0 spreads the starts over the whole stream.",
)


@main.command()
@click.option(
    "--streams",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="STREAMAL_BENCHMARK_STREAMS",
    help="Directory of labelled streams (*.csv.gz, label last); by default the one stream that ships.",
)
@click.option("--stream", "names", multiple=True, help="Use this stream of the directory only; repeatable.")
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, default=MODELS, help="All by default.")
@click.option(
    "--strategy",
    "patterns",
    multiple=True,
    help="Name or pattern, such as 'skactiveml.*@ledger'; repeatable; by default all but those @explored.",
)
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(0.001, 1.0),
    multiple=True,
    default=RATES,
    show_default=True,
    help="Of labels.",
)
@click.option(
    "--delay",
    "delays",
    type=click.IntRange(0),
    multiple=True,
    default=DELAYS,
    show_default=True,
    help="Of answers, in rows.",
)
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True, help="How many.")
@click.option("--rows", type=click.IntRange(10), default=ROWS, show_default=True, help="Of each stream, at most.")
@shift_option
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@cells_option
def run(
    directory: Path | None,
    names: tuple[str, ...],
    models: tuple[str, ...],
    patterns: tuple[str, ...],
    rates: tuple[float, ...],
    delays: tuple[int, ...],
    seeds: int,
    rows: int,
    shift: int,
    jobs: int,
    cells: Path,
) -> None:
    """Run the cells that are not there yet; it may be killed at any time and goes on where it stopped."""
    paths = find(directory)
    unknown = [name for name in names if name not in paths]
    contenders = [name for name in CONTENDERS if matches(name, patterns)]
    if unknown or not contenders:
        given = f"--stream {unknown[0]}" if unknown else f"--strategy {' '.join(patterns)}"
        message = f"{given}: expected one of {', '.join(paths if unknown else CONTENDERS)}"
        raise click.UsageError(message)
    wanted = list(grid(names or tuple(paths), models, contenders, rates, delays, seeds, rows, shift))
    done = {result.cell for result in kept(cells)}
    missing = [cell for cell in wanted if cell not in done]
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("cells", total=len(wanted), completed=len(wanted) - len(missing))
        for _ in keep(run_all(missing, paths, jobs), cells, commit()):
            progress.advance(bar)
    click.echo(f"{len(wanted):,} cells, {len(missing):,} of them new, in {cells}; see: {PROGRAM} report")


@main.command("streams")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def further(directory: Path) -> None:
    """Write further labelled streams into DIRECTORY, for `run --streams`; two packages have to bring some of them."""
    from benchmarks.label_efficiency import streams

    for name, rows, classes in streams.write(directory):
        click.echo(f"{name}: {rows:,} rows, {classes} classes")


@main.command("report")
@cells_option
@click.option("--subject", default=SamplingPlan(BudgetPlan(1.0)).strategy, show_default=True, help="Whom it is about.")
@click.option(
    "--strategy", "patterns", multiple=True, default=("*",), help="Name or pattern of the others; repeatable."
)
@click.option(
    "--rows", type=click.IntRange(10), help="Of runs of several lengths those up to so many rows; the longest."
)
@shift_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    help="Where the report, its table of blocks and its pictures are kept.",
)
def tell(cells: Path, subject: str, patterns: tuple[str, ...], rows: int | None, shift: int, out: Path) -> None:
    """Print the report on what has run, and keep it with its pictures."""
    from benchmarks.label_efficiency import pictures, report

    chosen = [
        result
        for result in kept(cells)
        if result.cell.contender in (FULL, subject) or matches(result.cell.contender, patterns)
    ]
    summary = Summary.of(chosen, rows, shift)
    if subject not in summary.contenders:
        message = f"--subject {subject}: expected one that has run: {', '.join(summary.contenders)}"
        raise click.UsageError(message)
    made = surroundings()
    shown = {name: made[name] for name in ("at", "processor", "python", "river")}
    text = report.report(summary, subject, shown)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "blocks.csv").write_text(report.blocks_table(summary), encoding="utf-8")
    drawn = pictures.draw(summary, subject, out)
    click.echo(text)
    click.echo(f"kept: {', '.join(path.name for path in [out / 'report.md', out / 'blocks.csv', *drawn])} in {out}")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a contender is chosen.

    >>> matches("split", ()), matches("skactiveml.Split@explored", ()), matches("skactiveml.Split", ("sk*",))
    (True, False, True)
    """
    if not patterns:
        return not name.endswith("@explored")
    return any(fnmatchcase(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main(prog_name=PROGRAM)
