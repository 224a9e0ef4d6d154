"""A parent that keeps one worker running: starts it, restarts it with backoff when it crashes, and passes signals on.

It imports nothing heavy, decides nothing, and gives up where a restart cannot help: a wrong config, a lost ledger, a
model that cannot be built. A worker that the brokers do not let in is started again after the longest pause: passwords,
certificates and rights are mended elsewhere, often while they are being changed, and nobody should have to remember to
start the worker afterwards; but each try is a failed login, and enough of those lock an account. Where something else
restarts processes (Kubernetes, systemd), run the worker without it.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from streamal.errors import AccessRefused, ConfigError, LedgerLost, ModelError, StreamalError

logger = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 0.5
MOST_BACKOFF: Final = 30.0
HEALTHY_AFTER: Final = 60.0
"""Seconds a worker must have run for the backoff to begin anew."""
FINAL_CODES: Final = frozenset({ConfigError.exit_code, LedgerLost.exit_code, ModelError.exit_code})


def backoff(crashes: int, code: int = StreamalError.exit_code) -> float:
    """Return the seconds to wait after so many crashes in a row, the last of them with this exit code.

    >>> [backoff(crashes) for crashes in (1, 2, 3, 20)]
    [0.5, 1.0, 2.0, 30.0]
    >>> backoff(1, AccessRefused.exit_code)
    30.0
    """
    if code == AccessRefused.exit_code:
        return MOST_BACKOFF
    return min(MOST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(crashes - 1, 16))


class Supervisor:
    """Runs `command` until it ends by itself, is asked to, or cannot be helped."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Return the exit code to end with: 0 after an orderly end, else the worker's last one."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        crashes = 0
        while True:
            begun = time.monotonic()
            code = self._once()
            if code == 0 or self._stopping or code in FINAL_CODES:
                return max(0, code)
            crashes = 1 if time.monotonic() - begun > HEALTHY_AFTER else crashes + 1
            pause = backoff(crashes, code)
            logger.warning("worker ended, starting it again", extra={"code": code, "pause_seconds": pause})
            self._pause(pause)
            if self._stopping:
                return 0

    def _once(self) -> int:
        # A session of its own keeps the terminal's Ctrl+C from reaching the worker twice.
        self._worker = subprocess.Popen(self._command, start_new_session=True)
        if self._stopping:
            self._worker.terminate()
        return self._worker.wait()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(number)
