"""Processes end and begin, snapshots come and go, the log stays: a restart goes on where the log says."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from auditor import audit, bits, check_models, outcomes_of, saved
from kafka import KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from story import Place, Stage, WorkerProcess, electricity, until

from streamal import assemble
from streamal.errors import LedgerLost, TransportError
from streamal.learning.fold import Fold
from streamal.messages import decode_outcome

SNAPSHOT_EVERY = 20


def answer_waiting(stage: Stage, most: int | None = None) -> None:
    """Answer the requests without an outcome, or the first of them; wait until all is matched and folded."""
    ended = {outcome.request_id for _, outcome in outcomes_of(stage)}
    requests = [r for r in stage.read(stage.topics.label_requests) if r["request_id"] not in ended]
    for request in requests[:most]:
        label = electricity()[int(request["instance_id"].removeprefix("half-hour-"))].label
        stage.answer(request["partition"], {"request_id": request["request_id"], "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched, all outcomes folded")


def feed(stage: Stage, first: int, following: int) -> None:
    """Append rows and wait until they are decided."""
    stage.append(stage.rows(range(first, following)))
    until(stage.drained, "all instances decided")


def snapshot_path(stage: Stage) -> Path:
    """Return the file of worker 0's snapshot."""
    return stage.directory / "snapshots-0" / f"{stage.settings.pipeline}-0.snapshot"


def check_served(stage: Stage) -> None:
    """Check that every prediction that was published is that of a fold up to the version it names, to the last bit."""
    fold = Fold(assemble.build_model(stage.settings))
    outcomes = list(stage.tape(stage.topics.outcomes).partitions[0])
    instances = {(r.partition, r.offset): r.value for r in stage.tape(stage.topics.instances).records()}
    rows = {f"half-hour-{number}": row for number, row in enumerate(electricity())}
    published = sorted(stage.read(stage.topics.predictions), key=lambda found: int(found["model_version"]))
    assert len(published) == len(instances)
    ids = {(r["partition"], r["offset"]) for r in published}
    assert ids == set(instances)
    for found in published:
        while outcomes and outcomes[0].offset < found["model_version"]:
            record = outcomes.pop(0)
            fold.fold([(record.offset, decode_outcome(record.value or b""))])
        number = found["offset"] * stage.count + found["partition"]
        expected = fold.model.predict([rows[f"half-hour-{number}"].features])[0]
        assert bits(expected) == bits(found["prediction"]["probabilities"])


