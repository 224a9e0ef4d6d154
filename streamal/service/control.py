"""Orders to running workers: what `streamal budget set`, `pause`, `resume` and `skip` say.

Each is a record on the compacted topic `control` with who gave it and when. A change of the budget is keyed by the
setting, and a tombstone takes it back; it takes effect between two transactions. A skip is keyed by the place of the
corrupt record, and takes effect when a worker takes the partition over at just that place. Every worker reads all of
them before it joins and looks about once a second from then on. The audit says from which position on a partition was
sampled by another plan, and what was skipped, so a replay need not read this topic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from streamal.errors import ConfigError
from streamal.lane import SamplingPlan
from streamal.messages import SCHEMA_HEADERS
from streamal.transport.log import Append, Log, Reader, Record, TopicPartition

logger = logging.getLogger(__name__)

POLL_EVERY: Final = 1.0
"""Seconds between two looks: people make the changes, and each look costs a poll."""
SKIP: Final = "skip/"
MAX_OFFSET: Final = 2**62
TUNABLE: Final = ("rate", "burst", "limits", "max_pending", "refund_expired", "paused")
"""The keys of `[budget]` that may change while running, and `paused`; a loan and an expiry are given at the asking."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting as it was changed; `at` in seconds since 1970, `value` None where it was taken back."""

    key: str
    value: Any
    by: str
    at: float

    def append(self, topic: str) -> Append:
        """Return the record on `control`."""
        value = None if self.value is None else orjson.dumps({"value": self.value})
        return Append(topic, 0, value, self.key.encode(), (*SCHEMA_HEADERS, ("by", self.by.encode())))


@dataclass(frozen=True, slots=True)
class Skip:
    """Records that cannot be read, from `first` up to, but not including, `next`; `why` is what a person gave."""

    topic: str
    partition: int
    first: int
    next: int
    by: str
    at: float
    why: str

    def append(self, topic: str) -> Append:
        """Return the record on `control`."""
        key = f"{SKIP}{self.topic}/{self.partition}/{self.first}".encode()
        value = orjson.dumps({"next": self.next, "why": self.why})
        return Append(topic, 0, value, key, (*SCHEMA_HEADERS, ("by", self.by.encode())))


def read_order(record: Record) -> Change | Skip:
    """Return what a record of `control` says.

    Raises:
        ConfigError: it is no order that a worker knows.
    """
    key = (record.key or b"").decode(errors="replace")
    by = next((content or b"" for name, content in record.headers if name == "by"), b"").decode(errors="replace")
    at = record.timestamp / 1000
    try:
        found = None if record.value is None else orjson.loads(record.value)
        if key in TUNABLE:
            return Change(key, None if found is None else found["value"], by, at)
        if key.startswith(SKIP) and found is not None:
            topic, partition, first = key.removeprefix(SKIP).rsplit("/", 2)
            skip = Skip(topic, int(partition), int(first), int(found["next"]), by, at, str(found["why"]))
            if 0 <= skip.first < skip.next <= MAX_OFFSET:
                return skip
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    message = f"control, offset {record.offset}: {key!r} is no order; use `streamal budget set`, `pause` or `skip`"
    raise ConfigError(message)


def orders(log: Log, reader: Reader, topic: str) -> list[Change | Skip]:
    """Return the orders in force, the last one of each kind; settings that were taken back are among them."""
    place = TopicPartition(topic, 0)
    found: dict[bytes | None, Change | Skip] = {}
    for record in reader.read(place, *log.bounds(place)):
        with suppress(ConfigError):
            found[record.key] = read_order(record)
    return list(found.values())


class Control:
    """Follows the topic and says what the plans are now; `replan` makes them of the changed keys of the budget."""

    def __init__(
        self, log: Log, reader: Reader, topic: str, replan: Callable[[Mapping[str, Any]], Sequence[SamplingPlan]]
    ) -> None:
        self._replan = replan
        self._reader = reader
        self._changes: dict[str, Change] = {}
        self._skips: dict[tuple[str, int, int], Skip] = {}
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

    def in_force(self) -> list[dict[str, Any]]:
        """Return who has set what, and when, for the audit; a `value` of None was taken back."""
        return [asdict(change) for change in self._changes.values()]

    def skips(self, partition: TopicPartition, position: int) -> list[Skip]:
        """Return what a new owner has to leave out at a position, one stretch after the other."""
        found = []
        while (skip := self._skips.get((*partition, position))) is not None and skip.next > position:
            found.append(skip)
            position = skip.next
        return found

    def readable_from(self, partition: TopicPartition, position: int) -> int:
        """Return the end of the last stretch before a position that was ordered to be left out, 0 if there is none."""
        ends = [skip.next for skip in self._skips.values() if (skip.topic, skip.partition) == partition]
        return max((end for end in ends if end <= position), default=0)

    def _apply(self, records: Sequence[Record]) -> Sequence[SamplingPlan] | None:
        plans = None
        for record in records:
            self.version = record.offset + 1
            try:
                order = read_order(record)
                if isinstance(order, Skip):
                    self._skips[order.topic, order.partition, order.first] = order
                    continue
                changes = {**self._changes, order.key: order}
                plans = self._replan({c.key: c.value for c in changes.values() if c.value is not None})
            except ConfigError as error:
                logger.warning("an order was refused, the former budget stays: %s", error)
                continue
            self._changes = changes
            logger.info("budget changed", extra={"setting": order.key, "by": order.by, "offset": record.offset})
        return plans
