"""The stage of the stories: a log with its topics, worker processes on it, a feeder and an annotator.

Workers are the real thing: `python -m streamal run` with a file and a few variables, in processes that the stage
starts, watches and ends by their id. Nothing here believes a worker's word on what it did: that is for `auditor`,
which reads the log. The status over HTTP only tells when to go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self
from uuid import uuid4

import orjson
from annotator import replies
from broker import free_port

from streamal import assemble
from streamal.errors import CommitRefused, DeadlineMissed, StreamalError, TransportError
from streamal.evaluate.stream import Row, read
from streamal.service.ledgers import Pointers, decode_metadata
from streamal.settings import Settings, load, revised, show_toml
from streamal.transport.log import Append, Log, Record, TopicPartition

TICK: Final = 0.02
PATIENCE: Final = 60.0
"""Seconds anything may take on a busy machine before a story gives up."""
EXIT_WITHIN: Final = 10.0
ANNOTATOR: Final = Path(__file__).with_name("annotator.py")
PROGRAM: Final = (sys.executable, "-m", "streamal")
FEEDER_TRIES: Final = 3
"""Connections in a row that brought nothing, after which the feeder gives up; each is tried for a minute."""
MOST_FED: Final = 1_000
PULSE: Final = 0.05
CRASH_ONLY: Final = frozenset({TransportError.exit_code, CommitRefused.exit_code, DeadlineMissed.exit_code})
"""What a worker may end with by itself, to be started again: it was fenced, expelled, or lost its connection."""

Launch = Literal["worker", "supervisor"]


@cache
def electricity() -> Sequence[Row]:
    """The stream that ships with the package."""
    with as_file(files("streamal") / "streams" / "electricity.csv.gz") as path:
        return list(read(path, label="direction"))


def instance(number: int) -> bytes:
    """Return row `number` of Electricity, over and over again, as a value for `instances`."""
    row = electricity()[number % len(electricity())]
    return orjson.dumps({"id": f"half-hour-{number}", "features": row.features})


def until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> float:
    """Wait until something is true; returns the seconds it took, fails with `what` after the deadline."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > seconds:
            message = f"after {seconds:g} s still not: {what}"
            raise AssertionError(message)
        time.sleep(TICK)
    return time.monotonic() - begun


