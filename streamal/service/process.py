"""The worker's process: signals, the HTTP port, the watchdog, and the exit code that says why it ended."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Final

from streamal.errors import DeadlineMissed, StreamalError
from streamal.service.reporter import Reporter
from streamal.service.worker import Worker
from streamal.web.server import Server

logger = logging.getLogger(__name__)

STALLED_AFTER: Final = 120.0
"""Seconds without a finished turn after which the process ends itself; a blocked call of a client can last for ever.

Until the worker is ready for the first time, `transport.start_deadline` takes its place.
"""
WATCH_EVERY: Final = 5.0


@dataclass(frozen=True, slots=True)
class Service:
    """One worker with what the outside sees of it; `server` is None when HTTP is off.

    `start_deadline` is how long the start may go without progress, in seconds.
    """

    worker: Worker
    reporter: Reporter
    server: Server | None
    start_deadline: float


def serve(service: Service, parent: int | None = None) -> int:
    """Run until SIGTERM or SIGINT, or until the supervisor, the process `parent`, is gone.

    Returns the exit code: 0 after an orderly end, else that of the error's class.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        logger.info("stopping", extra={"signal": signal.Signals(number).name})
        service.worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    done = threading.Event()
    threading.Thread(target=_watch, args=(service, done, parent), name="watchdog", daemon=True).start()
    try:
        if service.server is not None:
            service.server.start()
            logger.info("listening", extra={"url": service.server.url})
        _ease_garbage_collection()
        service.worker.run()
    except StreamalError as error:
        return ended_by(error)
    except Exception:
        logger.exception("ending: unexpected error", extra={"code": StreamalError.exit_code})
        return StreamalError.exit_code
    finally:
        done.set()
        if service.server is not None:
            service.server.stop()
    logger.info("stopped")
    return 0


def ended_by(error: StreamalError) -> int:
    """Log why the process ends; returns the exit code."""
    logger.error("ending: %s", error, extra={"error": type(error).__name__, "code": error.exit_code})
    return error.exit_code


def _ease_garbage_collection() -> None:
    """Let the collector look at new objects only, and less often: what was imported stays, and most records die young.

    It took a fifth of the processor time of an instance. Thresholds of 20,000 save nothing more and cost 30 MiB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 5)


def _watch(service: Service, done: threading.Event, parent: int | None = None) -> None:
    """End the process when its loop stands still: a stuck member keeps its partitions and looks well to the group.

    Stop it in order when its supervisor was killed: nobody would pass a signal on, and it would keep the port and the
    slot from the worker that comes after.
    """
    while not done.wait(WATCH_EVERY):
        if parent is not None and os.getppid() != parent:
            logger.error("the supervisor is gone, stopping", extra={"supervisor": parent})
            service.worker.stop()
            parent = None
        reporter = service.reporter
        limit = STALLED_AFTER if reporter.started else service.start_deadline
        if reporter.idle_for() > limit:
            what = "the loop stands still" if reporter.started else "the start makes no progress"
            logger.critical("%s, ending the process", what, extra={"code": DeadlineMissed.exit_code, "seconds": limit})
            os._exit(DeadlineMissed.exit_code)
