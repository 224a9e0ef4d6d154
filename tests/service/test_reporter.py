"""What a worker says of itself: whether records wait and do not come, and how good its model is on all instances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from specimens import Settled, answer_to, stream, truth

from streamal.evaluate.estimate import Estimator
from streamal.events import Event, ExampleLearned, LabelRequested, RequestResolved
from streamal.lane import Handover, SamplingPlan
from streamal.learning.fold import Fold
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan
from streamal.service import reporter
from streamal.service.reporter import Progress, Reporter
from streamal.transport.log import TopicPartition
from streamal.web.metrics import Metrics
from streamal.web.server import BEAT_LIMIT, diagnose
from streamal.web.status import PartitionStatus, Phase, Status

INSTANCES, ANSWERS = TopicPartition("instances", 0), TopicPartition("answers", 0)
OTHER = TopicPartition("instances", 1)
STATUS = Status("fraud", "running", 0.0, 0.0, 0.05)
PLAN = SamplingPlan(BudgetPlan(0.2), explore=0.2)


class Watched:
    """A worker that is looked at every five seconds, by a clock of its own."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.now = 1_000.0
        self.known_at = self.now
        self.ends = {INSTANCES: 0, OTHER: 0, ANSWERS: 0}
        self.reached: dict[TopicPartition, int] = {}
        self.assignment = 1

    def look(self, *, away: bool = False) -> None:
        self.now += 5.0
        if not away:
            self.known_at = self.now
        lags = {place: end - self.reached.get(place, 0) for place, end in self.ends.items()}
        self.progress.look(lags, self.reached, self.known_at, self.assignment)

    def reason(self, phase: Phase = "running") -> str | None:
        partitions = {number: PartitionStatus(0, 0, 0.0, stuck=self.progress.stuck(number)) for number in (0, 1)}
        return diagnose(replace(STATUS, phase=phase, partitions=partitions), age=0.1)


@pytest.fixture
def worker() -> Watched:
    return Watched()


def test_an_idle_topic_is_healthy_for_ever(worker: Watched) -> None:
    for _ in range(100):
        worker.look()
        assert worker.reason() is None


def test_a_member_with_partitions_that_gets_nothing_while_lag_grows_is_not(worker: Watched) -> None:
    looks = 0
    while worker.reason() is None:
        worker.ends[INSTANCES] += 10
        worker.look()
        looks += 1
        assert looks * 5.0 <= BEAT_LIMIT + 5.0
    assert (looks - 1) * 5.0 == BEAT_LIMIT
    assert worker.reason() is not None
    assert "partitions 0;" in str(worker.reason())


@pytest.mark.parametrize("stuck", [INSTANCES, ANSWERS])
def test_one_partition_that_stands_still_is_enough_though_the_others_move(
    worker: Watched, stuck: TopicPartition
) -> None:
    worker.ends[stuck] = 3
    for turn in range(13):
        assert worker.reason() is None
        worker.ends[OTHER] = worker.reached[OTHER] = turn
        worker.look()
    assert "partitions 0;" in str(worker.reason())
    worker.reached[stuck] = 1
    worker.look()
    assert worker.reason() is None, "one record is progress"


def test_a_partition_that_is_far_behind_but_moves_is_healthy(worker: Watched) -> None:
    for turn in range(100):
        worker.ends[INSTANCES] += 1_000
        worker.reached[INSTANCES] = turn + 1
        worker.look()
        assert worker.reason() is None


def test_an_outage_adds_nothing_and_what_comes_after_it_counts(worker: Watched) -> None:
    worker.ends[INSTANCES] = 10
    for _ in range(5):
        worker.look()
    for _ in range(100):
        worker.look(away=True)
        assert worker.reason() is None
    worker.reached[INSTANCES] = 10
    for _ in range(100):
        worker.look()
        assert worker.reason() is None


def test_silence_after_an_outage_is_not_healthy(worker: Watched) -> None:
    worker.ends[INSTANCES] = 10
    for _ in range(100):
        worker.look(away=True)
    for _ in range(14):
        worker.look()
    assert worker.reason() is not None


def test_a_new_assignment_begins_anew(worker: Watched) -> None:
    worker.ends[INSTANCES] = 10
    for _ in range(100):
        worker.assignment += 1
        for _ in range(11):
            worker.look()
            assert worker.reason() is None


@pytest.mark.parametrize("phase", ["standby", "joining"])
def test_a_member_without_partitions_is_healthy(worker: Watched, phase: Phase) -> None:
    worker.ends.clear()
    for _ in range(100):
        worker.look()
        assert worker.reason(phase) is None


def events_of_a_worker() -> list[Event]:
    """Return what a worker tells of 600 instances whose requests are all answered."""
    sampler = SelectiveSampler([PLAN], Fold(Settled()))
    sampler.open(0, Handover())
    events: list[Event] = []
    for instance in stream(600):
        decided = sampler.see(0, [instance], 0.0)
        events += decided
        for request in (event.request for event in decided if isinstance(event, LabelRequested)):
            events += sampler.answer(0, [answer_to(request.request_id, truth(request.features))], 1.0)
    return events


def test_the_status_tells_how_good_the_model_is_on_all_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "PUBLISH_EVERY", 0.0)
    monkeypatch.setattr(reporter, "ESTIMATE_EVERY", 0.0)
    told, alone = Reporter("fraud", [PLAN], Metrics("fraud"), lambda: 0, lambda: 0.0), Estimator()
    assert told.board.read().estimates == alone.estimate()
    for event in events_of_a_worker():
        told.observe(event)
        alone.observe(event)
    told.beat("running", None)
    found = told.board.read().estimates
    assert found == alone.estimate()
    assert found.instances == 600
    assert found.measures["accuracy"].value > found.naive["accuracy"]


def test_a_made_instance_is_learned_and_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "PUBLISH_EVERY", 0.0)
    told = Reporter("fraud", [PLAN], Metrics("fraud"), lambda: 0, lambda: 0.0)
    real = next(event.outcome for event in events_of_a_worker() if isinstance(event, RequestResolved))
    right, wrong = {str(real.label): 1.0}, {"another": 1.0}
    told.observe(ExampleLearned(real, right, hit=True))
    told.observe(ExampleLearned(replace(real, synthetic=True), wrong, hit=False))
    told.beat("running", None)
    status = told.board.read()
    assert (status.learned, status.accuracy) == (2, 1.0)
    told.observe(ExampleLearned(real, wrong, hit=False))
    told.beat("running", None)
    assert told.board.read().accuracy == 0.5


def test_the_estimate_is_made_anew_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "PUBLISH_EVERY", 0.0)
    monkeypatch.setattr(reporter, "ESTIMATE_EVERY", math.inf)
    told = Reporter("fraud", [PLAN], Metrics("fraud"), lambda: 0, lambda: 0.0)
    told.beat("running", None)
    for event in events_of_a_worker():
        told.observe(event)
    told.beat("running", None)
    assert told.board.read().estimates.instances == 0
