"""What Kafka, a disk or a person has lost is found again in the log, or the worker says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from auditor import audit, check_replay, letters_of, outcomes_of, requests_of
from broker import Broker
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition
from story import Place, Stage, command, decide, electricity, until

from streamal import assemble
from streamal.errors import CommitRefused, LedgerLost, LogDamaged
from streamal.messages import Outcome
from streamal.service.verify import verify
from streamal.transport.log import Append, Position, TopicPartition

SHARED = """partition offset instance_id features prediction utility propensity reason would_select strategy
model_version requested_at""".split()


def forget_positions(stage: Stage) -> None:
    """Lose what Kafka loses when a group has had no members for a week."""
    group = stage.settings.transport.group
    if stage.settings.transport.kind == "embedded":
        with closing(sqlite3.connect(stage.settings.transport.path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM position")
        return
    admin = KafkaAdminClient(bootstrap_servers=stage.settings.transport.bootstrap_servers)
    topics = (stage.topics.instances, stage.topics.answers)
    admin.delete_group_offsets(group, [KafkaPartition(topic, p) for topic in topics for p in range(stage.count)])
    admin.close()


def answered(stage: Stage, requests: int) -> None:
    """Answer the first so many requests."""
    for request in list(requests_of(stage).values())[:requests]:
        label = electricity()[int(request.instance_id.removeprefix("half-hour-"))].label
        stage.answer(request.partition, {"request_id": request.request_id, "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "answers matched")


@pytest.mark.parametrize("how", ["forgotten", "wiped"])
def test_a_lost_ledger_is_put_back(how: str, place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(place, transport={"partitions": 2})
    stage.start(0)
    decide(stage, range(1_500))
    answered(stage, 30)
    decide(stage, range(1_500, 2_000))
    with pytest.raises(CommitRefused, match=r"has .*members"):
        stage.log.set_positions(
            stage.settings.transport.group, {TopicPartition(stage.topics.instances, 0): Position(0, "")}
        )
    assert stage.worker(0).end()[0] == 0
    places = [TopicPartition(topic, p) for topic in (stage.topics.instances, stage.topics.answers) for p in (0, 1)]
    before = stage.log.positions(stage.settings.transport.group, places)
    if how == "forgotten":
        forget_positions(stage)
    else:
        reset = {p: Position(at.offset, "") for p, at in before.items()}
        stage.log.set_positions(stage.settings.transport.group, reset)
    stage.worker(0).start()
    code, _ = stage.worker(0).wait()
    assert code == LedgerLost.exit_code
    assert "streamal ledger recover" in stage.worker(0).output.read_text()
    assert "would be put back" in command(stage, "ledger", "recover", "--dry-run")
    assert "put back" in command(stage, "ledger", "recover")
    after = stage.log.positions(stage.settings.transport.group, places)
    assert {p: after[p] for p in before} == before
    assert "sound" in command(stage, "ledger", "recover")
    stage.start(0)
    decide(stage, range(2_000, 2_500))
    answered(stage, 60)
    assert stage.worker(0).end()[0] == 0
    found = audit(stage)
    assert found.letters["duplicate"] == 30
    assert found.outcomes["learned"] == 60


def test_a_torn_transaction_is_repaired(place: Place, staged: Callable[..., Stage]) -> None:
    """Its records are visible but its positions never moved: a race that Kafka's older protocol can lose."""
    stage = staged(place, transport={"partitions": 2})
    stage.start(0)
    decide(stage, range(1_000))
    [waiting, *_] = [r for r in requests_of(stage).values() if r.partition == 0]
    assert stage.worker(0).end()[0] == 0
    instances = [orjson.loads(r.value or b"") for r in stage.tape(stage.topics.instances).partitions[0]]
    assert len(instances) == 500
    position = stage.positions()[TopicPartition(stage.topics.instances, 0)]
    left = [
        replace(
            waiting,
            offset=position + ahead,
            instance_id=f"half-hour-{1_000 + 2 * ahead}",
            features=dict(electricity()[1_000 + 2 * ahead].features),
            reason="uncertainty",
            propensity=0.5,
        )
        for ahead in (7, 30)
    ]
    outcome = Outcome(
        **{name: getattr(waiting, name) for name in SHARED},
        kind="learned", label="up", weight=1.0, resolved_at=waiting.requested_at + 1, annotator="ada",
    )  # fmt: skip
    stage.append([Append(stage.topics.label_requests, 0, r.encode(), r.request_id.encode()) for r in left])
    stage.append([Append(stage.topics.outcomes, 0, outcome.encode(), outcome.request_id.encode())])
    stage.append(stage.rows(range(1_000, 1_400)))
    stage.start(0)
    until(stage.drained, "all instances decided")
    stage.answer(0, {"request_id": waiting.request_id, "label": "up"})
    stage.answer(0, {"request_id": left[0].request_id, "label": "down"})
    until(lambda: stage.drained() and stage.caught_up(), "answers matched")
    stage.worker(0).kill()
    stage.worker(0).start()
    until(lambda: stage.covered((0,)), "the worker is back")
    decide(stage, range(1_400, 2_000))
    assert stage.worker(0).end()[0] == 0
    requests = [r for r in requests_of(stage).values() if r.partition == 0]  # none made twice
    asked = [r.offset for r in requests if position <= r.offset <= position + 30]
    assert asked == [position + 7, position + 30], "over the torn stretch only what had been asked is asked"
    assert [r.budget["asked"] for r in requests[-5:]] == list(range(len(requests) - 4, len(requests) + 1))
    assert [letter.reason for letter in letters_of(stage)] == ["duplicate"]
    assert [(o.request_id, o.label) for _, o in outcomes_of(stage)] == [
        (waiting.request_id, "up"),
        (left[0].request_id, "down"),
    ]
    report = verify(assemble.subject_of(stage.settings, stage.log))
    assert report.sound, [line for p in report.partitions for line in p.differences]
    assert [p.torn for p in report.partitions] == [1, 0]
    assert (
        "counts as made" in stage.worker(0).output.read_text()
        or "they count as made" in stage.worker(0).output.read_text()
    )


