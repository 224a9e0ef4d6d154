"""A seeded schedule: two real workers on the log in memory, in a world where one random number decides what comes next.

Everything happens in one thread. An action is a worker's turn, one step of a commit, of a rebalance or of the broker,
some instances, some answers, or the passage of time. Within an action other actions may happen at each I/O point, as
deep as `DEEPEST`: so a worker is overtaken in the midst of its turn, and a frozen one wakes up there. A killed one is
left by an exception that nothing catches, and every further call of it ends the same way.

The same seed gives the same topics, byte for byte.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from random import Random
from typing import Any, Final, Literal

import orjson
from annotator import Reply, replies
from auditor import Findings, audit, check_model, outcomes_of
from simulation.cluster import Cluster, Txn
from simulation.memory_log import EVERYTHING, MemoryLog, MemoryMembership, MemoryWriter, Point, Steps
from story import CRASH_ONLY, Tape

from streamal import assemble
from streamal.errors import StreamalError, TransportError
from streamal.events import TornRepaired
from streamal.learning import snapshot
from streamal.learning.fold import Fold
from streamal.messages import Features
from streamal.sampler import SelectiveSampler
from streamal.service.committer import Committer
from streamal.service.control import Control
from streamal.service.loop import Craft, Loop, Step
from streamal.service.snapshots import Checkpointer, SnapshotStore
from streamal.service.worker import Worker
from streamal.settings import Settings, load, revised
from streamal.transport.log import Append, Position, TopicPartition, Transaction, Writer
from streamal.web.status import Phase

Kind = Literal["kill", "freeze", "fail"]

DEEPEST: Final = 4
SESSION: Final = 2.0
TRANSACTION: Final = 3.0
HEARTBEAT: Final = 0.5
EXPIRY: Final = 8.0
LATE: Final = 10.0
"""Seconds an answer may take; some come after the request has expired."""
CHAOS: Final = 450
"""Actions, nested ones not counted, after which everything is healthy again."""
PATIENCE: Final = 40_000
"""Actions in which a healthy world must drain."""
INSTANCES: Final = 200
LAST: Final = 40
"""Instances of these that come when everything is healthy again."""
LONGEST: Final = 0.5
"""Seconds that pass in one action at most; more in the end, while nothing is under way."""
BRISK: Final = 16
"""Steps of a commit that are taken in one go, at most."""
KINDS: Final[tuple[Kind, ...]] = ("kill", "kill", "freeze", "freeze", "fail")
MODELS: Final = ("gaussian_nb", "logistic_regression")
CLASSES: Final = ("down", "up")
ANNOTATORS: Final = ("ada", "bob", "cyd", "dan")
KEY: Final = b"simulation-" * 3
NOWHERE: Final = Position(0, "")
PROBES: Final = [
    {"x": x / 3.0, "y": y / 3.0, "weekday": w} for x in range(-4, 5) for y in (-2, 1) for w in ("mo", "su")
]


class Killed(BaseException):
    """The process is dead, and nothing of it may run any more."""


@dataclass(slots=True)
class Fault:
    """What is to happen to a worker: at a point, from an action on, after so many further visits."""

    slot: int
    point: Point
    kind: Kind
    begin: int = 0
    visits: int = 0
    seconds: float = 0.0


@cache
def settings_of(kind: str, strategy: str, answers: int, learn: bool) -> Settings:
    """Return the settings of a small stream; where there are windows, the burst lets them have twelve instances.

    `learn` lets the model learn from all instances that nobody is asked about, where it is the least bit sure.
    """
    settings = load(None)
    burst = None if strategy == "class_conditional" else 12
    parameters = {"share": 0.8} if strategy == "synthesis" else {}
    for section, values in (
        ("transport", {"partitions": 2}),
        ("model", {"kind": kind}),
        ("budget", {"rate": 0.25, "cold_start_loan": 6, "expiry": EXPIRY, "burst": burst}),
        ("strategy", {"name": strategy, "window": 8, "explore": 0.2, "parameters": parameters}),
        ("annotation", {"answers_per_request": answers}),
        ("learn", {"unlabelled_share": 1.0, "self_training": 0.55} if learn else {}),
    ):
        settings = revised(settings, section, values)
    return settings


def features(number: int) -> Features:
    """Return the features of an instance."""
    draw = Random(number)
    return {"x": draw.gauss(0.0, 1.0), "y": draw.gauss(0.0, 1.0), "weekday": draw.choice(("mo", "tu", "su"))}


@cache
def row(number: int) -> tuple[bytes, str]:
    """Return an instance's value and its true label; every 29th value is broken."""
    found = features(number)
    label = CLASSES[float(found["x"] or 0.0) + float(found["y"] or 0.0) > 0.0]
    value = orjson.dumps({"id": f"i-{number}", "features": found})
    return value if number % 29 != 7 else value[:-2], label


