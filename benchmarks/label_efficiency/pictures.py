"""The report's pictures: mean ranks, learning curves, and what so many labels reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.label_efficiency.contenders import FULL, OURS
from benchmarks.label_efficiency.report import REFERENCE, column, ledgered
from benchmarks.label_efficiency.summary import GOAL, Ranks, Summary, cliques
from streamal.evaluate.report import COLOURS, DOTS

RIVALS: Final = {"ours": 2, "ledger": 2, "shipped": 1}
"""Contenders of each kind that get a colour besides the subject and the reference; the others are thin and grey."""
GREY: Final = "#b9b9b9"
CURVE_RATE: Final = 0.05
LINE: Final = 0.26
BAR: Final = 0.1
MOST_TICKS: Final = 20


def draw(summary: Summary, subject: str, folder: Path) -> list[Path]:
    """Draw all pictures of a report into a folder and return their paths."""
    coloured = emphasised(summary, subject)
    ranks = summary.ranks(ledgered(summary.contenders))
    pictures = {
        "ranks.png": rank_diagram(ranks, subject),
        "curves.png": learning_curves(summary, coloured),
        "labels.png": label_curves(summary, coloured),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / name, format="png", dpi=DOTS)
    return [folder / name for name in pictures]


def emphasised(summary: Summary, subject: str) -> dict[str, str]:
    """Return the contenders that get a colour: the subject, the reference, and the best of the others of each kind."""
    found = [name for name in (subject, REFERENCE) if name in summary.contenders]
    others = [name for name in summary.by_kappa(summary.contenders) if name not in found]
    for kind, count in RIVALS.items():
        fitting = [
            name for name in others if kind == (name.partition("@")[2] or ("ours" if name in OURS else "shipped"))
        ]
        found += fitting[:count]
    return dict(zip(found, COLOURS, strict=False))


def rank_diagram(ranks: Ranks, subject: str) -> Figure:
    """Draw mean ranks on a line, the best to the left; bars join those that do not differ significantly."""
    ordered = sorted(ranks.mean.items(), key=lambda item: item[1])
    bars = cliques(ranks.mean, ranks.critical)
    half = (len(ordered) + 1) // 2
    low, high = math.floor(ordered[0][1]), math.ceil(ordered[-1][1])
    margin = 0.75 * (high - low)
    depth = BAR * (len(bars) + 1) + LINE * (half + 1)
    figure = Figure(figsize=(12, 1.6 + depth), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(low - margin, high + margin), ylim=(-depth, 1.2))
    axes.axis("off")
    axes.plot([low, high], [0.0, 0.0], color="black", linewidth=1.2)
    for tick in range(low, high + 1, 1 + (high - low) // MOST_TICKS):
        axes.plot([tick, tick], [0.0, 0.07], color="black", linewidth=1.0)
        axes.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=9)
    middle = (low + high) / 2
    ends = [middle - ranks.critical / 2, middle + ranks.critical / 2]
    axes.plot(ends, [0.6, 0.6], color="black", linewidth=2.2)
    said = f"critical difference {ranks.critical:.2f} (Nemenyi, 5 %) of mean ranks over {ranks.blocks} blocks"
    axes.text(middle, 0.7, said, ha="center", va="bottom", fontsize=10)
    for number, (first, last) in enumerate(bars):
        level = -BAR * (number + 1)
        axes.plot([first, last], [level, level], color="#777777", linewidth=3.0, solid_capstyle="butt")
    for place, (name, rank) in enumerate(ordered):
        left = place < half
        row = place if left else len(ordered) - 1 - place
        level = -BAR * (len(bars) + 1) - LINE * (row + 1)
        edge, toward = (low, "right") if left else (high, "left")
        colour = COLOURS[0] if name == subject else "black" if name in OURS else COLOURS[1]
        weight = "bold" if name == subject else "normal"
        short = name.removesuffix("@ledger")
        text = f"{short}  {rank:.2f} " if left else f" {rank:.2f}  {short}"
        axes.plot([rank, rank, edge], [0.0, level, level], color=colour, linewidth=0.8)
        axes.text(edge, level, text, ha=toward, va="center", fontsize=10, color=colour, fontweight=weight)
    return figure


def learning_curves(summary: Summary, coloured: dict[str, str]) -> Figure:
    """Draw kappa so far over the instances seen, a row per model and a column per stream, without delay if there is."""
    delay = min(block.delay for block in summary.blocks)
    rates = {block.rate for block in summary.blocks}
    rate = CURVE_RATE if CURVE_RATE in rates else min(rates)
    streams = sorted({block.stream for block in summary.blocks})
    models = [model for model, of in summary.sets() if of == delay]
    figure, grid = panels(len(models), len(streams))
    for row, model in zip(grid, models, strict=True):
        for axes, stream in zip(row, streams, strict=True):
            [block] = summary.where(stream=stream, model=model, delay=delay, rate=rate)
            for name in (*summary.contenders, FULL):
                runs = summary.runs_of(block, name)
                points = points_of([run.curve for run in runs], runs[0].seen)
                axes.plot(*zip(*points, strict=True), **line(name, coloured))
            axes.set_title(f"{stream}: {column(model, delay)}", fontsize=9)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return finished(figure, grid, coloured, "instances seen", f"kappa so far at {rate:.0%}")


def label_curves(summary: Summary, coloured: dict[str, str]) -> Figure:
    """Draw the mean kappa over the labels really asked for, a panel per model and delay; dotted is the goal."""
    sets = summary.sets()
    figure, grid = panels(1, len(sets))
    for axes, (model, delay) in zip(grid[0], sets, strict=True):
        rates = sorted({block.rate for block in summary.where(model=model, delay=delay)})
        for name in summary.contenders:
            points = [
                (
                    fmean(run.asked / run.seen for block in blocks for run in summary.runs_of(block, name)),
                    summary.mean(name, blocks).mean,
                )
                for blocks in (summary.where(model=model, delay=delay, rate=rate) for rate in rates)
            ]
            axes.plot(*zip(*points, strict=True), marker=".", **line(name, coloured))
        full = summary.mean(FULL, summary.where(model=model, delay=delay)).mean
        axes.axhline(full, color="black", linewidth=1.2)
        axes.axhline(GOAL * full, color="black", linewidth=0.8, linestyle=":")
        # Who asks for less than half of the least rate would squeeze all the others together.
        axes.set(xscale="log", xlim=(rates[0] / 2, rates[-1] * 2))
        axes.set_xticks(rates, [f"{rate:.0%}" for rate in rates])
        axes.minorticks_off()
        axes.set_title(column(model, delay), fontsize=10)
    return finished(figure, grid, coloured, "labels asked for", "mean kappa over the streams")


def panels(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(9.0, 2.9 * columns), 1.2 + 2.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def line(name: str, coloured: dict[str, str]) -> dict[str, Any]:
    """Return how the line of a contender looks."""
    if name == FULL:
        return {"color": "black", "linewidth": 1.2, "zorder": 3}
    if name in coloured:
        first = name == next(iter(coloured))
        return {"color": coloured[name], "linewidth": 2.4 if first else 1.5, "zorder": 5 if first else 4}
    return {"color": GREY, "linewidth": 0.6, "zorder": 1}


def finished(figure: Figure, grid: Any, coloured: dict[str, str], xlabel: str, ylabel: str) -> Figure:
    """Label the outer axes and put one legend under all panels."""
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel(xlabel, fontsize=9)
    for row in grid:
        row[0].set_ylabel(ylabel, fontsize=9)
    keys = [*((name, line(name, coloured)) for name in coloured), (FULL, line(FULL, coloured))]
    handles = [grid[0][0].plot([], [], **look, label=name)[0] for name, look in keys]
    handles += grid[0][0].plot([], [], **line("", coloured), label="others")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def points_of(curves: Sequence[Sequence[float]], seen: int) -> list[tuple[float, float]]:
    """Return the mean of curves of equal length with the instances seen at each point.

    >>> points_of([[0.0, 0.5], [0.5, 1.0]], 10)
    [(5.0, 0.25), (10.0, 0.75)]
    """
    count = len(curves[0])
    return [(seen * (at + 1) / count, fmean(curve[at] for curve in curves)) for at in range(count)]
