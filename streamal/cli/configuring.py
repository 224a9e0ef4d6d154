"""The configuration: written, checked, shown."""

from __future__ import annotations

from pathlib import Path

import click

from streamal.cli.opening import DEFAULT_CONFIG, config_option, file_of, settings_of
from streamal.cli.wording import answers_in_words, budget_in_words, examples, warn


@click.group(epilog=examples("streamal config init", "streamal config check", "streamal config show"))
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
    if read := file_of(config):
        click.echo(f"{read} is valid.")
    else:
        click.echo(f"There is no {DEFAULT_CONFIG} in {Path.cwd()}, and --config names no other file.")
        click.echo("So the defaults are in force, which are valid; `streamal config init` writes one to start from.")
    click.echo(budget_in_words(settings.budget))
    for line in answers_in_words(settings):
        click.echo(line)
    warn(settings)


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
