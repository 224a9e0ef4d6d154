"""A computation in a copy of the process: what it finds comes back, and nothing it inherits is touched."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamal.errors import ModelError
from streamal.service.forked import POSSIBLE, Forked

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="only Linux forks safely")
LONG = 60.0


def refuse() -> bytes:
    message = "no"
    raise ModelError(message)


def gone(pid: int) -> bool:
    """Whether a process has been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_large_result_comes_back_as_it_was_at_the_fork() -> None:
    found = bytearray(b"x") * 30_000_000
    child = Forked(lambda: bytes(found))
    found[:] = b"y"
    assert child.result(LONG) == b"x" * 30_000_000
    assert gone(child.pid)


def test_what_the_model_refuses_comes_back_as_that() -> None:
    child = Forked(refuse)
    with pytest.raises(ModelError, match="no"):
        child.result(LONG)
    assert gone(child.pid)


@pytest.mark.parametrize("work", [lambda: 1 // 0, lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_child_that_dies_is_an_error(work: Callable[[], bytes]) -> None:
    child = Forked(work)
    with pytest.raises(OSError, match="ended with status"):
        child.result(LONG)
    assert gone(child.pid)


def hang() -> bytes:
    threading.Event().wait()
    return b""


def test_a_child_that_hangs_is_killed() -> None:
    child = Forked(hang)
    with pytest.raises(OSError, match=f"ended with status -{int(signal.SIGKILL)}"):
        child.result(0.2)
    assert gone(child.pid)


def end_itself() -> bytes:
    os.kill(os.getpid(), signal.SIGTERM)
    return hang()


def test_a_child_ends_at_a_signal_and_does_not_carry_out_its_parents_wishes(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.write_text(str(os.getpid())))
    try:
        child = Forked(end_itself)
        with pytest.raises(OSError, match=f"ended with status -{int(signal.SIGTERM)}"):
            child.result(LONG)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert not heard.exists()


def test_a_child_holds_no_socket_and_takes_none_with_it() -> None:
    ours, theirs = socket.socketpair()
    child = Forked(lambda: " ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode())
    held = [int(name) for name in child.result(LONG).split()]
    # Standard streams, the pipe, and the descriptor by which the directory itself is read.
    assert len([number for number in held if number > 2]) == 2
    assert ours.fileno() not in held
    ours.send(b"alive")
    assert theirs.recv(5) == b"alive"
    ours.close()
    assert theirs.recv(1) == b"", "a copy of the socket would keep the connection open"
    theirs.close()


def test_an_abandoned_child_ends_by_itself() -> None:
    child = Forked(lambda: b"x" * 10_000_000)
    os.close(child._pipe)
    deadline = time.monotonic() + LONG
    while os.waitpid(child.pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
