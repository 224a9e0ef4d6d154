"""Workers with one deliberate fault in their delivery, to see that the auditor bites; `sound` has none.

Usage: mutants.py NAME run --config FILE --no-supervisor. The fault is put in before streamal's command line runs. A
process stops itself (SIGSTOP) at the point of a transaction that `MUTANT_STOPS_AT` names, once, as soon as the file
`MUTANT_ARMED` is there; so a story can kill it, or freeze it for as long as it likes, at the very place where it
matters. After the stop its transaction ends before anything else in the process goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition

from streamal.cli import main
from streamal.errors import CommitRefused
from streamal.service import outbox
from streamal.service.ledgers import Heritage, Inheritance, Pointers, Torn, encode_metadata
from streamal.service.loop import Loop
from streamal.transport import kafka
from streamal.transport.kafka import GroupMembership, Ownership, TransactionalWriter
from streamal.transport.kafka_cluster import CLIENT_ERRORS, explain
from streamal.transport.log import Append, Position, TopicPartition, Transaction

Point = Literal["begin", "sent", "torn", "committed"]
"""`torn`: positions are committed and the records are not, which no sound worker ever reaches."""
STOPS_AT: Final = "MUTANT_STOPS_AT"
ARMED: Final = "MUTANT_ARMED"
TRANSACTION_TIMEOUT: Final = "MUTANT_TRANSACTION_TIMEOUT"
"""Seconds a broker lets a transaction stay open."""


class Points:
    """The points of a transaction at which the process may stop itself, and what holds the loop meanwhile."""

    def __init__(self) -> None:
        self._at = os.environ.get(STOPS_AT, "")
        self._armed = Path(os.environ.get(ARMED, "."))
        self._going = threading.Event()
        self._going.set()

    def reach(self, point: Point) -> None:
        """Stop here, if this is the point, and once it is armed."""
        if point == self._at and self._armed.is_file():
            self._armed.unlink()
            self._going.clear()
            # To this very thread: a signal to the process would let it run on for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def install(self) -> None:
        """Put the points into the client and the writer."""
        begin, commit = KafkaProducer.begin_transaction, KafkaProducer.commit_transaction
        send_all, whole, poll = kafka.send_all, TransactionalWriter.commit, GroupMembership.poll

        def begin_transaction(producer: KafkaProducer) -> None:
            self.reach("begin")
            begin(producer)

        def send(producer: KafkaProducer, appends: Sequence[Append], timeout: float) -> list[int]:
            offsets = send_all(producer, appends, timeout)
            self.reach("sent")
            return offsets

        def commit_transaction(producer: KafkaProducer) -> None:
            commit(producer)
            self.reach("committed")

        def carry_out(writer: TransactionalWriter, transaction: Transaction) -> Mapping[TopicPartition, Position]:
            try:
                return whole(writer, transaction)
            finally:
                self._going.set()

        def wait_and_poll(member: GroupMembership, timeout: float, limit: int) -> Mapping[TopicPartition, Any]:
            self._going.wait()
            return poll(member, timeout, limit)

        put(KafkaProducer, "begin_transaction", begin_transaction)
        put(KafkaProducer, "commit_transaction", commit_transaction)
        put(kafka, "send_all", send)
        put(TransactionalWriter, "commit", carry_out)
        put(GroupMembership, "poll", wait_and_poll)


POINTS: Final = Points()


def put(place: object, name: str, replacement: object) -> None:
    """Replace a function that is there."""
    assert hasattr(place, name), f"{place} has no {name} any more"
    setattr(place, name, replacement)


def sound() -> None:
    """No fault at all."""


def offsets_before_sends() -> None:
    """Positions and ledger are committed first, in a transaction of their own; the records follow."""

    def commit(writer: Any, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        positions = transaction.positions([0] * len(transaction.appends))
        with writer._transaction() as producer:
            producer.send_offsets_to_transaction(kafka.as_kafka(positions), transaction.token)
        POINTS.reach("torn")
        with writer._transaction() as producer:
            kafka.send_all(producer, transaction.appends, writer._timeout)
        return positions

    put(TransactionalWriter, "commit", commit)


def no_fencing() -> None:
    """The offsets are sent with the bare name of the group, so that nobody asks whether the member is still one."""
    send_offsets = KafkaProducer.send_offsets_to_transaction

    def unfenced(producer: KafkaProducer, offsets: Mapping[KafkaPartition, Any], token: Any) -> None:
        send_offsets(producer, offsets, token.group_id)

    put(KafkaProducer, "send_offsets_to_transaction", unfenced)


def futures_not_checked() -> None:
    """Records are sent, and nobody looks what became of them."""

    def send_all(producer: KafkaProducer, appends: Sequence[Append], timeout: float) -> list[int]:
        futures = [
            producer.send(a.topic, value=a.value, key=a.key, headers=[*a.headers], partition=a.partition)
            for a in appends
        ]
        producer.flush(timeout)
        return [future.value.offset if future.succeeded() else -1 for future in futures]

    def encode(ledger: dict[str, Any], pointers: Pointers) -> str:
        return encode_metadata(ledger, Pointers(*(max(0, place) for place in astuple(pointers))))

    put(kafka, "send_all", send_all)
    put(outbox, "encode_metadata", encode)


def ledger_kept() -> None:
    """A partition that was owned before keeps its ledger in memory, and is not sought to its position."""
    inherit, settle = Loop._inherit, GroupMembership._settle

    def keep_or_inherit(loop: Loop, partition: int) -> None:
        if partition in KEPT:
            loop.holdings[partition] = KEPT[partition]
            loop._craft.sampler.lanes[partition] = KEPT[partition].lane
        else:
            inherit(loop, partition)

    take_over = Loop._take_over

    def remember_and_take_over(loop: Loop) -> None:
        KEPT.update(loop.holdings)
        take_over(loop)

    def settle_new(member: GroupMembership) -> None:
        """Seek only what was not owned before."""
        everything = member._ownership.partitions
        member._ownership.partitions = frozenset(p for p in everything if p.partition not in OWNED)
        settle(member)
        member._ownership.partitions = everything
        OWNED.update(p.partition for p in everything)

    KEPT: dict[int, Any] = {}
    OWNED: set[int] = set()
    put(Loop, "_inherit", keep_or_inherit)
    put(Loop, "_take_over", remember_and_take_over)
    put(GroupMembership, "_settle", settle_new)


def producer_used_again() -> None:
    """After an abort the same producer goes on, and so does the worker, as the client's documentation has it."""

    @contextmanager
    def transaction(writer: Any) -> Iterator[KafkaProducer]:
        producer = writer._producer
        try:
            producer.begin_transaction()
            yield producer
            producer.commit_transaction()
        except CLIENT_ERRORS as error:
            producer.abort_transaction()
            raise CommitRefused(explain(error), retriable=True) from error

    def lost(ownership: Ownership, partitions: set[Any]) -> None:
        ownership.partitions = frozenset()

    put(TransactionalWriter, "_transaction", transaction)
    put(Ownership, "on_partitions_lost", lost)


