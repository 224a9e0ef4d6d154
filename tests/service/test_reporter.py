"""What makes a worker unhealthy besides a loop that stands still: records that wait and do not come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamal.service.reporter import Progress
from streamal.transport.log import TopicPartition
from streamal.web.server import BEAT_LIMIT, diagnose
from streamal.web.status import PartitionStatus, Phase, Status

INSTANCES, ANSWERS = TopicPartition("instances", 0), TopicPartition("answers", 0)
OTHER = TopicPartition("instances", 1)
STATUS = Status("fraud", "running", 0.0, 0.0, 0.05)


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
