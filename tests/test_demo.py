"""The demo is the service at work: it keeps its budget, tells what the labels bought, and ends."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from served import until

from streamal import assemble, demo
from streamal.evaluate.stream import Row
from streamal.transport.log import Append

RATE = 0.05
ROWS = 4_000
SECONDS = 5
RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from streamal.cli import main; main()"
"""A shell may have started the tests with SIGINT ignored, and children inherit that."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.Demo, str, Path]:
    plot = tmp_path_factory.mktemp("demo") / "curve.png"
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    done = demo.run(rate=RATE, seconds=SECONDS, port=None, plot=plot, rows=ROWS, console=console)
    return done, screen.getvalue(), plot


def test_every_instance_is_decided_and_scored_once(finished: tuple[demo.Demo, str, Path]) -> None:
    arm = finished[0].service
    assert (finished[0].fed, arm.scored, finished[0].control.scored) == (ROWS, ROWS, ROWS)


def test_the_budget_holds_and_is_used(finished: tuple[demo.Demo, str, Path]) -> None:
    for arm in (finished[0].service, finished[0].control):
        assert 0.9 * RATE * ROWS <= arm.asked <= RATE * ROWS + 1


def test_the_model_learns(finished: tuple[demo.Demo, str, Path]) -> None:
    assert finished[0].service.now > 0.6


def test_the_summary_says_what_happened(finished: tuple[demo.Demo, str, Path]) -> None:
    done, text, plot = finished
    words = " ".join(text.split())
    [(asked, allowed)] = re.findall(r"Labels: (\d+) asked <= (\d+) allowed", words)
    assert int(asked) == done.service.asked <= int(allowed)
    assert f"Electricity, {ROWS:,} half-hours" in words
    lead = 100 * (done.service.accuracy - done.control.accuracy)
    assert f"{abs(lead):.1f} points {'ahead of' if lead > 0 else 'behind'} random ones" in words
    assert plot.name in words


def test_the_live_view_names_its_figures(finished: tuple[demo.Demo, str, Path]) -> None:
    text = finished[1]
    assert max(map(len, text.splitlines())) <= 80
    [head] = [line for line in text.splitlines() if "accuracy, last 1,000" in line]
    assert head.split() == ["asked", "allowed", "accuracy,", "last", "1,000", "accuracy,", "all"]
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith(("streamal ", "random "))] == [
        "streamal",
        "random",
    ]


def test_the_picture_is_a_png(finished: tuple[demo.Demo, str, Path]) -> None:
    content = finished[2].read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


def test_a_machine_that_is_too_slow_is_told_and_nothing_is_compared(tmp_path: Path) -> None:
    # no worker decides here, which is as slow as can be; of what it did only a request has come
    screen = io.StringIO()
    settings = demo._settings(tmp_path, RATE, None)
    with closing(assemble.open_log(settings)) as log:
        slow = demo.Demo(log, settings, [Row({"x": 1.0}, "up")] * ROWS, SECONDS)
        slow.feed(2 * SECONDS)
        budget = {"seen": 2_000, "asked": 101, "allowed": 101.0}
        value = json.dumps({"request_id": "0-1999", "offset": 1_999, "budget": budget}).encode()
        log.writer("worker").append([Append("label-requests", 0, value)])
        slow.answer(0.0)
        slow.score()
        assert not slow.finished
        demo._summarise(slow, tmp_path / "curve.png", 50.0, Console(file=screen, width=80))
    words = " ".join(screen.getvalue().split())
    assert f"Stopped early: 2,000 of {ROWS:,} half-hours in 50 s." in words
    assert "101 asked <= 101 allowed" in words
    assert "streamal demo --rows 1600" in words
    assert re.search(r"ahead|behind|Accuracy", words) is None
    assert not (tmp_path / "curve.png").exists()


def test_without_a_place_for_the_picture_the_rest_goes_on(tmp_path: Path) -> None:
    screen = io.StringIO()
    plot = tmp_path / "none" / "curve.png"
    demo.run(rate=RATE, seconds=1, port=None, plot=plot, rows=200, console=Console(file=screen, width=80))
    assert "No picture: " in screen.getvalue()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["demo", "--serve", "--port", str(port), "--seconds", "5", "--rows", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process, port
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=60)


def test_ctrl_c_is_an_event_while_it_serves_and_an_exception_again_after() -> None:
    before = signal.getsignal(signal.SIGINT)
    with demo._interrupted() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
    assert signal.getsignal(signal.SIGINT) is before


def test_serve_answers_until_it_is_interrupted(serving: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    process, port = serving

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return str(response.read().decode())

    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Still serving"):
            break
    assert json.loads(get("/healthz"))["status"] == "ok"
    assert json.loads(get("/readyz"))["status"] == "ready"
    assert 'streamal_instances_total{decision="request",pipeline="streamal"}' in get("/metrics")
    until(lambda: json.loads(get("/api/v1/status"))["seen"] > 1000, "the stream goes on from its beginning")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (0, "Stopped.")
    assert (tmp_path / "streamal-demo.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["streamal-demo.png"]