def until_still(true: Callable[[], object], moving: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is true, for as long as `moving` changes; fails with `what` when it stands still."""
    last, since = moving(), time.monotonic()
    while not true():
        if (now := moving()) != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > seconds:
            message = f"it stands still at {last} for {seconds:g} s, and still not: {what}"
            raise AssertionError(message)
        time.sleep(TICK)


class Place(NamedTuple):
    """Where a stage stands: in which directory, and on which brokers ("" for the embedded log)."""

    directory: Path
    bootstrap: str = ""


class WorkerProcess:
    """One worker, or a supervisor with its worker; keeps slot, directory, port and log file over restarts.

    `program` and `variables`, further environment variables, may be changed between its starts.
    """

    def __init__(self, config: Path, directory: Path, slot: int, launch: Launch = "worker") -> None:
        self.slot = slot
        self.port = free_port()
        self.output = directory / f"worker-{slot}.log"
        self.program: Sequence[str] = PROGRAM
        self.variables: dict[str, str] = {}
        self._arguments = ["run", "--config", str(config)]
        if launch == "worker":
            self._arguments.append("--no-supervisor")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        self.starts = 0

    def start(self, **variables: str) -> Self:
        """Start it, with further environment variables for this once."""
        assert not self.running, f"worker {self.slot} runs already"
        kept = {n: v for n, v in os.environ.items() if not n.startswith("STREAMAL") and n != "PYTHONDONTWRITEBYTECODE"}
        own = {"STREAMAL__TRANSPORT__SLOT": str(self.slot), "STREAMAL__HTTP__PORT": str(self.port)}
        own["STREAMAL__SNAPSHOT__DIRECTORY"] = str(self._directory / f"snapshots-{self.slot}")
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.program, *self._arguments],
                env=kept | own | self.variables | variables,
                cwd=self._directory,
                stdout=output,
                stderr=output,
            )
        self._asked = False
        self.starts += 1
        return self

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether its process was stopped and not let go on."""
        if self._process is None or not self.running:
            return False
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def crashed(self) -> int | None:
        """The exit code of a process that ended without being asked to."""
        return None if self._process is None or self._asked else self._process.poll()

    @property
    def pid(self) -> int:
        """The id of its process, once it was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def children(self) -> list[int]:
        """The ids of its child processes."""
        if self._process is None or not self.running:
            return []
        number = self._process.pid
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]

    def status(self) -> Mapping[str, Any]:
        """Return what it says over HTTP, or nothing while it says nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/status", timeout=5) as response:
                found: dict[str, Any] = json.load(response)
                return found
        except (OSError, urllib.error.URLError):
            return {}

    @property
    def partitions(self) -> list[int]:
        """What it owns and works on, by its own account."""
        status = self.status()
        return sorted(map(int, status["partitions"])) if status.get("phase") == "running" else []

    def freeze(self) -> None:
        """Stop it in the midst of whatever it does, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on; it may then find that it was given up, and end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would, a supervisor with its worker."""
        if self._process is not None:
            self._asked = True
            for child in self.children:
                os.kill(child, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def end(self, how: signal.Signals = signal.SIGTERM, within: float = EXIT_WITHIN) -> tuple[int, float]:
        """Ask it to end; returns its exit code and the seconds it took. Fails after `within` seconds."""
        assert self._process is not None
        self._asked = True
        self._process.send_signal(how)
        return self.wait(within)

    def wait(self, seconds: float = PATIENCE) -> tuple[int, float]:
        """Wait for its end; returns exit code and seconds."""
        assert self._process is not None
        self._asked = True
        begun = time.monotonic()
        try:
            return self._process.wait(seconds), time.monotonic() - begun
        except subprocess.TimeoutExpired:
            message = f"worker {self.slot} did not end within {seconds:g} s"
            raise AssertionError(message) from None

    def lines(self) -> list[dict[str, Any]]:
        """Return its log lines so far."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Feeder:
    """Appends Electricity at an even pace in a thread of its own: row k to partition k modulo their number.

    What the log does not take is appended again, so some rows may come twice while brokers are away.
    """

    def __init__(self, stage: Stage, *, per_second: float) -> None:
        self._stage = stage
        self._total: float = float("inf")
        self._error: BaseException | None = None
        self._pace = time.monotonic(), 0, per_second
        self.fed = 0
        self._thread = threading.Thread(target=self._run, name="feeder")
        self._thread.start()

    def finish(self, total: int, *, per_second: float = float("inf")) -> int:
        """Append the rest up to `total`, at once or at another pace; returns how many were fed in all."""
        self._total = total
        self._pace = time.monotonic(), self.fed, per_second
        until_still(lambda: not self._thread.is_alive(), lambda: self.fed, "all rows fed")
        if self._error is not None:
            raise self._error
        return self.fed

    def _run(self) -> None:
        failures = 0
        while True:
            before = self.fed
            try:
                with closing(self._stage.open_log()) as log, closing(log.writer("feeder")) as writer:
                    self._feed(writer.append)
                return
            except StreamalError as error:
                failures = failures + 1 if self.fed == before else 1
                if failures == FEEDER_TRIES:
                    self._error = error
                    return

    def _feed(self, append: Callable[[Sequence[Append]], object]) -> None:
        while self.fed < self._total:
            begun, first, per_second = self._pace
            due = float("inf")
            if per_second < due:
                time.sleep(PULSE)
                due = first + (time.monotonic() - begun) * per_second
            until = int(min(due, self._total, self.fed + MOST_FED))
            if until > self.fed:
                append(self._stage.rows(range(self.fed, until)))
                self.fed = until


class Tape:
    """All records of a topic as far as they were read, by partition."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._reader = log.reader()
        self._topic = topic
        self._reached = [0] * log.partitions(topic)
        self.partitions: list[list[Record]] = [[] for _ in self._reached]

    def catch_up(self) -> Self:
        """Read to the end that is there now."""
        for number, start in enumerate(self._reached):
            place = TopicPartition(self._topic, number)
            first, end = self._log.bounds(place)
            if end > start:
                self.partitions[number] += self._reader.read(place, max(first, start), end)
                self._reached[number] = end
        return self

    def records(self) -> Iterator[Record]:
        """Return all records, partition by partition."""
        for records in self.partitions:
            yield from records


class Stage:
    """One stream with its topics and processes; `sections` change settings by section."""

    def __init__(self, place: Place, **sections: Mapping[str, Any]) -> None:
        self.directory = place.directory
        self.settings = settings_for(place, sections)
        self.config = place.directory / "streamal.toml"
        self.config.write_text(show_toml(self.settings), encoding="utf-8")
        self.log = self.open_log()
        assemble.create_topics(self.settings, self.log)
        self.topics = assemble.topics_of(self.settings)
        self.count = self.log.partitions(self.topics.instances)
        self.workers: dict[int, WorkerProcess] = {}
        self.endings: list[int] = []
        self._writer = self.log.writer("stage")
        self._annotator: subprocess.Popen[bytes] | None = None
        self._tapes: dict[str, Tape] = {}

    def open_log(self) -> Log:
        """Open the log as a producer would; its appends are no transactions on Kafka."""
        return assemble.open_log(revised(self.settings, "delivery", {"mode": "at_least_once"}))

    def settings_of(self, slot: int) -> Settings:
        """Return the settings as the worker of a slot sees them."""
        directory = str(self.directory / f"snapshots-{slot}")
        return revised(revised(self.settings, "transport", {"slot": slot}), "snapshot", {"directory": directory})

    def worker(self, slot: int, launch: Launch = "worker") -> WorkerProcess:
        """Return the worker of a slot, not started when it is new."""
        if slot not in self.workers:
            self.workers[slot] = WorkerProcess(self.config, self.directory, slot, launch)
        return self.workers[slot]

    def start(self, *slots: int, **variables: str) -> None:
        """Start workers and wait until they share the partitions out among them."""
        for slot in slots:
            self.worker(slot).start(**variables)
        until(lambda: self.covered(slots), f"workers {slots} share all partitions")

    def covered(self, slots: Iterable[int]) -> bool:
        """Say whether these workers own all partitions between them, each some; crashed ones are started again."""
        self.attend()
        shares = [self.worker(slot).partitions for slot in slots]
        return all(shares) and sorted(p for share in shares for p in share) == list(range(self.count))

    def attend(self) -> None:
        """Start workers again that ended by themselves, as their supervisor would."""
        for worker in self.workers.values():
            if (code := worker.crashed) is not None:
                assert code in CRASH_ONLY, f"worker {worker.slot} ended with {code}"
                self.endings.append(code)
                worker.start()

    def rows(self, numbers: Iterable[int]) -> list[Append]:
        """Return rows of Electricity as they are fed."""
        return [Append(self.topics.instances, number % self.count, instance(number)) for number in numbers]

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        """Append records as a producer would; returns their offsets."""
        return self._writer.append(appends)

    def answer(self, partition: int, fields: Mapping[str, Any]) -> int:
        """Append an answer; returns its offset."""
        return self.append([Append(self.topics.answers, partition, orjson.dumps(fields))])[0]

    @contextmanager
    def annotator(self, rows: int, late: float = 0.0) -> Iterator[None]:
        """Let the annotator's process answer requests about the first so many rows, until the block ends.

        Some answers come up to `late` seconds later than they otherwise would.
        """
        truth = self.directory / "truth.json"
        labels = (electricity()[number % len(electricity())].label for number in range(rows))
        truth.write_bytes(orjson.dumps({f"half-hour-{number}": label for number, label in enumerate(labels)}))
        transport = self.settings.transport
        address = transport.bootstrap_servers or transport.path
        topics = (self.topics.label_requests, self.topics.answers)
        arguments = [transport.kind, address, *topics, str(truth), str(late)]
        with (self.directory / "annotator.log").open("ab") as output:
            process = subprocess.Popen([sys.executable, str(ANNOTATOR), *arguments], stdout=output, stderr=output)
        self._annotator = process
        try:
            yield
        finally:
            assert process.poll() is None, f"the annotator ended by itself\n{self.tell()}"
        process.terminate()
        assert process.wait(PATIENCE) == 0

    def tape(self, topic: str) -> Tape:
        """Return all committed records of a topic up to now."""
        if topic not in self._tapes:
            self._tapes[topic] = Tape(self.log, topic)
        return self._tapes[topic].catch_up()

    def read(self, topic: str) -> list[dict[str, Any]]:
        """Return all values of a topic up to now."""
        return [orjson.loads(record.value or b"") for record in self.tape(topic).records()]

    def answers_to_come(self) -> int:
        """Return how many answers the annotator gives to all requests there are."""
        rows, total = electricity(), 0
        for request in self.read(self.topics.label_requests):
            number = int(request["instance_id"].removeprefix("half-hour-"))
            total += len(replies(request["request_id"], str(rows[number % len(rows)].label), ["down", "up"]))
        return total

    def answers_given(self) -> int:
        """Return how many answers there are, without the copies that workers passed on."""
        return sum(not record.headers for record in self.tape(self.topics.answers).records())

    def positions(self) -> dict[TopicPartition, int]:
        """Return where the group stands."""
        topics = (self.topics.instances, self.topics.answers)
        places = [TopicPartition(topic, number) for topic in topics for number in range(self.count)]
        found = self.log.positions(self.settings.transport.group, places)
        return {place: found[place].offset if place in found else 0 for place in places}

    def decided(self, partitions: Iterable[int] | None = None) -> int:
        """Return the sum of the positions in `instances`."""
        chosen = range(self.count) if partitions is None else partitions
        positions = self.positions()
        return sum(positions[TopicPartition(self.topics.instances, number)] for number in chosen)

    def drained(self) -> bool:
        """Say whether every instance and answer that is there was committed; crashed workers are started again."""
        self.attend()
        positions = self.positions()
        for topic in (self.topics.instances, self.topics.answers):
            for number, records in enumerate(self.tape(topic).partitions):
                if records and positions[TopicPartition(topic, number)] <= records[-1].offset:
                    return False
        # On Kafka positions can be seen before the records of their transaction; the ledgers tell where these end.
        asked = self.tape(self.topics.label_requests).partitions
        return all(
            pointers.requests_end <= (asked[number][-1].offset + 1 if asked[number] else 0)
            for number, pointers in self.pointers().items()
        )

    def pointers(self) -> dict[int, Pointers]:
        """Return what the ledgers say of where each partition's own records lie."""
        places = [TopicPartition(self.topics.instances, number) for number in range(self.count)]
        found = self.log.positions(self.settings.transport.group, places)
        return {place.partition: decode_metadata(at.metadata)[1] for place, at in found.items() if at.metadata}

    def caught_up(self) -> bool:
        """Say whether every running worker has folded all outcomes.

        On Kafka positions can be seen before the records of their transaction; the ledgers tell where these end.
        """
        records = self.tape(self.topics.outcomes).partitions[0]
        ends = [pointers.outcomes_end for pointers in self.pointers().values()]
        end = max([records[-1].offset + 1 if records else 0, *ends])
        return all(w.status().get("model_version", 0) >= end for w in self.workers.values() if w.running)

    def close(self) -> None:
        """End every process that was started, and close the log."""
        for worker in self.workers.values():
            worker.kill()
        if self._annotator is not None and self._annotator.poll() is None:
            self._annotator.kill()
            self._annotator.wait()
        self.log.close()

    def tell(self, lines: int = 15) -> str:
        """Return the last lines of every process's log."""
        found = []
        for path in sorted(self.directory.glob("*.log")):
            found += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(found)


def command(stage: Stage, *words: str) -> str:
    """Run a command on the stage's config; returns what it printed."""
    run = [sys.executable, "-m", "streamal", *words, "--config", str(stage.config)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=stage.directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def decide(stage: Stage, rows: Iterable[int]) -> None:
    """Feed rows and wait until they are decided on."""
    stage.append(stage.rows(rows))
    until(stage.drained, "all instances decided")


def settings_for(place: Place, sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return the settings of a new stream; on Kafka its topics and group have names of their own."""
    key = place.directory / "snapshot.key"
    key.write_bytes(uuid4().hex.encode())
    prefix = f"story-{uuid4().hex[:8]}"
    transport: dict[str, Any] = {"session_timeout": 1.5, "path": str(place.directory / "log.db")}
    topics: dict[str, str] = {}
    settings = load(None)
    if place.bootstrap:
        transport = {"kind": "kafka", "bootstrap_servers": place.bootstrap, "group": prefix, "session_timeout": 3.0}
        topics = {name: f"{prefix}-{topic}" for name, topic in settings.topics.model_dump().items() if topic}
    own: dict[str, dict[str, Any]] = {
        "transport": transport,
        "topics": topics,
        "snapshot": {"key_file": str(key)},
        "http": {"port": 0},
    }
    for section in own.keys() | sections.keys():
        settings = revised(settings, section, own.get(section, {}) | dict(sections.get(section, {})))
    return settings
