"""Recovery of a lost ledger from the audit: the last record of `decisions` says all that was lost.

It happens when Kafka drops a group's offsets, after a week without members, or when somebody resets them. The workers
then refuse to decide. `streamal ledger recover` puts position and ledger back where the last transaction left them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamal.errors import LedgerLost
from streamal.messages import Outcome
from streamal.service.audit import Audit, last_audit
from streamal.service.ledgers import Pointers, Topics, decode_metadata, encode_metadata
from streamal.service.own_records import is_own, outcome_of, request_of
from streamal.transport.log import Log, Position, Reader, TopicPartition


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a partition gets back; `found` says why it needs it, None where its ledger is sound."""

    partition: int
    position: int
    seen: int
    asked: int
    found: str | None
    positions: dict[TopicPartition, Position]


class Recovery:
    """Finds what the ledgers of a group should be."""

    def __init__(self, log: Log, topics: Topics, group: str) -> None:
        self._log = log
        self._topics = topics
        self._group = group
        self._reader: Reader = log.reader()

    def look(self) -> list[Recovered]:
        """Return, for each partition with a history, what its ledger should be.

        Raises:
            LedgerLost: the position has moved behind what was audited: no audit tells what the ledger is.
        """
        count = self._log.partitions(self._topics.instances)
        return [found for p in range(count) if (found := self._partition(p)) is not None]

    def put_back(self, recovered: Sequence[Recovered]) -> None:
        """Set the positions of those that need it.

        Raises:
            CommitRefused: the group has members.
        """
        positions = {
            place: position for found in recovered if found.found for place, position in found.positions.items()
        }
        if positions:
            self._log.set_positions(self._group, positions)

    def _partition(self, p: int) -> Recovered | None:
        audit = last_audit(self._log, self._reader, TopicPartition(self._topics.decisions, p))
        if audit is None:
            return None
        instances = TopicPartition(self._topics.instances, p)
        answers = TopicPartition(self._topics.answers, p)
        held = self._log.positions(self._group, [instances, answers])
        ledger = dict(audit.ledger_after)
        metadata = encode_metadata(ledger, self._pointers(p, audit))
        return Recovered(
            partition=p,
            position=audit.instances[1],
            seen=ledger["budget"]["seen"],
            asked=ledger["budget"]["asked"],
            found=_trouble(held.get(instances), audit, instances),
            positions={
                instances: Position(audit.instances[1], metadata),
                answers: Position(audit.answers[1], ""),
            },
        )

    def _pointers(self, p: int, audit: Audit) -> Pointers:
        """Return where the own records lie after the last transaction: where they lay before it, and what it added."""
        place = TopicPartition(self._topics.label_requests, p)
        first, end = self._log.bounds(place)
        records = self._reader.read(place, max(first, audit.pointers.requests_low), end)
        made = [(record.offset, request_of(record)) for record in records]
        seen = audit.ledger_after["budget"]["seen"]
        made = [(at, request) for at, request in made if request.budget["seen"] <= seen]
        outcomes = TopicPartition(self._topics.outcomes, 0)
        since = min([audit.pointers.outcomes_end, *(request.model_version for _, request in made[:1])])
        ended: set[int] = set()
        outcomes_end = max(audit.pointers.outcomes_end, audit.model_version)
        for record in self._reader.read(outcomes, since, self._log.bounds(outcomes)[1]):
            if is_own(record, p):
                outcomes_end = max(outcomes_end, record.offset + 1)
                if isinstance(outcome := outcome_of(record), Outcome):
                    ended.add(outcome.offset)
        requests_end = max([audit.pointers.requests_end, *(at + 1 for at, _ in made)])
        low = next((at for at, request in made if request.offset not in ended), requests_end)
        return Pointers(low, requests_end, outcomes_end)


def _trouble(held: Position | None, audit: Audit, place: TopicPartition) -> str | None:
    """Say what is wrong with a stored position, None where it is sound."""
    if held is None:
        return "the group has no position"
    try:
        decode_metadata(held.metadata)
    except ValueError as error:
        if held.offset > audit.instances[1]:
            message = (
                f"{place.topic}-{place.partition} stands at {held.offset}, but the audit ends at {audit.instances[1]}: "
                "somebody has moved the position; set it back to where the audit ends, or begin anew with new topics"
            )
            raise LedgerLost(message) from error
        return f"its ledger is unreadable ({error or 'empty'})"
    return None
