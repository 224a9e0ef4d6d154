"""The audit bites: each deliberate fault in the delivery is found, in a story that the sound worker passes.

A process is stopped at the one point of a transaction where the fault matters, and not at a random one, so that each
story finds it every time; see `mutants`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import mutants
import pytest
from auditor import audit
from broker import Broker
from cluster import admin
from kafka import KafkaProducer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from story import PROGRAM, Place, Stage, WorkerProcess, electricity, instance, until

from streamal.transport.log import Append

ROWS: Final = 400
RATE: Final = 0.2
LONG: Final = 15.0
"""Seconds of a commit interval that outlasts the start of another worker."""
PATIENT: Final = 120.0
"""Seconds for which a frozen worker's transaction stays open."""

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def launch(stage: Stage, slot: int, mutant: str, **variables: str) -> WorkerProcess:
    """Let the worker of a slot be a mutant that can be stopped; not started yet."""
    worker = stage.worker(slot)
    worker.program = (sys.executable, mutants.__file__, mutant)
    worker.variables = {mutants.ARMED: str(armed(stage)), **variables}
    return worker


def cure(worker: WorkerProcess) -> WorkerProcess:
    """Let a worker be a sound one from its next start on."""
    worker.program, worker.variables = PROGRAM, {}
    return worker


def armed(stage: Stage) -> Path:
    return stage.directory / "armed"


def feed(stage: Stage, first: int, following: int) -> None:
    """Append rows and wait until they are decided."""
    stage.append(stage.rows(range(first, following)))
    until(stage.drained, "all instances decided")


def stopped(stage: Stage, worker: WorkerProcess, first: int, following: int) -> None:
    """Append rows, and wait until the worker has stopped itself in the midst of them."""
    armed(stage).touch()
    stage.append(stage.rows(range(first, following)))
    until(lambda: worker.frozen, f"worker {worker.slot} stops itself")


def finish(stage: Stage, *slots: int) -> None:
    """Let all workers end in order."""
    assert [stage.worker(slot).end()[0] for slot in slots] == [0] * len(slots)


def crash_after_a_commit(stage: Stage, mutant: str) -> None:
    """A worker dies right after its first commit; the records must be there as well."""
    worker = launch(stage, 0, mutant, **{mutants.STOPS_AT: "committed" if mutant == "sound" else "torn"})
    stage.start(0)
    feed(stage, 0, ROWS)
    stopped(stage, worker, ROWS, 2 * ROWS)
    worker.kill()
    cure(worker)
    stage.start(0)
    feed(stage, 2 * ROWS, 3 * ROWS)
    finish(stage, 0)


def wake_up_with_a_transaction(stage: Stage, mutant: str) -> None:
    """A worker freezes with a transaction in hand, is given up, and wakes up when another has decided the same."""
    sleeper = launch(stage, 0, mutant, **{mutants.STOPS_AT: "begin"})
    stage.start(0, 1)
    feed(stage, 0, ROWS)
    stopped(stage, sleeper, ROWS, 2 * ROWS)
    until(lambda: stage.covered([1]), "the other worker owns everything")
    until(lambda: stage.decided() == 2 * ROWS, "the other worker has decided everything")
    cure(sleeper).thaw()
    until(lambda: stage.covered([0, 1]) and stage.endings, "the sleeper ends, and is started again")
    feed(stage, 2 * ROWS, 3 * ROWS)
    finish(stage, 0, 1)


@contextmanager
def denied(stage: Stage, topic: str) -> Iterator[None]:
    """Let nobody write to a topic, or know of it, until the block ends."""
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    rule = ACL("User:ANONYMOUS", "*", ACLOperation.ALL, ACLPermissionType.DENY, pattern)
    with admin(stage.settings.transport.bootstrap_servers) as client:

        def known() -> bool:
            return any(found["error_code"] == 0 for found in client.describe_topics([topic]))

        client.create_acls([rule])
        try:
            until(lambda: not known(), f"{topic} is denied")
            yield
        finally:
            client.delete_acls([rule])
            until(known, f"{topic} is allowed")


def right_withdrawn(stage: Stage, mutant: str) -> None:
    """The right to write requests is gone when the first one is sent: it fails within the client, before any broker."""
    worker = launch(stage, 0, mutant)
    stage.start(0)
    with denied(stage, stage.topics.label_requests):
        stage.append(stage.rows(range(ROWS)))
        until(lambda: worker.crashed is not None or stage.decided() == ROWS, "all is decided, or the worker ends")
        assert (worker.crashed is not None) == (mutant == "sound"), "only a worker that looks can notice"
        worker.kill()
    cure(worker)
    stage.start(0)
    feed(stage, ROWS, 2 * ROWS)
    finish(stage, 0)