class Silent:
    """Observes what must not be."""

    def observe(self, event: object) -> None:
        assert not isinstance(event, TornRepaired), "no transaction is ever torn here"

    def took(self, step: Step, seconds: float) -> None:
        pass

    def refused(self) -> None:
        pass


class SteppedCommitter(Committer):
    """A committer whose transaction goes on when it is told to, or when somebody waits for it."""

    def __init__(self, process: Process, writer: Writer) -> None:
        assert isinstance(writer, MemoryWriter)
        self._process = process
        self._memory_writer = writer
        self._steps: Steps[Mapping[TopicPartition, Position]] | None = None
        self._failure: TransportError | None = None
        self._ended: Mapping[TopicPartition, Position] | None = None
        self._refusal: StreamalError | None = None
        self.duration = 0.0

    @property
    def busy(self) -> bool:
        return self._steps is not None

    def submit(self, job: Transaction) -> None:
        assert self._steps is None
        self._steps = self._memory_writer.steps(job)

    def take(self) -> Mapping[TopicPartition, Position] | None:
        ended, refusal = self._ended, self._refusal
        self._ended = self._refusal = None
        if refusal is not None:
            raise refusal
        return ended

    def wait(self, timeout: float) -> bool:
        world = self._process.world
        deadline = world.now + math.ceil(timeout)
        while self.busy:
            if world.now > deadline:
                return False
            self._process.idle()
            self.step()
        return True

    def step(self) -> None:
        """Go on to the next I/O point."""
        if self._steps is None:
            return
        failure, self._failure = self._failure, None
        try:
            point = next(self._steps) if failure is None else self._steps.throw(failure)
        except StopIteration as end:
            self._ended, self._steps = end.value, None
        except StreamalError as refusal:
            self._refusal, self._steps = refusal, None
        else:
            try:
                self._process.visit(point)
            except TransportError as error:
                self._failure = error

    def close(self) -> None:
        self.wait(EVERYTHING)
        self._memory_writer.close()


class MemoryPlace:
    """Keeps a slot's snapshot where a crash does not reach."""

    name = "the memory"

    def __init__(self, process: Process, disk: dict[int, bytes]) -> None:
        self._process = process
        self._disk = disk

    def read(self) -> bytes | None:
        self._process.reach(Point.RESTORE)
        return self._disk.get(self._process.slot)

    def write(self, blob: bytes) -> None:
        try:
            self._process.reach(Point.SAVE)
        except TransportError as error:
            raise OSError(str(error)) from error
        self._disk[self._process.slot] = blob
        self._process.reach(Point.SAVED)


class PromptCheckpointer(Checkpointer):
    """Saves within the call, since a thread of its own would be nobody's to schedule."""

    def __call__(self, *, share: bool) -> None:
        if self._fold.version - self._version >= self._outcomes:
            self.finish(share=share)


class StartedWorker(Worker):
    """A worker whose `run` goes on after `start` and turns that were made by hand."""

    def start(self) -> Loop:
        return self._loop or super().start()

    def _read_control(self) -> Control:
        """Orders are no part of a schedule, and when a running worker looks for them depends on the wall clock."""
        control = super()._read_control()
        control._looked_at = math.inf
        return control