def test_a_restart_goes_on_from_snapshot_and_tail(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(
        embedded, snapshot={"every_outcomes": SNAPSHOT_EVERY, "every": "1s"}, topics={"predictions": "predictions"}
    )
    worker = stage.worker(0)
    stage.start(0)
    feed(stage, 0, 2_000)
    answer_waiting(stage, 60)
    until(snapshot_path(stage).exists, "a snapshot")
    _, version = saved(stage, 0)
    feed(stage, 2_000, 2_100)
    answer_waiting(stage, SNAPSHOT_EVERY // 4)
    worker.kill()
    assert saved(stage, 0)[1] == version, "the tail must not be in the snapshot"
    stage.start(0)
    restored = [line["model_version"] for line in worker.lines() if line["message"] == "snapshot restored"]
    assert restored == [version]
    feed(stage, 2_100, 3_000)
    answer_waiting(stage)
    feed(stage, 3_000, 3_500)
    until(stage.caught_up, "all outcomes folded")
    assert worker.end()[0] == 0
    audit(stage)
    check_served(stage)
    check_models(stage, 0)
    assert saved(stage, 0)[1] > version


def test_a_snapshot_of_a_log_that_was_deleted_is_not_taken_for_another(
    embedded: Place, staged: Callable[..., Stage]
) -> None:
    former = staged(embedded)
    former.start(0)
    feed(former, 0, 1_500)
    answer_waiting(former)
    assert former.worker(0).end()[0] == 0
    former.close()
    for path in embedded.directory.glob("log.db*"):
        path.unlink()
    key = str(embedded.directory / "former.key")
    Path(former.settings.snapshot.key_file).rename(key)
    stage = staged(embedded, snapshot={"key_file": key}, topics={"predictions": "predictions"})
    worker = stage.worker(0)
    stage.start(0)
    feed(stage, 2_000, 3_500)
    answer_waiting(stage)
    assert worker.end()[0] == 0
    assert any("it is of another log" in line["message"] for line in worker.lines())
    audit(stage)
    check_models(stage, 0)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "altered": lambda blob: blob[:-100] + bytes([blob[-100] ^ 1]) + blob[-99:],
    "unsigned": lambda blob: blob[:-32],
    "signed by another": lambda blob: blob[:-32] + bytes(32),
    "empty": lambda blob: b"",
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_snapshot_is_ignored(kind: str, embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded, topics={"predictions": "predictions"})
    worker = stage.worker(0)
    stage.start(0)
    feed(stage, 0, 800)
    answer_waiting(stage)
    assert worker.end()[0] == 0
    path = snapshot_path(stage)
    path.write_bytes(SPOILED[kind](path.read_bytes()))
    wipe_topic(stage)
    stage.start(0)
    feed(stage, 800, 1_000)
    answer_waiting(stage)
    assert worker.end()[0] == 0
    said = [line["message"] for line in worker.lines()]
    assert any(message.startswith("snapshot ignored, folding the log instead") for message in said)
    assert "snapshot restored" not in said
    audit(stage)
    check_served(stage)
    check_models(stage, 0)


@contextmanager
def tampered(stage: Stage) -> Iterator[sqlite3.Connection]:
    """Open the embedded log's file to damage it."""
    with closing(sqlite3.connect(stage.settings.transport.path, isolation_level=None)) as connection:
        yield connection


def refused(worker: WorkerProcess) -> tuple[int, str]:
    """Start a worker that must refuse to run; returns its exit code and its last words."""
    code, _ = worker.start().wait()
    (ending,) = [line["message"] for line in worker.lines()[-3:] if line["message"].startswith("ending")]
    return code, ending


def wipe_topic(stage: Stage) -> None:
    """Take what is in the topic `snapshots` away."""
    with tampered(stage) as file:
        (topic,) = file.execute("SELECT id FROM topic WHERE name = ?", (stage.topics.snapshots,)).fetchone()
        file.execute("DELETE FROM record WHERE topic = ?", (topic,))


def test_a_new_worker_starts_from_the_topic(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded, transport={"partitions": 2}, topics={"predictions": "predictions"})
    stage.start(0)
    feed(stage, 0, 800)
    answer_waiting(stage)
    assert stage.worker(0).end()[0] == 0
    _, version = saved(stage, 0)
    assert version > 0
    stage.start(1)
    worker = stage.worker(1)
    restored = [line["model_version"] for line in worker.lines() if line["message"] == "snapshot restored"]
    assert restored == [version]
    feed(stage, 800, 1_000)
    answer_waiting(stage)
    assert worker.end()[0] == 0
    audit(stage)
    check_served(stage)
    check_models(stage, 1)


def test_a_worker_of_another_key_ignores_the_topic(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded)
    stage.start(0)
    feed(stage, 0, 400)
    answer_waiting(stage)
    assert stage.worker(0).end()[0] == 0
    snapshot_path(stage).unlink()
    Path(stage.settings.snapshot.key_file).write_bytes(b"another key" * 4)
    worker = stage.worker(0)
    stage.start(0)
    said = [line["message"] for line in worker.lines()]
    assert any("snapshot ignored, folding the log instead: the topic" in message for message in said)
    assert any("signed with another key (snapshot.key_file)" in message for message in said)
    assert worker.end()[0] == 0
    check_models(stage, 0)


def test_truncated_outcomes_are_refused_without_a_snapshot(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded)
    worker = stage.worker(0)
    stage.start(0)
    feed(stage, 0, 800)
    answer_waiting(stage)
    assert worker.end()[0] == 0
    with tampered(stage) as file:
        (topic,) = file.execute("SELECT id FROM topic WHERE name = ?", (stage.topics.outcomes,)).fetchone()
        file.execute("DELETE FROM record WHERE topic = ? AND offset < 5", (topic,))
    stage.start(0)
    assert worker.end()[0] == 0, "a snapshot that covers what is gone is enough"
    snapshot_path(stage).unlink()
    stage.start(0)
    assert worker.end()[0] == 0, "so is one in the topic"
    wipe_topic(stage)
    code, message = refused(worker)
    assert code == TransportError.exit_code
    assert "begins at 5, and no usable snapshot reaches that far" in message
    assert "unlimited retention" in message


def wipe(stage: Stage) -> None:
    """Commit the positions again without their metadata, as a plain commit of another tool would."""
    if not stage.settings.transport.bootstrap_servers:
        with tampered(stage) as file:
            file.execute("UPDATE position SET metadata = ''")
        return
    group, servers = stage.settings.transport.group, stage.settings.transport.bootstrap_servers
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    with closing(consumer):
        places = {KafkaPartition(*place): offset for place, offset in stage.positions().items()}
        consumer.assign(list(places))
        consumer.commit({place: OffsetAndMetadata(offset, "") for place, offset in places.items()})


def test_without_its_ledger_nothing_is_decided(place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(place)
    stage.start(0)
    feed(stage, 0, 400)
    assert stage.worker(0).end()[0] == 0
    wipe(stage)
    stage.append(stage.rows(range(400, 500)))
    before, asked = stage.positions(), len(stage.read(stage.topics.label_requests))
    code, message = refused(stage.worker(0))
    assert code == LedgerLost.exit_code
    assert "there are decisions on" in message
    assert "streamal ledger recover" in message
    assert stage.positions() == before
    assert len(stage.read(stage.topics.label_requests)) == asked


def test_a_group_that_lost_its_positions_decides_nothing(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded)
    stage.start(0)
    feed(stage, 0, 400)
    assert stage.worker(0).end()[0] == 0
    with tampered(stage) as file:
        file.execute("DELETE FROM position")
    code, message = refused(stage.worker(0))
    assert code == LedgerLost.exit_code
    assert "the group has no position" in message


def test_the_supervisor_gives_up_where_a_restart_cannot_help(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded)
    stage.worker(0, "supervisor")
    stage.start(0)
    feed(stage, 0, 400)
    assert stage.worker(0).end()[0] == 0
    wipe(stage)
    assert stage.worker(0).start().wait()[0] == LedgerLost.exit_code


def test_a_member_too_many_stands_by_and_takes_over(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded, transport={"partitions": 2})
    stage.start(0, 1)
    stage.worker(2).start()
    until(lambda: stage.worker(2).status().get("phase") == "standby", "the third worker stands by")
    feed(stage, 0, 500)
    answer_waiting(stage)
    assert stage.worker(0).end()[0] == 0
    until(lambda: stage.covered([1, 2]), "the third worker takes over")
    feed(stage, 500, 1_000)
    answer_waiting(stage)
    for slot in (1, 2):
        assert stage.worker(slot).end()[0] == 0
    assert audit(stage).instances == 1_000
    check_models(stage, 1, 2)
