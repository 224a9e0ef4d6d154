from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import httpx
import pytest

from streamal.errors import ConfigError
from streamal.settings import load
from streamal.web.connection import MOST_CONNECTIONS, Connection
from streamal.web.metrics import Metrics
from streamal.web.server import MAX_BODY, Server
from streamal.web.status import READY, PartitionStatus, Status, StatusBoard

STATUS = Status(
    "fraud", "running", 100.0, 0.0, 0.05, {0: PartitionStatus(seen=100, asked=4, allowed=5.0)}, accuracy=0.8
)


class Clock:
    now = 100.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board() -> StatusBoard:
    return StatusBoard(STATUS)


@pytest.fixture
def server(board: StatusBoard, clock: Clock) -> Iterator[Server]:
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0, clock=clock).start()
    yield server
    server.stop()


@pytest.fixture
def guarded(board: StatusBoard, clock: Clock) -> Iterator[Server]:
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0, "open sesame", clock=clock).start()
    yield server
    server.stop()


def test_port_zero_takes_a_free_one_and_says_which(server: Server) -> None:
    assert server.port > 0
    assert server.url == f"http://127.0.0.1:{server.port}"


def test_a_beating_loop_is_healthy_in_every_phase(server: Server, board: StatusBoard) -> None:
    for phase in ("starting", "restoring", "joining", "running", "standby", "stopping"):
        board.publish(replace(STATUS, phase=phase))
        answer = httpx.get(f"{server.url}/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "phase": phase, "beat_age_seconds": 0.5})


def test_a_loop_that_stopped_is_not_healthy_and_says_why(server: Server, board: StatusBoard, clock: Clock) -> None:
    clock.now = 159.9
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    clock.now = 160.0
    answer = httpx.get(f"{server.url}/healthz")
    assert answer.status_code == 503
    assert answer.json()["reason"] == "no turn of the loop ended for 60 s (limit 60 s) in phase running"
    board.publish(replace(STATUS, beat=159.0))
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_ready_is_a_restored_model_in_a_settled_group(server: Server, board: StatusBoard) -> None:
    for phase in ("starting", "restoring", "joining", "running", "standby", "stopping"):
        board.publish(replace(STATUS, phase=phase))
        answer = httpx.get(f"{server.url}/readyz")
        assert answer.status_code == (200 if phase in READY else 503)
        assert answer.json()["phase"] == phase


def test_health_renders_no_metrics(board: StatusBoard, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("fraud")
    calls: list[str] = []
    reflect = metrics.reflect

    def reflected(status: Status) -> None:
        calls.append(status.phase)
        reflect(status)

    monkeypatch.setattr(metrics, "reflect", reflected)
    server = Server(board, metrics, "127.0.0.1", 0, clock=clock).start()
    try:
        httpx.get(f"{server.url}/healthz")
        httpx.get(f"{server.url}/readyz")
        assert calls == []
        httpx.get(f"{server.url}/metrics")
        assert calls == ["running"]
    finally:
        server.stop()


def test_metrics_show_the_latest_status(server: Server, board: StatusBoard) -> None:
    board.publish(replace(STATUS, model_version=7))
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'streamal_model_updates{pipeline="fraud"} 7.0' in answer.text
    answer = httpx.get(f"{server.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_status_is_json_with_its_sums(server: Server) -> None:
    answer = httpx.get(f"{server.url}/api/v1/status")
    found = answer.json()
    assert (found["pipeline"], found["asked"], found["allowed"], found["accuracy"]) == ("fraud", 4, 5.0, 0.8)
    assert found["partitions"]["0"]["seen"] == 100
    assert "beat" not in found
    assert answer.headers["cache-control"] == "no-store"


def test_unknown_paths_and_methods_are_refused(server: Server) -> None:
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    assert httpx.post(f"{server.url}/api/v1/status").status_code == 405


def test_probes_and_metrics_need_no_token(guarded: Server) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200


@pytest.mark.parametrize("given", ["", "open sesame", "Bearer", "Bearer open", "Bearer open sesame2", "Bearer \u00e4"])
def test_everything_else_needs_the_token(guarded: Server, given: str) -> None:
    headers = {b"authorization": given.encode()} if given else {}
    for path in ("/api/v1/status", "/nothing", "/metrics/../api/v1/status", "//healthz"):
        answer = httpx.get(f"{guarded.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sesame" not in answer.text


def test_the_token_opens(guarded: Server) -> None:
    answer = httpx.get(f"{guarded.url}/api/v1/status", headers={"authorization": "Bearer open sesame"})
    assert answer.status_code == 200


def test_a_large_body_is_refused_unread(server: Server) -> None:
    answer = httpx.request("GET", f"{server.url}/api/v1/status", content=b"x" * (MAX_BODY + 1))
    assert answer.status_code == 413
    answer = httpx.request("GET", f"{server.url}/api/v1/status", content=iter([b"x"]))
    assert answer.status_code == 411
    assert httpx.request("GET", f"{server.url}/api/v1/status", content=b"x" * MAX_BODY).status_code == 200


def test_a_taken_port_is_an_error_with_its_cure(board: StatusBoard) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*set http.port") as caught:
            Server(board, Metrics("fraud"), "127.0.0.1", port).start()
    assert "a worker that still runs may hold it: end that one, or set http.port (for the demo --port)" in str(
        caught.value
    )


def test_an_address_of_another_machine_is_an_error_with_its_cure(board: StatusBoard) -> None:
    with pytest.raises(ConfigError, match=r"http.port: cannot listen on 192.0.2.1, port 8080: .*; set http.host to"):
        Server(board, Metrics("fraud"), "192.0.2.1", 8080).start()


def test_stopping_closes_the_port_and_the_thread(board: StatusBoard) -> None:
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0).start()
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    server.stop()
    server.stop()
    assert "http" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


def test_stopping_at_once_is_clean(board: StatusBoard) -> None:
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0).start()
    server.stop()
    assert "http" not in {thread.name for thread in threading.enumerate()}


def test_importing_the_server_leaves_the_http_stack_alone() -> None:
    code = "import sys, streamal.web.server; print([name for name in ('starlette', 'uvicorn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def exchange(server: Server, sent: bytes) -> bytes:
    """Send bytes as they are, and return all that comes until the other side closes."""
    with closing(socket.create_connection((server.host, server.port), timeout=60)) as connection:
        connection.sendall(sent)
        found = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65_536):
                found += chunk
        return found


def code_of(response: bytes) -> int:
    assert response.startswith(b"HTTP/1.1 "), response[:100]
    return int(response.split(b" ")[1])


TOKEN = b"Authorization: Bearer open sesame\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"Authorization: Bearer\r\n",
        b"Authorization: Bearer open sesam\r\n",
        b"Authorization: bearer open sesame\r\n",
        b"Authorization: Basic b3BlbiBzZXNhbWU=\r\n",
        b"Authorization: Bearer \xff\xfe\r\n",
        b"Authorization: Bearer open  sesame\r\n",
        b"Authorization:\r\n",
        b"X-Authorization: Bearer open sesame\r\n",
        TOKEN + b"Authorization: Bearer x\r\n",
        b"Authorization: Bearer x\r\n" + TOKEN,
        TOKEN + TOKEN,
        b"X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /healthz\r\n",
        b"Cookie: token=open sesame\r\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE", "XYZ"])
