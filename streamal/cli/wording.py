"""How commands print: help texts, tables, counts, budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamal.errors import exit_codes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from streamal.service.control import Change
    from streamal.settings import Budget, Settings


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


def table(*columns: str, left: int = 1) -> Table:
    """Return an empty table that folds what is too wide and cuts nothing; the columns after `left` are of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        found.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return found


def show_table(found: Table) -> None:
    """Print a table, as wide as the terminal or COLUMNS, in a pipe 80; names in it are no markup."""
    from rich.console import Console

    Console(markup=False, emoji=False).print(found)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "partition"), counted(4, "partition")
    ('1 partition', '4 partitions')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def figure(value: float) -> str:
    """Return a number for a table.

    >>> figure(1234), figure(1234.56)
    ('1,234', '1,234.6')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def budget_in_words(budget: Budget) -> str:
    """Say what the budget allows, in one line."""
    from streamal.settings import format_duration

    bounds = [f"{budget.rate:g} labels per instance", f"cold-start loan {counted(budget.cold_start_loan, 'label')}"]
    for limit in budget.limits:
        most = counted(limit.count, "label") if limit.count else f"a cost of {limit.cost:g}"
        bounds.append(f"at most {most} per {format_duration(limit.per)}")
    return f"budget: {', '.join(bounds)}"


def orders_in_words(changes: Mapping[str, Change]) -> list[str]:
    """Say what orders have set beside the config, but for a pause.

    >>> from streamal.service.control import Change
    >>> orders_in_words({"rate": Change("rate", 0.02, "ada", 0.0), "burst": Change("burst", None, "ada", 0.0)})
    ['by order: rate (ada); `streamal budget show` tells all']
    """
    told = [f"{key} ({change.by})" for key, change in changes.items() if key != "paused" and change.value is not None]
    return [f"by order: {', '.join(told)}; `streamal budget show` tells all"] if told else []


def pause_in_words(changes: Mapping[str, Change]) -> list[str]:
    """Say that nothing is asked, if so.

    >>> from streamal.service.control import Change
    >>> pause_in_words({"paused": Change("paused", True, "ada", 0.0)}), pause_in_words({})
    (['Paused by ada at 1970-01-01T00:00:00.000Z: nothing is asked until `streamal resume`.'], [])
    """
    from streamal.messages import to_iso

    order = changes.get("paused")
    if order is None or not order.value:
        return []
    return [f"Paused by {order.by} at {to_iso(order.at)}: nothing is asked until `streamal resume`."]


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


def warn(settings: Settings) -> None:
    """Say what is allowed and yet unlikely to be meant."""
    from streamal import assemble

    for warning in assemble.warnings(settings):
        click.echo(f"warning: {warning}", err=True)
