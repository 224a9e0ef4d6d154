"""The commands: parse, call, print; nothing else. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from streamal.errors import StreamalError, TransportError, exit_codes

if TYPE_CHECKING:
    from rich.table import Table

    from streamal.annotate.oracle import DelayDistribution
    from streamal.evaluate.advise import Advice
    from streamal.evaluate.agreement import Agreement
    from streamal.service.control import Change
    from streamal.service.inspection import Inspection
    from streamal.service.verify import Report
    from streamal.settings import Budget, Settings
    from streamal.transport.log import Log

DEFAULT_CONFIG: Final = Path("streamal.toml")
DELAYS: Final = ("constant", "exponential", "lognormal")
TOPICS: Final = (
    "instances",
    "label-requests",
    "answers",
    "outcomes",
    "decisions",
    "dead-letters",
    "predictions",
    "snapshots",
    "control",
)


class Commands(click.Group):
    """A group whose commands end with a readable message and a named exit code instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except StreamalError as error:
            click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
            sys.exit(error.exit_code)


def examples(*lines: str) -> str:
    """Return the examples of a help text.

    >>> examples("streamal demo").splitlines()[-1]
    '  streamal demo'
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def endings() -> str:
    """Return the exit codes for a help text.

    >>> endings().splitlines()[4]
    '  2  the config or the command line is wrong'
    """
    said = {0: "asked to end"} | {code: error.ending for code, error in exit_codes().items()}
    return "\n".join(["\b", "Exit codes:", *(f"  {code}  {text}" for code, text in said.items())])


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-c/--config`; without it `streamal.toml` is read where it exists, else the defaults hold."""
    return click.option(
        "-c",
        "--config",
        "config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="STREAMAL_CONFIG",
        help="TOML file; by default streamal.toml, if there is one. Variables, as STREAMAL__BUDGET__RATE, win over it.",
    )(command)


def settings_of(config: Path | None) -> Settings:
    """Load the settings of a command."""
    from streamal.settings import load

    return load(config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None))


def absent(settings: Settings) -> bool:
    """Say whether the embedded log has yet to be made."""
    return settings.transport.kind == "embedded" and not Path(settings.transport.path).exists()


@contextmanager
def opened(settings: Settings) -> Iterator[Log]:
    """Open the log for a command that looks at it: none is made where there is none.

    Raises:
        TransportError: there is none, or it cannot be reached.
    """
    from streamal import assemble

    if absent(settings):
        path = settings.transport.path
        message = (
            f"{path}: there is no log yet; `streamal run` or `streamal topics create` makes it, or see transport.path"
        )
        raise TransportError(message)
    with closing(assemble.open_log(settings)) as log:
        yield log


def inspection_of(settings: Settings, log: Log) -> Inspection:
    """Return what looks at a stream from outside."""
    from streamal import assemble
    from streamal.service.inspection import Inspection

    return Inspection(log, assemble.topics_of(settings), settings.transport.group, settings.budget.rate)


