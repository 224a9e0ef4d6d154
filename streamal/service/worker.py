"""The worker: comes up in phases, runs the loop until it is asked to stop, and leaves nothing half done.

It is crash-only. Any error that is not retriable ends the process with the exit code of its class, and the supervisor
starts a new one: what was not committed never happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from streamal.errors import SnapshotRefused, TransportError
from streamal.learning.fold import fingerprint
from streamal.service.committer import Committer
from streamal.service.control import Control
from streamal.service.ledgers import Heritage
from streamal.service.loop import SETTLE_WITHIN, Craft, Loop, fold
from streamal.service.own_records import outcome_of
from streamal.transport.log import Log, Membership, Reader, TopicPartition, Writer
from streamal.web.status import Phase

logger = logging.getLogger(__name__)

FOLD_BATCH: Final = 1_000

Found = TypeVar("Found")


class Worker:
    """One member of the group; `beat` is called after every turn with the phase and the loop.

    `committer` makes what commits from the writer: a thread, or in a simulation something that is told when.
    """

    def __init__(
        self,
        log: Log,
        craft: Craft,
        *,
        group: str,
        slot: str,
        beat: Callable[[Phase, Loop | None], None],
        committer: Callable[[Writer], Committer] = Committer,
    ) -> None:
        self._log = log
        self._craft = craft
        self._group = group
        self._slot = slot
        self._beat = beat
        self._build_committer = committer
        self._stopping = False
        self._state: Phase = "starting"
        self._loop: Loop | None = None
        self._membership: Membership | None = None
        self._committer: Committer | None = None

    def stop(self) -> None:
        """Ask the loop to finish; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Work until `stop`; then finish, commit, and leave the group.

        Raises:
            StreamalError: the worker cannot go on; see `exit_code`.
        """
        loop = self.start()
        try:
            while not self._stopping:
                self.turn(loop)
            self._enter("stopping")
            loop.finish()
        finally:
            if self._membership is not None:
                self._membership.close()
        self._craft.checkpoint.finish(share=loop.shares)
        if self._committer is not None:
            self._committer.close()
        self._log.close()

    def start(self) -> Loop:
        """Check the topics, restore the model, and join the group.

        Raises:
            StreamalError: the worker cannot work here; see `exit_code`.
        """
        topics = self._craft.topics
        self._phase("topics", self._check_topics)
        self._enter("restoring")
        follower = self._phase("fold", self._catch_up)
        self._enter("joining")
        control = self._phase("control", self._read_control)
        heritage = Heritage(self._log, self._log.reader(), topics, self._craft.instances, self._craft.sampler.warmup)
        committer = self._committer = self._build_committer(self._phase("writer", lambda: self._log.writer(self._slot)))
        membership = self._membership = self._phase(
            "join",
            lambda: self._log.membership(
                self._group, [topics.instances, topics.answers], lambda: committer.wait(SETTLE_WITHIN)
            ),
        )
        self._loop = Loop(self._craft, membership, committer, follower, heritage, control)
        return self._loop

    def turn(self, loop: Loop) -> None:
        """Let the loop turn once, and tell how it stands."""
        loop.turn()
        self._enter(loop.phase)

    def _enter(self, phase: Phase) -> None:
        self._state = phase
        self._beat(phase, self._loop)

    def _phase(self, name: str, action: Callable[[], Found]) -> Found:
        """Run a phase of the start with a log line before and after; the watchdog sees that it makes progress."""
        logger.info("starting", extra={"phase": name})
        begun = time.monotonic()
        found = action()
        logger.info("started", extra={"phase": name, "seconds": round(time.monotonic() - begun, 3)})
        self._beat(self._state, self._loop)
        return found

    def _check_topics(self) -> None:
        topics = self._craft.topics
        topics.check({topic: self._log.partitions(topic) for topic in topics.used()})

    def _read_control(self) -> Control:
        control = Control(self._log, self._log.reader(), self._craft.topics.control, self._craft.replan)
        self._craft.sampler.replan(control.plans)
        return control

    def _catch_up(self) -> Reader:
        """Fold `outcomes` from the snapshot's version to its end, or as far as it gets before `stop`; follow it."""
        outcomes = TopicPartition(self._craft.topics.outcomes, 0)
        sampler = self._craft.sampler
        first, end = self._log.bounds(outcomes)
        reader = self._log.reader()
        self._craft.checkpoint.restore(partial(check_origin, reader, outcomes, first, end))
        if first > sampler.version:
            message = (
                f"'{outcomes.topic}' begins at {first}, and no usable snapshot reaches that far (the model stands at "
                f"{sampler.version}): labelled examples are gone. Give the topic unlimited retention; restore it or a "
                "snapshot (a warning above says why one was ignored), or begin anew with new topics"
            )
            raise TransportError(message)
        batch = []
        for record in reader.read(outcomes, sampler.version, end):
            batch.append(record)
            if len(batch) == FOLD_BATCH:
                fold(sampler, batch, self._craft.observer)
                batch = []
                self._beat(self._state, self._loop)
                if self._stopping:
                    break
        fold(sampler, batch, self._craft.observer)
        reader.follow(outcomes, sampler.version)
        return reader


def check_origin(reader: Reader, outcomes: TopicPartition, first: int, end: int, version: int, last: str) -> None:
    """Refuse a snapshot of another log than the one that is kept from `first` to `end`.

    Raises:
        SnapshotRefused: the record before its version is not the one that it folded last.
    """
    if first < version <= end:
        for record in reader.read(outcomes, version - 1, version):
            if fingerprint(outcome_of(record)) == last:
                return
    message = (
        f"it is of another log, whose record before version {version} is not in this one ({first} to {end}); was the "
        "log deleted or created anew?"
    )
    raise SnapshotRefused(message)
