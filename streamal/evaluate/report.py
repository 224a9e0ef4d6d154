"""Results as people want them: a table in the terminal, a picture of the learning curves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from streamal.errors import ConfigError
from streamal.evaluate.advise import Advice, Difference, Trial
from streamal.evaluate.estimate import why_unknown
from streamal.evaluate.simulate import Simulation, lead, measure_of
from streamal.web.status import Estimates

SHOWN: Final = ("accuracy", "kappa", "macro_f1", "balanced_accuracy", "log_loss", "mae", "rmse", "r2")
KNOWN: Final[Mapping[str, str]] = {
    "accuracy": "What the answers alone say of the accuracy on all instances, 95 % interval:",
    "mae": "What the answers alone say of the error on all instances, 95 % interval:",
}
RECALLED: Final = "Recall of each class, the rarest first, beside its share of the rows:"
MOST_CLASSES: Final = 20
ABREAST: Final = 4
"""Strategies beside each other in 80 columns, whatever they are called, where classes take `LONGEST_CLASS`."""
LONGEST_CLASS: Final = 16
BESIDE: Final = "Random sampling with exactly as many labels:"
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
    found = _columns("strategy", "asked", "spent", *(name.replace("_", "\n") for name in shown))
    for strategy, runs in results.items():
        asked = f"{fmean(run.asked for run in runs):,.0f}"
        spent = f"{fmean(run.spent_ratio for run in runs):.1%}"
        found.add_row(strategy, asked, spent, *(spread([run.scores[name] for run in runs]) for name in shown))
    parts: list[RenderableType] = [Text(f"{_title(every)}\n"), found]
    if any(run.controls for run in every):
        parts += [Text(f"\n{BESIDE}\n"), _beside(results)]
    measure = next(name for name in KNOWN if name in shown)
    parts += [Text(f"\n{KNOWN[measure]}\n"), *_known(results, measure)]
    if every[0].recall:
        parts += [Text(f"\n{RECALLED}\n"), *_recalled(results)]
    return Group(*parts, Text(f"\n{_caption(every)}"), *map(Text, _remarks(results)))


def _columns(*names: str) -> Table:
    """Return a table with columns of figures, the first of names."""
    found = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        justify: JustifyMethod = "right" if number else "left"
        found.add_column(name, justify=justify, vertical="top", no_wrap=True)
    return found


def _beside(results: Mapping[str, Sequence[Simulation]]) -> Table:
    """Return one line per strategy that has controls: what it reached, what they did, and by how much it leads."""
    measure = measure_of([run for runs in results.values() for run in runs])
    found = _columns("strategy", "asked", measure, "random", "lead", "random\nruns")
    for strategy, runs in results.items():
        pairs = [(run, control) for run in runs for control in run.controls]
        if pairs:
            leads = [lead(run, control, measure) for run, control in pairs]
            ours, theirs = ([run.scores[measure] for run in side] for side in (runs, [other for _, other in pairs]))
            asked = f"{fmean(run.asked for run in runs):,.0f}"
            found.add_row(strategy, asked, spread(ours), spread(theirs), spread(leads), str(len(pairs)))
    return found


def _known(results: Mapping[str, Sequence[Simulation]], measure: str) -> list[RenderableType]:
    """Return one line per strategy: the true figure beside what a service could have said of it, and what it rests on.

    `gain` is what is estimated that the later half of the labels brought, `up to` the most it can be.
    """
    found = _columns("strategy", measure, "esti-\nmated", "from", "to", "answered\nonly", "gain", "up to")
    columns = (measure, f"estimated_{measure}", "estimated_low", "estimated_high", f"naive_{measure}")
    gain = ("estimated_improvement", "improvement_high")
    limits: list[str] = []
    for strategy, runs in results.items():
        if any(run.estimates.measures for run in runs):
            summaries = [run.summary() for run in runs]
            found.add_row(strategy, *(spread([summary[name] for summary in summaries]) for name in (*columns, *gain)))
        limits += (f"{strategy}: {limit}" for limit in _limits([run.estimates for run in runs]))
    return [*([found] if found.row_count else []), *map(Text, limits)]


def _limits(found: Sequence[Estimates]) -> Iterator[str]:
    """Say of one strategy's estimates where there are none, and that not all requests were answered."""
    if unknown := [one for one in found if not one.measures]:
        seeds = f" in {len(unknown)} of {len(found)} seeds" if len(found) > 1 else ""
        yield f"unknown{seeds}{why_unknown(min(unknown, key=attrgetter('audit_labels')))}."
    shares = [fmean(one.response.get(name, 1.0) for one in found) for name in ("selected", "rest")]
    if min(shares) < 1.0:
        yield f"answered were {shares[0]:.1%} of the requests the model chose, {shares[1]:.1%} of those left to chance."


