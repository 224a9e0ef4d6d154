"""Chaos: real workers and brokers are killed, frozen and cut off under load, in a seeded order; then all is audited.

Each fault is a context manager: it strikes on entry and is mended on exit. One that strikes alone is awaited, until
the partitions it stopped have committed again; others strike while the former is still being recovered from. Between
them the group settles, so that the density of faults follows the machine and not a clock. At the end the stream is
drained, the workers are asked to end, and every promise is checked on the log: see `FINAL_CHECKS`.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Self

from auditor import audit, check_models, ledger_of, letters_of, outcomes_of
from cluster import Cluster, admin
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError
from story import PROGRAM, Feeder, Stage, until, until_still

from streamal.errors import StreamalError

WORKERS: Final = (0, 1)
GUEST: Final = 2
"""The slot of the worker that joins and leaves."""
BEHIND: Final = 1
"""The slot of the worker behind the proxies."""
RECOVER_WITHIN: Final = 180.0
"""Seconds within which a stream must go on after a fault, on a machine as busy as it likes."""
LOOK_EVERY: Final = 0.1
DETOUR: Final = (0.0, 5.0)
"""Seconds from a fault to the one that strikes while it is being recovered from: over the session, join and load."""
MOST_OVERLAPPING: Final = 3
SLOW: Final = (0.15, 64 * 1024.0)
"""Latency in seconds, each way, and bytes a second of a slow connection."""


@dataclass(frozen=True, slots=True)
class Dose:
    """How many faults of each kind; the share `overlapping` of them strikes before the former one is over.

    `outages` kill all brokers at once. `slow`, `cut` and `hole` are done to the connections of one worker.
    """

    kill: int = 0
    zombie: int = 0
    broker: int = 0
    outage: int = 0
    join: int = 0
    slow: int = 0
    cut: int = 0
    hole: int = 0
    overlapping: float = 0.0

    @property
    def kinds(self) -> list[str]:
        """All faults by their names, in the order of the table."""
        return [name for name in FAULTS for _ in range(getattr(self, name))]

    def plan(self, draw: random.Random) -> list[list[str]]:
        """Return the faults in their order, up to three in a group that overlap.

        >>> Dose(kill=2, zombie=2, overlapping=0.5).plan(random.Random(1))
        [['zombie', 'kill'], ['zombie', 'kill']]
        """
        kinds = self.kinds
        draw.shuffle(kinds)
        groups: list[list[str]] = []
        for kind in kinds:
            if groups and goes_with(kind, groups[-1]) and draw.random() < self.overlapping:
                groups[-1].append(kind)
            else:
                groups.append([kind])
        return groups


def goes_with(kind: str, group: Sequence[str]) -> bool:
    """Say whether a fault may strike before a group of others is mended: who joins needs a broker.

    >>> goes_with("kill", ["kill", "zombie"]), goes_with("zombie", ["zombie"]), goes_with("join", ["outage"])
    (True, False, False)
    """
    apart = kind == "join" and {"broker", "outage"} & {*group}
    return len(group) < MOST_OVERLAPPING and not apart and (kind == "kill" or kind not in group)


@dataclass
class Report:
    """What a run has counted. `failovers` are seconds from a fault that struck alone until all that it stopped, or all
    there is, has committed again; of an outage, from the restart.
    """

    faults: Counter[str] = field(default_factory=Counter)
    overlapping: int = 0
    failovers: dict[str, list[float]] = field(default_factory=dict)
    exits: Counter[int] = field(default_factory=Counter)
    longest_gap: float = 0.0
    chaos_seconds: float = 0.0
    drained_in: float = 0.0
    instances: int = 0
    transactions: int = 0
    requests: int = 0
    hidden_requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    allowed: float = 0.0
    violations: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return all figures as one flat row."""
        return {
            "instances": self.instances,
            "transactions": self.transactions,
            "requests": self.requests,
            "hidden_requests": self.hidden_requests,
            "answers": told(self.answers),
            "faults": told(self.faults),
            "overlapping": self.overlapping,
            "exits": told(self.exits),
            "failover_s": {
                kind: {"n": len(seconds), "median": round(median(seconds), 1), "max": round(max(seconds), 1)}
                for kind, seconds in sorted(self.failovers.items())
            },
            "longest_gap_s": round(self.longest_gap, 1),
            "budget_use": round(self.asked / self.allowed, 5),
            "chaos_s": round(self.chaos_seconds),
            "drained_s": round(self.drained_in, 1),
            "violations": self.violations,
        }