@pytest.mark.kafka
def test_a_corrupt_batch_is_left_out_by_order_only(
    broker: Broker, tmp_path: Path, staged: Callable[..., Stage]
) -> None:
    stage = staged(Place(tmp_path, broker.bootstrap), transport={"partitions": 1})
    stage.start(0)
    decide(stage, range(300))
    assert stage.worker(0).end()[0] == 0
    place = TopicPartition(stage.topics.instances, 0)
    stage.append(stage.rows(range(300, 340)))
    end = stage.log.bounds(TopicPartition(stage.topics.instances, 0))[1]
    broker.damage(stage.topics.instances, b'"half-hour-310"')
    stage.append(stage.rows(range(340, 400)))
    stage.worker(0).start()
    code, _ = stage.worker(0).wait()
    said = stage.worker(0).output.read_text()
    assert code == LogDamaged.exit_code
    assert "streamal skip" in said
    start = stage.positions()[place]  # what lay before the damage is committed
    assert f"at offset {start} failed crc check" in said
    command(
        stage,
        "skip",
        "instances",
        "0",
        str(start),
        "--to",
        str(end),
        "--why",
        "disk",
        "--by",
        "ada",
    )
    stage.start(0)
    until(lambda: stage.positions()[place] >= end + 60, "the rest decided")
    [letter] = letters_of(stage)
    assert (letter.reason, letter.offset) == ("skipped", start)
    stage.worker(0).kill()  # the next owner warms up without what is corrupt
    stage.start(0)
    end = stage.log.bounds(place)[1]
    stage.append(stage.rows(range(400, 500)))
    until(lambda: stage.positions()[place] >= end + 100, "further instances decided")
    assert stage.worker(0).end()[0] == 0
    check_replay(stage)
