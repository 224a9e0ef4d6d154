"""The demo: the real service on a real stream, from an empty directory to a learning curve, in under a minute.

An embedded log in a temporary directory, the worker as in production, Electricity fed at an even pace, and an
annotator who answers late and sometimes wrongly. Beside it a control: the same core, model, budget and annotator,
asking at random. Both are scored on every instance, before its label is known to anybody: the service by its
`predictions` topic.
"""

from __future__ import annotations

import math
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Final

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from streamal import assemble
from streamal.annotate.oracle import Oracle
from streamal.errors import ConfigError
from streamal.evaluate import report
from streamal.evaluate.simulate import Simulator
from streamal.evaluate.stream import Row, read
from streamal.messages import SCHEMA_HEADERS, best_label
from streamal.settings import Settings, load, revised
from streamal.transport.log import Append, Log, Reader, TopicPartition
from streamal.web.server import Server

STREAM: Final = "electricity.csv.gz"
LABEL: Final = "direction"
CLASSES: Final = ["down", "up"]
MISTAKES: Final = 0.03
ANSWER_AFTER: Final = 0.02
"""Seconds from reading a request to its answer."""
ROUND_TRIP: Final = 0.12
"""Seconds a label spends in the log, there and back, at this commit interval; the control waits as long."""
CONTROLS: Final = 3
"""Random samplers, averaged: one alone varies by half a point of accuracy."""
COMMIT_INTERVAL: Final = 0.02
TICK: Final = 0.02
SCORED_OVER: Final = 1_000
DRAIN_WITHIN: Final = 10.0
FEWEST: Final = 100
"""Rows to try where the whole stream is too much: four fifths of what was managed, in hundreds."""


@dataclass
class Arm:
    """How one of the two does: right or wrong on the last instances, on all, and the curve so far.

    `asked` is what the ledger said when it had seen so many instances; predictions may be read later than requests.
    """

    name: str
    asked: int = 0
    seen: int = 0
    right: float = 0.0
    scored: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SCORED_OVER))
    curve: list[tuple[int, float | None]] = field(default_factory=list)

    def score(self, hit: float) -> None:
        """Take in one prediction, or the mean of several samplers' on one instance."""
        self.scored += 1
        self.right += hit
        self.recent.append(hit)
        if self.scored % SCORED_OVER == 0:
            self.curve.append((self.scored, self.accuracy))

    @property
    def decided(self) -> int:
        """How many instances it has decided on, as far as is known here."""
        return max(self.seen, self.scored)

    @property
    def accuracy(self) -> float:
        """The share of all that was right."""
        return self.right / self.scored if self.scored else 0.0

    @property
    def now(self) -> float:
        """The share of the last thousand that was right."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0


class Demo:
    """Feeds, answers and scores; the worker runs in a thread of its own, as it would in a process of its own."""

    def __init__(self, log: Log, settings: Settings, rows: list[Row], seconds: float) -> None:
        self._log = log
        self._settings = settings
        self._rows = rows
        self._seconds = seconds
        self._topics = settings.topics
        self._writer = log.writer("demo")
        self._answers: deque[tuple[float, Append]] = deque()
        self._oracles = Oracle(error=MISTAKES).team(settings.annotation.answers_per_request)
        self._requests = self._follow(self._topics.label_requests)
        self._predictions = self._follow(self._topics.predictions)
        self.lateness = round(len(rows) / seconds * (ANSWER_AFTER + ROUND_TRIP))
        late = Oracle(delay=self.lateness, error=MISTAKES)
        self._controls = []
        for seed in range(CONTROLS):
            chosen = revised(settings, "strategy", {"name": "random", "seed": seed})
            plan = assemble.plans_of(chosen, "classification", 1)[0]
            self._controls.append(Simulator(plan, assemble.build_model(settings), late, CLASSES))
        self.limit: float = len(rows)
        self.rows = len(rows)
        self.fed = 0
        self.service = Arm("streamal")
        self.control = Arm("random control")

    def _follow(self, topic: str) -> Reader:
        reader = self._log.reader()
        reader.follow(TopicPartition(topic, 0), 0)
        return reader

    def feed(self, elapsed: float) -> None:
        """Append what is due by now, and let the control see the same."""
        due = int(min(self.limit, len(self._rows) * elapsed / self._seconds))
        fresh = range(self.fed, due)
        self._writer.append([self._instance(number) for number in fresh])
        for number in fresh:
            row = self._row(number)
            taken = [control.step(number, row) for control in self._controls]
            self.control.asked = round(fmean(control.lane.asked for control in self._controls))
            self.control.score(fmean(best_label(one.prediction) == row.label for one in taken))
        self.fed = due

    def _instance(self, number: int) -> Append:
        value = orjson.dumps({"id": f"half-hour-{number}", "features": self._row(number).features})
        return Append(self._topics.instances, 0, value, None, SCHEMA_HEADERS)

    def answer(self, now: float) -> None:
        """Read new requests, and give the answers whose time has come."""
        for record in self._requests.poll(0.0):
            found = orjson.loads(record.value or b"")
            self.service.asked, self.service.seen = found["budget"]["asked"], found["budget"]["seen"]
            offset = found["offset"]
            for oracle in self._oracles:
                label = oracle.answer(offset, self._row(offset).label, CLASSES)
                value = orjson.dumps({"request_id": found["request_id"], "label": label, "annotator": oracle.name})
                self._answers.append((now + ANSWER_AFTER, Append(self._topics.answers, 0, value, None, SCHEMA_HEADERS)))
        due = []
        while self._answers and self._answers[0][0] <= now:
            due.append(self._answers.popleft()[1])
        if due:
            self._writer.append(due)

    def score(self) -> None:
        """Score what the service has predicted since."""
        for record in self._predictions.poll(0.0):
            found = orjson.loads(record.value or b"")
            row = self._row(found["offset"])
            self.service.score(found["prediction"]["label"] == row.label)

    def _row(self, number: int) -> Row:
        return self._rows[number % len(self._rows)]

    def allowed(self, arm: Arm) -> float:
        """Return the bound of an arm's labels, on as much of the stream as it has decided on."""
        budget = self._settings.budget
        return max(float(budget.cold_start_loan), budget.rate * arm.decided + 1)

    @property
    def finished(self) -> bool:
        """Whether every instance was fed, decided on and scored, and no answer is on its way."""
        return self.fed >= self.limit and self.service.scored >= self.fed and not self._answers


