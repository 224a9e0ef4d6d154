"""The loop's limits: what it folds at once, what it collects while a commit is in flight, how long its end takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from streamal import assemble
from streamal.decoding import AnswerDecoder
from streamal.learning.fold import Fold
from streamal.messages import Moment, Moments
from streamal.sampler import SelectiveSampler
from streamal.service import loop as module
from streamal.service import process
from streamal.service.committer import Committer
from streamal.service.control import Control
from streamal.service.ledgers import Heritage
from streamal.service.loop import Craft, Loop, Step
from streamal.service.reporter import Progress, Reporter
from streamal.service.snapshots import Checkpointer
from streamal.settings import load, revised
from streamal.transport.embedded import EmbeddedLog
from streamal.transport.log import Append, Log, Position, TopicPartition, Transaction, Writer
from streamal.web.metrics import Metrics


class Silent:
    """Observes nothing."""

    def observe(self, event: object) -> None:
        pass

    def took(self, step: Step, seconds: float) -> None:
        pass

    def refused(self) -> None:
        pass


class Waits(Committer):
    """Notes how long it is waited for, and never waits itself: a commit that is in flight stays there."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self.waited: list[float] = []
        self.jobs: list[Transaction] = []
        self.stuck = False

    @property
    def busy(self) -> bool:
        return self.stuck

    def submit(self, job: Transaction) -> None:
        self.jobs.append(job)

    def take(self) -> Mapping[TopicPartition, Position] | None:
        return None

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        return not self.stuck


class Bench:
    """A loop on the embedded log with a committer that is told what to be."""

    def __init__(self, log: Log, directory: Path, interval: float) -> None:
        settings = revised(load(None), "transport", {"partitions": 1, "path": str(directory / "log.db")})
        self.log = log
        assemble.create_topics(settings, log)
        topics = assemble.topics_of(settings)
        task = assemble.check(settings).task
        self.fold = Fold(assemble.build_model(settings))
        store = assemble.snapshot_store(settings)
        checkpoint = Checkpointer(store, self.fold, every_outcomes=10**9, every_seconds=1.0)
        self.craft = Craft(
            topics=topics,
            sampler=SelectiveSampler(assemble.plans_of(settings, task, 1), self.fold),
            instances=assemble.instance_decoder(settings, task),
            answers=AnswerDecoder(task, [], 10_000),
            commit_interval=interval,
            clock=time.time,
            observer=Silent(),
            checkpoint=checkpoint,
            made_with={},
            replan=partial(assemble.replan, settings, task, 1),
        )
        self.writer = log.writer("bench")
        self.committer = Waits(log.writer("worker"))
        self.membership = log.membership("group", [topics.instances, topics.answers], lambda: None)
        follower = log.reader()
        follower.follow(TopicPartition(topics.outcomes, 0), 0)
        heritage = Heritage(log, log.reader(), topics, self.craft.instances, 0)
        control = Control(log, log.reader(), topics.control, self.craft.replan)
        self.loop = Loop(self.craft, self.membership, self.committer, follower, heritage, control)
        self.loop.turn()
        assert self.loop.phase == "running"
        self.committer.waited.clear()

    def feed(self, count: int) -> None:
        value = orjson.dumps({"id": "i", "features": {"x": 1.0}})
        self.writer.append([Append(self.craft.topics.instances, 0, value)] * count)

    def close(self) -> None:
        self.membership.close()
        self.committer.close()
        self.log.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[[float], Bench]]:
    made: list[Bench] = []

    def build(interval: float) -> Bench:
        made.append(Bench(EmbeddedLog(tmp_path / "log.db"), tmp_path, interval))
        return made[-1]

    yield build
    for one in made:
        one.close()


def moments(count: int) -> Sequence[bytes]:
    return [Moments(0, 1, {"x": Moment(1, float(index), 0.0)}).encode() for index in range(count)]


