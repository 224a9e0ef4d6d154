"""The whole worker on a real Apache Kafka: its CPU beside the tuned loop's, and its memory when nobody answers.

Everything runs as a process of its own: broker, annotator, and what is measured, which is only looked at from outside.
How far a process has come is read from the positions its group has committed, and its CPU time from the kernel at the
same moment. So the figures run from the first commit to the last one, and start-up and imports are left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from kafka import KafkaProducer

from benchmarks.measure import HERE, Spread, cpu_seconds, electricity, memory, rounds, slope
from streamal import assemble
from streamal.service.ledgers import Heritage, decode_metadata
from streamal.settings import load
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import TopicPartition

sys.path.append(str(HERE.parent / "tests"))

from broker import Broker, free_port

INSTANCES: Final = "instances"
PARTITIONS: Final = 4
LOOP_INSTANCES: Final = 300_000
SILENT_INSTANCES: Final = 1_000_000
LOOK_EVERY: Final = 0.03
PATIENCE: Final = 120.0
"""Seconds without progress after which a process counts as stuck."""
SETTLED: Final = 0.25
"""Share of the instances after which memory should no longer grow: the queue of 10,000 requests is full at 0.2."""
CONFIG: Final = """\
[transport]
kind = "kafka"
bootstrap_servers = "{bootstrap}"
group = "{group}"
[topics]
instances = "instances"
label_requests = "{group}-label-requests"
answers = "{group}-answers"
outcomes = "{group}-outcomes"
decisions = "{group}-decisions"
dead_letters = "{group}-dead-letters"
snapshots = "{group}-snapshots"
control = "{group}-control"
[model]
kind = "logistic_regression"
[budget]
rate = 0.05
[delivery]
mode = "{mode}"
[http]
port = {port}
"""


class Look(NamedTuple):
    """How a process stands: instances decided and committed, CPU and wall seconds, memory in MiB."""

    seen: int
    cpu: float
    at: float
    resident: float
    peak: float


class Field:
    """A broker with the instances, and a directory for configs and logs."""

    def __init__(self, broker: Broker, directory: Path, stream: Path, count: int) -> None:
        self.bootstrap = broker.bootstrap
        self.directory = directory
        self.stream = stream
        self.count = count
        self.log = KafkaLog(broker.bootstrap)
        self.log.create_topics({INSTANCES: PARTITIONS})
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=50, batch_size=512 << 10)
        for number, row in rounds(electricity(stream), count):
            value = orjson.dumps({"id": str(number), "features": row.features})
            producer.send(INSTANCES, value, partition=number % PARTITIONS)
        producer.close()

    def seen(self, group: str) -> int:
        """Return how many instances a group has committed."""
        places = [TopicPartition(INSTANCES, p) for p in range(PARTITIONS)]
        return sum(position.offset for position in self.log.positions(group, places).values())

    def watch(self, group: str, process: subprocess.Popen[bytes]) -> list[Look]:
        """Look at a process from its first commit until it has come to the end.

        Raises:
            RuntimeError: it ended before, or stands still; its log says why.
        """
        looks: list[Look] = []
        moved = time.monotonic()
        while not looks or looks[-1].seen < self.count:
            time.sleep(LOOK_EVERY)
            if process.poll() is not None or time.monotonic() - moved > PATIENCE:
                said = (self.directory / f"{group}.log").read_text(errors="replace")[-2000:]
                message = f"{group} stands still at {looks[-1].seen if looks else 0} of {self.count}: {said}"
                raise RuntimeError(message)
            seen = self.seen(group)
            if seen > (looks[-1].seen if looks else 0):
                moved = time.monotonic()
                looks.append(Look(seen, cpu_seconds(process.pid), moved, *memory(process.pid)))
        return looks

    @contextmanager
    def running(self, name: str, arguments: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run a Python module as a process, and end it."""
        with (self.directory / f"{name}.log").open("wb") as said:
            process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=said, cwd=cwd)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def config(self, group: str, mode: str = "exactly_once") -> Path:
        """Write the worker's config and create its topics with it."""
        path = self.directory / f"{group}.toml"
        path.write_text(CONFIG.format(bootstrap=self.bootstrap, group=group, port=free_port(), mode=mode))
        command = [sys.executable, "-m", "streamal", "topics", "create", "-c", str(path)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.directory)
        return path

    def worker(self, group: str, mode: str = "exactly_once") -> tuple[Sequence[str], Path]:
        """Return the worker's command and its directory."""
        return ("streamal", "run", "--no-supervisor", "-c", str(self.config(group, mode))), self.directory

    def tuned_loop(self, group: str) -> tuple[Sequence[str], Path]:
        """Return the tuned loop's command and its directory, after creating its topics."""
        topics = [f"{group}-label-requests", f"{group}-answers"]
        self.log.create_topics(dict.fromkeys(topics, PARTITIONS))
        return ("benchmarks.tuned_loop", self.bootstrap, group, INSTANCES, *topics), HERE.parent

    def answered(self, group: str, arguments: Sequence[str], cwd: Path) -> tuple[list[Look], int]:
        """Run what is to be measured with an annotator; returns the looks and how many requests were answered."""
        words = (self.bootstrap, f"{group}-label-requests", f"{group}-answers", str(self.stream))
        annotator = self.running(f"{group}-annotator", ("benchmarks.annotator", *words), HERE.parent)
        with annotator as answering, self.running(group, arguments, cwd) as process:
            looks = self.watch(group, process)
        assert answering.stdout is not None
        return looks, int(answering.stdout.read() or 0)


