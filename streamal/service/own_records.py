"""Records that workers wrote for each other, read back: one that is none of theirs stops the reader.

Skipping it is no choice. The model is a fold over all of `outcomes`, and what waits is found in `label-requests`: a
worker that overlooked a record would differ from the others.
"""

from __future__ import annotations

from streamal.errors import TransportError
from streamal.messages import UNLABELLED, LabelRequest, Recorded, decode_outcome
from streamal.transport.log import Record


def outcome_of(record: Record) -> Recorded:
    """Return the content of a record of `outcomes`.

    Raises:
        TransportError: something else wrote it.
    """
    try:
        return decode_outcome(record.value or b"")
    except ValueError as error:
        raise foreign(record, error) from None


def request_of(record: Record) -> LabelRequest:
    """Return the content of a record of `label-requests`.

    Raises:
        TransportError: something else wrote it.
    """
    try:
        return LabelRequest.decode(record.value or b"")
    except ValueError as error:
        raise foreign(record, error) from None


def is_own(record: Record, partition: int) -> bool:
    """Say whether a record of `label-requests` or `outcomes` is of a partition, by the key that its owner gave it."""
    key = (record.key or b"").removeprefix(UNLABELLED)
    return key.startswith(b"%d-" % partition) or key == b"moments-%d" % partition


def is_unlabelled(record: Record) -> bool:
    """Say whether a record of `outcomes` is an instance that nobody was asked about."""
    return (record.key or b"").startswith(UNLABELLED)


def foreign(record: Record, error: ValueError) -> TransportError:
    """Return what to say of a record that no worker wrote."""
    return TransportError(
        f"{record.topic}-{record.partition}, offset {record.offset}: {error}; only workers of this stream may write "
        "there. Is the topic another stream's too, or open to others? Give this stream topics of its own ([topics]), "
        "and only its workers the right to write to them"
    )
