"""The commands: parse, call, print; nothing else. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from streamal.errors import StreamalError, TransportError

if TYPE_CHECKING:
    from streamal.service.inspection import Inspection
    from streamal.settings import Settings
    from streamal.transport.log import Log

DEFAULT_CONFIG: Final = Path("streamal.toml")
TOPICS: Final = ("instances", "label-requests", "answers", "outcomes", "decisions", "dead-letters", "predictions")


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


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-c/--config`; without it `streamal.toml` is read where it exists, else the defaults hold."""
    return click.option(
        "-c",
        "--config",
        "config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="STREAMAL_CONFIG",
        help="TOML file; by default streamal.toml, if there is one. STREAMAL__SECTION__KEY wins over it.",
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


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "partition"), counted(4, "partition")
    ('1 partition', '4 partitions')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("streamal demo", "streamal config init", "streamal run -c streamal.toml"),
)
@click.version_option(package_name="streamal")
def main() -> None:
    """Decide on each instance of a stream whether to ask for its label, within a budget that holds.

    To see it at work: streamal demo. To use it: streamal config init, then run; answer or any Kafka producer answers.
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

    demonstration.run(rate=rate, seconds=seconds, port=port if serve else None, plot=plot, rows=rows)


@main.command(
    epilog=examples("streamal run", "streamal run -c streamal.toml --dry-run", "streamal run --no-supervisor")
)
@config_option
@click.option("--dry-run", is_flag=True, help="Check config, log and topics, say what would be done, and end.")
@click.option("--no-supervisor", is_flag=True, help="Run the worker itself, where something else restarts it.")
def run(config: Path | None, dry_run: bool, no_supervisor: bool) -> None:
    """Run a worker: decide, ask, learn, until SIGTERM.

    A small parent process restarts the worker when it crashes, unless a restart cannot help.

    Exit codes: 0 orderly end, 1 unexpected, 2 config, 3 transport, 4 commit refused, 5 ledger lost, 6 access refused,
    7 deadline, 8 model.
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
    loan = counted(settings.budget.cold_start_loan, "label")
    click.echo(f"budget: {plan.budget.rate:g} labels per instance, cold-start loan {loan}")
    click.echo("Everything fits together; no worker was started.")


@main.command(epilog=examples("streamal produce instances payments.jsonl", "streamal produce answers answers.jsonl"))
@click.argument("topic", type=click.Choice(["instances", "answers"]))
@click.argument("file", type=click.File("rb"), default="-")
@config_option
def produce(topic: str, file: BinaryIO, config: Path | None) -> None:
    """Append JSON lines of FILE, or of the standard input, to a topic.

    It is how scripts reach the embedded log; with Kafka any producer will do.
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
        "streamal simulate stream.jsonl --label fraud --model gaussian_nb --json",
    )
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rate", type=float, help="Labels per instance; budget.rate by default.")
@click.option("--strategy", "strategies", multiple=True, help="Query strategy; repeat to compare several.")
@click.option("--model", help="Preset of the model; model.kind by default.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed of the coin; repeat for mean and spread.")
@click.option("--label", default="target", show_default=True, help="Name of the label's column.")
@click.option("--delay", type=click.IntRange(0), default=0, show_default=True, help="Rows until an answer comes.")
@click.option("--loan", type=click.IntRange(0), help="Cold-start loan; budget.cold_start_loan by default.")
@click.option(
    "--annotator-error", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of wrong answers."
)
@click.option("--no-answer", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share never answered.")
@click.option("--rows", type=click.IntRange(1), help="Use the first rows only.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the learning curves as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run instead of a table.")
@config_option
def simulate(
    file: Path,
    rate: float | None,
    strategies: tuple[str, ...],
    model: str | None,
    seeds: tuple[int, ...],
    label: str,
    delay: int,
    loan: int | None,
    annotator_error: float,
    no_answer: float,
    rows: int | None,
    plot: Path | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Evaluate strategies and models on a labelled FILE.

    FILE is csv or jsonl, plain or .gz. Each row is predicted, scored, decided on, and learned if its label was asked
    for and the answer has come: the scores are those of a model that has never seen the row.
    """
    from streamal import assemble
    from streamal.annotate.oracle import Oracle

    base = settings_of(config)
    base = _changed(base, "budget", rate=rate, cold_start_loan=loan)
    base = _changed(base, "model", kind=model, factory="" if model else None)
    runs = [
        _changed(base, "strategy", name=name, seed=seed)
        for name in strategies or (base.strategy.name,)
        for seed in seeds or (base.strategy.seed,)
    ]
    for one in runs:
        assemble.check(one)
    oracles = [Oracle(delay, annotator_error, no_answer, run.strategy.seed) for run in runs]
    results = assemble.simulate_all(runs, oracles, file, label=label, rows=rows, quiet=as_json)
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
    from rich.console import Console
    from rich.table import Table

    from streamal import assemble
    from streamal.transport.log import TopicPartition

    settings = settings_of(config)
    found = Table("topic")
    for column in ("partitions", "offsets kept", "end of each partition"):
        found.add_column(column, justify="right")
    with opened(settings) as log:
        for topic in assemble.topics_of(settings).used():
            bounds = [log.bounds(TopicPartition(topic, p)) for p in range(log.partitions(topic))]
            kept, ends = sum(end - first for first, end in bounds), " ".join(str(end) for _, end in bounds)
            found.add_row(topic, str(len(bounds)), f"{kept:,}", ends)
    Console().print(found)


