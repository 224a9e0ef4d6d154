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
        ├── AccessRefused      brokers and client do not accept each other: TLS, login or rights
        ├── TopicMissing       a topic does not exist or has the wrong number of partitions
        ├── LogDamaged         records cannot be read: a disk or a network path is broken
        ├── CommitRefused      a commit did not go through: fenced, expelled, or in the midst of a rebalance
        └── DeadlineMissed     a start without progress, or a commit, took longer than it may

`exit_code` is what the process ends with when the error reaches its outer edge, `ending` what that says to whoever
reads it, and `restart` whether to start again is of use. `retriable` says that the same worker may go on after dropping
what it collected; everything else ends the process, and the supervisor starts a new one.
"""

from __future__ import annotations

from typing import ClassVar


class StreamalError(Exception):
    """Root of the tree."""

    exit_code: ClassVar[int] = 1
    ending: ClassVar[str] = "an error nobody expected; the log has its traceback"
    restart: ClassVar[str] = "yes"
    retriable: bool = False


class BadRecord(StreamalError):
    """A record that is refused, with a short machine-readable `reason`.

    The message may name a feature, but never quotes its value, nor a label.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(StreamalError):
    """A setting is wrong, or two settings do not go together."""

    exit_code = 2
    ending = "the config or the command line is wrong"
    restart = "no"


class ModelError(StreamalError):
    """The model cannot be built, or cannot do what it is asked to."""

    exit_code = 8
    ending = "the model cannot be built"
    restart = "no"


class SnapshotRefused(StreamalError):
    """A snapshot is unsigned, altered, or made by other versions; the log is folded instead."""


class LedgerLost(StreamalError):
    """A partition has a history but no readable ledger; deciding on would risk the budget, so the worker refuses to."""

    exit_code = 5
    ending = "the ledger of a partition is lost"
    restart = "no"


class TransportError(StreamalError):
    """The log cannot be reached or did not do what was asked."""

    exit_code = 3
    ending = "the log cannot be reached, or a topic is missing"


class AccessRefused(TransportError):
    """Brokers and client do not accept each other: TLS, login or rights; the same would happen at once again."""

    exit_code = 6
    ending = "Kafka and the worker do not accept each other: TLS, login or rights"
    restart = "once that is mended; `streamal run` tries every 30 s"


class TopicMissing(TransportError):
    """A topic does not exist or has the wrong number of partitions."""


class LogDamaged(TransportError):
    """Records cannot be read; what came before them is committed before the worker ends."""

    exit_code = 9
    ending = "records cannot be read: a disk or a network path is broken"
    restart = "once they can be read again"


class CommitRefused(TransportError):
    """A commit did not go through; nothing of it is visible to readers."""

    exit_code = 4
    ending = "a commit was refused: another process took the place of this one"

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class DeadlineMissed(TransportError):
    """A start without progress, or a commit, took longer than it may."""

    exit_code = 7
    ending = "no progress in time: at the start, in a commit, or in the loop"


def exit_codes(root: type[StreamalError] = StreamalError) -> dict[int, type[StreamalError]]:
    """Return the errors by the code they end with, the lowest first; those that share a code are told by their root.

    >>> [(code, error.__name__) for code, error in exit_codes().items()][1:3]
    [(2, 'ConfigError'), (3, 'TransportError')]
    """
    found = {root.exit_code: root}
    for child in root.__subclasses__():
        found = exit_codes(child) | found
    return dict(sorted(found.items()))
