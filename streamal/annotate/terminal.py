"""Answering in the terminal: one key answers, saves, and shows the next request.

1 to 9 choose a class, 0 types one, or a number; `u` is unsure, `i` marks an invalid instance, `s` passes it on to
somebody else, `q` or the end of what is piped in ends. The model's guess is not shown before the answer, since it would
bias it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
import orjson

from streamal.messages import SCHEMA_HEADERS, LabelRequest, Task
from streamal.transport.log import Append, Log

KINDS: Final = {"u": "unsure", "i": "invalid", "s": "skip"}
MOST_KEYS: Final = 9


def read_key() -> str:
    """Return one key from the terminal, or one character of what is piped in, "" at its end."""
    return click.getchar() if sys.stdin.isatty() else sys.stdin.read(1)


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be answered: one of the classes, any other one unless they are `closed`, or a number for regression."""

    classes: tuple[str, ...]
    task: Task = "classification"
    closed: bool = False

    @property
    def keyed(self) -> Mapping[str, str]:
        """The classes that have a key of their own.

        >>> Choices(("ok", "fraud")).keyed
        {'1': 'ok', '2': 'fraud'}
        """
        return {str(number): name for number, name in enumerate(self.classes[:MOST_KEYS], start=1)}

    @property
    def typed(self) -> str:
        """What key 0 asks for, or "" when every answer has a key.

        >>> Choices(("ok",)).typed, Choices(("ok",), closed=True).typed, Choices((), "regression").typed
        ('another class', '', 'number')
        """
        if self.task == "regression":
            return "number"
        if not self.classes:
            return "type a class; --classes gives each a key"
        return "" if self.closed and len(self.classes) <= MOST_KEYS else "another class"

    def prompt(self) -> str | float:
        """Ask for what has no key."""
        if self.task == "regression":
            return float(click.prompt("    number", type=float))
        kind = click.Choice(self.classes) if self.closed else str
        return str(click.prompt("    class", type=kind, show_choices=False))


class Terminal:
    """Puts requests to a person and appends the answers; `key` reads one key, "" when there are no more.

    `ended` says which requests wait no longer, each time of those that ended since the last time.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        annotator: str,
        choices: Choices,
        key: Callable[[], str] = read_key,
        ended: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._writer = log.writer(f"answers-{annotator}")
        self._topic = topic
        self._annotator = annotator
        self._choices = choices
        self._key = key
        self._look = ended
        self._ended: set[str] = set()

    def answer_all(self, requests: Sequence[LabelRequest]) -> int:
        """Go through requests until none is left or the person ends it; returns how many were answered."""
        given = 0
        try:
            for number, request in enumerate(requests, start=1):
                if not self._waits(request):
                    continue
                click.echo(show(request, number, len(requests), self._choices))
                found = self._ask()
                if found is None:
                    break
                if not self._waits(request):
                    click.echo("    too late: the request has ended meanwhile, and this answer was not given")
                    continue
                self._append(request, found)
                given += 1
                click.echo(f"    {found.get('label', found.get('kind'))}")
        finally:
            self._writer.close()
        return given

    def _waits(self, request: LabelRequest) -> bool:
        self._ended.update(self._look())
        return request.request_id not in self._ended

    def _ask(self) -> dict[str, str | float] | None:
        choices = self._choices
        try:
            while True:
                key = self._key()
                if key in ("q", ""):
                    return None
                if key in KINDS:
                    return {"kind": KINDS[key]}
                if key in choices.keyed:
                    return {"label": choices.keyed[key]}
                if key == "0" and choices.typed:
                    return {"label": choices.prompt()}
        except (KeyboardInterrupt, EOFError, click.Abort):
            # what was answered before is in the log
            return None

    def _append(self, request: LabelRequest, found: Mapping[str, str | float]) -> None:
        value = orjson.dumps({"request_id": request.request_id, "annotator": self._annotator, **found})
        key = request.request_id.encode()
        self._writer.append([Append(self._topic, request.partition, value, key, SCHEMA_HEADERS)])


def show(request: LabelRequest, number: int, total: int, choices: Choices) -> str:
    """Return a request as a person is shown it, with the keys that answer it."""
    keys = [f"[{key}] {name}" for key, name in choices.keyed.items()]
    keys += [f"[0] {choices.typed}"] if choices.typed else []
    keys += ["[u] unsure", "[i] invalid", "[s] skip", "[q] quit"]
    shown: Any = request.display
    lines: list[tuple[str, Any]] = list(request.features.items())
    if shown is not None:
        lines = [*(shown.items() if isinstance(shown, Mapping) else [("", shown)]), *lines]
    body = "\n".join(f"    {name:<24} {value}" if name else f"    {value}" for name, value in lines)
    about = f"made up, near {request.instance_id}" if request.synthetic else request.instance_id
    title = f"\n{number} of {total}   {about}   (request {request.request_id}, {request.reason})"
    return f"{title}\n{body}\n  {'  '.join(keys)}"