def _recalled(results: Mapping[str, Sequence[Simulation]]) -> Iterator[RenderableType]:
    """Yield tables of a few strategies, with one line per class."""
    [first, *_], *_ = results.values()
    shown, strategies = list(first.recall.items())[:MOST_CLASSES], list(results)
    for start in range(0, len(strategies), ABREAST):
        some = strategies[start : start + ABREAST]
        if start:
            yield Text()
        found = _columns("class", "share", *(name.replace("_", "\n") for name in some))
        for label, (_, share) in shown:
            name = label if len(label) <= LONGEST_CLASS else f"{label[: LONGEST_CLASS - 1]}…"
            values = (spread([run.recall[label].value for run in results[strategy]]) for strategy in some)
            found.add_row(Text(name), f"{share:.1%}", *values)
        yield found
    if more := len(first.recall) - len(shown):
        yield Text(f"{more:,} more are in --json.")


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


def _remarks(results: Mapping[str, Sequence[Simulation]]) -> Iterator[str]:
    """Say what the figures themselves do not: where the loan was spent, and where nothing was learned."""
    for strategy, runs in results.items():
        if any(run.loan and run.asked > run.allowed + 1.0 for run in runs):
            loan = f"the first {runs[0].loan:,} labels are the cold-start loan"
            yield f"{strategy} asked for more than the rate allows: {loan}."
        if any(not run.learned for run in runs):
            cause = "no answer came" if any(run.asked for run in runs) else "it asked for nothing"
            yield f"{strategy} learned nothing, since {cause}: its scores are those of a model without labels."


def advice(found: Advice) -> Group:
    """Return what is advised: the evidence in three tables, and the words; a config to paste goes below."""
    measure = found.ceiling.measure
    pairs = _columns("model", "strategy", "seeds", measure)
    for trial in found.pairs:
        model, strategy, _ = trial.candidate
        pairs.add_row(model, strategy, str(len(trial.scores)), spread(trial.scores))
    rates = _columns("rate", "labels", measure, "of full\nsupervision", "gain over the rate before")
    for trial, step in zip(found.rates, (None, *found.steps), strict=True):
        share = trial.score / found.ceiling.score if found.ceiling.score else 0.0
        label, asked = f"{trial.candidate.rate:g}", f"{trial.asked:,.0f}"
        rates.add_row(label, asked, spread(trial.scores), f"{share:.0%}", difference(step) if step else "")
    rates.add_row("1", f"{found.ceiling.asked:,.0f}", spread(found.ceiling.scores), "", "")
    held = _columns("on the later half", "labels", measure, "the choice leads by")
    beside = (("random, as many labels", found.held.random), ("all labels", found.held.ceiling))
    second = found.held.runner_up
    rows = (("the choice", found.held.chosen), *beside, *([(_name(second, "\n"), second)] if second else ()))
    for name, trial in rows:
        led = "" if trial is found.held.chosen else difference(found.held.chosen.over(trial))
        held.add_row(name, f"{trial.asked:,.0f}", spread(trial.scores), led)
    seeds, rate = len(found.ceiling.scores), found.pairs[0].candidate.rate
    half = found.rows // 2
    return Group(
        Text(f"{half:,} rows chosen on, {found.rows - half:,} judged on; means ± standard deviations of seeds.\n"),
        Text(f"Models and strategies at {rate:g}, the worse half left out by and by:\n"),
        pairs,
        Text("\nWhat each further rate buys, with the chosen two:\n"),
        rates,
        Text("\nThe choice on rows that it was not chosen by:\n"),
        held,
        Text("\n" + "\n".join(f"- {line}" for line in in_words(found))),
        Text(f"\nDifferences: mean of {seeds} seeds on the same rows, 95 % interval. To use it:\n"),
    )