@topics.command(
    epilog=examples("streamal topics acls", "streamal topics acls --principal User:streamal --annotator User:ada")
)
@click.option("--principal", help="Whose worker it is; by default the user of transport.security.")
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
    parties = (
        ("worker", principal or assemble.principal_of(settings), access.of_worker),
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

    Checked are the values, the model, whether the strategy fits it, and each partition's share of the budget.
    """
    from streamal import assemble

    settings = settings_of(config)
    assemble.check(settings)
    read = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    click.echo(f"{read} is valid" if read else "there is no streamal.toml here; the defaults are valid")


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

    TOPIC is instances, label-requests, answers, outcomes, decisions, dead-letters or predictions, whatever name it has
    in the config.
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
@click.option("--annotator", default="terminal", show_default=True, help="Your name on the answers.")
@click.option("--classes", default="", help="The classes to choose from, separated by commas; else those known.")
@config_option
def answer(annotator: str, classes: str, config: Path | None) -> None:
    """Answer pending label requests here, one key each."""
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
        given = Terminal(log, settings.topics.answers, annotator, choices).answer_all(inspection.waiting())
    click.echo(f"{counted(given, 'answer')} given")


@main.command(epilog=examples("streamal explain 0-41", "streamal explain 0-41 --json"))
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print the records themselves.")
@config_option
def explain(request_id: str, as_json: bool, config: Path | None) -> None:
    """Say why a label was asked for, and what became of it.

    REQUEST_ID is `request_id` of a label request: partition and offset of its instance, as in 0-41.
    """
    from streamal.service.inspection import in_words

    settings = settings_of(config)
    with opened(settings) as log:
        request, outcome = inspection_of(settings, log).request(request_id)
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
    """Show what was seen, asked and allowed.

    It is read from the log itself, partition by partition, and so works while the service is down.
    """
    from dataclasses import asdict

    settings = settings_of(config)
    with opened(settings) as log:
        standings = inspection_of(settings, log).standings()
    total = {name: sum(getattr(s, name) for s in standings) for name in ("seen", "asked", "allowed", "pending", "lag")}
    if as_json:
        import orjson

        click.echo(orjson.dumps(total | {"partitions": [asdict(standing) for standing in standings]}))
        return
    from rich.console import Console
    from rich.table import Table

    loan = (
        total["asked"] > total["allowed"]
        and "asked may pass allowed, by 1 on each partition or by the cold-start loan, and never further"
    )
    found = Table("partition", caption=loan or None)
    for column in total:
        found.add_column(column, justify="right")
    for s in standings:
        found.add_row(str(s.partition), *(_figure(getattr(s, name)) for name in total))
    found.add_section()
    found.add_row("all", *map(_figure, total.values()))
    Console().print(found)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
