"""Answering in the terminal: one key answers, saves, and shows the next request.

1 to 9 choose a class; `u` is unsure, `i` marks an invalid instance, `s` passes it on to somebody else, `q` ends. The
model's guess is not shown before the answer, since it would bias it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import click
import orjson

from streamal.messages import SCHEMA_HEADERS, LabelRequest
from streamal.transport.log import Append, Log

KINDS: Final = {"u": "unsure", "i": "invalid", "s": "skip"}
MOST_KEYS: Final = 9


class Terminal:
    """Puts requests to a person and appends the answers; `key` reads one key."""

    def __init__(self, log: Log, topic: str, annotator: str, key: Callable[[], str] = click.getchar) -> None:
        self._writer = log.writer(f"answers-{annotator}")
        self._topic = topic
        self._annotator = annotator
        self._key = key

    def answer_all(self, requests: Sequence[LabelRequest], classes: Sequence[str]) -> int:
        """Go through requests until none is left or the person ends it; returns how many were answered."""
        given = 0
        try:
            for number, request in enumerate(requests, start=1):
                click.echo(_show(request, number, len(requests), classes))
                found = self._ask(classes)
                if found is None:
                    break
                self._append(request, found)
                given += 1
                click.echo(f"    {found.get('label', found.get('kind'))}")
        finally:
            self._writer.close()
        return given

    def _ask(self, classes: Sequence[str]) -> dict[str, str] | None:
        while True:
            key = self._key()
            if key in ("q", "\x03", "\x04"):
                return None
            if key in KINDS:
                return {"kind": KINDS[key]}
            if key == "0" or (not classes and key.isdigit()):
                return {"label": click.prompt("    class", type=str)}
            if key.isdigit() and int(key) <= min(len(classes), MOST_KEYS):
                return {"label": classes[int(key) - 1]}

    def _append(self, request: LabelRequest, found: dict[str, str]) -> None:
        value = orjson.dumps({"request_id": request.request_id, "annotator": self._annotator, **found})
        key = request.request_id.encode()
        self._writer.append([Append(self._topic, request.partition, value, key, SCHEMA_HEADERS)])


def _show(request: LabelRequest, number: int, total: int, classes: Sequence[str]) -> str:
    keys = [f"[{i}] {name}" for i, name in enumerate(classes[:MOST_KEYS], start=1)]
    keys += ["[0] another class", "[u] unsure", "[i] invalid", "[s] skip", "[q] quit"]
    shown = request.display if request.display is not None else request.features
    lines = shown.items() if isinstance(shown, dict) else [("", shown)]
    body = "\n".join(f"    {name:<24} {value}" for name, value in lines)
    title = f"\n{number} of {total}   {request.instance_id}   (request {request.request_id}, {request.reason})"
    return f"{title}\n{body}\n  {'  '.join(keys)}"
