"""Two workers through thousands of schedules, with a crash at every I/O point, and the audit of the real runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from simulation import schedule
from simulation.memory_log import Point
from simulation.mutants import MUTANTS, MUTANTS_OF_VOTES, MUTANTS_OF_WINDOWS
from simulation.schedule import Fault, World, simulate

from streamal import lane
from streamal.messages import LabelRequest, Unlabelled, decode_outcome
from streamal.transport.log import Record

CHOSEN: Final = os.environ.get("STREAMAL_SIMULATION_SEEDS", "0:300")
"""Which seeds to play, from:to."""
SEEDS: Final = range(*map(int, CHOSEN.split(":")))
ENOUGH: Final = 400
"""Seeds within which every mutant must be found."""
BASE: Final = 13
STOPS: Final = ((150, 1), (250, 0))
FAILING: Final = (Fault(0, Point.SEND, "fail", 60), Fault(1, Point.OFFSETS, "fail", 60))
"""What happens in the schedule with enumerated crashes besides them, so that every point is visited by both workers."""


def base(*faults: Fault) -> World:
    return World(BASE, [*FAILING, *faults], stops=STOPS)


@cache
def visits() -> dict[tuple[int, Point], int]:
    """Return how often each worker comes to each point before everything has to be healthy."""
    world = base()
    world.play()
    world.check()
    return dict(world.chaos)


@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize("slot", [0, 1])
def test_crash_at_every_point(slot: int, point: Point) -> None:
    for occurrence in sorted({0, visits()[slot, point] // 2}):
        world = base(Fault(slot, point, "kill", visits=occurrence))
        world.play()
        world.check()
        assert (slot, point, "kill") in [(fault.slot, fault.point, fault.kind) for fault in world.struck]


def test_the_points_are_all_there_are() -> None:
    print("\n".join(f"{point:20} {visits()[0, point]:6} {visits()[1, point]:6}" for point in Point))
    assert set(visits()) == set(product((0, 1), Point)), "a point that a worker never comes to is not tested"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
@pytest.mark.parametrize("seed", range(min(len(SEEDS), 30)))
def test_random_schedules_with_windows(seed: int, strategy: str) -> None:
    simulate(seed, strategy)


@pytest.mark.parametrize("answers", [2, 3])
@pytest.mark.parametrize("seed", range(min(len(SEEDS), 30)))
def test_random_schedules_with_several_annotators(seed: int, answers: int) -> None:
    simulate(seed, answers=answers)


@pytest.mark.parametrize("strategy", ["class_conditional", "pool"])
@pytest.mark.parametrize("answers", [1, 3])
def test_random_schedules_with_pseudo_labels(strategy: str, answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LEAST_TAUGHT", 5)  # a schedule has no hundred answers
    total = 0
    for seed in range(0, 20, 2):  # those of naive Bayes, which is soon sure
        world = simulate(seed, strategy, answers, learn=True)
        records = [decode_outcome(record.value or b"") for record in world.tape(world.topics.outcomes).records()]
        kept = [(record.partition, record.offset) for record in records if isinstance(record, Unlabelled)]
        asked = {(r.partition, LabelRequest.decode(r.value or b"").offset) for r in requests_in(world)}
        assert len(kept) == len(set(kept)), f"seed {seed}: an instance was kept twice"
        assert asked.isdisjoint(kept), f"seed {seed}: an instance that was asked about was kept as well"
        total += len(kept)
    assert total > 100


def test_the_annotators_change_their_minds_disagree_and_come_too_late() -> None:
    found = [simulate(seed, answers=3).check() for seed in range(12)]
    for what in ("taken", "corrected", "confirmed", "early"):
        assert sum(one.votes[what] for one in found), what
    letters = set[str]().union(*(one.letters for one in found))
    assert {"missing_annotator", "ended", "duplicate", "conflict", "unknown", "expired"} <= letters


@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
def test_the_windows_ask_about_what_came_before(strategy: str) -> None:
    worlds = [simulate(seed, strategy) for seed in range(6)]
    orders = [[(r.partition, LabelRequest.decode(r.value or b"").offset) for r in requests_in(w)] for w in worlds]
    assert sum(order != sorted(order) for order in orders) >= 5


def requests_in(world: World) -> Iterator[Record]:
    return world.tape(world.topics.label_requests).records()


def test_the_schedules_meet_what_they_are_for() -> None:
    """Each kind of fault strikes, workers end by themselves, and answers come late, twice and astray."""
    worlds = [simulate(seed) for seed in range(40)]
    assert {fault.kind for world in worlds for fault in world.struck} == {"kill", "freeze", "fail"}
    story = "\n".join(line for world in worlds for line in world.story)
    assert all(word in story for word in ("ProducerFenced", "was silent", "the broker is away", "is asked to end"))
    found = [world.check() for world in worlds]
    letters = set[str]().union(*(one.letters for one in found))
    assert {"duplicate", "conflict", "unknown", "expired", "decode_error"} <= letters
    assert {"learned", "abstained", "invalid", "expired"} <= set[str]().union(*(one.outcomes for one in found))
    assert all(sum(getattr(one, name) for one in found) for name in ("forwarded", "skipped"))


def test_the_same_seed_gives_the_same_topics() -> None:
    """To the last byte, also in another process, where sets have another order."""
    first, again, other = simulate(3).digest(), simulate(3).digest(), simulate(4).digest()
    assert first == again != other
    script, tests = Path(schedule.__file__), Path(schedule.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, script, "3"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first


@pytest.mark.parametrize(
    ("strategy", "answers", "mutant"),
    [
        *(("class_conditional", 1, mutant) for mutant in MUTANTS),
        *(("pool", 1, mutant) for mutant in MUTANTS_OF_WINDOWS),
        *(("class_conditional", 3, mutant) for mutant in MUTANTS_OF_VOTES),
    ],
    ids=lambda found: getattr(found, "__name__", found),
)
def test_the_simulation_bites(
    strategy: str, answers: int, mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "PATIENCE", 6_000)
    mutant(monkeypatch)
    for seed in range(ENOUGH):
        try:
            simulate(seed, strategy, answers)
        except AssertionError as found:
            print(f"found by seed {seed}: {str(found).splitlines()[0]}")
            return
    pytest.fail(f"{mutant.__name__} went through {ENOUGH} schedules unnoticed")
