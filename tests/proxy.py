"""A TCP proxy that makes a connection slow, cuts it, or lets it fall silent: what a network does that breaks nothing.

It runs in a thread of its own and listens from the start. A black hole keeps connections open and lets nothing pass
until `heal`, when what was held back comes late, as retransmissions would bring it; `cut` resets every connection and
refuses new ones.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Self

CHUNK: Final = 16 * 1024
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER without patience: closing sends RST."""


class Proxy:
    """Passes connections on to a loopback port; a context manager that leaves no thread behind."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._latency = 0.0
        self._bandwidth = float("inf")
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def slow(self, latency: float, bandwidth: float = float("inf")) -> None:
        """Delay each chunk in both directions by `latency` seconds, and let `bandwidth` bytes pass a second."""

        def change() -> None:
            self._latency, self._bandwidth = latency, bandwidth

        self._do(change)

    def black_hole(self) -> None:
        """Let nothing pass any more, without a word to either side."""
        self._do(self._passing.clear)

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""

        def change() -> None:
            self._refusing = True
            for end in list(self._ends):
                reset(end)

        self._do(change)

    def heal(self) -> None:
        """Pass everything on at once again."""

        def change() -> None:
            self._latency, self._bandwidth, self._refusing = 0.0, float("inf"), False
            self._passing.set()

        self._do(change)

    def close(self) -> None:
        """End every connection and the thread. Idempotent."""
        if self._thread.is_alive():
            self._do(self._stopping.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, change: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(change)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, sock=self._listener)
        await self._stopping.wait()
        server.close()
        for end in list(self._ends):
            reset(end)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            reset(writer)
            return
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            ways = self._pump(reader, far_writer), self._pump(far_reader, writer)
            await asyncio.wait([asyncio.ensure_future(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                await self._passing.wait()
                if delay := self._latency + len(chunk) / self._bandwidth:
                    await asyncio.sleep(delay)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return


def reset(end: asyncio.StreamWriter) -> None:
    """Close one end of a connection with RST."""
    connection: socket.socket = end.get_extra_info("socket")
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.transport.abort()
