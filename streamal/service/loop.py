"""The loop: polls, decides, learns, and hands transactions over, one turn at a time.

When the assignment has changed, a turn takes the partitions over and starts afresh. Otherwise it decides on what
came. A transaction begins with what changes the model or the queue (new outcomes are folded, answers are matched,
requests expire) and goes on with instances only, so all of it is decided by one version of the model. Once the commit
interval is over and the former commit is through, it is handed to the committer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

from streamal.decoding import AnswerDecoder, InstanceDecoder
from streamal.errors import CommitRefused, DeadlineMissed, LogDamaged
from streamal.events import Event, ExampleSkipped, FoldEvent, TornRepaired
from streamal.lane import SamplingPlan
from streamal.sampler import SelectiveSampler
from streamal.service.clerk import Clerk
from streamal.service.committer import Committer
from streamal.service.control import Control
from streamal.service.ledgers import Heritage, Topics, encode_metadata
from streamal.service.outbox import Holding, Outbox, Placed
from streamal.service.own_records import outcome_of
from streamal.service.snapshots import Checkpointer
from streamal.transport.log import Membership, Position, Reader, Record, TopicPartition
from streamal.web.status import Phase

logger = logging.getLogger(__name__)

POLL_LIMIT: Final = 1_000
IDLE_WAIT: Final = 0.1
MOST_COLLECTED: Final = 50_000
"""Instances, or answers, collected while a commit is in flight, after which the loop waits for it."""
MOST_BYTES: Final = 64 * 2**20
"""The same for the size of what is to be appended."""
MOST_FOLDED: Final = 5_000
"""Records of `outcomes` folded per transaction, about: more of them would keep the instances waiting."""
SETTLE_WITHIN: Final = 8.0

Step = Literal["decision", "learn", "commit"]


class Observer(Protocol):
    """Who is told; a transaction's events are told once it went through, so nothing is counted that never happened."""

    def observe(self, event: Event) -> None:
        """Take note of an event."""

    def took(self, step: Step, seconds: float) -> None:
        """Take note of how long a step took."""

    def refused(self) -> None:
        """Take note of a commit that was refused, and what it held dropped."""


@dataclass(frozen=True, slots=True)
class Craft:
    """What the loop decides with; `clock` gives seconds since 1970.

    `checkpoint` is called between transactions and saves a snapshot when one is due. `made_with` are the versions and
    the config that the audit names; `replan` makes the plans of a budget in which some keys were changed.
    """

    topics: Topics
    sampler: SelectiveSampler
    instances: InstanceDecoder
    answers: AnswerDecoder
    commit_interval: float
    clock: Callable[[], float]
    observer: Observer
    checkpoint: Checkpointer
    made_with: Mapping[str, str]
    replan: Callable[[Mapping[str, Any]], Sequence[SamplingPlan]]


def fold(sampler: SelectiveSampler, records: Sequence[Record], observer: Observer) -> list[FoldEvent]:
    """Fold records of `outcomes` as they lie in the log, and tell the observer."""
    if not records:
        return []
    begun = time.perf_counter()
    events = sampler.fold([(record.offset, outcome_of(record)) for record in records])
    observer.took("learn", time.perf_counter() - begun)
    for event in events:
        observer.observe(event)
    return events


