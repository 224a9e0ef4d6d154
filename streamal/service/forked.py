"""Bytes computed by a copy of this process, so that the loop stands still for the fork only.

The child sees all memory as it was at that moment, at no cost for what nobody changes. It is a copy of one thread among
others that held who knows which locks, so it may do nothing but compute: it closes every descriptor it inherited, logs
nothing, runs no finalizers, and ends at once without cleaning up. What it found comes back through a pipe.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Final, NoReturn

from streamal.errors import ModelError

POSSIBLE: Final = sys.platform == "linux"
"""Elsewhere a fork without exec is not safe: the frameworks of macOS abort a child that touches them."""
DONE: Final = b"\0"
REFUSED: Final = b"\1"
CHUNK: Final = 2**20


class Forked:
    """One computation in a child; `work` must neither log nor take a lock that another thread may hold."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._pipe, writing = os.pipe()
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of threads that hold a lock for ever in the child. This child takes none.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
        except OSError:
            os.close(self._pipe)
            os.close(writing)
            raise
        if self.pid == 0:
            _compute(work, writing)
        os.close(writing)

    def result(self, within: float) -> bytes:
        """Wait for the child and return what it computed; called once, in any thread.

        Raises:
            ModelError: `work` raised it.
            OSError: the child died, or took longer than `within` seconds and was killed.
        """
        deadline = time.monotonic() + within
        found = bytearray()
        arrivals = select.poll()  # unlike `select` it takes any number of descriptors
        arrivals.register(self._pipe, select.POLLIN)
        try:
            while arrivals.poll(max(0.0, deadline - time.monotonic()) * 1000):
                if not (chunk := os.read(self._pipe, CHUNK)):
                    break
                found += chunk
            else:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(self._pipe)
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status != 0:
            message = f"the copy of this process that wrote it ended with status {status}, after at most {within:g} s"
            raise OSError(message)
        if found[:1] == REFUSED:
            raise ModelError(found[1:].decode())
        return bytes(found[1:])


def _compute(work: Callable[[], bytes], pipe: int) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        gc.disable()
        os.closerange(3, pipe)
        os.closerange(pipe + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        try:
            found = DONE + work()
        except ModelError as error:
            found = REFUSED + str(error).encode()
        rest = memoryview(found)
        while rest:
            rest = rest[os.write(pipe, rest) :]
        code = 0
    finally:
        os._exit(code)