def difference(found: Difference) -> str:
    """Return a difference with its interval.

    >>> difference(Difference(0.031, 0.012, 0.05)), difference(Difference(0.01, -0.02, 0.04))
    ('+0.031 (+0.012 to +0.050)', '+0.010 (-0.020 to +0.040), noise')
    """
    form = "+.3f" if max(-found.low, found.high) < 100.0 else "+.4g"  # errors have the unit of what is predicted
    noise = ", noise" if found.noise else ""
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}}){noise}"


def in_words(found: Advice) -> list[str]:
    """Say in sentences what is advised, why, and what speaks against relying on it."""
    model, strategy, rate = found.chosen
    chosen = next(trial for trial in found.rates if trial.candidate == found.chosen)
    lines = [f"Advice: {strategy} on {model} at {rate:g} labels per instance."]
    if found.better:
        best = _name(found.pairs[0])
        lines.append(f"{best} led by {difference(found.better)}: what is configured, or simpler, is preferred.")
    if chosen.nearly(found.ceiling):
        more = [trial.over(chosen).low > 0.0 for trial in found.rates if trial.candidate.rate > rate]
        still = "; higher ones still buy something" if any(more) else ""
        lines.append(f"The rate is the lowest that comes within 5 % of full supervision{still}.")
    elif chosen is found.rates[-1]:
        lines.append("The rate is the highest that was tried, and it still buys something: see what a label costs you.")
    else:
        lines.append("The rate is the lowest that no higher one beats beyond noise.")
    second = found.held.runner_up
    if second and found.held.chosen.over(second).noise:
        lines.append(f"The runner-up, {_name(second)}, is within noise on the later half.")
    return lines + found.doubts


def _name(trial: Trial, between: str = " ") -> str:
    return f"{trial.candidate.strategy}{between}on {trial.candidate.model}"


def plot(results: Mapping[str, Sequence[Simulation]], path: Path, *, title: str) -> None:
    """Draw the score over the instances, one line per strategy, as a PNG.

    Raises:
        ConfigError: matplotlib is not installed, or the picture cannot be written.
    """
    measure = measure_of([run for runs in results.values() for run in runs])
    curves = {
        f"{strategy} ({fmean(run.asked for run in runs):,.0f} labels)": [
            [(point.seen, point.scores[measure]) for point in run.curve] for run in runs
        ]
        for strategy, runs in results.items()
    }
    draw(curves, path, title=title, ylabel=f"prequential {measure}")


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be made, before there is anything to draw.

    Raises:
        ConfigError: matplotlib is not installed, or the folder is none or cannot be written to.
    """
    if find_spec("matplotlib") is None:
        message = "a picture needs matplotlib: pip install 'streamal[plot]'"
        raise ConfigError(message)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        cause = "not a folder that can be written to" if path.parent.exists() else "no such folder"
        message = f"{path}: the picture cannot be written, since {path.parent} is {cause}"
        raise ConfigError(message)


def draw(
    curves: Mapping[str, Sequence[Sequence[tuple[int, float | None]]]], path: Path, *, title: str, ylabel: str
) -> None:
    """Draw named groups of curves: the mean as a line, the range of its group as a band.

    Raises:
        ConfigError: see `plot`.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

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
