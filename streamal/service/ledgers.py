"""The ledger in the commit metadata: framed, checked, and read back with all that a new owner of a partition needs.

It lies beside the group's position on the `instances` partition, is replaced atomically with it, and moves with the
partition. Length and checksum frame the JSON, since one client returns trailing garbage. Where a history exists and the
ledger does not, nothing is decided: a budget that cannot be known cannot be kept.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Any, Final

import orjson

from streamal.decoding import InstanceDecoder
from streamal.errors import BadRecord, LedgerLost, TopicMissing
from streamal.lane import Handover
from streamal.messages import Instance, LabelRequest, Outcome, Recorded, Unlabelled, Vote
from streamal.pending import REMEMBERED, PendingRequests
from streamal.pooling import begin
from streamal.service.own_records import is_own, is_unlabelled, outcome_of, request_of
from streamal.transport.log import Log, Position, Reader, Record, TopicPartition

RECENT_OUTCOMES: Final = 2_000
"""Records of `outcomes` a new owner reads at least, to tell second answers from unknown ones; unlabelled ones do not
count."""
TORN_WITHIN: Final = 5_000
"""Last records of `outcomes` among which a torn transaction is looked for: it ended right before the takeover. Here
as well unlabelled ones do not count: a transaction may hold tens of thousands, and what it has learned lies before."""
MOST_READ: Final = 100_000
"""Records of `outcomes` read for either at most, however many of them are unlabelled: about a second's worth."""
SPARE_PLACES: Final = 64
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the topics; `predictions` is empty when they are not wanted."""

    instances: str = "instances"
    label_requests: str = "label-requests"
    answers: str = "answers"
    outcomes: str = "outcomes"
    predictions: str = ""
    decisions: str = "decisions"
    dead_letters: str = "dead-letters"
    snapshots: str = "snapshots"
    control: str = "control"

    def partitions(self, count: int) -> dict[str, int]:
        """Return the number of partitions of each topic when `instances` has `count`."""
        found = {
            name: count
            for name in (
                self.instances,
                self.label_requests,
                self.answers,
                self.predictions,
                self.decisions,
                self.dead_letters,
            )
            if name
        }
        return found | {self.outcomes: 1, self.snapshots: 1, self.control: 1}

    def check(self, found: Mapping[str, int]) -> None:
        """Compare the partitions found with those of `instances`.

        Raises:
            TopicMissing: a topic has another number than it should.
        """
        for topic, expected in self.partitions(found[self.instances]).items():
            if found.get(topic, expected) != expected:
                message = (
                    f"topic '{topic}' has {found[topic]} partitions; expected {expected}, since '{self.instances}' has "
                    f"{found[self.instances]}: recreate it, or name another one under [topics]"
                )
                raise TopicMissing(message)

    def used(self) -> list[str]:
        """Return all topics there must be."""
        return list(self.partitions(1))


@dataclass(frozen=True, slots=True)
class Pointers:
    """Where a partition's own records lie.

    Its requests from the oldest pending one on, and in `outcomes` an offset that all of its own lie before, and none of
    a later transaction's.
    """

    requests_low: int = 0
    requests_end: int = 0
    outcomes_end: int = 0


@dataclass(frozen=True, slots=True)
class Torn:
    """What a transaction left visible although its positions never moved.

    The broker should rule that out, but a client that does not speak the second version of the transaction protocol
    can lose the race of a delayed packet. `requests` are the places of requests by instance offset, `outcomes` the
    places of outcomes, votes, unlabelled instances and moments; the latter count twice, for the scaler only.
    """

    requests: Mapping[int, int] = field(default_factory=dict)
    outcomes: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.requests or self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, for the audit."""
        return {"requests": [list(pair) for pair in self.requests.items()], "outcomes": list(self.outcomes)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Torn:
        """Read back `as_json`.

        >>> Torn.from_json(Torn({41: 7}, [3]).as_json())
        Torn(requests={41: 7}, outcomes=[3])
        """
        return cls(dict(found["requests"]), found["outcomes"])


def frame(text: str) -> str:
    """Return a text framed by its length and checksum.

    >>> frame("{}")
    '2:a3a6bf43:{}'
    """
    content = text.encode()
    return f"{len(content)}:{zlib.crc32(content):08x}:{text}"


def unframe(framed: str) -> str:
    """Return the text of a frame, whatever comes behind it.

    >>> unframe(frame("{}") + "garbage")
    '{}'

    Raises:
        ValueError: it is no frame, is cut, or was altered.
    """
    length, checksum, rest = framed.split(":", 2)
    content = rest.encode()[: int(length)]
    if len(content) != int(length) or f"{zlib.crc32(content):08x}" != checksum:
        message = "the frame is cut or altered"
        raise ValueError(message)
    return content.decode()


def encode_metadata(ledger: dict[str, Any], pointers: Pointers) -> str:
    """Return the commit metadata of a partition."""
    places = [pointers.requests_low, pointers.requests_end, pointers.outcomes_end]
    return frame(orjson.dumps({"v": VERSION, "ledger": ledger, "pointers": places}).decode())


def decode_metadata(metadata: str) -> tuple[dict[str, Any], Pointers]:
    """Read back `encode_metadata`.

    Raises:
        ValueError: it is not what `encode_metadata` wrote, or of another version.
    """
    found = orjson.loads(unframe(metadata))
    version = found.get("v") if isinstance(found, dict) else None
    if version != VERSION:
        message = f"version {version} instead of {VERSION}"
        raise ValueError(message)
    ledger, places = found.get("ledger"), found.get("pointers")
    fits = isinstance(places, list) and len(places) == 3 and all(type(place) is int and place >= 0 for place in places)
    if not fits or not isinstance(ledger, dict):
        message = "it holds no ledger or no pointers"
        raise ValueError(message)
    return ledger, Pointers(*places)


class RequestIndex:
    """Where the pending requests of a partition lie in `label-requests`."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        """A heap: the lowest place comes first. Instance offsets go up and down along the topic."""

    def add(self, offset: int, place: int) -> None:
        """Take note of the request about the instance at `offset`."""
        heappush(self._places, (place, offset))

    def low(self, pending: PendingRequests) -> int | None:
        """Return the lowest place of a pending request and forget those before it; None if none has a place yet.

        One request that nobody answers holds the others' places behind it; those that have ended go now and then.
        """
        while self._places and pending.get(self._places[0][1]) is None:
            heappop(self._places)
        if len(self._places) > 2 * len(pending) + SPARE_PLACES:
            self._places = [found for found in self._places if pending.get(found[1]) is not None]
            heapify(self._places)
        return self._places[0][0] if self._places else None


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What `inherit` found: where to go on, the handover, where the own records lie, and what a torn one left."""

    position: int
    handover: Handover
    pointers: Pointers
    index: RequestIndex
    torn: Torn


class Heritage:
    """Reads what the former owner of a partition left."""

    def __init__(self, log: Log, reader: Reader, topics: Topics, decoder: InstanceDecoder, warmup: int) -> None:
        self._log = log
        self._reader = reader
        self._topics = topics
        self._outcomes = TopicPartition(topics.outcomes, 0)
        self._decoder = decoder
        self._warmup = warmup
        self._bounds: dict[TopicPartition, tuple[int, int]] = {}

    def first(self, partition: TopicPartition) -> int:
        """Return the first offset that is kept."""
        return self._log.bounds(partition)[0]

    def inherit(self, partition: int, committed: Position | None, readable_from: int = 0) -> Inheritance:
        """Return all a new owner needs, given the group's position; no instance before `readable_from` is read.

        Raises:
            LedgerLost: the partition has a history, but its ledger is missing or unreadable.
        """
        self._bounds.clear()
        instances = TopicPartition(self._topics.instances, partition)
        first = self.first(instances)
        if committed is None:
            self._refuse_history(partition)
            return self.rebuild(partition, first, None, Pointers(), self._torn(partition, Pointers()), first)
        try:
            ledger, pointers = decode_metadata(committed.metadata)
        except ValueError as error:
            raise LedgerLost(lost(instances, f"its metadata is unreadable ({error})")) from None
        torn = self._torn(partition, pointers)
        return self.rebuild(partition, committed.offset, ledger, pointers, torn, max(first, readable_from))

    def rebuild(
        self, partition: int, position: int, ledger: dict[str, Any] | None, pointers: Pointers, torn: Torn, first: int
    ) -> Inheritance:
        """Return what an owner needs at a position; no instance before `first` is read to warm soft state with.

        It depends on its arguments and on the records they point to, so that a replay finds the same again.
        """
        left = [outcome_of(record) for record in self._records_at(torn.outcomes)]
        ended, outcomes, votes = self._ended(partition, pointers, left)
        gathered_from = begin(ledger, position)
        index = RequestIndex()
        waiting = []
        for place, request in self._requests(partition, pointers.requests_low, pointers.requests_end):
            if request.offset not in ended:
                index.add(request.offset, place)
                waiting.append(request)
        adopted = [
            request
            for offset, place in torn.requests.items()
            if offset >= gathered_from
            for _, request in self._requests(partition, place, place + 1)
        ]
        instances = TopicPartition(self._topics.instances, partition)
        handover = Handover(
            ledger=ledger,
            requests=waiting,
            outcomes=outcomes,
            recent=self._recent(instances, max(first, min(gathered_from, position - self._warmup)), position),
            adopted=adopted,
            votes=votes,
            kept=frozenset(record.offset for record in left if isinstance(record, Unlabelled)),
        )
        return Inheritance(position, handover, pointers, index, torn)

    def _requests(self, partition: int, start: int, stop: int) -> Iterator[tuple[int, LabelRequest]]:
        """Yield requests with their places; one by one, for there may be many."""
        place = TopicPartition(self._topics.label_requests, partition)
        for record in self._reader.read(place, max(self._known(place)[0], start), stop):
            yield record.offset, request_of(record)

    def _known(self, place: TopicPartition) -> tuple[int, int]:
        """Return the bounds of a partition, which are asked for once in a takeover: each time costs two round trips."""
        if place not in self._bounds:
            self._bounds[place] = self._log.bounds(place)
        return self._bounds[place]

    def _torn(self, partition: int, pointers: Pointers) -> Torn:
        """Look for own records that no stored position speaks of."""
        end = self._known(TopicPartition(self._topics.label_requests, partition))[1]
        requests: dict[int, int] = {}
        for place, request in self._requests(partition, pointers.requests_end, end):
            requests.setdefault(request.offset, place)
        first, end = self._known(self._outcomes)
        _, own = self._last_own(partition, max(first, pointers.outcomes_end), end, TORN_WITHIN)
        return Torn(requests, [record.offset for record in own])

    def _ended(
        self, partition: int, pointers: Pointers, left: Sequence[Recorded]
    ) -> tuple[set[int], list[Outcome], list[Vote]]:
        """Return the offsets of all requests that have ended since the oldest pending one, and the last outcomes.

        Besides the votes on those that have not. `left` is what a torn transaction has left of the partition, which the
        pointers do not cover.
        """
        first, end = self._known(self._outcomes)[0], pointers.outcomes_end
        start, own = self._last_own(partition, first, end, RECENT_OUTCOMES)
        since = start
        for _, oldest in self._requests(partition, pointers.requests_low, pointers.requests_end):
            since = max(first, oldest.model_version)
            break
        before = self._reader.read(self._outcomes, since, start) if since < start else ()
        known = (outcome_of(record) for record in chain(before, own) if is_own(record, partition))
        ended: set[int] = set()
        recent: deque[Outcome] = deque(maxlen=REMEMBERED)
        votes: dict[int, list[Vote]] = {}
        for record in chain(known, left):
            if isinstance(record, Outcome):
                ended.add(record.offset)
                recent.append(record)
                votes.pop(record.offset, None)
            elif isinstance(record, Vote):
                votes.setdefault(record.offset, []).append(record)
        return ended, list(recent), [vote for found in votes.values() for vote in found]

    def _last_own(self, partition: int, first: int, end: int, number: int) -> tuple[int, list[Record]]:
        """Return a partition's own among the last records of `outcomes` before `end`, and the offset they begin at.

        That is `number` offsets back, and as many further as lie unlabelled records between, but not before `first`.
        """
        start, counted = end, 0
        own: list[Record] = []
        while start > first and counted < number and end - start < MOST_READ:
            stop, start = start, max(first, start - number)
            records = list(self._reader.read(self._outcomes, start, stop))
            counted += stop - start - sum(map(is_unlabelled, records))
            own[:0] = [record for record in records if is_own(record, partition)]
        return start, own

    def _records_at(self, places: Sequence[int]) -> Iterator[Record]:
        """Yield single records of `outcomes`."""
        for place in places:
            yield from self._reader.read(self._outcomes, place, place + 1)

    def _recent(self, instances: TopicPartition, first: int, position: int) -> list[Instance]:
        found = []
        for record in self._reader.read(instances, first, position):
            try:
                found.append(self._decoder(record))
            except BadRecord:
                continue
        return found

    def _refuse_history(self, partition: int) -> None:
        decisions = TopicPartition(self._topics.decisions, partition)
        first, end = self._log.bounds(decisions)
        if next(iter(self._reader.read(decisions, first, end)), None) is not None:
            raise LedgerLost(lost(TopicPartition(self._topics.instances, partition), "the group has no position"))


def lost(partition: TopicPartition, cause: str) -> str:
    """Return what to say of a partition whose ledger is gone, and what to do."""
    return (
        f"there are decisions on {partition.topic}-{partition.partition}, or on another stream in the same topics, but "
        f"{cause}; a group's positions expire after 7 days without members, and a plain offset reset wipes the ledger. "
        "Nothing is decided without one. Check transport.group; if it is right, stop all workers and put the ledgers "
        "back with `streamal ledger recover`. A new start or another stream needs topics of its own."
    )