def test_a_transaction_folds_all_that_came(bench: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FOLDED", 1_000)
    stage = bench(0.0)
    stage.writer.append([Append(stage.craft.topics.outcomes, 0, value) for value in moments(2_000)])
    stage.feed(1)
    stage.loop.turn()
    assert 1_000 <= stage.fold.version < 2_000, "more than one poll gives, and not without end"
    stage.feed(1)
    stage.loop.turn()
    assert stage.fold.version == 2_000


@pytest.mark.parametrize(
    ("limit", "value", "waits"),
    [("MOST_COLLECTED", 3, True), ("MOST_BYTES", 1, True), ("MOST_COLLECTED", 5_000, False)],
)
def test_what_is_collected_while_a_commit_is_in_flight_is_bounded(
    bench: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch, limit: str, value: int, waits: bool
) -> None:
    monkeypatch.setattr(module, limit, value)
    stage = bench(0.0)
    stage.committer.stuck = True
    stage.feed(3)
    stage.loop.turn()
    assert bool(stage.committer.waited) is waits
    assert not stage.committer.jobs


def test_answers_held_back_are_bounded_too(bench: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    stage = bench(0.0)
    stage.committer.stuck = True
    stage.feed(1)
    stage.loop.turn()
    assert not stage.committer.waited
    monkeypatch.setattr(module, "MOST_COLLECTED", 4)
    stage.writer.append([Append(stage.craft.topics.answers, 0, b"{}")] * 4)
    stage.loop.turn()
    assert stage.committer.waited


def test_a_full_transaction_does_not_wait_for_its_interval(
    bench: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = bench(3_600.0)
    stage.feed(3)
    stage.loop.turn()
    assert not stage.committer.jobs
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    stage.feed(1)
    stage.loop.turn()
    assert len(stage.committer.jobs) == 1


def test_the_end_overwrites_no_commit_in_flight(bench: Callable[[float], Bench]) -> None:
    stage = bench(3_600.0)
    stage.feed(3)
    stage.loop.turn()
    stage.committer.stuck = True
    stage.loop.finish()
    assert not stage.committer.jobs
    stage.committer.stuck = False
    stage.committer.waited.clear()
    stage.loop.finish()
    assert len(stage.committer.jobs) == 1
    first, second = stage.committer.waited
    assert second < first == module.SETTLE_WITHIN, "one deadline for both"


class Stood(Exception):
    """The process would have ended."""


@pytest.mark.parametrize(("phase", "ends"), [("restoring", True), ("running", False)])
def test_the_start_may_stand_still_for_its_deadline_and_the_loop_for_longer(
    phase: Any, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics("s", [], config_hash="c", instances="instances", answers="answers")
    plans = assemble.plans_of(load(None), "classification", 1)
    reporter = Reporter("s", plans, metrics, lambda: 0, lambda: 0.0)
    reporter.beat(phase, None)
    looks = iter([False, True])

    class Watched:
        def wait(self, seconds: float) -> bool:
            return next(looks)

    def stood(code: int) -> None:
        raise Stood

    monkeypatch.setattr("os._exit", stood)
    monkeypatch.setattr(reporter, "idle_for", lambda: 60.0)
    service: Any = process.Service(None, reporter, None, start_deadline=30.0)  # type: ignore[arg-type]
    done: Any = Watched()
    if ends:
        with pytest.raises(Stood):
            process._watch(service, done)
    else:
        process._watch(service, done)


def test_a_poll_that_falls_silent_is_seen_while_the_loop_turns(
    bench: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(0.01)
    place = TopicPartition(at.craft.topics.instances, 0)
    at.feed(10)
    progress = Progress()

    def look() -> float:
        at.loop.turn()
        progress.look(at.loop.lag(), at.loop.reached, at.loop.lag_known_at, at.loop.rebalances)
        return progress.stuck(0)

    while at.loop.reached.get(place) != 10:
        look()
    assert look() == 0.0
    monkeypatch.setattr(at.membership, "poll", lambda timeout, limit: {})
    at.feed(5)
    look()
    assert at.loop.lag()[place] == 5
    assert look() > 0.0
    monkeypatch.undo()
    while at.loop.reached[place] != 15:
        look()
    assert look() == 0.0