def another_joins_before_a_commit(stage: Stage, mutant: str) -> None:
    """A rebalance takes away what a worker has decided and not committed yet; some of its partitions come back."""
    worker = launch(stage, 0, mutant, STREAMAL__DELIVERY__COMMIT_INTERVAL=f"{LONG}s")
    stage.start(0)
    feed(stage, 0, ROWS)
    stage.append(stage.rows(range(ROWS, 2 * ROWS)))
    until(lambda: worker.status().get("seen", 0) == 2 * ROWS, "all is decided")
    assert stage.decided() == ROWS, "there is nothing left to commit"
    stage.worker(1).start()
    until(lambda: stage.covered([0, 1]), "the second worker has joined")
    stage.append(stage.rows(range(2 * ROWS, 3 * ROWS)))
    until(lambda: stage.decided(stage.worker(1).partitions) >= 3 * ROWS // 2, "the second worker has decided")
    finish(stage, 0, 1)
    cure(worker)
    stage.start(0)
    feed(stage, 3 * ROWS, 4 * ROWS)
    finish(stage, 0)


def wake_up_and_go_on_elsewhere(stage: Stage, mutant: str) -> None:
    """A worker wakes up, its transaction is refused, and the next one it makes is about another partition."""
    sleeper = launch(stage, 0, mutant, **{mutants.STOPS_AT: "begin"})
    stage.start(0, 1)
    feed(stage, 0, ROWS)
    dreamt = sleeper.partitions[0]
    armed(stage).touch()
    stage.append([Append(stage.topics.instances, dreamt, instance(number)) for number in range(ROWS, 2 * ROWS)])
    until(lambda: sleeper.frozen, "the sleeper stops itself")
    until(lambda: stage.covered([1]), "the other worker owns everything")
    stage.append([Append(stage.topics.instances, dreamt, instance(number)) for number in range(2 * ROWS, 3 * ROWS)])
    until(lambda: stage.decided() == 3 * ROWS, "the other worker has gone on behind what the sleeper holds")
    sleeper.thaw()
    until(lambda: not stage.worker(0).frozen and stage.covered([0, 1]), "the sleeper works again")
    other = next(number for number in sleeper.partitions if number != dreamt)
    stage.append([Append(stage.topics.instances, other, instance(0))])
    until(lambda: stage.decided([other]) > ROWS // 4, "it has gone on")
    finish(stage, 0, 1)


def two_handovers_under_an_open_transaction(stage: Stage, mutant: str) -> None:
    """A worker freezes within a transaction, a second one goes on behind it and leaves, a third one takes over."""
    sleeper = launch(stage, 0, "sound", **{mutants.STOPS_AT: "sent", mutants.TRANSACTION_TIMEOUT: f"{PATIENT}"})
    stage.start(0, 1)
    feed(stage, 0, ROWS)
    stopped(stage, sleeper, ROWS, 2 * ROWS)
    until(lambda: stage.covered([1]), "the second worker owns everything")
    until(lambda: stage.decided() == 2 * ROWS, "the second worker has decided everything")
    finish(stage, 1)
    third = launch(stage, 2, mutant).start()
    # A sound one waits until it can read all that the ledger speaks of.
    waits = {"message": "started", "phase": "join"}
    until(
        lambda: (
            third.partitions or (mutant == "sound" and any(waits.items() <= line.items() for line in third.lines()))
        ),
        "the third worker takes over",
    )
    sleeper.kill()
    servers, group = stage.settings.transport.bootstrap_servers, stage.settings.transport.group
    with closing(KafkaProducer(bootstrap_servers=servers, transactional_id=f"streamal-{group}-0")) as former:
        former.init_transactions()
    until(lambda: stage.covered([2]), "the third worker owns everything")
    until(stage.drained, "all instances decided")
    for request in stage.read(stage.topics.label_requests):
        label = electricity()[int(request["instance_id"].removeprefix("half-hour-"))].label
        stage.answer(request["partition"], {"request_id": request["request_id"], "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched")
    finish(stage, 2)


STORIES: Final[dict[str, tuple[Callable[[Stage, str], None], str]]] = {
    "offsets_before_sends": (crash_after_a_commit, "a gap or a repetition"),
    "no_fencing": (wake_up_with_a_transaction, "made twice|a gap or a repetition"),
    "futures_not_checked": (right_withdrawn, "speaks of|says otherwise"),
    "ledger_kept": (another_joins_before_a_commit, "a gap or a repetition"),
    "producer_used_again": (wake_up_and_go_on_elsewhere, "not the one last audited"),
    "restored_to_the_stable_offset": (two_handovers_under_an_open_transaction, "refused answers differ"),
}
"""The story of each mutant, and what the audit says of it."""


def test_every_mutant_has_its_story() -> None:
    assert {*STORIES, "sound"} == set(mutants.MUTANTS)


@pytest.mark.parametrize("kind", ["sound", "mutant"])
@pytest.mark.parametrize("name", STORIES)
def test_the_audit_bites(name: str, kind: str, broker: Broker, tmp_path: Path, staged: Callable[..., Stage]) -> None:
    story, complaint = STORIES[name]
    stage = staged(Place(tmp_path, broker.bootstrap), budget={"rate": RATE}, strategy={"name": "periodic"})
    story(stage, name if kind == "mutant" else "sound")
    if kind == "sound":
        assert audit(stage).instances > ROWS
    else:
        with pytest.raises(AssertionError, match=complaint) as found:
            audit(stage)
        print(f"{name}: {str(found.value).splitlines()[0]}")