@contextmanager
def field(stream: Path, count: int) -> Iterator[Field]:
    """Start a broker and fill it."""
    with Broker() as broker, tempfile.TemporaryDirectory(prefix="streamal-benchmark-") as directory:
        found = Field(broker, Path(directory), stream.resolve(), count)
        yield found
        found.log.close()


def kafka_loop(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure the tuned loop and the worker on the same topic, in turn."""
    runs: dict[str, list[tuple[list[Look], int]]] = {"tuned loop": [], "streamal": []}
    with field(stream, LOOP_INSTANCES) as ground:
        for number in range(repeats):
            runs["tuned loop"].append(ground.answered(f"loop-{number}", *ground.tuned_loop(f"loop-{number}")))
            runs["streamal"].append(ground.answered(f"worker-{number}", *ground.worker(f"worker-{number}")))
    costs = {name: Spread.of([cost(looks) for looks, _ in found]) for name, found in runs.items()}
    alone = costs["tuned loop"].median
    return [
        {
            "system": name,
            "cpu_us": costs[name],
            "ratio": round(costs[name].median / alone, 3),
            "instances_per_s": Spread.of([rate(looks) for looks, _ in found]),
            "peak_mib": round(max(looks[-1].peak for looks, _ in found), 1),
            "answered_share": round(sum(answered for _, answered in found) / len(found) / LOOP_INSTANCES, 4),
        }
        for name, found in runs.items()
    ]


def delivery(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure the worker with either delivery on the same topic, in turn."""
    runs: dict[str, list[list[Look]]] = {"at_least_once": [], "exactly_once": []}
    with field(stream, LOOP_INSTANCES) as ground:
        for number in range(repeats):
            for mode, found in runs.items():
                group = f"{mode.replace('_', '-')}-{number}"
                found.append(ground.answered(group, *ground.worker(group, mode))[0])
    alone = Spread.of([cost(looks) for looks in runs["at_least_once"]]).median
    pairs = zip(runs["exactly_once"], runs["at_least_once"], strict=True)
    return [
        {
            "delivery": mode,
            "cpu_us": (spent := Spread.of([cost(looks) for looks in found])),
            "ratio": round(spent.median / alone, 3),
            "instances_per_s": Spread.of([rate(looks) for looks in found]),
            "per_commit": round(LOOP_INSTANCES / sum(len(looks) for looks in found) * len(found)),
        }
        for mode, found in runs.items()
    ] + [{"delivery": "ratio of each pair", "cpu_us": Spread.of([cost(a) / cost(b) for a, b in pairs])}]


def heritage(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure what a new owner reads of a partition, after histories of several lengths."""
    found = []
    with field(stream, LOOP_INSTANCES) as ground:
        group = "heir"
        ground.answered(group, *ground.worker(group))
        settings = load(ground.directory / f"{group}.toml")
        with closing(assemble.open_log(settings)) as log:
            topics, task = assemble.topics_of(settings), assemble.check(settings).task
            decoder, reader = assemble.instance_decoder(settings, task), log.reader()
            places = [TopicPartition(topics.instances, number % PARTITIONS) for number in range(repeats * PARTITIONS)]

            def measure(what: str, take: Callable[[TopicPartition], object]) -> None:
                took = []
                for place in places:
                    begun = time.perf_counter()
                    take(place)
                    took.append((time.perf_counter() - begun) * 1000)
                found.append({"history": LOOP_INSTANCES, "read": what, "ms_per_partition": Spread.of(took)})

            measure("ledger", lambda place: decode_metadata(log.positions(group, [place])[place].metadata))

            def inherit(heir: Heritage, place: TopicPartition) -> object:
                return heir.inherit(place.partition, log.positions(group, [place])[place])

            for what, warmup in (("and requests", 0), ("and warm-up", 4 * settings.strategy.window)):
                measure(what, partial(inherit, Heritage(log, reader, topics, decoder, warmup)))
    return found


def cost(looks: Sequence[Look]) -> float:
    """Return CPU microseconds per instance between the first look and the last."""
    return (looks[-1].cpu - looks[0].cpu) / (looks[-1].seen - looks[0].seen) * 1e6


def rate(looks: Sequence[Look]) -> float:
    """Return instances per second between the first look and the last."""
    return (looks[-1].seen - looks[0].seen) / (looks[-1].at - looks[0].at)


def never_answered(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure the worker's memory while it asks and nobody answers; once, whatever `repeats`."""
    with field(stream, SILENT_INSTANCES) as ground:
        arguments, cwd = ground.worker("silent")
        with ground.running("silent", arguments, cwd) as process:
            looks = ground.watch("silent", process)
    later = [look for look in looks if look.seen >= SETTLED * SILENT_INSTANCES]
    return [
        {
            "instances": looks[-1].seen,
            "peak_mib": round(looks[-1].peak, 1),
            **{f"at_{share:.0%}": round(resident_at(looks, share), 1) for share in (0.1, 0.25, 0.5, 0.75, 1.0)},
            "slope_mib_per_million": round(slope([(look.seen / 1e6, look.resident) for look in later]), 2),
            "cpu_us": round(cost(looks), 2),
            "instances_per_s": round(rate(looks)),
        }
    ]


def resident_at(looks: Sequence[Look], share: float) -> float:
    """Return the resident memory when this share of the instances had been decided on."""
    return next(look.resident for look in looks if look.seen >= share * looks[-1].seen)
