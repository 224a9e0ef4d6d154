"""The service and who feeds it: demo, run, produce, answer."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamal.cli.opening import (
    DEFAULT_CONFIG,
    absent,
    as_ordered,
    changes_in_force,
    config_option,
    file_of,
    inspection_of,
    opened,
    settings_of,
)
from streamal.cli.wording import (
    answers_in_words,
    budget_in_words,
    counted,
    endings,
    examples,
    orders_in_words,
    pause_in_words,
    warn,
)

if TYPE_CHECKING:
    from io import BufferedReader

    from streamal.service.control import Change
    from streamal.settings import Settings


logger = logging.getLogger(__name__)


@click.command(epilog=examples("streamal demo", "streamal demo --serve", "streamal demo --rate 0.01 --seconds 20"))
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


@click.command(
    epilog=f"{endings()}\n\n"
    + examples("streamal run", "streamal run -c streamal.toml --dry-run", "streamal run --no-supervisor")
)
@config_option
@click.option("--dry-run", is_flag=True, help="Check config, log and topics, say what would be done, and end.")
@click.option("--no-supervisor", is_flag=True, help="Run the worker itself, where something else restarts it.")
@click.option("--parent", type=int, hidden=True, help="The supervisor's process; the worker stops once it is gone.")
def run(config: Path | None, dry_run: bool, no_supervisor: bool, parent: int | None) -> None:
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
        from streamal.errors import StreamalError
        from streamal.service.process import ended_by, serve

        if read := file_of(config):
            logger.info("settings read", extra={"config": str(read)})
        else:
            logger.info("no config was found, the defaults hold", extra={"looked_for": str(DEFAULT_CONFIG.absolute())})
        try:
            service = assemble.build_service(settings, assemble.open_log(settings))
        except StreamalError as error:
            sys.exit(ended_by(error))
        sys.exit(serve(service, parent))
    from streamal.service.supervisor import Supervisor

    command = [sys.executable, "-m", "streamal", "run", "--no-supervisor", "--parent", str(os.getpid())]
    sys.exit(Supervisor([*command, "--config", str(config)] if config else command).run())


def _explain_run(settings: Settings) -> None:
    from streamal import assemble

    task = assemble.check(settings).task
    topics = assemble.topics_of(settings)
    if absent(settings):
        found = {topic: topics.partitions(settings.transport.partitions)[topic] for topic in topics.used()}
        changes: dict[str, Change] = {}
        click.echo(f"log: {settings.transport.path}, which does not exist yet and will be made")
    else:
        with opened(settings) as log:
            assemble.check_rights(settings, log)
            found = {topic: log.partitions(topic) for topic in topics.used()}
            changes = changes_in_force(settings, log)
    for topic, count in found.items():
        click.echo(f"topic {topic}: {counted(count, 'partition')}")
    topics.check(found)
    settings = as_ordered(settings, changes)
    plan = assemble.plans_of(settings, task, found[topics.instances])[0]
    click.echo(f"strategy: {plan.strategy} on {assemble.model_name(settings)} ({task})")
    click.echo(budget_in_words(settings.budget))
    for line in (*orders_in_words(changes), *pause_in_words(changes), *answers_in_words(settings)):
        click.echo(line)
    warn(settings)
    click.echo("Everything fits together; no worker was started.")


@click.command(epilog=examples("streamal produce instances payments.jsonl", "streamal produce answers answers.jsonl"))
@click.argument("topic", type=click.Choice(["instances", "answers"]))
@click.argument("file", type=click.File("rb"), default="-")
@config_option
def produce(topic: str, file: BufferedReader, config: Path | None) -> None:
    """Append JSON lines of FILE, or of the standard input, to a topic.

    It is how scripts reach the embedded log; with Kafka any producer will do. If a line of FILE is no JSON object,
    nothing is appended. Of a pipe each line is appended as it comes; of those that come together with a bad one none
    is, and the message says how many were before.
    """
    from streamal import assemble
    from streamal.service.producing import produce as append

    settings = settings_of(config)
    with closing(assemble.open_log(settings)) as log:
        count = append(log, getattr(settings.topics, topic), file, answers=topic == "answers")
    click.echo(f"{counted(count, 'record')} appended")


@click.command(epilog=examples("streamal answer", "streamal answer --annotator ada --classes ok,fraud"))
@click.option("--annotator", show_default="terminal", help="Your name on the answers.")
@click.option("--classes", default="", help="The classes to choose from, separated by commas; else those known.")
@config_option
def answer(annotator: str | None, classes: str, config: Path | None) -> None:
    """Answer pending label requests here, one key each.

    A digit is a class, and u, i, s and q are unsure, invalid, skip and quit. Each answer is in the log at once; what
    somebody else has answered meanwhile is not shown.

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
        ended, waiting = inspection.endings(annotator), inspection.waiting(annotator)
        if annotator is None and any(request.answers > 1 for request in waiting):
            message = "requests wait for answers by several annotators: say who you are, by --annotator NAME"
            raise click.UsageError(message)
        terminal = Terminal(log, settings.topics.answers, annotator or "terminal", choices, ended=ended)
        given = terminal.answer_all(waiting)
    click.echo(f"{counted(given, 'answer')} given")
