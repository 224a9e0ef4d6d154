"""One connection of the HTTP port: one request, a few seconds, and then it is over.

Whoever sends half a header and waits, reads a byte a minute, or just keeps a connection open must not keep a probe from
being answered. So a connection lives for some seconds, whatever it is doing, and when there are too many, the oldest
one gives way to the newest: a probe needs milliseconds, and whoever waits has been there for longer.

Imported only when the port is opened, since it brings the HTTP stack along.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

SERVED_WITHIN: Final = 10.0
"""Seconds from connecting to the last byte of the response; a scrape of many partitions takes a tenth of one."""
MOST_CONNECTIONS: Final = 100
"""Open at the same time."""


class Connection(H11Protocol):
    """Uvicorn's connection with an end in sight."""

    served_within = SERVED_WITHIN
    most_connections = MOST_CONNECTIONS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.opened_at = self.loop.time()
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin, and let the oldest go if there are too many; called once, first."""
        super().connection_made(transport)
        self._end = self.loop.call_later(self.served_within, transport.abort)
        if len(self.connections) > self.most_connections:
            others = [found for found in self.connections if isinstance(found, Connection)]
            oldest = min(others, key=lambda found: found.opened_at)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called once, last."""
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)