class Process:
    """One life of a worker's process, and the driver of its log."""

    beats = False

    def __init__(self, world: World, slot: int) -> None:
        self.world = world
        self.slot = slot
        self.dead = False
        self.ended = False
        self.acting = False
        self.beating = False
        self.frozen_until = 0.0
        self.next_beat = 0.0
        self.fold: Fold | None = None
        self.loop: Loop | None = None
        self.committer: SteppedCommitter | None = None
        self.log = MemoryLog(world.cluster, self)
        self._worker: StartedWorker | None = None

    @property
    def membership(self) -> MemoryMembership | None:
        """The process's membership, once it has subscribed."""
        return self.log.memberships[0] if self.log.memberships else None

    @property
    def awake(self) -> bool:
        """Whether it lives and is not frozen."""
        return not self.dead and self.world.now >= self.frozen_until

    def turn(self) -> None:
        """Start, or let the loop turn once."""
        if self._worker is None:
            self._worker = self._hire()
        if self.loop is None:
            self.loop = self._worker.start()
        else:
            self._worker.turn(self.loop)

    def finish(self) -> None:
        """End as SIGTERM would have it."""
        if self._worker is not None and self.loop is not None:
            self._worker.stop()
            self._worker.run()
        self.dead = self.ended = True

    def leave(self) -> None:
        """Leave the group on the way out."""
        if self.loop is not None and self.membership is not None:
            self.membership.close()

    def reach(self, point: Point) -> None:
        """Let happen at a point what is to happen there, and then what others do meanwhile."""
        self.visit(point)
        self.world.interleave(self)
        if self.dead:
            raise Killed

    def visit(self, point: Point) -> None:
        """Let happen at a point what is to happen there."""
        if self.dead:
            raise Killed
        self.world.visit(self, point)
        if self.dead:
            raise Killed

    def idle(self) -> None:
        """Let others act."""
        self.world.act()
        if self.dead:
            raise Killed

    def patience(self) -> int:
        return self.world.draw.randrange(4)

    def take(self, waiting: int) -> int:
        return self.world.draw.randrange(self.world.most_polled + 1)

    def _hire(self) -> StartedWorker:
        settings, world = self.world.settings, self.world
        task = world.task
        self.fold = Fold(assemble.build_model(settings))
        config, allowed = assemble.config_hash(settings), assemble.allowed_in(settings)
        store = SnapshotStore(MemoryPlace(self, world.disk), config, key=lambda: KEY, allowed=allowed)
        craft = Craft(
            topics=world.topics,
            sampler=SelectiveSampler(assemble.plans_of(settings, task, world.count), self.fold),
            instances=assemble.instance_decoder(settings, task),
            answers=assemble.answer_decoder(settings, task),
            commit_interval=0.0,
            clock=lambda: world.now,
            observer=Silent(),
            checkpoint=PromptCheckpointer(store, self.fold, every_outcomes=12, every_seconds=0.0),
            made_with=world.made_with,
            replan=partial(assemble.replan, settings, task, world.count),
        )
        return StartedWorker(
            self.log,
            craft,
            group=settings.transport.group,
            slot=f"slot-{self.slot}",
            beat=self._tell,
            committer=self._commit_with,
        )

    def _commit_with(self, writer: Writer) -> Committer:
        self.committer = SteppedCommitter(self, writer)
        return self.committer

    def _tell(self, phase: Phase, loop: Loop | None) -> None:
        """Ask now and then what the status would show."""
        if loop is not None and self.world.draw.random() < 0.1:
            loop.lag()


