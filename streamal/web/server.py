"""One port for probes, Prometheus and people: health, readiness, metrics and status over HTTP.

The server runs in a thread of its own and reads two things: the status board and the metrics. It never touches the
loop, so a slow scrape cannot delay a decision, and a stuck loop cannot keep a probe from saying so. Health is the age
of the loop's last beat, and for each owned partition whether records come while some wait: it stays green while the
group rebalances or the brokers are away, as long as the loop turns. With a token, everything but the probes and the
metrics asks for it.
"""

from __future__ import annotations

import errno
import hmac
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from streamal.errors import ConfigError
from streamal.web.metrics import Metrics
from streamal.web.status import Status, StatusBoard

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

BEAT_LIMIT: Final = 60.0
"""Seconds without a finished turn of the loop that make it unhealthy: ten session timeouts of 6 s."""
MAX_BODY: Final = 65_536
"""Bytes of a request body; an answer with a long comment takes a few hundred."""
MAX_HEAD: Final = 16_384
"""Bytes of a request's line and headers."""
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
STOP_WITHIN: Final = 5.0
NO_STORE: Final = {"cache-control": "no-store"}


def diagnose(status: Status, age: float, limit: float = BEAT_LIMIT) -> str | None:
    """Say what is wrong with a loop whose last turn ended `age` seconds ago, or None when it is healthy.

    >>> diagnose(Status("fraud", "running", 0.0, 0.0, 0.05), age=0.2)
    >>> diagnose(Status("fraud", "running", 0.0, 0.0, 0.05), age=75.0)
    'no turn of the loop ended for 75 s (limit 60 s) in phase running'
    >>> from streamal.web.status import PartitionStatus
    >>> stuck = {3: PartitionStatus(100, 4, 5.0, lag={"instances": 40}, stuck=61.0)}
    >>> diagnose(Status("fraud", "running", 0.0, 0.0, 0.05, stuck), age=0.2)
    'records wait and none came for 60 s or more on partitions 3; the poll is silent, a restart joins anew'
    """
    if age >= limit:
        return f"no turn of the loop ended for {age:.0f} s (limit {limit:.0f} s) in phase {status.phase}"
    stuck = [str(number) for number, partition in sorted(status.partitions.items()) if partition.stuck >= limit]
    if stuck:
        return (
            f"records wait and none came for {limit:.0f} s or more on partitions {', '.join(stuck)}; the poll is "
            "silent, a restart joins anew"
        )
    return None


class Server:
    """Serves until stopped; `port` 0 takes a free one, and `port` then says which. An empty token asks for none.

    `beat_limit` is in seconds; `clock` is the monotonic clock that `Status.beat` was read from.
    """

    def __init__(
        self,
        board: StatusBoard,
        metrics: Metrics,
        host: str,
        port: int,
        token: str = "",
        *,
        beat_limit: float = BEAT_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._token = token
        self._beat_limit = beat_limit
        self._clock = clock
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> Server:
        """Listen and serve in the background; connections are accepted from here on.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        import uvicorn

        from streamal.web.connection import Connection

        self._socket = self._listen()
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self._application(),
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",  # a warning for each malformed request would let anyone fill the disk
            access_log=False,
            server_header=False,
            headers=[("connection", "close")],
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=100)
        except OSError as error:
            cure = "set http.host to an address of this machine, and http.port to a port allowed here, or to 0 for none"
            if error.errno == errno.EADDRINUSE:
                cure = (
                    "a worker that still runs may hold it: end that one, or set http.port (for the demo --port) to a "
                    "free port; http.port = 0 opens none"
                )
            msg = f"http.port: cannot listen on {self.host}, port {self.port}: {error.strerror or error}; {cure}"
            raise ConfigError(msg) from None

    def stop(self) -> None:
        """Close the port; requests in flight have a second to end. Idempotent."""
        if self._server and self._thread and self._socket:
            self._server.should_exit = True
            self._thread.join(STOP_WITHIN)
            self._socket.close()
            self._server = self._thread = self._socket = None

    def _application(self) -> ASGIApp:
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._render),
            Route("/api/v1/status", self._status),
        ]
        return _Gate(Starlette(routes=routes), self._token)

    async def _healthz(self, request: Request) -> Response:
        status = self._board.read()
        age = max(0.0, self._clock() - status.beat)
        reason = diagnose(status, age, self._beat_limit)
        found = {"status": "stalled" if reason else "ok", "phase": status.phase, "beat_age_seconds": round(age, 3)}
        return _json(found | {"reason": reason} if reason else found, 503 if reason else 200)

    async def _readyz(self, request: Request) -> Response:
        status = self._board.read()
        if status.ready:
            return _json({"status": "ready", "phase": status.phase, "partitions": sorted(status.partitions)}, 200)
        reason = "the model is being restored or the group has not settled"
        return _json({"status": "not ready", "phase": status.phase, "reason": reason}, 503)

    async def _render(self, request: Request) -> Response:
        from starlette.responses import Response

        self._metrics.reflect(self._board.read())
        text, content_type = self._metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def _status(self, request: Request) -> Response:
        return _json(self._board.read().as_json(), 200)


class _Gate:
    """Turns away, before anything is read, who has no token and what is too large."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refusal := self._refuse(scope["path"], scope["headers"]):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuse(self, path: str, headers: Collection[tuple[bytes, bytes]]) -> Response | None:
        given = [value for name, value in headers if name == b"authorization"]
        # Two headers are none: a proxy before us may have looked at the other one.
        allowed = len(given) == 1 and hmac.compare_digest(given[0], self._expected)
        if self._expected and path not in OPEN_PATHS and not allowed:
            reason = "send the header Authorization: Bearer <token> (http.token_file)"
            return _json({"error": reason}, 401, {"www-authenticate": "Bearer"})
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
            return _json({"error": f"headers may have {MAX_HEAD} bytes"}, 431)
        for name, value in headers:
            if name == b"transfer-encoding":
                return _json({"error": "a body needs a Content-Length"}, 411)
            if name == b"content-length" and not value.isdigit():
                return _json({"error": "Content-Length must be a number"}, 400)
            if name == b"content-length" and int(value) > MAX_BODY:
                return _json({"error": f"a body may have {MAX_BODY} bytes"}, 413)
        return None


def _json(found: object, code: int, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(found, code, headers=NO_STORE | (headers or {}))
