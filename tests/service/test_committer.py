"""The committing thread: one transaction at a time, its end reported once, and no failure that goes unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import pytest

from streamal.errors import CommitRefused, DeadlineMissed, TransportError
from streamal.service import committer as module
from streamal.service.committer import Committer
from streamal.transport.log import Append, Position, TopicPartition, Transaction

PLACE = TopicPartition("instances", 0)
WITHIN = 10.0


class GatedWriter:
    """Commits when it is let, or fails as it is told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.closed = False

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        assert self.gate.wait(WITHIN)
        if self.error is not None:
            raise self.error
        return transaction.positions([])

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writer() -> GatedWriter:
    return GatedWriter()


@pytest.fixture
def committer(writer: GatedWriter) -> Iterator[Committer]:
    made = Committer(writer)
    yield made
    writer.gate.set()
    made.close()
    assert writer.closed


def job(offset: int = 1) -> Transaction:
    return Transaction([], lambda _: {PLACE: Position(offset, "ledger")}, None)


def test_a_transaction_is_carried_out_and_reported_once(committer: Committer, writer: GatedWriter) -> None:
    assert not committer.busy
    committer.submit(job(3))
    assert committer.busy
    assert committer.take() is None
    writer.gate.set()
    assert committer.wait(WITHIN)
    assert committer.take() == {PLACE: Position(3, "ledger")}
    assert committer.take() is None
    assert not committer.busy


@pytest.mark.parametrize("error", [CommitRefused("moved on", retriable=True), TransportError("disk full")])
def test_a_failure_reaches_the_loop(committer: Committer, writer: GatedWriter, error: TransportError) -> None:
    writer.error = error
    writer.gate.set()
    committer.submit(job())
    assert committer.wait(WITHIN)
    with pytest.raises(type(error), match=str(error)):
        committer.take()
    assert committer.take() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unexpected_failure_does_not_leave_the_loop_waiting(committer: Committer, writer: GatedWriter) -> None:
    writer.error = ZeroDivisionError("bug")
    writer.gate.set()
    committer.submit(job())
    assert committer.wait(WITHIN)
    with pytest.raises(CommitRefused, match="failed unexpectedly"):
        committer.take()


def test_a_commit_that_takes_too_long_is_noticed(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_DEADLINE", -1.0)
    committer.submit(job())
    with pytest.raises(DeadlineMissed, match="is the broker reachable"):
        _ = committer.busy
    monkeypatch.undo()


def test_closing_waits_for_the_transaction_in_flight(writer: GatedWriter) -> None:
    made = Committer(writer)
    made.submit(job(5))
    threading.Timer(0.05, writer.gate.set).start()
    made.close()
    assert made.take() == {PLACE: Position(5, "ledger")}