class World:
    """All there is: the cluster, two slots for processes, a feeder, an annotator, and the clock."""

    def __init__(
        self,
        seed: int,
        faults: Sequence[Fault] = (),
        *,
        stops: Sequence[tuple[int, int]] = (),
        strategy: str = "class_conditional",
        answers: int = 1,
        learn: bool = False,
    ) -> None:
        self.draw = draw = Random(seed)
        self.now = 1_700_000_000.0
        self.settings = settings_of(MODELS[seed % len(MODELS)], strategy, answers, learn)
        self.task = assemble.build_model(self.settings).task
        self.topics = assemble.topics_of(self.settings)
        self.made_with = assemble.made_with(self.settings)
        self.cluster = Cluster(lambda: self.now, session_timeout=SESSION, transaction_timeout=TRANSACTION)
        self.log = MemoryLog(self.cluster)
        assemble.create_topics(self.settings, self.log)
        self.count = self.log.partitions(self.topics.instances)
        self.disk: dict[int, bytes] = {}
        self.faults = [replace(fault) for fault in faults]
        self.struck: list[Fault] = []
        self.visits: Counter[tuple[int, Point]] = Counter()
        self.chaos: Counter[tuple[int, Point]] = Counter()
        self.story: deque[str] = deque(maxlen=60)
        self.actions = 0
        self.most_polled = draw.choice((2, 5, 12))
        self._stops = list(stops)
        self._feeds = draw.choice((2, 6, 15))
        self._commits = draw.choice((4, 8, BRISK))
        self._meanwhile = draw.choice((0.02, 0.1, 0.25))
        self._marks = draw.random() < 0.3
        self._depth = 0
        self._fed = 0
        self._to_feed = INSTANCES - LAST
        self._slow = 0.15
        self._longest = LONGEST
        self._read = [0] * self.count
        self._due: list[tuple[float, int, int, bytes]] = []
        self._tapes: dict[str, Tape] = {}
        self._processes = [Process(self, slot) for slot in (0, 1)]
        self._restart_at = [0.0, draw.choice((0.0, 0.5, 4.0))]

    def play(self) -> None:
        """Act until all faults are over, then until everything is drained; end both workers in order."""
        while self.actions < CHAOS:
            self._stop_one()
            self.actions += 1
            self.act()
        self.faults.clear()
        self.chaos = Counter(self.visits)
        self._commits, self._to_feed, self._slow = BRISK, INSTANCES, 0.0
        self.tell("healthy from here on")
        for _ in range(PATIENCE):
            self.actions += 1
            self.act()
            if self._drained():
                break
            self._longest = LONGEST if self._committing() else 4 * LONGEST
        else:
            message = f"nothing fails any more, but after {PATIENCE} actions there is still something to do"
            raise AssertionError(message)
        for process in self._processes:
            self._end(process)
            assert process.ended, f"worker {process.slot} did not end in order"
        while self.cluster.step(self.draw.random()):
            pass

    def check(self) -> Findings:
        """Audit what was played."""
        found = audit(self)
        taught = any(outcome.kind == "learned" for _, outcome in outcomes_of(self))
        for process in self._processes if taught else ():
            blob = self.disk[process.slot]
            config, allowed = assemble.config_hash(self.settings), assemble.allowed_in(self.settings)
            saved = snapshot.load(blob, config_hash=config, key=KEY, allowed=allowed)
            check_model(self, saved.model, saved.version, PROBES, f"worker {process.slot}")
        assert found.instances == INSTANCES
        assert found.requests == found.outcomes.total(), "a request was forgotten"
        return found

    def digest(self) -> str:
        """Return a hash of every committed record."""
        found = sha256()
        for topic in sorted(self.cluster.topics):
            for record in self.tape(topic).records():
                found.update(repr(record).encode())
        return found.hexdigest()

    def tape(self, topic: str) -> Tape:
        """Return all committed records of a topic up to now."""
        if topic not in self._tapes:
            self._tapes[topic] = Tape(self.log, topic)
        return self._tapes[topic].catch_up()

    def tell(self, what: str) -> None:
        """Take note of what happens."""
        self.story.append(f"{self.actions:6} {self.now - 1_700_000_000:9.3f} s  {what}")

    def visit(self, process: Process, point: Point) -> None:
        """Count a visit to a point, and strike if a fault is due there."""
        self.visits[process.slot, point] += 1
        for fault in self.faults:
            if fault.slot == process.slot and fault.point == point and self.actions >= fault.begin:
                if fault.visits:
                    fault.visits -= 1
                else:
                    self._strike(process, fault)
                    return

    def interleave(self, process: Process) -> None:
        """At an I/O point: let others act meanwhile, or the process's own client in the background, or nobody."""
        if self._depth >= DEEPEST or self.draw.random() >= self._meanwhile:
            return
        if self.draw.random() < 0.2 and process.membership is not None:
            for _ in range(self.draw.randrange(1, 6)):
                self._invoke(process, process.membership.step)
                self.act()
            return
        for _ in range(self.draw.randrange(1, 5)):
            self.act()

    def act(self) -> None:
        """Do what comes next."""
        draw = self.draw
        self._pass(0.001 + draw.random() * 0.004)
        process = self._processes[draw.random() < 0.5]
        what = draw.random()
        if what < 0.40:
            self._turn(process)
        elif what < 0.65:
            for _ in range(draw.randrange(1, self._commits + 1)):
                if process.awake and process.committer is not None:
                    self._invoke(process, process.committer.step)
        elif what < 0.75:
            if process.awake and process.membership is not None:
                self._invoke(process, process.membership.step)
        elif what < 0.85:
            self.cluster.step(draw.random())
        elif what < 0.92:
            self._feed()
        elif what < 0.96:
            self._answer()
        else:
            self._pass(draw.random() * (LONGEST if self._depth else self._longest))

    def _turn(self, process: Process) -> None:
        if self._depth >= DEEPEST:
            return
        if process.dead:
            if self.now < self._restart_at[process.slot]:
                return
            self.tell(f"worker {process.slot} starts")
            process = self._processes[process.slot] = Process(self, process.slot)
        if process.awake and not process.acting and self.now >= self._restart_at[process.slot]:
            process.acting = True
            self._invoke(process, process.turn)
            process.acting = False

    def _invoke(self, process: Process, call: Callable[[], object]) -> None:
        """Run something of a process, which may die of it, alone or with its last words."""
        self._depth += 1
        try:
            call()
        except Killed:
            pass
        except StreamalError as error:
            if process.dead:
                return
            if error.exit_code not in CRASH_ONLY:
                message = f"worker {process.slot} ended with {error.exit_code}: {error}"
                raise AssertionError(message) from error
            self.tell(f"worker {process.slot} ends by itself: {error}")
            self._invoke(process, process.leave)
            self._bury(process)
        finally:
            self._depth -= 1

    def _bury(self, process: Process) -> None:
        if not process.dead:
            process.dead = True
            self._restart_at[process.slot] = self.now + self.draw.random() * 2.5

    def _strike(self, process: Process, fault: Fault) -> None:
        if fault.kind == "freeze" and self._depth >= DEEPEST - 1:
            return
        self.faults.remove(fault)
        self.struck.append(fault)
        self.tell(f"{fault.kind} worker {process.slot} at '{fault.point}'")
        match fault.kind:
            case "kill":
                self._bury(process)
                raise Killed
            case "fail":
                message = f"the broker is away at '{fault.point}'"
                raise TransportError(message)
            case "freeze":
                process.frozen_until = self.now + fault.seconds
                while self.now < process.frozen_until:
                    self.act()
                    self._pass(self.draw.random() * 0.02)
                process.next_beat = self.now + self.draw.random()
                self.tell(f"worker {process.slot} wakes up")

    def _pass(self, seconds: float) -> None:
        while seconds > HEARTBEAT:
            seconds -= HEARTBEAT
            self._pass(HEARTBEAT)
        self.now += seconds
        self.cluster.expire()
        for process in list(self._processes):
            if process.next_beat <= self.now and process.membership is not None and not process.beating:
                if process.awake:
                    process.next_beat = self.now + HEARTBEAT
                    process.beating = True
                    self._invoke(process, process.membership.beat)
                    process.beating = False

    def _stop_one(self) -> None:
        """Ask a worker to end in order, if it is time to."""
        for at, slot in self._stops:
            process = self._processes[slot]
            if self.actions >= at and process.awake and process.loop is not None:
                self._stops.remove((at, slot))
                self._end(process)
                return

    def _end(self, process: Process) -> None:
        self.tell(f"worker {process.slot} is asked to end")
        process.acting = True
        self._invoke(process, process.finish)
        self._restart_at[process.slot] = self.now + self.draw.random() * 2.5

    def _feed(self) -> None:
        for _ in range(min(self.draw.randrange(1, self._feeds + 1), self._to_feed - self._fed)):
            place = TopicPartition(self.topics.instances, self._fed % self.count)
            self.cluster.append(Append(*place, row(self._fed)[0]))
            if self._marks:
                self.cluster.partition(place).mark(Txn(0, self.now))
            self._fed += 1

    def _answer(self) -> None:
        """Read new requests, plan what is said to them, and say what is due."""
        for number in range(self.count):
            partition = self.cluster.partition(TopicPartition(self.topics.label_requests, number))
            for record in partition.committed(self._read[number], EVERYTHING):
                self._plan(number, orjson.loads(record.value or b""))
            self._read[number] = max(self._read[number], partition.stable)
        while self._due and self._due[0][0] <= self.now:
            _, _, number, value = heapq.heappop(self._due)
            self.cluster.append(Append(self.topics.answers, number, value))

    def _plan(self, number: int, request: Mapping[str, Any]) -> None:
        at = self.now
        truth = row(int(request["instance_id"].removeprefix("i-")))[1]
        slow = self.draw.random() < self._slow
        for reply in self._replies(request, truth):
            at += self.draw.random() * (LATE if slow else 0.5)
            where = (number + reply.misdirected) % self.count
            heapq.heappush(self._due, (at, len(self._due) + self.actions, where, orjson.dumps(reply.fields)))

    def _replies(self, request: Mapping[str, Any], truth: str) -> list[Reply]:
        """Return what is said to a request; where several are to answer, by one too many and by nobody known."""
        answers = request.get("answers", 1)
        if answers == 1:
            return replies(request["request_id"], truth, CLASSES)
        names = ANNOTATORS[: answers + 1]
        found = [reply for name in names for reply in replies(request["request_id"], truth, CLASSES, name)]
        found += replies(request["request_id"], truth, CLASSES)
        self.draw.shuffle(found)
        return found

    def _drained(self) -> bool:
        """Whether every instance is decided, every answer matched, every request resolved, every outcome folded."""
        if self._due or self._fed < INSTANCES or self._committing():
            return False
        if sum(len(process.loop.holdings) for process in self._processes if process.loop is not None) < self.count:
            return False
        for process in self._processes:
            if process.loop is None or process.fold is None or not process.awake or process.loop.phase == "joining":
                return False
            if process.fold.version < self.cluster.topics[self.topics.outcomes][0].end:
                return False
            if any(len(holding.lane.pending) for holding in process.loop.holdings.values()):
                return False
        positions = self.cluster.groups[self.settings.transport.group].positions
        return all(
            not partition.end or positions.get(TopicPartition(topic, number), NOWHERE).offset >= partition.end
            for topic in (self.topics.instances, self.topics.answers)
            for number, partition in enumerate(self.cluster.topics[topic])
        )

    def _committing(self) -> bool:
        """Whether a transaction is under way."""
        return any(slot.txn for slot in self.cluster.slots.values()) or any(
            process.committer is not None and process.committer.busy for process in self._processes
        )


