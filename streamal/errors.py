"""Everything that can go wrong, as one tree.

Each message says what was expected, what came, the likely cause and the cure.

::

    StreamalError
    ├── BadRecord          one record is refused; it becomes a dead letter and nothing stops
    ├── ConfigError        a setting is wrong, or two settings do not go together
    ├── ModelError         the model cannot be built, or cannot do what it is asked to
    ├── SnapshotRefused    a snapshot is unsigned, altered, or made by other versions
    ├── LedgerLost         a partition has a history but no readable ledger
    └── TransportError     the log cannot be reached or did not do what was asked
        ├── TopicMissing       a topic does not exist or has the wrong number of partitions
        ├── LogDamaged         records cannot be read: a disk or a network path is broken
        ├── CommitRefused      a commit did not go through: fenced, expelled, or in the midst of a rebalance
        └── DeadlineMissed     a start without progress, or a commit, took longer than it may

`exit_code` is what the process ends with when the error reaches its outer edge. `retriable` says that the same worker
may go on after dropping what it collected; everything else ends the process, and the supervisor starts a new one.
"""

from __future__ import annotations

from typing import ClassVar


class StreamalError(Exception):
    """Root of the tree."""

    exit_code: ClassVar[int] = 1
    retriable: bool = False


class BadRecord(StreamalError):
    """A record that is refused, with a short machine-readable `reason`; the message never quotes features or labels."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(StreamalError):
    """A setting is wrong, or two settings do not go together."""

    exit_code = 2


class ModelError(StreamalError):
    """The model cannot be built, or cannot do what it is asked to."""

    exit_code = 8


class SnapshotRefused(StreamalError):
    """A snapshot is unsigned, altered, or made by other versions; the log is folded instead."""


class LedgerLost(StreamalError):
    """A partition has a history but no readable ledger; deciding on would risk the budget, so the worker refuses to."""

    exit_code = 5


class TransportError(StreamalError):
    """The log cannot be reached or did not do what was asked."""

    exit_code = 3


class TopicMissing(TransportError):
    """A topic does not exist or has the wrong number of partitions."""


class LogDamaged(TransportError):
    """Records cannot be read; what came before them is committed before the worker ends."""

    exit_code = 6


class CommitRefused(TransportError):
    """A commit did not go through; nothing of it is visible to readers."""

    exit_code = 4

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class DeadlineMissed(TransportError):
    """A start without progress, or a commit, took longer than it may."""

    exit_code = 7
