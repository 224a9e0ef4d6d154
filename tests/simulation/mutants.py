"""Faults that exactly-once delivery is known to die of, each planted by exchanging one piece of the code.

Every mutant is a way in which a worker on Kafka was, or could have been, written. The schedules must find each of them;
one that they do not find says that the simulation is blind there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop
from typing import Any, Final

import pytest
from simulation.cluster import Cluster, Token
from simulation.memory_log import MemoryProducer, MemoryWriter, Point, Steps

from streamal.errors import CommitRefused, TransportError
from streamal.messages import Instance, Outcome, Recorded, Vote
from streamal.pending import PendingRequests
from streamal.pooling import Window
from streamal.service.ledgers import Heritage, Inheritance, Pointers, RequestIndex, Torn
from streamal.service.loop import Loop
from streamal.transport.log import Position, TopicPartition, Transaction

Patch = pytest.MonkeyPatch
Ended = tuple[set[int], list[Outcome], list[Vote]]


def offsets_before_sends(patch: Patch) -> None:
    """Store the positions first, as with automatic commits, then send: a crash between loses the decisions."""

    def commit(
        self: MemoryWriter, producer: MemoryProducer, transaction: Transaction, token: Token
    ) -> Steps[Mapping[TopicPartition, Position]]:
        cluster = self.connection.cluster
        cluster.check_token(token)
        ends: dict[TopicPartition, int] = {}
        guessed = []
        for append in transaction.appends:
            place = TopicPartition(append.topic, append.partition)
            guessed.append(ends.get(place, len(cluster.partition(place).entries)))
            ends[place] = guessed[-1] + 1
        positions = transaction.positions(guessed)
        yield Point.OFFSETS
        cluster.groups[token.group].positions.update(positions)
        yield Point.OFFSETS_SENT
        yield from self._send_all(producer, transaction.appends)
        return positions

    patch.setattr(MemoryWriter, "_commit", commit)


def no_generation(patch: Patch) -> None:
    """Hand the group's name over instead of member and generation: a frozen owner's positions are taken."""
    patch.setattr(Cluster, "check_token", lambda self, token: None)


def no_epoch(patch: Patch) -> None:
    """Let a fenced writer go on, with neither epochs nor generations: a zombie's whole transaction is taken."""
    no_generation(patch)
    patch.setattr(Cluster, "check_epoch", lambda self, name, epoch: None)


def futures_unchecked(patch: Patch) -> None:
    """Never ask what became of a send: one that failed before the buffer is missing from its transaction."""

    def offsets(self: MemoryWriter, futures: Sequence[int | TransportError]) -> list[int]:
        found: list[int] = []
        for future in futures:
            found.append((found[-1] + 1 if found else 0) if isinstance(future, TransportError) else future)
        return found

    patch.setattr(MemoryWriter, "_offsets", offsets)


def ledger_kept(patch: Patch) -> None:
    """Keep the ledger of a partition that stays through a rebalance: what was dropped stays counted in it."""
    take_over = Loop._take_over

    def keep(self: Loop) -> None:
        kept = vars(self).setdefault("kept", {})
        kept |= self._craft.sampler.lanes
        take_over(self)
        for partition in kept.keys() & self.holdings.keys():
            self.holdings[partition].lane = self._craft.sampler.lanes[partition] = kept[partition]

    patch.setattr(Loop, "_take_over", keep)


def writer_used_again(patch: Patch) -> None:
    """Abort and go on with the same producer: positions of the aborted transaction go through with the next one."""
    transact = MemoryWriter._transact

    def again(
        self: MemoryWriter, inside: Callable[[MemoryProducer], Steps[Mapping[TopicPartition, Position]]]
    ) -> Steps[Mapping[TopicPartition, Position]]:
        producer = self._producer
        try:
            found = yield from transact(self, inside)
        except CommitRefused as refused:
            self._producer = producer
            refused.retriable = True
            raise
        return found

    patch.setattr(MemoryWriter, "_transact", again)


def restored_to_the_stable_end(patch: Patch) -> None:
    """Restore from what can be read now instead of reading up to the ledger's pointers."""
    rebuild = Heritage.rebuild

    def by_now(
        self: Heritage,
        partition: int,
        position: int,
        ledger: dict[str, Any],
        pointers: Pointers,
        torn: Torn,
        first: int,
    ) -> Inheritance:
        requests = self._log.bounds(TopicPartition(self._topics.label_requests, partition))[1]
        outcomes = self._log.bounds(TopicPartition(self._topics.outcomes, 0))[1]
        end = min(pointers.requests_end, requests)
        known = Pointers(min(pointers.requests_low, end), end, min(pointers.outcomes_end, outcomes))
        return rebuild(self, partition, position, ledger, known, torn, first)

    patch.setattr(Heritage, "rebuild", by_now)


def places_by_offset(patch: Patch) -> None:
    """Look for the oldest request as if requests lay in the order of the instances they are about."""

    def low(self: RequestIndex, pending: PendingRequests) -> int | None:
        oldest = pending.oldest
        while oldest and self._places and self._places[0][1] < oldest.offset:
            heappop(self._places)
        return self._places[0][0] if oldest and self._places and self._places[0][1] == oldest.offset else None

    patch.setattr(RequestIndex, "low", low)


def decided_forgotten(patch: Patch) -> None:
    """Read the instances of an open window back without asking which of them are decided."""
    restore = Window.restore

    def forgetful(self: Window, state: Mapping[str, Any], recent: Sequence[Instance]) -> None:
        restore(self, {**state, "decided": "0"} if state else state, recent)

    patch.setattr(Window, "restore", forgetful)


def votes_forgotten(patch: Patch) -> None:
    """Take a partition over without the votes on what waits: the annotators have answered in vain."""
    ended = Heritage._ended

    def forgetful(self: Heritage, p: int, pointers: Pointers, left: Sequence[Recorded]) -> Ended:
        return (*ended(self, p, pointers, left)[:2], [])

    patch.setattr(Heritage, "_ended", forgetful)


def votes_out_of_order(patch: Patch) -> None:
    """Take the votes over the last one first: another label wins a tie, and a former opinion the later one."""
    ended = Heritage._ended

    def reverse(self: Heritage, p: int, pointers: Pointers, left: Sequence[Recorded]) -> Ended:
        found = ended(self, p, pointers, left)
        return (*found[:2], found[2][::-1])

    patch.setattr(Heritage, "_ended", reverse)


def ballot_stuffed(patch: Patch) -> None:
    """Count a change of mind as one vote more."""
    count = PendingRequests.count

    def stuff(self: PendingRequests, vote: Vote) -> None:
        again = any(vote.annotator == before.annotator for before in self.votes(vote.offset))
        count(self, vote)
        if again:
            self._votes[vote.offset][f"{vote.annotator} again"] = vote

    patch.setattr(PendingRequests, "count", stuff)


MUTANTS: Final[Sequence[Callable[[Patch], None]]] = (
    offsets_before_sends,
    no_generation,
    no_epoch,
    futures_unchecked,
    ledger_kept,
    writer_used_again,
    restored_to_the_stable_end,
)
MUTANTS_OF_WINDOWS: Final[Sequence[Callable[[Patch], None]]] = (places_by_offset, decided_forgotten)
"""Those that matter only where requests are made at the end of a window."""
MUTANTS_OF_VOTES: Final[Sequence[Callable[[Patch], None]]] = (votes_forgotten, votes_out_of_order, ballot_stuffed)
"""Those that matter only where several annotators answer a request."""
