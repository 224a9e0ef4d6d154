"""Orders to running workers, and the repair of ledgers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from streamal.cli.opening import changed, changes_in_force, config_option, opened, settings_of
from streamal.cli.wording import answers_in_words, examples, show_table, table


@click.group(epilog=examples("streamal budget show", "streamal budget set rate=0.02", "streamal budget reset rate"))
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
        changes = changes_in_force(settings, log)
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
    for line in answers_in_words(changed(settings, "budget", rate=rate)):
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


@click.command(epilog=examples("streamal pause", "streamal pause --by ada"))
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


@click.command(epilog=examples("streamal resume"))
@click.option("--by", help="Who does it; your user name by default.")
@config_option
def resume(by: str | None, config: Path | None) -> None:
    """Ask for labels again, beginning with what was saved up."""
    _order(config, by, {"paused": None})
    click.echo("Resumed, within about a second: labels are asked for again; `streamal status` shows how many.")


@click.command(epilog=examples('streamal skip instances 0 1234 --to 1300 --why "disk fault on broker 2"'))
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
        in_force = {key: change.value for key, change in changes_in_force(settings, log).items()}
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


@click.group(epilog=examples("streamal ledger recover --dry-run"))
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