class Loop:
    """The turns of one membership."""

    def __init__(
        self,
        craft: Craft,
        membership: Membership,
        committer: Committer,
        follower: Reader,
        heritage: Heritage,
        control: Control,
    ) -> None:
        self._craft = craft
        self._control = control
        self._clerk = Clerk(craft.topics.instances, craft.sampler, craft.instances, craft.answers)
        self._membership = membership
        self._committer = committer
        self._follower = follower
        self._heritage = heritage
        self._epoch: Hashable = None
        self._token: object = None
        self._outbox: Outbox | None = None
        self._begun = 0.0
        self._placed = Placed()
        self._committing: list[Event] = []
        self._held: list[Record] = []
        self._repaired: list[Event] = []
        self.holdings: dict[int, Holding] = {}
        self.reached: dict[TopicPartition, int] = {}
        self.rebalances = 0
        self.last_commit = 0.0

    @property
    def phase(self) -> Phase:
        """Whether the group has settled, and whether it left this member anything to do."""
        if self._epoch is None:
            return "joining"
        return "running" if self.holdings else "standby"

    @property
    def shares(self) -> bool:
        """Whether this worker is the one whose snapshots all workers may start from: the owner of partition 0."""
        return 0 in self.holdings

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return how far the owned partitions are behind."""
        return self._membership.lag()

    @property
    def lag_known_at(self) -> float:
        """When that was last known for certain, by the monotonic clock."""
        return self._membership.lag_known_at

    def turn(self) -> None:
        """Poll, decide, and hand over what is due."""
        try:
            polled = self._membership.poll(self._patience(), POLL_LIMIT)
        except LogDamaged:
            self.finish()
            raise
        # Before the comparison: a token of a later generation than the epoch would let outdated work through.
        token = self._membership.token()
        if self._membership.epoch != self._epoch:
            self._take_over()
            return
        self._token = token
        self._settle()
        if self._epoch is None:
            return
        outbox = self._outbox or self._begin()
        for partition, records in polled.items():
            if records:
                self.reached[partition] = records[-1].offset + 1
            if partition.topic == self._craft.topics.answers:
                self._held += records
            elif records:
                begun = time.perf_counter()
                self._clerk.decide(outbox, self.holdings[partition.partition], records)
                self._craft.observer.took("decision", time.perf_counter() - begun)
        self._hand_over(outbox)

    def finish(self) -> None:
        """Commit what is collected and wait until it is through, `SETTLE_WITHIN` seconds in all; called once, last."""
        deadline = time.monotonic() + SETTLE_WITHIN
        if not self._committer.wait(SETTLE_WITHIN):
            logger.warning("the last commit is still in flight; what was collected since is left to the next worker")
            return
        self._settle()
        if self._outbox is not None and not self._outbox.empty and self._epoch is not None:
            self._submit(self._outbox)
            self._committer.wait(max(0.0, deadline - time.monotonic()))
            self._settle()

    def _patience(self) -> float:
        """Return how long a poll may wait: not past the end of the commit interval."""
        if self._outbox is None or self._outbox.empty:
            return IDLE_WAIT
        return max(0.0, min(IDLE_WAIT, self._begun + self._craft.commit_interval - time.monotonic()))

    def _take_over(self) -> None:
        """Start afresh with the partitions owned now; everything that was not committed is dropped."""
        if not self._committer.wait(SETTLE_WITHIN):
            message = (
                f"a commit is in flight for {SETTLE_WITHIN:g} s after its partitions went; a new worker starts over"
            )
            raise DeadlineMissed(message)
        self._settle(confirm=False)
        epoch = self._membership.epoch
        self._outbox, self._held, self._repaired = None, [], []
        self.holdings, self.reached = {}, {}
        self._craft.sampler.close()
        for place in sorted(self._membership.assignment):
            if place.topic == self._craft.topics.instances:
                self._inherit(place.partition)
        self._epoch = epoch
        self.rebalances += 1
        logger.info("partitions taken over", extra={"partitions": sorted(self.holdings)})

    def _inherit(self, partition: int) -> None:
        craft = self._craft
        instances = TopicPartition(craft.topics.instances, partition)
        answers = TopicPartition(craft.topics.answers, partition)
        committed = self._membership.committed(answers)
        reached = committed.offset if committed else self._heritage.first(answers)
        stored = self._membership.committed(instances)
        readable_from = self._control.readable_from(instances, stored.offset) if stored else 0
        found = self._heritage.inherit(partition, stored, readable_from)
        if found.torn:
            self._repaired.append(TornRepaired(partition, len(found.torn.requests), len(found.torn.outcomes)))
        skips = [*self._control.skips(instances, found.position), *self._control.skips(answers, reached)]
        lane = craft.sampler.open(partition, found.handover)
        self.holdings[partition] = Holding.take_over(
            lane, found, reached, craft.sampler.version, craft.made_with, [asdict(skip) for skip in skips]
        )
        if stored is None:
            # Under at-least-once delivery a crash before the first positions would leave decisions without a ledger.
            fresh = encode_metadata(lane.ledger(), found.pointers)
            self._membership.confirm({instances: Position(found.position, fresh)})
        for place, position in ((instances, found.position), (answers, reached)):
            self._membership.seek(place, max([position, *(skip.next for skip in skips if skip.topic == place.topic)]))

    def _settle(self, *, confirm: bool = True) -> None:
        """Take in the end of the former commit."""
        try:
            done = self._committer.take()
            if done is not None and confirm:
                self._membership.confirm(done)
        except CommitRefused as refused:
            if not refused.retriable:
                raise
            logger.warning("commit refused; starting over from the last one: %s", refused)
            self._craft.observer.refused()
            self._committing = []
            self._epoch = None
            return
        if done is None:
            return
        for partition, holding in self.holdings.items():
            holding.settle(self._placed, partition)
        for event in self._committing:
            self._craft.observer.observe(event)
        self._craft.observer.took("commit", self._committer.duration)
        self.last_commit = self._craft.clock()

    def _begin(self) -> Outbox:
        """Begin a transaction: learn, match answers, let requests expire."""
        craft = self._craft
        followed = self._follow()
        learned = fold(craft.sampler, followed, craft.observer)
        craft.checkpoint(share=self.shares)
        plans, now = self._control.poll(), round(craft.clock(), 3)
        outbox = self._outbox = Outbox(craft.topics, craft.sampler.version, now, self._control.version)
        for partition in craft.sampler.replan(plans) if plans is not None else ():
            outbox.replan(partition, self.holdings[partition], self._control.in_force())
        self._begun = time.monotonic()
        records = {record.key: record for record in followed}
        for event in learned:
            if isinstance(event, ExampleSkipped) and event.outcome.partition in self.holdings:
                outbox.report(event, records[event.outcome.key.encode()])
        for holding in self.holdings.values():
            self._clerk.skip(outbox, holding)
        held, self._held = self._held, []
        for record in held:
            self._clerk.match(outbox, self.holdings[record.partition], record)
        outbox.collect(craft.sampler.tick(outbox.now))
        return outbox

    def _follow(self) -> list[Record]:
        """Return the outcomes that have come since: all of them, unless that would take too long."""
        followed: list[Record] = []
        while len(followed) < MOST_FOLDED and (found := self._follower.poll(0.0)):
            followed += found
        return followed

    def _hand_over(self, outbox: Outbox) -> None:
        """Submit the transaction when it is due; an empty one only begins anew, so that new outcomes are learned."""
        full = max(outbox.instances, len(self._held)) >= MOST_COLLECTED or outbox.size >= MOST_BYTES
        if not full and time.monotonic() - self._begun < self._craft.commit_interval:
            return
        if outbox.empty:
            self._outbox = None
            return
        if full and self._committer.busy:
            self._committer.wait(SETTLE_WITHIN)
        if not self._committer.busy:
            self._settle()
            if self._epoch is not None:
                self._submit(outbox)

    def _submit(self, outbox: Outbox) -> None:
        self._placed = Placed()
        # A member that slept through a rebalance may have taken its successor's records for torn; it commits nothing.
        self._committing, self._repaired = [*self._repaired, *outbox.events], []
        self._committer.submit(outbox.seal(self.holdings, self._token, self._placed))
        self._outbox = None