def random_faults(seed: int) -> tuple[list[Fault], list[tuple[int, int]]]:
    """Draw the faults of a schedule, many of them for the commit, where the most is at stake, and the orderly ends."""
    draw = Random(f"faults of {seed}")
    points = list(Point)
    commit = points[points.index(Point.BEGIN) : points.index(Point.ABORT) + 1]
    faults = [
        Fault(
            slot=draw.randrange(2),
            point=draw.choice(commit if draw.random() < 0.4 else points),
            kind=draw.choice(KINDS),
            begin=draw.randrange(CHAOS),
            visits=draw.randrange(4),
            seconds=draw.uniform(0.2, 2.5 * SESSION),
        )
        for _ in range(draw.randrange(12))
    ]
    stops = [(draw.randrange(CHAOS), draw.randrange(2)) for _ in range(draw.randrange(3))]
    return faults, stops


def simulate(seed: int, strategy: str = "class_conditional", answers: int = 1, *, learn: bool = False) -> World:
    """Play the schedule of a seed and audit it.

    Raises:
        AssertionError: a promise was broken; with what had happened before, and how to see it again.
    """
    faults, stops = random_faults(seed)
    world = World(seed, faults, stops=stops, strategy=strategy, answers=answers, learn=learn)
    try:
        world.play()
        world.check()
    except Exception as error:
        command = f"STREAMAL_SIMULATION_SEEDS={seed}:{seed + 1} uv run pytest tests/simulation -k random_schedules"
        message = "\n".join([f"seed {seed}: {type(error).__name__}: {error}", *world.story, f"again: {command}"])
        raise AssertionError(message) from error
    return world


if __name__ == "__main__":
    print(simulate(int(sys.argv[1])).digest())