def table(*columns: str, left: int = 1) -> Table:
    """Return an empty table that folds what is too wide and cuts nothing; the columns after `left` are of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        found.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return found


def show_table(found: Table) -> None:
    """Print a table, as wide as the terminal or COLUMNS, in a pipe 80."""
    from rich.console import Console

    Console().print(found)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "partition"), counted(4, "partition")
    ('1 partition', '4 partitions')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def answers_in_words(settings: Settings) -> list[str]:
    """Say what a request costs where several annotators answer it; nothing where it is one."""
    each = settings.annotation.answers_per_request
    if each == 1:
        return []
    rate = settings.budget.rate
    return [
        f"Each request costs {each} answers: {rate:g} requests per instance are {each * rate:g} answers.",
        "Cost limits count every answer; all other bounds count requests.",
    ]


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("streamal demo", "streamal config init", "streamal run -c streamal.toml"),
)
@click.version_option(package_name="streamal")
def main() -> None:
    """Decide on each instance of a stream whether to ask for its label, within a budget that holds.

    To see it at work: streamal demo. To use it: streamal config init, then streamal run; people answer by streamal
    answer, programs by the topic `answers`.
    """


@main.command(epilog=examples("streamal demo", "streamal demo --serve", "streamal demo --rate 0.01 --seconds 20"))
@click.option("--rate", type=click.FloatRange(0.001, 1.0), default=0.05, show_default=True, help="Labels per instance.")
@click.option(
    "--seconds", type=click.IntRange(5, 50), default=40, show_default=True, help="Time to spread the stream over."
)
@click.option("--serve", is_flag=True, help="Keep running afterwards with the HTTP port open; Ctrl+C ends it.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="HTTP port for --serve.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("streamal-demo.png"),
    show_default=True,
    help="Where to draw the learning curve.",
)
@click.option("--rows", type=click.IntRange(1), help="Use the first rows only.")
def demo(rate: float, seconds: int, serve: bool, port: int, plot: Path, rows: int | None) -> None:
    """See the service at work on a real stream, within a minute.

    It runs as in production, on a temporary embedded log, with a simulated annotator; nothing need be installed or
    running beside it.
    """
    from streamal import demo as demonstration
    from streamal.service import logs

    # that the stream drifts is no news here, and would break the live view
    logs.configure("ERROR", "text")
    demonstration.run(rate=rate, seconds=seconds, port=port if serve else None, plot=plot, rows=rows)


@main.command(
    epilog=f"{endings()}\n\n"
    + examples("streamal run", "streamal run -c streamal.toml --dry-run", "streamal run --no-supervisor")
)
@config_option
@click.option("--dry-run", is_flag=True, help="Check config, log and topics, say what would be done, and end.")
@click.option("--no-supervisor", is_flag=True, help="Run the worker itself, where something else restarts it.")
def run(config: Path | None, dry_run: bool, no_supervisor: bool) -> None:
    """Run a worker: decide, ask and learn, until Ctrl+C or SIGTERM.

    A small parent process restarts the worker when it crashes, unless a restart cannot help. The embedded log and its
    topics are made where there are none; on Kafka `streamal topics create` makes them.
    """
    settings = settings_of(config)
    if dry_run:
        _explain_run(settings)
        return
    from streamal.service import logs

    logs.configure(settings.log.level, settings.log.format)
    if no_supervisor:
        from streamal import assemble
        from streamal.service.process import serve

        sys.exit(serve(assemble.build_service(settings, assemble.open_log(settings))))
    from streamal.service.supervisor import Supervisor

    command = [sys.executable, "-m", "streamal", "run", "--no-supervisor"]
    sys.exit(Supervisor([*command, "--config", str(config)] if config else command).run())


def _explain_run(settings: Settings) -> None:
    from streamal import assemble

    task = assemble.check(settings).task
    topics = assemble.topics_of(settings)
    if absent(settings):
        found = {topic: topics.partitions(settings.transport.partitions)[topic] for topic in topics.used()}
        click.echo(f"log: {settings.transport.path}, which does not exist yet and will be made")
    else:
        with opened(settings) as log:
            assemble.check_rights(settings, log)
            found = {topic: log.partitions(topic) for topic in topics.used()}
    for topic, count in found.items():
        click.echo(f"topic {topic}: {counted(count, 'partition')}")
    topics.check(found)
    plan = assemble.plans_of(settings, task, found[topics.instances])[0]
    click.echo(f"strategy: {plan.strategy} on {settings.model.factory or settings.model.kind} ({task})")
    click.echo(_budget_in_words(settings.budget))
    for line in answers_in_words(settings):
        click.echo(line)
    _warn(settings)
    click.echo("Everything fits together; no worker was started.")


def _warn(settings: Settings) -> None:
    from streamal import assemble

    for warning in assemble.warnings(settings):
        click.echo(f"warning: {warning}", err=True)


def _budget_in_words(budget: Budget) -> str:
    from streamal.settings import format_duration

    bounds = [f"{budget.rate:g} labels per instance", f"cold-start loan {counted(budget.cold_start_loan, 'label')}"]
    for limit in budget.limits:
        most = counted(limit.count, "label") if limit.count else f"a cost of {limit.cost:g}"
        bounds.append(f"at most {most} per {format_duration(limit.per)}")
    return f"budget: {', '.join(bounds)}"


@main.command(epilog=examples("streamal produce instances payments.jsonl", "streamal produce answers answers.jsonl"))
@click.argument("topic", type=click.Choice(["instances", "answers"]))
@click.argument("file", type=click.File("rb"), default="-")
@config_option
def produce(topic: str, file: BinaryIO, config: Path | None) -> None:
    """Append JSON lines of FILE, or of the standard input, to a topic.

    It is how scripts reach the embedded log; with Kafka any producer will do. If a line of
    FILE is no JSON object, nothing is appended; of a pipe the message says how much was.
    """
    from streamal import assemble
    from streamal.service.producing import produce as append

    settings = settings_of(config)
    with closing(assemble.open_log(settings)) as log:
        count = append(log, getattr(settings.topics, topic), file, answers=topic == "answers")
    click.echo(f"{counted(count, 'record')} appended")


@main.command(
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
@click.option("--label", default="target", show_default=True, help="Name of the label's column.")
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
    label: str,
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

    FILE is csv or jsonl, plain or .gz. Each row is predicted, scored, decided on, and learned if its label was asked
    for and the answer has come: the scores are those of a model that has never seen the row.

    With --advise models and strategies, those that are named or some that go with the file, are compared at the rate,
    and the chosen ones at a quarter to four times of it. They are chosen on the earlier half of FILE, and judged on the
    later one.
    """
    from streamal import assemble
    from streamal.annotate.oracle import Oracle
    from streamal.evaluate.simulate import CONTROLS

    base = settings_of(config)
    base = _changed(base, "budget", rate=rate, cold_start_loan=loan)
    model, *more = models or (None,)
    base = _changed(base, "model", kind=model, factory="" if model else None)
    base = _changed(base, "annotation", answers_per_request=answers_per_request)
    base = _changed(base, "learn", unlabelled_share=unlabelled_share, self_training=self_training)
    if advise:
        if plot:
            message = "--plot draws learning curves of strategies, and --advise has none; leave one of them out"
            raise click.UsageError(message)
        oracle = Oracle(delay, annotator_error, no_answer, 0, delay_distribution)
        found = assemble.advise_on(
            base,
            oracle,
            file,
            models=models,
            strategies=strategies,
            seeds=_advising(seeds),
            label=label,
            rows=rows,
            quiet=as_json,
        )
        _print_advice(found, as_json)
        return
    if more:
        message = f"--model {more[0]}: one model is simulated at a time; several are compared by --advise"
        raise click.UsageError(message)
    runs = [
        _changed(base, "strategy", name=name, seed=seed)
        for name in strategies or (base.strategy.name,)
        for seed in seeds or (base.strategy.seed,)
    ]
    for one in runs:
        assemble.check(one)
    oracles = [Oracle(delay, annotator_error, no_answer, run.strategy.seed, delay_distribution) for run in runs]
    controls = -(-CONTROLS // max(1, len(seeds))) if control else 0
    results = assemble.simulate_all(runs, oracles, file, label=label, rows=rows, controls=controls, quiet=as_json)
    if as_json:
        import orjson

        for result in results:
            click.echo(orjson.dumps(result.summary()))
    else:
        _print_table(results)
    if plot:
        from streamal.evaluate import report

        title = f"{file.name}: {results[0].model} at {results[0].rate:g} labels per instance"
        report.plot(_by_strategy(results), plot, title=title)
        click.echo(f"learning curves: {plot}", err=as_json)


def _advising(seeds: tuple[int, ...]) -> tuple[int, ...]:
    from streamal.evaluate.advise import SEEDS

    found = tuple(dict.fromkeys(seeds)) or tuple(range(SEEDS))
    if len(found) < 2:
        message = "--advise needs at least two seeds, since one alone cannot tell a difference from noise"
        raise click.UsageError(message)
    return found


def _print_advice(advice: Advice, as_json: bool) -> None:
    if as_json:
        import orjson

        click.echo(orjson.dumps(advice.as_json()))
        return
    from rich.console import Console

    from streamal.evaluate import report

    Console(highlight=False).print(report.advice(advice))


def _changed(settings: Settings, section: str, **values: Any) -> Settings:
    """Return settings with those values of a section changed that are not None, validated."""
    from streamal.settings import revised

    return revised(settings, section, {name: value for name, value in values.items() if value is not None})


def _by_strategy(results: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for result in results:
        found.setdefault(result.strategy, []).append(result)
    return found


def _print_table(results: list[Any]) -> None:
    from rich.console import Console

    from streamal.evaluate import report

    Console().print(report.table(_by_strategy(results)))


@main.group(epilog=examples("streamal topics create", "streamal topics describe"))
def topics() -> None:
    """Create and look at the topics."""


@topics.command(epilog=examples("streamal topics create", "streamal topics create -c streamal.toml --dry-run"))
@config_option
@click.option("--dry-run", is_flag=True, help="Only say which topics there should be.")
def create(config: Path | None, dry_run: bool) -> None:
    """Create the topics that do not exist.

    Those that do are left as they are, and `instances`, if it is there, decides on the partitions of the others.
    """
    from streamal import assemble

    settings = settings_of(config)
    wanted = assemble.topics_of(settings).partitions(settings.transport.partitions)
    if dry_run:
        for topic, count in wanted.items():
            click.echo(f"{topic}: {counted(count, 'partition')}")
        return
    fresh = absent(settings)
    with closing(assemble.open_log(settings)) as log:
        # opening an embedded log makes them
        made = list(wanted) if fresh else assemble.create_topics(settings, log)
    click.echo(f"created: {', '.join(made)}" if made else "all topics are there")


@topics.command(epilog=examples("streamal topics describe"))
@config_option
def describe(config: Path | None) -> None:
    """Show partitions and offsets of each topic.

    On Kafka a transaction takes one offset more than it has records.
    """
    from streamal import assemble
    from streamal.transport.log import TopicPartition

    settings = settings_of(config)
    found = table("topic", "partitions", "offsets kept", "end of each partition")
    with opened(settings) as log:
        for topic in assemble.topics_of(settings).used():
            bounds = [log.bounds(TopicPartition(topic, p)) for p in range(log.partitions(topic))]
            kept, ends = sum(end - first for first, end in bounds), " ".join(str(end) for _, end in bounds)
            found.add_row(topic, str(len(bounds)), f"{kept:,}", ends)
    show_table(found)


@main.group(epilog=examples("streamal budget show", "streamal budget set rate=0.02", "streamal budget reset rate"))
def budget() -> None:
    """Look at the budget, and change it while the workers run."""


@budget.command("show", epilog=examples("streamal budget show", "streamal budget show --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
def show_budget(as_json: bool, config: Path | None) -> None:
    """Show what the budget is, and who has set it."""
    from streamal.messages import to_iso
    from streamal.service.control import TUNABLE
    from streamal.settings import toml_value

    settings = settings_of(config)
    with opened(settings) as log:
        changes = _changes(settings, log)
    stated = settings.budget.model_dump(mode="json") | {"paused": False}
    rows: list[dict[str, Any]] = [
        {"key": key, "config": stated[key], "in_force": stated[key], "by": None, "at": None}
        if (change := changes.get(key)) is None or change.value is None
        else {"key": key, "config": stated[key], "in_force": change.value, "by": change.by, "at": to_iso(change.at)}
        for key in TUNABLE
    ]
    each = settings.annotation.answers_per_request
    rows.append({"key": "answers_per_request", "config": each, "in_force": each, "by": None, "at": None})
    if as_json:
        import orjson

        click.echo(orjson.dumps({row["key"]: row for row in rows}))
        return
    found = table("key", "in the config", "in force", "set by", "at", left=5)
    for row in rows:
        shown = ("not set" if row[name] is None else toml_value(row[name]) for name in ("config", "in_force"))
        # a space, so that a narrow column breaks between date and time
        found.add_row(row["key"], *shown, row["by"], row["at"] and row["at"].replace("T", " "))
    show_table(found)
    rate = next(row["in_force"] for row in rows if row["key"] == "rate")
    for line in answers_in_words(_changed(settings, "budget", rate=rate)):
        click.echo(line)


@budget.command("set", epilog=examples("streamal budget set rate=0.02", "streamal budget set max_pending=500 rate=0.1"))
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE")
@click.option("--by", help="Who sets it; your user name by default.")
@click.option("--dry-run", is_flag=True, help="Only say whether it would be taken.")
@config_option
def set_budget(values: tuple[str, ...], by: str | None, dry_run: bool, config: Path | None) -> None:
    """Change the budget of all workers while they run.

    It takes about a second and lasts until `budget reset`. Several KEY=VALUE may be given; KEY is rate, burst,
    limits (as JSON, each with `count` or `cost`, and `per`), max_pending or refund_expired. What was earned by then
    stays earned.
    """
    import orjson

    from streamal.settings import toml_value

    wanted: dict[str, Any] = {}
    for text in values:
        key, mark, value = text.partition("=")
        if not mark:
            message = f"{text}: expected KEY=VALUE, such as rate=0.02"
            raise click.UsageError(message)
        try:
            wanted[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            wanted[key] = value
    taken = _order(config, by, wanted, dry_run=dry_run)
    done = ", ".join(f"{key} = {toml_value(value)}" for key, value in taken.items())
    click.echo(f"{done}: {'would be taken' if dry_run else 'set, within about a second'}")


@budget.command("reset", epilog=examples("streamal budget reset rate"))
@click.argument("keys", nargs=-1, required=True, metavar="KEY")
@click.option("--by", help="Who does it; your user name by default.")
@config_option
def reset_budget(keys: tuple[str, ...], by: str | None, config: Path | None) -> None:
    """Go back to what the config says; several KEYs may be given.

    KEY is one of those of `budget set`.
    """
    _order(config, by, dict.fromkeys(keys))
    click.echo(f"{', '.join(keys)}: as in the config again, within about a second")


@main.command(epilog=examples("streamal pause", "streamal pause --by ada"))
@click.option("--by", help="Who does it; your user name by default.")
@config_option
def pause(by: str | None, config: Path | None) -> None:
    """Ask for no labels until `streamal resume`.

    The workers go on: instances are read and count, answers are learned, and allowance is saved up to the burst.
    `streamal status` says that it is paused.
    """
    _order(config, by, {"paused": True})
    click.echo("Paused, within about a second: nothing is asked; instances are still read, and answers learned.")
    click.echo("`streamal status` shows it, `streamal resume` ends it.")


@main.command(epilog=examples("streamal resume"))
@click.option("--by", help="Who does it; your user name by default.")
@config_option
def resume(by: str | None, config: Path | None) -> None:
    """Ask for labels again, beginning with what was saved up."""
    _order(config, by, {"paused": None})
    click.echo("Resumed, within about a second: labels are asked for again; `streamal status` shows how many.")


def _changes(settings: Settings, log: Log) -> dict[str, Change]:
    from streamal.service.control import Change, orders

    found = orders(log, log.reader(), settings.topics.control)
    return {order.key: order for order in found if isinstance(order, Change)}


def _order(config: Path | None, by: str | None, values: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """Check changes against the config and what is in force, put them on the topic `control`, and return them in full.

    So a limit's period stands in the order itself, even where it was left out.
    """
    import time

    from streamal import assemble
    from streamal.service.control import TUNABLE, Change
    from streamal.settings import revised

    settings = settings_of(config)
    if unknown := sorted(values.keys() - set(TUNABLE)):
        message = f"{unknown[0]}: only {', '.join(TUNABLE)} can be changed while running; edit the config and restart"
        raise click.UsageError(message)
    with opened(settings) as log:
        in_force = {key: change.value for key, change in _changes(settings, log).items()}
        wanted = {key: value for key, value in (in_force | values).items() if value is not None}
        task = assemble.check(settings).task
        assemble.replan(settings, task, log.partitions(settings.topics.instances), wanted)
        given = {key: value for key, value in values.items() if value is not None and key != "paused"}
        full = revised(settings, "budget", given).budget.model_dump(mode="json", exclude_none=True)
        values |= {key: full[key] for key in given}
        if dry_run:
            return values
        changes = [Change(key, value, by or _user(), time.time()) for key, value in values.items()]
        with closing(log.writer("control")) as writer:
            writer.append([change.append(settings.topics.control) for change in changes])
    return values


def _user() -> str:
    import getpass

    return getpass.getuser()


@main.command(epilog=examples('streamal skip instances 0 1234 --to 1300 --why "disk fault on broker 2"'))
@click.argument("topic", type=click.Choice(["instances", "answers"]))
@click.argument("partition", type=click.IntRange(0))
@click.argument("offset", type=click.IntRange(0))
@click.option(
    "--to", "following", type=click.IntRange(1), help="The first offset to read again; OFFSET + 1 by default."
)
@click.option("--why", required=True, help="For the audit.")
@click.option("--by", help="Who orders it; your user name by default.")
@config_option
def skip(
    topic: str, partition: int, offset: int, following: int | None, why: str, by: str | None, config: Path | None
) -> None:
    """Leave out records that cannot be read.

    For a corrupt batch that is lost for good, at which a worker ends again and again. OFFSET is where the group
    stands in that partition, as the worker's error says. The next worker that takes
    the partition over at just that place goes on behind them; the audit and a dead letter say who ordered it and
    why. Nothing is ever left out by itself.
    """
    import time

    from streamal.service.control import Skip
    from streamal.transport.log import TopicPartition

    settings = settings_of(config)
    place = TopicPartition(getattr(settings.topics, topic), partition)
    following = offset + 1 if following is None else following
    with opened(settings) as log:
        first, end = log.bounds(place)
        if not first <= offset < following <= end:
            message = f"expected first <= OFFSET < --to <= end, and {place.topic}-{partition} holds {first} to {end}"
            raise click.UsageError(message)
        order = Skip(*place, offset, following, by or _user(), time.time(), why)
        with closing(log.writer("control")) as writer:
            writer.append([order.append(settings.topics.control)])
    click.echo(f"{place.topic}-{partition} goes on at {following} once a worker takes it over at {offset}; restart it")


@main.group(epilog=examples("streamal ledger recover --dry-run"))
def ledger() -> None:
    """Look after the ledgers.

    A partition's ledger says what it has seen and asked for, and lies beside the group's position. Without it a worker
    ends with code 5.
    """


@ledger.command(epilog=examples("streamal ledger recover --dry-run", "streamal ledger recover"))
@click.option("--dry-run", is_flag=True, help="Only say what would be put back.")
@config_option
def recover(dry_run: bool, config: Path | None) -> None:
    """Put lost ledgers and positions back.

    They come from the audit, `decisions`; the workers must be stopped. Ledgers that can be read are left alone.
    """
    from streamal import assemble
    from streamal.service.recovery import Recovery

    settings = settings_of(config)
    with opened(settings) as log:
        recovery = Recovery(log, assemble.topics_of(settings), settings.transport.group)
        found = recovery.look()
        if not dry_run:
            recovery.put_back(found)
    for one in found:
        stands = f"instance {one.position:,}, {one.asked:,} asked of {one.seen:,} seen"
        done = "would be put back" if dry_run else "put back"
        click.echo(f"partition {one.partition}: {f'{one.found}; {done}' if one.found else 'sound'}: {stands}")
    if not found:
        click.echo("There is no history: nothing was decided in these topics.")


@topics.command(
    epilog=examples("streamal topics acls", "streamal topics acls --principal User:streamal --annotator User:ada")
)
@click.option("--principal", help="Whose worker it is; where nobody is named, the user of transport.security.")
@click.option("--producer", help="Who appends instances.")
@click.option("--annotator", help="Who answers.")
@click.option("--operator", help="Who looks at the stream and steers it.")
@config_option
def acls(
    principal: str | None, producer: str | None, annotator: str | None, operator: str | None, config: Path | None
) -> None:
    """Print the commands that give each party its rights.

    They are the least on Kafka with which each works. An administrator runs them, with a login of theirs by
    --command-config. A principal is User:NAME; with a client certificate it is User: and the distinguished name as the
    brokers log it, and with a token its subject.
    """
    from streamal import assemble
    from streamal.service import access
    from streamal.transport.rights import kafka_acls

    settings = settings_of(config)
    if settings.transport.kind == "embedded":
        message = "the embedded log is a file, and its mode says who may use it; rights are Kafka's"
        raise click.ClickException(message)
    others = producer or annotator or operator
    parties = (
        ("worker", principal or (None if others else assemble.principal_of(settings)), access.of_worker),
        ("producer", producer, access.of_producer),
        ("annotator", annotator, access.of_annotator),
        ("operator", operator, access.of_operator),
    )
    for name, who, party in parties:
        if who:
            click.echo(f"# {name}")
            for right in assemble.rights_of(settings, party):
                click.echo(kafka_acls(right, who, settings.transport.bootstrap_servers))


@main.group(epilog=examples("streamal config init", "streamal config check", "streamal config show"))
def config() -> None:
    """Write, check and show the configuration."""


@config.command(epilog=examples("streamal config init", "streamal config init other.toml"))
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_CONFIG)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def init(path: Path, force: bool) -> None:
    """Write a file with every setting, explained, at its default."""
    from streamal.settings import example_toml

    if path.exists() and not force:
        message = f"{path} exists; --force replaces it"
        raise click.ClickException(message)
    path.write_text(example_toml(), encoding="utf-8")
    click.echo(f"wrote {path}")


@config.command(epilog=examples("streamal config check", "STREAMAL__BUDGET__RATE=0.1 streamal config check"))
@config_option
def check(config: Path | None) -> None:
    """Say whether the settings go together.

    Checked are the values, the model, whether the strategy fits it, and each partition's share of the budget. The file
    is --config, else streamal.toml in the working directory; without one it is the defaults that are checked.
    """
    from streamal import assemble

    settings = settings_of(config)
    assemble.check(settings)
    read = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if read:
        click.echo(f"{read} is valid.")
    else:
        click.echo(f"There is no {DEFAULT_CONFIG} in {Path.cwd()}, and --config names no other file.")
        click.echo("So the defaults are in force, which are valid; `streamal config init` writes one to start from.")
    click.echo(_budget_in_words(settings.budget))
    for line in answers_in_words(settings):
        click.echo(line)
    _warn(settings)


@config.command(epilog=examples("streamal config show"))
@config_option
def show(config: Path | None) -> None:
    """Print the settings in force, secrets masked."""
    from streamal.settings import show_toml

    click.echo(show_toml(settings_of(config)), nl=False)


@config.command(epilog=examples("streamal config schema > streamal.schema.json"))
def schema() -> None:
    """Print the JSON Schema of the settings."""
    import orjson

    from streamal.settings import json_schema

    click.echo(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2))


@main.command(
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
    epilog=examples(
        "streamal tail label-requests", "streamal tail dead-letters -n 5", "streamal tail outcomes --follow"
    ),
)
@click.argument("topic", type=click.Choice(TOPICS), metavar="TOPIC")
@click.option("-n", "--number", type=click.IntRange(0), default=10, show_default=True, help="Records per partition.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl+C ends it.")
@config_option
def tail(topic: str, number: int, follow: bool, config: Path | None) -> None:
    """Print the last records of a topic, one JSON object a line.

    TOPIC is instances, label-requests, answers, outcomes, decisions, dead-letters, predictions, snapshots or control,
    whatever name it has in the config. Of snapshots the sizes are printed, not the bytes.
    """
    from streamal.service.inspection import tail as records_of

    settings = settings_of(config)
    key = topic.replace("-", "_")
    name = getattr(settings.topics, key)
    if not name:
        message = f"topics.{key} is switched off; give it a name in the config to have it written"
        raise click.ClickException(message)
    with opened(settings) as log:
        try:
            for line in records_of(log, name, number, follow=follow):
                click.echo(line)
        except KeyboardInterrupt:
            return


@main.command(epilog=examples("streamal answer", "streamal answer --annotator ada --classes ok,fraud"))
@click.option("--annotator", show_default="terminal", help="Your name on the answers.")
@click.option("--classes", default="", help="The classes to choose from, separated by commas; else those known.")
@config_option
def answer(annotator: str | None, classes: str, config: Path | None) -> None:
    """Answer pending label requests here, one key each.

    A digit is a class, and u, i, s and q are unsure, invalid, skip and quit. Each answer is in the log at once.

    Where several annotators answer each request, you need a name of your own, and are shown what you have not answered.
    """
    from streamal import assemble
    from streamal.annotate.terminal import Choices, Terminal

    settings = settings_of(config)
    task = assemble.check(settings).task
    with opened(settings) as log:
        inspection = inspection_of(settings, log)
        known = [name.strip() for name in classes.split(",") if name.strip()] or settings.model.classes
        if strange := set(known) - set(settings.model.classes or known):
            message = f"{', '.join(sorted(strange))}: not in model.classes, so every such answer would be refused"
            raise click.UsageError(message)
        offered = known or (inspection.labels() if task == "classification" else ())
        choices = Choices(tuple(offered), task, closed=bool(settings.model.classes))
        waiting = inspection.waiting(annotator)
        if annotator is None and any(request.answers > 1 for request in waiting):
            message = "requests wait for answers by several annotators: say who you are, by --annotator NAME"
            raise click.UsageError(message)
        given = Terminal(log, settings.topics.answers, annotator or "terminal", choices).answer_all(waiting)
    click.echo(f"{counted(given, 'answer')} given")


@main.command(epilog=examples("streamal explain 0-41", "streamal explain 0-41 --json"))
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print the records themselves.")
@config_option
def explain(request_id: str, as_json: bool, config: Path | None) -> None:
    """Say why a label was asked for, and what became of it.

    REQUEST_ID is `request_id` of a label request: partition and offset of its instance, as in 0-41.
    """
    from streamal.service.inspection import in_words, unasked_in_words

    settings = settings_of(config)
    with opened(settings) as log:
        inspection = inspection_of(settings, log)
        request, outcome = inspection.request(request_id)
        unasked = inspection.unasked(request_id) if request is None else None
    if unasked is not None:
        click.echo(unasked.encode() if as_json else unasked_in_words(unasked))
        return
    if request is None:
        message = f"no label request {request_id} is kept; `streamal tail label-requests` lists the last ones"
        raise click.ClickException(message)
    if as_json:
        click.echo(request.encode())
        if outcome is not None:
            click.echo(outcome.encode())
    else:
        click.echo(in_words(request, outcome))


@main.command(epilog=examples("streamal status", "streamal status --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
def status(as_json: bool, config: Path | None) -> None:
    """Show what was seen, asked and allowed, and the model's quality.

    Per partition: instances seen, labels asked and allowed, requests that wait for an answer (pending), and instances
    not read yet (lag). It is read from the log itself, partition by partition, and so works while the service is down.
    """
    from dataclasses import asdict

    from streamal.messages import to_iso
    from streamal.service.inspection import agreement_in_words, quality_in_words

    settings = settings_of(config)
    with opened(settings) as log:
        inspection = inspection_of(settings, log)
        standings, estimates = inspection.standings(), inspection.estimates()
        order = _changes(settings, log).get("paused")
    pause = order if order and order.value else None
    total = {name: sum(getattr(s, name) for s in standings) for name in ("seen", "asked", "allowed", "pending", "lag")}
    if as_json:
        import orjson

        partitions = [asdict(standing) for standing in standings]
        known = {"paused": bool(pause), "partitions": partitions, "estimates": asdict(estimates)}
        click.echo(orjson.dumps(total | known))
        return
    loan = (
        total["asked"] > total["allowed"]
        and "asked may pass allowed, by 1 on each partition or by the cold-start loan, and never further"
    )
    found = table("partition", *total)
    found.caption = loan or None
    for s in standings:
        found.add_row(str(s.partition), *(_figure(getattr(s, name)) for name in total))
    found.add_section()
    found.add_row("all", *map(_figure, total.values()))
    show_table(found)
    if pause:
        click.echo(f"Paused by {pause.by} at {to_iso(pause.at)}: nothing is asked until `streamal resume`.")
    for line in (*quality_in_words(estimates), *agreement_in_words(estimates.alpha)):
        click.echo(line)


@main.command(epilog=examples("streamal annotators", "streamal annotators --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
def annotators(as_json: bool, config: Path | None) -> None:
    """Show how far the annotators agree, and who errs how often.

    It goes over the votes on all requests that have ended, where several annotators answered each, and may run beside
    the service.
    """
    from dataclasses import asdict

    settings = settings_of(config)
    with opened(settings) as log:
        found = inspection_of(settings, log).agreement()
    if as_json:
        import orjson

        click.echo(orjson.dumps(asdict(found)))
    elif found.requests:
        _print_annotators(found)
    else:
        click.echo("No request has had several answers; annotation.answers_per_request says how many each waits for.")


def _print_annotators(agreement: Agreement) -> None:
    from rich.console import Console
    from rich.table import Table

    found = Table("annotator", caption="agrees with most of the others; accuracy is an estimate")
    for column in ("answers", "unsure", "invalid", "agrees", "accuracy"):
        found.add_column(column, justify="right")
    for one in agreement.annotators:
        shares = ("-" if share is None else f"{share:.1%}" for share in (one.agreed, one.accuracy))
        found.add_row(one.name, *(f"{count:,}" for count in (one.answers, one.unsure, one.invalid)), *shares)
    Console().print(found)
    given = f"{counted(agreement.answers, 'answer')} to {counted(agreement.requests, 'request')}"
    click.echo(f"{given}; agreement, from 0 for chance to 1:")
    for name, value in (
        ("Krippendorff's alpha", agreement.alpha),
        ("Krippendorff's alpha where chance alone asked", agreement.audit_alpha),
        ("Cohen's kappa", agreement.kappa),
    ):
        if value is not None:
            click.echo(f"  {name}: {value:.2f}")
    if agreement.note:
        click.echo(agreement.note)


@main.command(
    epilog=examples(
        "streamal verify", "streamal verify --partition 0 --since 2026-11-21T10:00:00Z", "streamal verify --json"
    )
)
@click.option(
    "--partition", "partitions", type=click.IntRange(0), multiple=True, help="Only this one; may be repeated."
)
@click.option("--since", metavar="TIME", help="Only what was decided from then on, as 2026-11-21T10:00:00Z.")
@click.option("--until", metavar="TIME", help="Only what was decided up to then.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
@click.pass_context
def verify(
    ctx: click.Context,
    partitions: tuple[int, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Make every past decision again, and compare.

    Everything is made anew from the topics alone: requests, outcomes, refusals, ledgers and audit records must be
    equal byte for byte. Nothing is written, so it may run beside the service. It ends with 0 only if nothing
    differs.
    """
    from rich.console import Console
    from rich.progress import Progress

    from streamal import assemble
    from streamal.service.replay import Stretch
    from streamal.service.verify import verify
    from streamal.transport.log import TopicPartition

    settings = settings_of(config)
    try:
        stretch = Stretch.between(since, until)
    except ValueError as error:
        message = f"expected a time such as 2026-11-21T10:00:00Z: {error}"
        raise click.UsageError(message) from None
    with opened(settings) as log:
        subject = assemble.subject_of(settings, log)
        count = log.partitions(subject.topics.instances)
        if strange := [p for p in partitions if p >= count]:
            message = f"--partition {strange[0]}: there are the partitions 0 to {count - 1}"
            raise click.UsageError(message)
        bounds = [log.bounds(TopicPartition(subject.topics.decisions, p)) for p in partitions or range(count)]
        with Progress(*Progress.get_default_columns(), console=Console(stderr=True), disable=as_json) as progress:
            bar = progress.add_task("replaying", total=sum(end - first for first, end in bounds))
            report = verify(subject, partitions, stretch, lambda: progress.advance(bar))
            progress.update(bar, completed=progress.tasks[0].total)
    if as_json:
        import orjson

        click.echo(orjson.dumps(report.as_json()))
    else:
        _print_report(report)
    ctx.exit(0 if report.sound else 1)


def _print_report(report: Report) -> None:
    columns = ("takeovers", "transactions", "instances", "requests", "outcomes", "letters")
    found = table("partition", *columns)
    for p in report.partitions:
        found.add_row(str(p.partition), *(_figure(getattr(p, name)) for name in columns))
    show_table(found)
    for p in report.partitions:
        for line in p.unverifiable:
            click.echo(f"partition {p.partition}: not replayed: {line}")
        if p.torn or p.repeated:
            done = f"{counted(p.repeated, 'transaction')} done again, {counted(p.torn, 'torn one')} repaired"
            click.echo(f"partition {p.partition}: {done}")
        for line in p.notes:
            click.echo(f"partition {p.partition}: {line}")
        for line in p.differences:
            click.secho(f"partition {p.partition}: {line}", fg="red")
    count = sum(len(p.differences) for p in report.partitions)
    if report.sound:
        click.echo("Everything that was replayed is equal to the last bit.")
    else:
        click.secho(counted(count, "difference") if count else "Nothing could be replayed.", fg="red")


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
