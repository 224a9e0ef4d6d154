"""Where a command finds its settings, its log and what is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from streamal.errors import TransportError

if TYPE_CHECKING:
    from streamal.service.control import Change
    from streamal.service.inspection import Inspection
    from streamal.settings import Settings
    from streamal.transport.log import Log

DEFAULT_CONFIG: Final = Path("streamal.toml")


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


def file_of(config: Path | None) -> Path | None:
    """Return the file that a command takes its settings from, None where the defaults hold."""
    return config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)


def settings_of(config: Path | None) -> Settings:
    """Load the settings of a command."""
    from streamal.settings import load

    return load(file_of(config))


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    """Return settings with those values of a section changed that are not None, validated."""
    from streamal.settings import revised

    return revised(settings, section, {name: value for name, value in values.items() if value is not None})


def absent(settings: Settings) -> bool:
    """Say whether the embedded log has yet to be made."""
    return settings.transport.kind == "embedded" and not Path(settings.transport.path).exists()


def as_ordered(settings: Settings, changes: Mapping[str, Change]) -> Settings:
    """Return settings with the orders on the budget that are in force."""
    return changed(settings, "budget", **{key: one.value for key, one in changes.items() if key != "paused"})


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

    return Inspection(log, assemble.topics_of(settings), settings.transport.group)


def changes_in_force(settings: Settings, log: Log) -> dict[str, Change]:
    """Return the last order on each key of the budget."""
    from streamal.service.control import Change, orders

    found = orders(log, log.reader(), settings.topics.control)
    return {order.key: order for order in found if isinstance(order, Change)}
