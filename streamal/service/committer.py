"""The thread that commits: the only user of the writer, with one transaction in flight at most.

While it commits, the loop goes on deciding; so a transaction covers a whole commit interval but is open only for its
own commit. The first failure is final unless it is retriable: what was collected since must be dropped as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from streamal.errors import CommitRefused, DeadlineMissed, StreamalError
from streamal.transport.log import Position, TopicPartition, Transaction, Writer

COMMIT_DEADLINE = 30.0
"""Seconds; a commit has no time limit of its own in the Kafka client, and the broker ends a transaction after 10."""


class Committer:
    """Carries out transactions handed over by the loop."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._changed = threading.Condition()
        self._job: Transaction | None = None
        self._begun = 0.0
        self._done: Mapping[TopicPartition, Position] | None = None
        self._error: StreamalError | None = None
        self._stopping = False
        self.duration = 0.0
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a transaction is in flight.

        Raises:
            DeadlineMissed: it has been for too long.
        """
        if self._job is not None and time.monotonic() - self._begun > COMMIT_DEADLINE:
            message = (
                f"a commit has taken over {COMMIT_DEADLINE:g} s; is the broker reachable? A new worker starts over."
            )
            raise DeadlineMissed(message)
        return self._job is not None

    def submit(self, job: Transaction) -> None:
        """Hand over a transaction; called only while not busy and after `take`."""
        with self._changed:
            self._job = job
            self._begun = time.monotonic()
            self._changed.notify_all()

    def take(self) -> Mapping[TopicPartition, Position] | None:
        """Return the positions of the transaction that went through since the last call, or None.

        Raises:
            StreamalError: it did not; a `CommitRefused` tells whether the loop may go on.
        """
        with self._changed:
            done, error = self._done, self._error
            self._done = self._error = None
        if error is not None:
            raise error
        return done

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is in flight; returns whether that came to be. May be called from any thread."""
        with self._changed:
            return self._changed.wait_for(lambda: self._job is None, timeout)

    def close(self) -> None:
        """End the thread after the transaction in flight, and release the writer."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(COMMIT_DEADLINE)
        self._writer.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._stopping)
                job = self._job
            if job is None:
                return
            done: Mapping[TopicPartition, Position] | None = None
            error: StreamalError | None = CommitRefused("the commit failed unexpectedly; its traceback was printed")
            try:
                done, error = self._writer.commit(job), None
            except StreamalError as refused:
                error = refused
            finally:
                with self._changed:
                    self.duration = time.monotonic() - self._begun
                    self._done, self._error, self._job = done, error, None
                    self._changed.notify_all()
