"""The commands: parse, call, print; nothing else. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import sys
from typing import Any

import click

from streamal.cli.configuring import config
from streamal.cli.looking import annotators, explain, status, tail, verify
from streamal.cli.provisioning import topics
from streamal.cli.running import answer, demo, produce, run
from streamal.cli.simulating import simulate
from streamal.cli.steering import budget, ledger, pause, resume, skip
from streamal.cli.wording import examples
from streamal.errors import StreamalError


class Commands(click.Group):
    """A group whose commands end with a readable message and a named exit code instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except StreamalError as error:
            click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
            sys.exit(error.exit_code)


@click.group(
    cls=Commands,
    commands=[
        *(annotators, answer, budget, config, demo, explain, ledger, pause, produce),
        *(resume, run, simulate, skip, status, tail, topics, verify),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("streamal demo", "streamal config init", "streamal run -c streamal.toml"),
)
@click.version_option(package_name="streamal")
def main() -> None:
    """Decide on each instance of a stream whether to ask for its label, within a budget that holds.

    To see it at work: streamal demo. To use it: streamal config init, then streamal run; people answer by streamal
    answer, programs by the topic `answers`.
    """