def restored_to_the_stable_offset() -> None:
    """A new owner reads requests and outcomes up to their ends as a reader of committed records is told them."""
    rebuild = Heritage.rebuild

    def bounded(
        heritage: Heritage, partition: int, position: int, ledger: Any, pointers: Pointers, torn: Torn, first: int
    ) -> Inheritance:
        places = (
            TopicPartition(heritage._topics.label_requests, partition),
            TopicPartition(heritage._topics.outcomes, 0),
        )
        requests_end, outcomes_end = (heritage._log.bounds(place)[1] for place in places)
        stable = Pointers(min(pointers.requests_low, requests_end), requests_end, outcomes_end)
        return replace(rebuild(heritage, partition, position, ledger, stable, torn, first), pointers=pointers)

    put(Heritage, "rebuild", bounded)


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    mutant.__name__: mutant
    for mutant in (
        sound,
        offsets_before_sends,
        no_fencing,
        futures_not_checked,
        ledger_kept,
        producer_used_again,
        restored_to_the_stable_offset,
    )
}


def leave_transactions_open(seconds: float) -> None:
    """Let the broker wait so long before it aborts a transaction of this process."""
    put(kafka, "KafkaLog", partial(kafka.KafkaLog, transaction_timeout=seconds))


if __name__ == "__main__":
    name = sys.argv.pop(1)
    MUTANTS[name]()
    POINTS.install()
    if timeout := os.environ.get(TRANSACTION_TIMEOUT):
        leave_transactions_open(float(timeout))
    main(prog_name="streamal")