def told(counts: Counter[Any]) -> dict[str, int]:
    """Return counts by name, in order."""
    return {str(name): count for name, count in sorted(counts.items())}


class Positions:
    """The group's positions in the instances, from a new client whenever the former has met an error.

    kafka-python's administrative client never looks for another coordinator when the one it knows has died.
    """

    def __init__(self, stage: Stage) -> None:
        self._servers = stage.settings.transport.bootstrap_servers
        self._group = stage.settings.transport.group
        self._places = [KafkaPartition(stage.topics.instances, number) for number in range(stage.count)]
        self._connected = ExitStack()
        self._client: Any = None

    def read(self) -> list[int] | None:
        """Return the next offset of each partition, or None if no broker tells."""
        try:
            if self._client is None:
                self._client = self._connected.enter_context(admin(self._servers))
            found = self._client.list_group_offsets({self._group: self._places})[self._group]
        except KafkaError:
            self.close()
            return None
        return [max(0, found[place].offset) for place in self._places]

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._client = None
        with suppress(KafkaError):
            self._connected.close()


class Watch:
    """Follows the positions in a thread: how long has any partition gone without a commit?"""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._stopping = threading.Event()
        self.longest = 0.0
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        moved = [(0, time.monotonic())] * self._stage.count
        with closing(Positions(self._stage)) as positions:
            while not self._stopping.wait(LOOK_EVERY):
                found = positions.read()
                now = time.monotonic()
                for partition, (offset, at) in enumerate(moved):
                    self.longest = max(self.longest, now - at)
                    if found is not None and found[partition] != offset:
                        moved[partition] = found[partition], now