def test_no_header_and_no_method_gets_past_the_token(guarded: Server, method: str, headers: bytes) -> None:
    for path in ("/api/v1/status", "/nothing", "/api/v1/status?token=open%20sesame"):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode()
        assert code_of(exchange(guarded, head + headers + b"\r\n")) == 401


@pytest.mark.parametrize(
    "path",
    [
        "/healthz/",
        "/healthz/../api/v1/status",
        "/healthz%2f..%2fapi/v1/status",
        "//api/v1/status",
        "/API/v1/status",
        "/api/v1/status;/healthz",
        "/api/v1/status%00/healthz",
        "http://x/healthz",
        "*",
        "/healthz%20",
    ],
)
def test_no_path_gets_past_the_token(guarded: Server, path: str) -> None:
    assert code_of(exchange(guarded, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())) in (400, 401)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"Content-Length: x\r\n", {400}),
        (b"Content-Length: -1\r\n", {400}),
        (b"Content-Length: 1_0\r\n", {400}),
        (b"Content-Length: \xb2\r\n", {400}),
        (b"Content-Length: 1\r\nContent-Length: 2\r\n", {400}),
        (b"Content-Length: " + b"9" * 19 + b"\r\n", {413}),
        (b"Content-Length: " + b"9" * 5_000 + b"\r\n", {400}),
        (b"Transfer-Encoding: chunked\r\n", {411}),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", {400, 411}),
        (b"Transfer-Encoding: gzip\r\n", {400, 501}),
        (b"A" * 20_000 + b": x\r\n", {431}),
        (b"A: x\r\n" * 9_000, {431}),
        (b"A: x" + b"x" * 1_000_000 + b"\r\n", {400}),
        (b"no colon\r\n", {400}),
        (b"\x00: x\r\n", {400}),
    ],
)
def test_malformed_and_large_requests_are_the_clients_fault(
    server: Server, headers: bytes, expected: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    found = exchange(server, b"POST /api/v1/status HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert code_of(found) in expected
    assert not caplog.records, "whoever sends garbage must not fill the logs"
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_body_without_end_is_not_read(server: Server) -> None:
    head = b"POST /api/v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert code_of(exchange(server, head + b"1000\r\n" + b"x" * 0x1000 + b"\r\n")) == 411


def test_responses_do_not_tell_what_serves_them(guarded: Server) -> None:
    for path in ("/healthz", "/metrics", "/nothing"):
        found = httpx.get(f"{guarded.url}{path}").headers
        assert "server" not in found
        assert found["connection"] == "close"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, board: StatusBoard, clock: Clock) -> Iterator[Server]:
    monkeypatch.setattr(Connection, "served_within", 0.5)
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0, clock=clock).start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /api/v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx",
    ],
)
def test_a_client_that_waits_is_dropped(impatient: Server, sent: bytes) -> None:
    exchange(impatient, sent)  # returns only when the other side has closed
    assert httpx.get(f"{impatient.url}/healthz").status_code == 200


def test_a_client_that_drips_is_dropped(impatient: Server) -> None:
    with closing(socket.create_connection((impatient.host, impatient.port), timeout=60)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        connection.settimeout(0.05)
        dropped = False
        for _ in range(1_000):
            try:
                connection.sendall(b"X: y\r\n")
                dropped = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                dropped = True
            if dropped:
                break
        assert dropped


def test_idle_connections_starve_nobody(server: Server) -> None:
    with ExitStack() as idle:
        for number in range(3 * MOST_CONNECTIONS):
            connection = socket.create_connection((server.host, server.port), timeout=60)
            idle.enter_context(closing(connection))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
            if number % 50 == 0:
                assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics", "/api/v1/status"):
            assert httpx.get(f"{server.url}{path}", timeout=60).status_code == 200


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    assert load(None).http.host == "127.0.0.1"
