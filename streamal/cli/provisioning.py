"""Topics and the rights on them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from streamal.cli.opening import absent, config_option, opened, settings_of
from streamal.cli.wording import counted, examples, show_table, table


@click.group(epilog=examples("streamal topics create", "streamal topics describe"))
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
