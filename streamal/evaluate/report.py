"""Results as people want them: a table in the terminal, a picture of the learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from streamal.errors import ConfigError
from streamal.evaluate.simulate import Simulation

SHOWN: Final = ("accuracy", "kappa", "macro_f1", "balanced_accuracy", "log_loss", "mae", "rmse", "r2")
KNOWN: Final = "What the answers alone say of the accuracy on all instances, 95 % interval:"
DOTS: Final = 120
"""Per inch; makes pictures of 1080 by 600."""
COLOURS: Final = ("#1b6ca8", "#c4572f", "#3c8d5a", "#7a5195", "#b8860b", "#5c5c5c", "#a83279")


def spread(values: Sequence[float | None]) -> str:
    """Return the mean, and in a second line the standard deviation when there are several values.

    >>> spread([0.5]), spread([0.5, 0.7]).splitlines(), spread([None])
    ('0.500', ['0.600', '±.141'], '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.3f}" + (f"\n±{stdev(known):.3f}".replace("±0.", "±.") if len(known) > 1 else "")


def table(results: Mapping[str, Sequence[Simulation]]) -> Group:
    """Return one line per strategy, narrow enough for 80 columns: what was spent beside what was reached."""
    every = [run for runs in results.values() for run in runs]
    shown = [name for name in SHOWN if any(run.scores[name] is not None for run in every)]
    found = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("strategy", "asked", "spent", *shown):
        justify: JustifyMethod = "left" if name == "strategy" else "right"
        found.add_column(name.replace("_", "\n"), justify=justify, vertical="top", no_wrap=True)
    for strategy, runs in results.items():
        asked = f"{fmean(run.asked for run in runs):,.0f}"
        spent = f"{fmean(run.spent_ratio for run in runs):.1%}"
        found.add_row(strategy, asked, spent, *(spread([run.scores[name] for run in runs]) for name in shown))
    parts: list[RenderableType] = [Text(f"{_title(every)}\n"), found]
    if any(run.estimates.measures for run in every) and "accuracy" in shown:
        parts += [Text(f"\n{KNOWN}\n"), _known(results)]
    return Group(*parts, Text(f"\n{_caption(every)}"))


def _known(results: Mapping[str, Sequence[Simulation]]) -> Table:
    """Return one line per strategy: the true accuracy beside what a service could have said of it."""
    found = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("strategy", "accuracy", "estimated", "from", "to", "answered\nonly"):
        justify: JustifyMethod = "left" if name == "strategy" else "right"
        found.add_column(name, justify=justify, vertical="top", no_wrap=True)
    for strategy, runs in results.items():
        summaries = [run.summary() for run in runs]
        columns = ("accuracy", "estimated_accuracy", "estimated_low", "estimated_high", "naive_accuracy")
        found.add_row(strategy, *(spread([summary[name] for summary in summaries]) for name in columns))
    return found


def _title(runs: Sequence[Simulation]) -> str:
    each = f" with {runs[0].answers_per_request} answers each" if runs[0].answers_per_request > 1 else ""
    return f"{runs[0].model}, {runs[0].instances:,} instances, {runs[0].allowed:,.0f} labels allowed{each}"


def _caption(runs: Sequence[Simulation]) -> str:
    seeds = len({run.seed for run in runs})
    over = f"Means ± standard deviations of {seeds} seeds.\n" if seeds > 1 else ""
    worst = max(run.max_overshoot for run in runs)
    if worst <= 0:
        return over + "The budget held at every prefix."
    return over + f"The budget was exceeded by up to {worst:,.2f} labels."


def plot(results: Mapping[str, Sequence[Simulation]], path: Path, *, title: str) -> None:
    """Draw the score over the instances, one line per strategy, as a PNG.

    Raises:
        ConfigError: matplotlib is not installed, or the picture cannot be written.
    """
    measure = "kappa" if any(run.scores["kappa"] is not None for runs in results.values() for run in runs) else "mae"
    curves = {
        f"{strategy} ({fmean(run.asked for run in runs):,.0f} labels)": [
            [(point.seen, point.scores[measure]) for point in run.curve] for run in runs
        ]
        for strategy, runs in results.items()
    }
    draw(curves, path, title=title, ylabel=f"prequential {measure}")


def draw(
    curves: Mapping[str, Sequence[Sequence[tuple[int, float | None]]]], path: Path, *, title: str, ylabel: str
) -> None:
    """Draw named groups of curves: the mean as a line, the range of its group as a band.

    Raises:
        ConfigError: see `plot`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import StrMethodFormatter
    except ImportError:
        message = "a picture needs matplotlib: pip install 'streamal[plot]'"
        raise ConfigError(message) from None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for (name, group), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        seen = [point[0] for point in group[0]]
        columns = [[run[i][1] or 0.0 for run in group] for i in range(len(seen))]
        axes.plot(seen, [fmean(column) for column in columns], color=colour, label=name, linewidth=1.8)
        if len(group) > 1:
            axes.fill_between(seen, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15)
    axes.set(title=title, xlabel="instances seen", ylabel=ylabel)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    try:
        figure.savefig(path, format="png", dpi=DOTS)
    except OSError as error:
        message = f"{path}: the picture cannot be written ({error.strerror})"
        raise ConfigError(message) from None
