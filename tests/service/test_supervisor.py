"""A real parent with real workers: restarted after a crash, left alone if that cannot help, stopped when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamal.errors import AccessRefused, ConfigError, LedgerLost, ModelError, StreamalError
from streamal.service.supervisor import FINAL_CODES, FIRST_BACKOFF, MOST_BACKOFF, backoff

PARENT = "import sys; from streamal.service.supervisor import Supervisor; sys.exit(Supervisor(sys.argv[1:]).run())"
REPORT = "import os, signal, sys; print(os.getpid(), flush=True); "
CRASH_TWICE = (
    REPORT + "path = sys.argv[1]; runs = os.path.getsize(path); open(path, 'a').write('x'); "
    "sys.exit(int(sys.argv[2]) if runs < 2 else 0)"
)
BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print('ready', flush=True); "
WAIT = REPORT + BLOCK + "signal.sigwait([signal.SIGTERM]); sys.exit(0)"
DEADLINE = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a supervisor of a worker that runs this code; nothing survives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PARENT, sys.executable, "-c", code, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.terminate()  # which it passes on to its worker; a kill would leave the worker behind
        process.communicate(timeout=DEADLINE)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_waits_longer_after_each_crash_up_to_a_bound() -> None:
    pauses = [backoff(crashes) for crashes in range(1, 100)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_BACKOFF, MOST_BACKOFF)


def test_a_worker_that_is_not_let_in_waits_as_long_as_can_be_and_is_not_given_up() -> None:
    assert {backoff(crashes, AccessRefused.exit_code) for crashes in range(1, 100)} == {MOST_BACKOFF}
    assert AccessRefused.exit_code not in FINAL_CODES


def test_a_crashed_worker_is_started_again(start: Start, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    supervisor = start(CRASH_TWICE, str(runs), str(StreamalError.exit_code))
    output, _ = supervisor.communicate(timeout=DEADLINE)
    assert supervisor.returncode == 0
    assert runs.read_text() == "xxx"
    assert len(set(output.split())) == 3


@pytest.mark.parametrize("code", sorted(FINAL_CODES))
def test_what_a_restart_cannot_help_ends_it(start: Start, tmp_path: Path, code: int) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    supervisor = start(CRASH_TWICE, str(runs), str(code))
    supervisor.communicate(timeout=DEADLINE)
    assert (supervisor.returncode, runs.read_text()) == (code, "x")


def test_wrong_config_lost_ledger_and_impossible_model_are_final() -> None:
    assert {ConfigError.exit_code, LedgerLost.exit_code, ModelError.exit_code} == FINAL_CODES
    assert StreamalError.exit_code not in FINAL_CODES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_worker_and_ends_both(start: Start, number: signal.Signals) -> None:
    code = WAIT.replace("SIGTERM", number.name)
    supervisor = start(code)
    worker = int(read_line(supervisor))
    assert read_line(supervisor) == "ready"
    supervisor.send_signal(number)
    supervisor.communicate(timeout=DEADLINE)
    assert supervisor.returncode == 0
    assert gone(worker)


def test_a_worker_that_is_killed_is_started_again(start: Start) -> None:
    supervisor = start(WAIT)
    first = int(read_line(supervisor))
    assert read_line(supervisor) == "ready"
    os.kill(first, signal.SIGKILL)
    second = int(read_line(supervisor))
    assert second != first
    assert gone(first)
    assert read_line(supervisor) == "ready"
    supervisor.terminate()
    supervisor.communicate(timeout=DEADLINE)
    assert supervisor.returncode == 0
    assert gone(second)


def test_a_signal_between_two_workers_starts_no_other(start: Start, tmp_path: Path) -> None:
    """The supervisor says on stderr that it pauses; it is stopped then."""
    runs = tmp_path / "runs"
    runs.touch()
    supervisor = start(CRASH_TWICE, str(runs), "1")
    assert supervisor.stderr is not None
    assert "starting it again" in supervisor.stderr.readline()
    supervisor.terminate()
    supervisor.communicate(timeout=DEADLINE)
    assert (supervisor.returncode, runs.read_text()) == (0, "x")


def test_a_worker_that_fails_while_stopping_is_not_hidden(start: Start) -> None:
    supervisor = start(WAIT.replace("sys.exit(0)", "sys.exit(4)"))
    read_line(supervisor)
    assert read_line(supervisor) == "ready"
    supervisor.terminate()
    supervisor.communicate(timeout=DEADLINE)
    assert supervisor.returncode == 4