def run(
    *, rate: float, seconds: int, port: int | None, plot: Path, rows: int | None = None, console: Console | None = None
) -> Demo:
    """Run the demo and print its summary; with a `port` the service then stays up until Ctrl+C.

    `rows` takes the first rows of the stream only.
    """
    console = console or Console()
    console.print("Reading the stream and starting the service ...")
    with as_file(files("streamal") / "streams" / STREAM) as path:
        stream = list(islice(read(path, label=LABEL), rows))
    with tempfile.TemporaryDirectory(prefix="streamal-") as directory:
        settings = _settings(Path(directory), rate, port)
        with _service(settings) as (log, server):
            demo = Demo(log, settings, stream, seconds)
            begun = time.monotonic()
            with Live(console=console, refresh_per_second=4, get_renderable=lambda: _view(demo, begun)) as live:
                _turn_until(demo, begun, lambda: demo.finished or time.monotonic() - begun > seconds + DRAIN_WITHIN)
                live.refresh()
            _summarise(demo, plot, time.monotonic() - begun, console)
            if server is not None:
                _stay(demo, server, begun, console)
    return demo


def _settings(directory: Path, rate: float, port: int | None) -> Settings:
    settings = load(None)
    changes: dict[str, dict[str, object]] = {
        "transport": {"path": str(directory / "demo.db"), "partitions": 1},
        "topics": {"predictions": "predictions"},
        "model": {"classes": CLASSES},
        "budget": {"rate": rate},
        "delivery": {"commit_interval": COMMIT_INTERVAL},
        "http": {"port": port or 0},
    }
    for section, values in changes.items():
        settings = revised(settings, section, values)
    return settings


