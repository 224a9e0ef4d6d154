"""Results as people want them: a table in the terminal, a picture of the learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from rich.table import Table

from streamal.errors import ConfigError
from streamal.evaluate.simulate import Simulation

SHOWN: Final = ("accuracy", "kappa", "macro_f1", "balanced_accuracy", "log_loss", "mae", "rmse", "r2")
COLOURS: Final = ("#1b6ca8", "#c4572f", "#3c8d5a", "#7a5195", "#b8860b", "#5c5c5c", "#a83279")


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation, or the value alone when there is one.

    >>> spread([0.5]), spread([0.5, 0.7]), spread([None])
    ('0.500', '0.600 ± 0.141', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def table(results: Mapping[str, Sequence[Simulation]]) -> Table:
    """Return one line per strategy: what was spent beside what was reached, over its seeds."""
    shown = [name for name in SHOWN if any(run.scores[name] is not None for runs in results.values() for run in runs)]
    found = Table(title="What was spent, and what was reached (mean ± standard deviation over seeds)")
    for name in ("strategy", "asked", "allowed", "spent", "overshoot", *shown):
        found.add_column(name.replace("_", " "), justify="left" if name == "strategy" else "right")
    for strategy, runs in results.items():
        found.add_row(
            strategy,
            f"{fmean(run.asked for run in runs):,.0f}",
            f"{fmean(run.allowed for run in runs):,.1f}",
            f"{fmean(run.spent_ratio for run in runs):.1%}",
            f"{max(0.0, *(run.max_overshoot for run in runs)):.0f}",
            *(spread([run.scores[name] for run in runs]) for name in shown),
        )
    return found


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
        figure.savefig(path, dpi=120)
    except OSError as error:
        message = f"{path}: the picture cannot be written ({error.strerror})"
        raise ConfigError(message) from None
