"""The audit: one record of `decisions` per transaction and partition, enough to make every decision again.

It says what the transaction covered, when, with which version of the model, where the partition's own records lay
before it, and the ledger after it. The first record of an owner tells besides what it took over, and with which plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import orjson

from streamal.messages import MALFORMED
from streamal.service.ledgers import Pointers
from streamal.service.own_records import foreign
from streamal.transport.log import Log, Reader, Record, TopicPartition

LOOK_BACK = 64


class Audit(NamedTuple):
    """One record; a span goes from its first offset up to, but not including, the next one.

    `at` is in seconds since 1970. `pointers` are those before the transaction. `takeover` comes with an owner's first
    transaction; `plan` with one that begins with another budget, and with it `orders`: who had set what, and when.
    """

    partition: int
    instances: tuple[int, int]
    answers: tuple[int, int]
    model_version: int
    control_version: int
    at: float
    pointers: Pointers
    takeover: Mapping[str, Any] | None
    plan: Mapping[str, Any] | None
    orders: Sequence[Mapping[str, Any]] | None
    ledger_after: Mapping[str, Any]

    def encode(self) -> bytes:
        """Return the value of the record."""
        return orjson.dumps(
            {
                "partition": self.partition,
                "from": self.instances[0],
                "to": self.instances[1],
                "answers_from": self.answers[0],
                "answers_to": self.answers[1],
                "model_version": self.model_version,
                "control_version": self.control_version,
                "at": self.at,
                "pointers": [self.pointers.requests_low, self.pointers.requests_end, self.pointers.outcomes_end],
                "takeover": self.takeover,
                "plan": self.plan,
                "orders": self.orders,
                "ledger_after": self.ledger_after,
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Read back `encode`.

        Raises:
            ValueError: something else wrote it.
        """
        try:
            return cls._read(orjson.loads(value))
        except MALFORMED as error:
            message = f"this is no audit ({type(error).__name__})"
            raise ValueError(message) from None

    @classmethod
    def _read(cls, found: Mapping[str, Any]) -> Self:
        return cls(
            partition=found["partition"],
            instances=(found["from"], found["to"]),
            answers=(found["answers_from"], found["answers_to"]),
            model_version=found["model_version"],
            control_version=found["control_version"],
            at=found["at"],
            pointers=Pointers(*found["pointers"]),
            takeover=found["takeover"],
            plan=found["plan"],
            orders=found["orders"],
            ledger_after=found["ledger_after"],
        )


def audit_of(record: Record) -> Audit:
    """Return the content of a record of `decisions`.

    Raises:
        TransportError: something else wrote it.
    """
    try:
        return Audit.decode(record.value or b"")
    except ValueError as error:
        raise foreign(record, error) from None


def last_audit(log: Log, reader: Reader, place: TopicPartition) -> Audit | None:
    """Return the last record of a partition of `decisions`; transaction markers may lie behind it."""
    first, end = log.bounds(place)
    back = LOOK_BACK
    while True:
        start = max(first, end - back)
        if found := list(reader.read(place, start, end)):
            return audit_of(found[-1])
        if start == first:
            return None
        back *= 4
