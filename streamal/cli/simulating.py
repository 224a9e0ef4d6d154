"""`streamal simulate`: strategies and models on a labelled file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from streamal.cli.opening import changed, config_option, settings_of
from streamal.cli.wording import examples, warn

if TYPE_CHECKING:
    from streamal.annotate.oracle import DelayDistribution, Oracle
    from streamal.evaluate.advise import Advice
    from streamal.evaluate.stream import Row
    from streamal.settings import Settings

DELAYS: Final = ("constant", "exponential", "lognormal")
MEASURED: Final = ("model", "strategy", "budget", "learn", "annotation", "drift")
"""Sections of the config that a simulation's figures rest on."""


@click.command(
    epilog=examples(
        "streamal simulate stream.csv.gz --rate 0.05",
        "streamal simulate stream.csv --strategy class_conditional --strategy random",
        "streamal simulate stream.csv --seed 0 --seed 1 --seed 2 --plot curves.png",
        "streamal simulate stream.csv --delay 500 --delay-distribution lognormal",
        "streamal simulate stream.csv --answers-per-request 3 --annotator-error 0.2",
        "streamal simulate stream.csv --unlabelled-share 0.2 --self-training 0.95",
        "streamal simulate stream.jsonl --label fraud --model gaussian_nb --json",
        "streamal simulate stream.csv.gz --advise",
    )
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rate", type=float, help="Labels per instance; budget.rate by default.")
@click.option("--strategy", "strategies", multiple=True, help="Query strategy; repeat to compare several.")
@click.option(
    "--model", "models", multiple=True, help="Preset of the model; model.kind by default. Repeat it with --advise."
)
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed of the coin; repeat for mean and spread.")
@click.option("--label", help="Name of the label's column; instance.label by default, or else target.")
@click.option("--delay", type=click.IntRange(0), default=0, show_default=True, help="Rows until an answer comes.")
@click.option(
    "--delay-distribution",
    type=click.Choice(DELAYS),
    default=DELAYS[0],
    show_default=True,
    help="Of delays whose mean is --delay; all but constant ones mix up the order.",
)
@click.option("--loan", type=click.IntRange(0), help="Cold-start loan; budget.cold_start_loan by default.")
@click.option(
    "--annotator-error", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of wrong answers."
)
@click.option(
    "--answers-per-request",
    type=click.IntRange(1, 9),
    help="Annotators who answer each request; annotation.answers_per_request by default.",
)
@click.option("--no-answer", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share never answered.")
@click.option(
    "--unlabelled-share",
    type=float,
    help="Share of the other instances that are learned from without a label; learn.unlabelled_share by default.",
)
@click.option(
    "--self-training",
    type=float,
    help="Probability from which on the model's prediction is learned as their label; learn.self_training by default.",
)
@click.option("--rows", type=click.IntRange(1), help="Use the first rows only.")
@click.option(
    "--control/--no-control",
    default=True,
    show_default=True,
    help="Also run random sampling with as many labels, to compare with.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the learning curves as a PNG.")
@click.option("--advise", is_flag=True, help="Recommend model, strategy and rate instead, with the evidence.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run instead of a table.")
@config_option
def simulate(
    file: Path,
    rate: float | None,
    strategies: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    label: str | None,
    delay: int,
    delay_distribution: DelayDistribution,
    loan: int | None,
    annotator_error: float,
    answers_per_request: int | None,
    no_answer: float,
    unlabelled_share: float | None,
    self_training: float | None,
    rows: int | None,
    control: bool,
    plot: Path | None,
    advise: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Evaluate strategies and models on a labelled FILE.

    FILE is csv or jsonl, plain or .gz. Instances stand in it as [instance] in the config says, or flat; what is named
    there as id and display is no feature. Each row is predicted, scored, decided on, and learned if its label was asked
    for and the answer has come: the scores are those of a model that has never seen the row.

    With --advise models and strategies, those that are named or some that go with the file, are compared at the rate,
    and the chosen ones at a quarter to four times of it. They are chosen on the earlier half of FILE, and judged on the
    later one.
    """
    from streamal import assemble
    from streamal.annotate.oracle import Oracle
    from streamal.evaluate import report
    from streamal.evaluate.advise import Candidate
    from streamal.evaluate.simulate import CONTROLS

    if delay_distribution != DELAYS[0] and not delay:
        message = (
            f"--delay-distribution {delay_distribution} spreads delays whose mean is --delay, which is 0: set it too"
        )
        raise click.UsageError(message)
    strategies, models = tuple(dict.fromkeys(strategies)), tuple(dict.fromkeys(models))
    seeds = tuple(dict.fromkeys(seeds))
    base = settings_of(config)
    label = label or base.instance.label or "target"
    base = changed(base, "budget", rate=rate, cold_start_loan=loan)
    base = changed(base, "annotation", answers_per_request=answers_per_request)
    base = changed(base, "learn", unlabelled_share=unlabelled_share, self_training=self_training)
    if advise:
        if plot:
            message = "--plot draws learning curves of strategies, and --advise has none; leave one of them out"
            raise click.UsageError(message)
        oracle = Oracle(delay, annotator_error, no_answer, 0, delay_distribution)
        grid = assemble.grid_of(base, models=models, strategies=strategies, seeds=_advising(seeds))
        first = assemble.tried(base, Candidate(*grid.pairs[0], grid.rate), grid.seeds[0])
        stream = _rows_of(file, first, oracle, label, rows)
        found = assemble.advise_on(base, oracle, stream, grid, quiet=as_json)
        used = assemble.tried(base, found.chosen, base.strategy.seed)
        _print_advice(found, _snippet(used), as_json)
        return
    if len(models) > 1:
        message = f"--model {models[1]}: one model is simulated at a time; several are compared by --advise"
        raise click.UsageError(message)
    [model] = models or (assemble.model_name(base),)
    runs = [
        assemble.tried(base, Candidate(model, name, base.budget.rate), seed)
        for name in strategies or (base.strategy.name,)
        for seed in seeds or (base.strategy.seed,)
    ]
    for one in runs:
        assemble.check(one)
    oracles = [Oracle(delay, annotator_error, no_answer, run.strategy.seed, delay_distribution) for run in runs]
    controls = -(-CONTROLS // max(1, len(seeds))) if control else 0
    if plot:
        report.check_picture(plot)
    stream = _rows_of(file, runs[0], oracles[0], label, rows)
    results = assemble.simulate_all(runs, oracles, stream, controls=controls, quiet=as_json)
    if as_json:
        import orjson

        for result in results:
            click.echo(orjson.dumps(result.summary()))
    else:
        _print_table(results)
    if plot:
        title = f"{file.name}: {results[0].model} at {results[0].rate:g} labels per instance"
        report.plot(_by_strategy(results), plot, title=title)
        click.echo(f"learning curves: {plot}", err=as_json)


def _rows_of(file: Path, settings: Settings, oracle: Oracle, label: str, rows: int | None) -> list[Row]:
    """Read the rows for a model, and say what is unlikely to be meant."""
    from streamal import assemble
    from streamal.evaluate.stream import numeric

    task = assemble.check(settings).task
    oracle.check(task)
    warn(settings)
    found = assemble.read_whole(file, settings, task, label=label, rows=rows)
    if count := numeric(found):
        click.echo(
            f"warning: {count:,} distinct numeric labels are taken for as many classes; did you mean --model "
            "linear_regression, or another --label?",
            err=True,
        )
    return found


def _advising(seeds: tuple[int, ...]) -> tuple[int, ...]:
    from streamal.evaluate.advise import SEEDS

    found = seeds or tuple(range(SEEDS))
    if len(found) < 2:
        message = "--advise needs at least two seeds, since one alone cannot tell a difference from noise"
        raise click.UsageError(message)
    return found


def _snippet(settings: Settings) -> str:
    """Return what was simulated as a part of streamal.toml: what is advised, and all that differs from its default."""
    from streamal.settings import toml_value

    always = {("model", "factory" if settings.model.factory else "kind"), ("strategy", "name"), ("budget", "rate")}
    tables = []
    for section in MEASURED:
        values = getattr(settings, section)
        usual = type(values)().model_dump(mode="json")
        lines = [
            f"{name} = {toml_value(value)}"
            for name, value in values.model_dump(mode="json").items()
            if (section, name) in always or (value is not None and value != usual[name])
        ]
        if lines:
            tables.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(tables)


def _print_advice(advice: Advice, snippet: str, as_json: bool) -> None:
    if as_json:
        import orjson

        click.echo(orjson.dumps({**advice.as_json(), "config": snippet}))
        return
    from rich.console import Console

    from streamal.evaluate import report

    Console(highlight=False).print(report.advice(advice))
    click.echo(snippet)  # as it is, since a line that was wrapped could not be pasted


def _by_strategy(results: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for result in results:
        found.setdefault(result.strategy, []).append(result)
    return found


def _print_table(results: list[Any]) -> None:
    from rich.console import Console

    from streamal.evaluate import report

    Console().print(report.table(_by_strategy(results)))
