"""Live re-tuning: what `streamal budget set`, `pause` and `resume` say takes effect between two transactions.

Each change is a record on the compacted topic `control`, keyed by the setting, with who made it and when; a tombstone
takes it back. Every worker reads them all, before it joins and from then on about once a second, and the audit says
from which position on a partition was sampled by another plan. So a replay need not read this topic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from streamal.errors import ConfigError
from streamal.lane import SamplingPlan
from streamal.messages import SCHEMA_HEADERS, to_iso
from streamal.transport.log import Append, Log, Reader, Record, TopicPartition

logger = logging.getLogger(__name__)

POLL_EVERY: Final = 1.0
"""Seconds between two looks: people make the changes, and each look costs a poll."""
TUNABLE: Final = ("rate", "burst", "limits", "max_pending", "refund_expired", "paused")
"""The keys of `[budget]` that may change while running, and `paused`; a loan and an expiry are given at the asking."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting as it was changed; `at` in seconds since 1970, `value` None where it was taken back."""

    key: str
    value: Any
    by: str
    at: float
    offset: int = -1

    def append(self, topic: str) -> Append:
        """Return the record on `control`."""
        value = (
            None if self.value is None else orjson.dumps({"value": self.value, "by": self.by, "at": to_iso(self.at)})
        )
        return Append(topic, 0, value, self.key.encode(), (*SCHEMA_HEADERS, ("by", self.by.encode())))

    @classmethod
    def read(cls, record: Record) -> Change:
        """Read a record of `control`.

        Raises:
            ConfigError: it is none, or speaks of a setting that cannot be changed while running.
        """
        key = (record.key or b"").decode(errors="replace")
        if key not in TUNABLE:
            message = f"control, offset {record.offset}: expected one of {', '.join(TUNABLE)} as key, came {key!r}"
            raise ConfigError(message)
        by = next((content or b"" for name, content in record.headers if name == "by"), b"").decode(errors="replace")
        if record.value is None:
            return cls(key, None, by, record.timestamp / 1000, record.offset)
        try:
            value = orjson.loads(record.value)["value"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f'control, offset {record.offset}: expected {{"value": ...}} for {key}; use `streamal budget set`'
            raise ConfigError(message) from None
        return cls(key, value, by, record.timestamp / 1000, record.offset)


def changes(log: Log, reader: Reader, topic: str) -> list[Change]:
    """Return the changes in force, one per setting, those that were taken back among them.

    Raises:
        ConfigError: a record is no change.
    """
    place = TopicPartition(topic, 0)
    found: dict[str, Change] = {}
    for record in reader.read(place, *log.bounds(place)):
        change = Change.read(record)
        found[change.key] = change
    return list(found.values())


class Control:
    """Follows the topic and says what the plans are now; `replan` makes them of the changed keys of the budget."""

    def __init__(
        self, log: Log, reader: Reader, topic: str, replan: Callable[[Mapping[str, Any]], Sequence[SamplingPlan]]
    ) -> None:
        self._replan = replan
        self._reader = reader
        self._values: dict[str, Any] = {}
        self._looked_at = time.monotonic()
        place = TopicPartition(topic, 0)
        first, end = log.bounds(place)
        self.version = end
        self.plans = self._apply(list(reader.read(place, first, end))) or replan({})
        reader.follow(place, end)

    def poll(self) -> Sequence[SamplingPlan] | None:
        """Return other plans, one per partition, if there are any by now; called between transactions."""
        now = time.monotonic()
        if now - self._looked_at < POLL_EVERY:
            return None
        self._looked_at = now
        return self._apply(self._reader.poll(0.0))

    def _apply(self, records: Sequence[Record]) -> Sequence[SamplingPlan] | None:
        found = None
        for record in records:
            self.version = record.offset + 1
            try:
                change = Change.read(record)
                values = {**self._values, change.key: change.value}
                wanted = {key: value for key, value in values.items() if value is not None}
                found = self._replan(wanted)
            except ConfigError as error:
                logger.warning("a change was refused, the former budget stays: %s", error)
                continue
            self._values = wanted
            self.plans = found
            logger.info("budget changed", extra={"setting": change.key, "by": change.by, "offset": record.offset})
        return found
