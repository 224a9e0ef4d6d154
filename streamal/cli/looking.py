"""What was decided and learned, and whether it was right: status, tail, explain, annotators, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from streamal.cli.opening import as_ordered, changes_in_force, config_option, inspection_of, opened, settings_of
from streamal.cli.wording import counted, examples, figure, pause_in_words, show_table, table

if TYPE_CHECKING:
    from streamal.evaluate.agreement import Agreement
    from streamal.service.verify import Report

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


@click.command(epilog=examples("streamal status", "streamal status --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
def status(as_json: bool, config: Path | None) -> None:
    """Show what was seen, asked and allowed, and the model's quality.

    Per partition: instances seen, labels asked and allowed, requests that wait for an answer (pending), and instances
    not read yet (lag). It is read from the log itself, partition by partition, and so works while the service is down.
    """
    from dataclasses import asdict

    from streamal import assemble
    from streamal.service.inspection import agreement_in_words, held_in_words, quality_in_words

    settings = settings_of(config)
    with opened(settings) as log:
        inspection = inspection_of(settings, log)
        changes = changes_in_force(settings, log)
        plans = assemble.budgets_of(as_ordered(settings, changes), log.partitions(settings.topics.instances))
        cost = settings.instance.cost
        price = 0.0 if isinstance(cost, str) else cost * settings.annotation.answers_per_request
        standings, estimates = inspection.standings(plans, price), inspection.estimates()
        paused = pause_in_words(changes)
    total = {name: sum(getattr(s, name) for s in standings) for name in ("seen", "asked", "allowed", "pending", "lag")}
    if as_json:
        import orjson

        partitions = [asdict(standing) for standing in standings]
        known = {"paused": bool(paused), "partitions": partitions, "estimates": asdict(estimates)}
        click.echo(orjson.dumps(total | known))
        return
    loan = (
        total["asked"] > total["allowed"]
        and "asked may pass allowed, by 1 on each partition or by the cold-start loan, and never further"
    )
    found = table("partition", *total)
    found.caption = loan or None
    for s in standings:
        found.add_row(str(s.partition), *(figure(getattr(s, name)) for name in total))
    found.add_section()
    found.add_row("all", *map(figure, total.values()))
    show_table(found)
    for line in (
        *paused,
        *held_in_words(standings),
        *quality_in_words(estimates),
        *agreement_in_words(estimates.alpha),
    ):
        click.echo(line)


@click.command(
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


@click.command(epilog=examples("streamal explain 0-41", "streamal explain 0-41 --json"))
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
        absence = inspection.absence(request_id) if request is None and unasked is None else ""
    if unasked is not None:
        click.echo(unasked.encode() if as_json else unasked_in_words(unasked))
        return
    if request is None:
        message = f"no label request {request_id}: {absence}; `streamal tail label-requests` lists the last ones"
        raise click.ClickException(message)
    if as_json:
        click.echo(request.encode())
        if outcome is not None:
            click.echo(outcome.encode())
    else:
        click.echo(in_words(request, outcome))


@click.command(epilog=examples("streamal annotators", "streamal annotators --json"))
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
    found = table("annotator", "answers", "unsure", "invalid", "agrees", "accuracy")
    found.caption = "agrees with most of the others; accuracy is an estimate"
    for one in agreement.annotators:
        shares = ("-" if share is None else f"{share:.1%}" for share in (one.agreed, one.accuracy))
        found.add_row(one.name, *map(figure, (one.answers, one.unsure, one.invalid)), *shares)
    show_table(found)
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


@click.command(
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
        with assemble.progress_bar(as_json) as progress:
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
        found.add_row(str(p.partition), *(figure(getattr(p, name)) for name in columns))
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
    if report.sound and report.replayed:
        click.echo("Everything that was replayed is equal to the last bit.")
    elif report.sound:
        click.echo("There was nothing to replay: nothing was decided, or nothing in that time.")
    else:
        click.secho(counted(count, "difference") if count else "Nothing could be replayed.", fg="red")