@contextmanager
def _service(settings: Settings) -> Iterator[tuple[Log, Server | None]]:
    log = assemble.open_log(settings)
    service = assemble.build_service(settings, log)
    if service.server is not None:
        service.server.start()
    thread = threading.Thread(target=service.worker.run, name="worker", daemon=True)
    thread.start()
    while not service.reporter.board.read().ready and thread.is_alive():
        time.sleep(TICK)
    try:
        yield log, service.server
    finally:
        service.worker.stop()
        thread.join(DRAIN_WITHIN)
        if service.server is not None:
            service.server.stop()


def _turn_until(demo: Demo, begun: float, done: Callable[[], bool]) -> None:
    while not done():
        turn = time.monotonic()
        demo.feed(turn - begun)
        demo.answer(turn)
        demo.score()
        time.sleep(max(0.0, TICK - (time.monotonic() - turn)))


def _view(demo: Demo, begun: float) -> Group:
    elapsed = max(1e-3, time.monotonic() - begun)
    found = Table(box=None, padding=(0, 2))
    for name in ("", "asked", "allowed", "accuracy, last 1,000", "accuracy, all"):
        found.add_column(name, justify="right" if name else "left")
    for arm in (demo.service, demo.control):
        allowed = f"{demo.allowed(arm):,.0f}"
        found.add_row(arm.name, f"{arm.asked:,}", allowed, f"{arm.now:.1%}", f"{arm.accuracy:.1%}")
    decided = demo.service.decided
    head = f"{decided:,} of {demo.rows:,} instances decided, {decided / elapsed:,.0f} per second"
    # the bar ends no line by itself, and would swallow the table's head
    bar = Padding(ProgressBar(total=demo.rows, completed=decided, width=60), (0, 0, 1, 0))
    return Group(head, bar, found)


def _summarise(demo: Demo, plot: Path, took: float, console: Console) -> None:
    if not demo.finished:
        _admit(demo, took, console)
        return
    service, control = demo.service, demo.control
    lead = 100 * (service.accuracy - control.accuracy)
    verdict = "ahead of" if lead > 0 else "behind"
    spent = service.asked / max(1, service.scored)
    console.print(
        f"\n[bold]Electricity, {service.scored:,} half-hours, in {took:.0f} s.[/bold] The simulated annotator's "
        f"answers came about {demo.lateness} half-hours late, {MISTAKES:.0%} of them wrong.\n"
        f"Labels: {service.asked:,} asked <= {demo.allowed(service):,.0f} allowed ({spent:.2%} of the stream).\n"
        f"Accuracy on every instance, before its label was known: {service.accuracy:.1%}; random sampling reached "
        f"{control.accuracy:.1%} with {control.asked:,} labels (mean of {CONTROLS}).\n"
        f"The selected labels put the model {abs(lead):.1f} points {verdict} random ones.",
        highlight=False,
    )
    curves = {f"{arm.name} ({arm.asked:,} labels)": [arm.curve] for arm in (service, control)}
    try:
        report.draw(curves, plot, title="Electricity: what the labels bought", ylabel="accuracy on all so far")
    except ConfigError as error:
        console.print(f"No picture: {error}", highlight=False)
    else:
        console.print(f"Learning curve: {plot}", highlight=False)


def _admit(demo: Demo, took: float, console: Console) -> None:
    """Say how far it came, and compare nothing: the control has seen more of the stream than the service."""
    service = demo.service
    fewer = max(FEWEST, int(0.8 * service.decided) // FEWEST * FEWEST)
    console.print(
        f"\n[bold]Stopped early: {service.decided:,} of {demo.rows:,} half-hours in {took:.0f} s.[/bold] This machine "
        "is too slow or too busy for the whole stream: what stands above is no result, and says nothing of what the "
        f"labels bought.\nLabels until then: {service.asked:,} asked <= {demo.allowed(service):,.0f} allowed.\n"
        f"Try fewer: streamal demo --rows {fewer}",
        highlight=False,
    )


def _stay(demo: Demo, server: Server, begun: float, console: Console) -> None:
    with _interrupted() as interrupted:
        console.print(
            f"\nStill serving: {server.url}/healthz /readyz /metrics /api/v1/status. Ctrl+C ends it.", highlight=False
        )
        demo.limit = math.inf
        _turn_until(demo, begun, interrupted.is_set)
    console.print("Stopped.")


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Have Ctrl+C set an event: as an exception it is ignored where it happens to meet a destructor."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