class Chaos:
    """One stream on a cluster with two workers, the second one behind the proxies; and its faults.

    `late` is by how many seconds some answers come later; requests expire after two thirds of that.
    """

    def __init__(self, stage: Stage, cluster: Cluster, *, seed: int) -> None:
        self.stage = stage
        self.cluster = cluster
        self.report = Report()
        self._draw = random.Random(seed)
        self._positions = Positions(stage)
        self._session = stage.settings.transport.session_timeout
        stage.worker(BEHIND).variables["STREAMAL__TRANSPORT__BOOTSTRAP_SERVERS"] = cluster.behind

    def run(
        self,
        dose: Dose,
        *,
        rows: int,
        per_second: float,
        late: float = 0.0,
        progress: Callable[[int], object] = lambda survived: None,
    ) -> Report:
        """Feed at least so many rows while the faults strike, and drain; `progress` is told of faults survived.

        Raises:
            AssertionError: the stream does not go on, or a worker ended with a code that it should not.
        """
        plan = dose.plan(self._draw)
        self.stage.start(*WORKERS)
        feeder = Feeder(self.stage, per_second=per_second)
        begun = time.monotonic()
        with self.stage.annotator(10 * rows, late):
            try:
                with closing(self._positions), Watch(self.stage) as watch:
                    self._settle()
                    for group in plan:
                        self._strike(group)
                        progress(self.report.faults.total())
                    self.report.longest_gap = watch.longest
                    self.report.chaos_seconds = time.monotonic() - begun
            finally:
                fed = feeder.finish(max(rows, feeder.fed), per_second=2 * per_second)
            self._drain()
        self._end()
        assert fed >= rows
        self._count()
        return self.report

    def _strike(self, group: Sequence[str]) -> None:
        """Let the faults of a group strike, wait until the stream goes on, mend them, and let the workers settle."""
        if len(group) == 1:
            self._strike_alone(group[0])
        else:
            self.report.overlapping += 1
            with ExitStack() as mending:
                for kind in group:
                    mending.enter_context(FAULTS[kind](self))
                    self._pass(self._draw.uniform(*DETOUR))
        self.report.faults.update(group)
        self._settle()

    def _strike_alone(self, kind: str) -> None:
        begun = time.monotonic()
        with FAULTS[kind](self) as struck:
            if struck:
                self._advance(struck, f"partitions {sorted(struck)} go on after a {kind}")
                self.report.failovers.setdefault(kind, []).append(time.monotonic() - begun)
        if not struck:
            begun = time.monotonic()
            self._advance(range(self.stage.count), f"all partitions go on after a {kind}")
            self.report.failovers.setdefault(kind, []).append(time.monotonic() - begun)

    def _settle(self) -> None:
        """Wait until all workers share the partitions, all brokers are in sync, and each partition makes progress."""
        self._await(self.cluster.whole, "all replicas are in sync")
        self._await(lambda: self.stage.covered(WORKERS), f"workers {WORKERS} share all partitions")
        self._advance(range(self.stage.count), "all partitions go on")

    def _advance(self, partitions: Iterable[int], what: str) -> None:
        """Wait until each of these partitions has committed something from now on."""
        before: list[int] = []

        def advanced() -> bool:
            found = self._positions.read()
            if found is None:
                return False
            if not before:
                before.extend(found)
            return all(found[partition] > before[partition] for partition in partitions)

        self._await(advanced, what)

    def _await(self, true: Callable[[], object], what: str) -> None:
        """Wait for something, and start workers again that end by themselves."""

        def attended() -> object:
            self.stage.attend()
            return true()

        until(attended, what, RECOVER_WITHIN)

    def _pass(self, seconds: float) -> None:
        """Let a drawn time pass; here the time itself is what is tested."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            self.stage.attend()
            time.sleep(LOOK_EVERY)

    def _awake(self) -> Sequence[int]:
        return [slot for slot in WORKERS if self.stage.worker(slot).running and not self.stage.worker(slot).frozen]

    def _owned(self, slot: int) -> Sequence[int]:
        return self.stage.worker(slot).partitions or range(self.stage.count)

    @contextmanager
    def kill(self) -> Iterator[Sequence[int]]:
        """A worker dies; it is started again at once, or when the others have taken over."""
        slot = self._draw.choice(WORKERS)
        owned = self._owned(slot)
        at_once = self._draw.random() < 0.5 or len(self._awake()) < len(WORKERS)
        worker = self.stage.worker(slot)
        worker.kill()
        if at_once:
            worker.start()
        try:
            yield owned
        finally:
            if not worker.running:
                worker.start()

    @contextmanager
    def zombie(self) -> Iterator[Sequence[int]]:
        """A worker freezes in the midst of its work, is given up, and wakes up believing that nothing happened."""
        slot = self._draw.choice(self._awake())
        owned, worker = self._owned(slot), self.stage.worker(slot)
        worker.freeze()
        expelled = time.monotonic() + self._session + 1.0
        try:
            yield owned
            self._pass(expelled - time.monotonic() + self._draw.uniform(0.0, 2.0))
        finally:
            worker.thaw()

    @contextmanager
    def broker(self) -> Iterator[Sequence[int]]:
        """A broker dies; with one alone nothing goes on until it is back."""
        number = self._draw.randrange(len(self.cluster.nodes))
        self.cluster.kill(number)
        try:
            yield range(self.stage.count) if len(self.cluster.nodes) > 1 else ()
        finally:
            self.cluster.start(number)

    @contextmanager
    def outage(self) -> Iterator[Sequence[int]]:
        """All brokers die."""
        self.cluster.kill()
        try:
            self._pass(self._draw.uniform(*DETOUR))
            yield ()
        finally:
            self.cluster.start()

    @contextmanager
    def join(self) -> Iterator[Sequence[int]]:
        """A third worker joins, and leaves in order."""
        guest = self.stage.worker(GUEST)
        guest.start()
        try:
            self._await(lambda: guest.status().get("ready"), "the third worker is a member of the group")
            yield range(self.stage.count)
        finally:
            if guest.running:
                self.report.exits[guest.end(within=RECOVER_WITHIN)[0]] += 1

    @contextmanager
    def slow(self) -> Iterator[Sequence[int]]:
        """The connections of one worker become slow."""
        for proxy in self.cluster.proxies:
            proxy.slow(*SLOW)
        try:
            self._pass(self._draw.uniform(*DETOUR))
            yield range(self.stage.count)
        finally:
            self._heal()

    @contextmanager
    def cut(self) -> Iterator[Sequence[int]]:
        """The connections of one worker are reset, and new ones refused."""
        owned = self._owned(BEHIND)
        for proxy in self.cluster.proxies:
            proxy.cut()
        try:
            yield owned
        finally:
            self._heal()

    @contextmanager
    def hole(self) -> Iterator[Sequence[int]]:
        """The connections of one worker fall silent."""
        owned = self._owned(BEHIND)
        for proxy in self.cluster.proxies:
            proxy.black_hole()
        try:
            yield owned
        finally:
            self._heal()

    def _heal(self) -> None:
        for proxy in self.cluster.proxies:
            proxy.heal()

    def _drain(self) -> None:
        """Wait until every instance is decided, and every answer given, matched and folded."""
        stage, begun = self.stage, time.monotonic()

        def progress() -> object:
            return sum(stage.positions().values())

        until_still(stage.drained, progress, "all instances decided", RECOVER_WITHIN)
        expected = stage.answers_to_come()
        given = f"{expected} answers given"
        until_still(lambda: stage.answers_given() >= expected, stage.answers_given, given, RECOVER_WITHIN)
        folded = "every answer matched and folded"
        until_still(lambda: stage.drained() and stage.caught_up(), progress, folded, RECOVER_WITHIN)
        self.report.drained_in = time.monotonic() - begun

    def _end(self) -> None:
        for slot in WORKERS:
            code = self.stage.worker(slot).end()[0]
            assert code == 0, f"worker {slot} was asked to end, and did with {code}"
            self.report.exits[code] += 1
        self.report.exits.update(self.stage.endings)

    def _count(self) -> None:
        report, stage = self.report, self.stage
        report.instances = sum(1 for _ in stage.tape(stage.topics.instances).records())
        report.transactions = len({record["at"] for record in stage.read(stage.topics.decisions)})
        report.requests = sum(1 for _ in stage.tape(stage.topics.label_requests).records())
        report.hidden_requests = written(stage, stage.topics.label_requests) - report.requests
        report.answers.update(outcome.kind for _, outcome in outcomes_of(stage))
        report.answers.update(letter.reason for letter in letters_of(stage))
        for partition in range(stage.count):
            budget = ledger_of(stage, partition)["budget"]
            report.asked += budget["asked"]
            report.allowed += stage.settings.budget.rate * budget["seen"]


FAULTS: Final[dict[str, Callable[[Chaos], AbstractContextManager[Sequence[int]]]]] = {
    "kill": Chaos.kill,
    "zombie": Chaos.zombie,
    "broker": Chaos.broker,
    "outage": Chaos.outage,
    "join": Chaos.join,
    "slow": Chaos.slow,
    "cut": Chaos.cut,
    "hole": Chaos.hole,
}
"""Each yields the partitions it stops, nothing if nobody can go on before it is mended."""


def written(stage: Stage, topic: str) -> int:
    """Return how many records lie in a topic, those of aborted transactions included."""
    servers = stage.settings.transport.bootstrap_servers
    with closing(KafkaConsumer(bootstrap_servers=servers, isolation_level="read_uncommitted")) as consumer:
        places = [KafkaPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        count = 0
        while any(consumer.position(place) < end for place, end in ends.items()):
            count += sum(map(len, consumer.poll(timeout_ms=1000).values()))
        return count


def check_answers_and_decisions(chaos: Chaos) -> None:
    """The auditor: everything once, within the budget, accounted for, and predicted as the model of its time says."""
    found = audit(chaos.stage)
    chaos.report.answers.update(forwarded=found.forwarded, skipped=found.skipped)


def check_final_models(chaos: Chaos) -> None:
    """Each worker's last model is the uninterrupted fold of all outcomes."""
    check_models(chaos.stage, *WORKERS)


def check_replay(chaos: Chaos) -> None:
    """Every decision is replayed bit for bit from the topics by the product's own command."""
    command = [*PROGRAM, "verify", "--config", str(chaos.stage.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=chaos.stage.directory)
    assert done.returncode == 0, f"streamal verify: {done.stdout[-500:]}{done.stderr[-500:]}"


FINAL_CHECKS: Final[Sequence[Callable[[Chaos], None]]] = (
    check_answers_and_decisions,
    check_final_models,
    check_replay,
)
"""What must hold once the stream is drained and the workers have ended."""


def check(chaos: Chaos) -> Report:
    """Carry out all final checks, and keep what they complain about as violations."""
    for final_check in FINAL_CHECKS:
        try:
            final_check(chaos)
        except (AssertionError, StreamalError) as broken:
            chaos.report.violations.append(f"{final_check.__name__}: {broken}")
    return chaos.report
