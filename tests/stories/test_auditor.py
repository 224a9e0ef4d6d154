"""The auditor notices: each promise, broken by hand in an otherwise sound log, is found."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import orjson
import pytest
from auditor import audit
from story import Place, Stage, electricity, until

from streamal import assemble
from streamal.service.ledgers import decode_metadata, encode_metadata
from streamal.service.verify import Report, verify
from streamal.transport.log import Append, Record, TopicPartition


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a stream that was decided, answered and audited."""
    stage = Stage(Place(tmp_path_factory.mktemp("sound")), transport={"partitions": 2})
    with closing(stage):
        stage.start(0)
        stage.append(stage.rows(range(600)))
        until(stage.drained, "all instances decided")
        for request in stage.read(stage.topics.label_requests):
            label = electricity()[int(request["instance_id"].removeprefix("half-hour-"))].label
            answer = {"request_id": request["request_id"], "label": label}
            stage.answer(request["partition"], answer)
            stage.answer(request["partition"], answer)
        until(lambda: stage.drained() and stage.caught_up(), "all answers matched")
        stage.append(stage.rows(range(600, 1_000)))
        until(stage.drained, "all instances decided")
        assert stage.worker(0).end()[0] == 0
        found = audit(stage)
        assert found.letters["duplicate"] == found.outcomes["learned"] > 20
        yield stage.directory


def execute(stage: Stage, sql: str, *values: object) -> None:
    """Change one row of the log's file; `{topic}` stands for a topic's number."""
    with closing(sqlite3.connect(stage.settings.transport.path, isolation_level=None)) as connection:
        topics = connection.execute("SELECT id, name FROM topic").fetchall()
        numbers = {name.replace("-", "_"): number for number, name in topics}
        assert connection.execute(sql.format(**numbers), values).rowcount == 1


def repeat(stage: Stage, topic: str) -> None:
    """Append the last record of a topic's partition 0 once more."""
    record = stage.tape(topic).partitions[0][-1]
    stage.append([Append(topic, 0, record.value, record.key, record.headers)])


def drop(stage: Stage, topic: str) -> None:
    """Delete the last record of a topic's partition 0."""
    record = stage.tape(topic).partitions[0][-1]
    name = topic.replace("-", "_")
    sql = f"DELETE FROM record WHERE topic = {{{name}}} AND partition = 0 AND offset = ?"
    execute(stage, sql, record.offset)


def first_learned(stage: Stage) -> Record:
    """Return the first outcome of partition 0 that was learned."""
    found = (record for record in stage.tape(stage.topics.outcomes).records() if b'"learned"' in (record.value or b""))
    return next(record for record in found if orjson.loads(record.value or b"")["partition"] == 0)


def lose_an_instance(stage: Stage) -> None:
    drop(stage, stage.topics.decisions)


def decide_twice(stage: Stage) -> None:
    repeat(stage, stage.topics.decisions)


def ask_twice(stage: Stage) -> None:
    repeat(stage, stage.topics.label_requests)


def overspend(stage: Stage) -> None:
    """Ask about thirty more instances in a row, with budgets that look right."""
    topic = stage.topics.label_requests
    made = [orjson.loads(record.value or b"") for record in stage.tape(topic).partitions[0]]
    asked = {request["offset"] for request in made}
    instances = [orjson.loads(record.value or b"") for record in stage.tape(stage.topics.instances).partitions[0]]
    for offset in [offset for offset in range(300, 400) if offset not in asked][:30]:
        budget = {"seen": offset + 1, "asked": sum(before < offset for before in asked) + 1, "allowed": 0.0}
        own = {"offset": offset, "request_id": f"0-{offset}", "features": instances[offset]["features"]}
        stage.append([Append(topic, 0, orjson.dumps(made[0] | own | {"budget": budget}))])
        asked.add(offset)


def resolve_twice(stage: Stage) -> None:
    record = first_learned(stage)
    stage.append([Append(stage.topics.outcomes, 0, record.value)])


def lose_an_answer(stage: Stage) -> None:
    record = first_learned(stage)
    execute(stage, "DELETE FROM record WHERE topic = {outcomes} AND offset = ?", record.offset)


def relabel(stage: Stage) -> None:
    record = first_learned(stage)
    found = orjson.loads(record.value or b"")
    value = orjson.dumps(found | {"label": {"up": "down", "down": "up"}[found["label"]]})
    execute(stage, "UPDATE record SET value = ? WHERE topic = {outcomes} AND offset = ?", value, record.offset)


def put_aside_twice(stage: Stage) -> None:
    repeat(stage, stage.topics.dead_letters)


def lose_a_refusal(stage: Stage) -> None:
    drop(stage, stage.topics.dead_letters)


def predict_otherwise(stage: Stage) -> None:
    """Change the last bits of a prediction in a request."""
    record = stage.tape(stage.topics.label_requests).partitions[0][-1]
    found = orjson.loads(record.value or b"")
    found["prediction"]["probabilities"]["up"] += 1e-15
    sql = "UPDATE record SET value = ? WHERE topic = {label_requests} AND partition = 0 AND offset = ?"
    execute(stage, sql, orjson.dumps(found), record.offset)


def take_back_the_ledger(stage: Stage) -> None:
    """Put an earlier ledger beside the position, as a restored disk would."""
    place = TopicPartition(stage.topics.instances, 0)
    _, pointers = decode_metadata(stage.log.positions(stage.settings.transport.group, [place])[place].metadata)
    earlier = orjson.loads(stage.tape(stage.topics.decisions).partitions[0][0].value or b"")["ledger_after"]
    sql = "UPDATE position SET metadata = ? WHERE topic = {instances} AND partition = 0"
    execute(stage, sql, encode_metadata(earlier, pointers))


BREACHES: dict[Callable[[Stage], None], str] = {
    lose_an_instance: "never covered",
    decide_twice: "behind the last record",
    ask_twice: "was made twice",
    overspend: "asked of",
    resolve_twice: "resolved twice",
    lose_an_answer: "an answer was lost",
    relabel: "first answer must win",
    put_aside_twice: "put aside twice",
    lose_a_refusal: "refused answers differ",
    predict_otherwise: "version",
    take_back_the_ledger: "not the one last audited",
}


def falsify_the_audit(stage: Stage) -> None:
    """Let an audit record claim a cheaper ledger."""
    record = stage.tape(stage.topics.decisions).partitions[0][0]
    found = orjson.loads(record.value or b"")
    found["ledger_after"]["budget"]["asked"] -= 1
    sql = "UPDATE record SET value = ? WHERE topic = {decisions} AND partition = 0 AND offset = ?"
    execute(stage, sql, orjson.dumps(found), record.offset)


def change_moments(stage: Stage) -> None:
    """Change the last bits of the moments that the scaler was fed with."""
    record = next(r for r in stage.tape(stage.topics.outcomes).records() if b'"moments"' in (r.value or b""))
    found = orjson.loads(record.value or b"")
    found["moments"]["nswprice"][1] += 1e-15
    sql = "UPDATE record SET value = ? WHERE topic = {outcomes} AND offset = ?"
    execute(stage, sql, orjson.dumps(found), record.offset)


def broken(stage: Stage) -> Report:
    """Verify, as `streamal verify` does."""
    return verify(assemble.subject_of(stage.settings, stage.log))


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_breach_is_found(breach: Callable[[Stage], None], sound: Path, tmp_path: Path) -> None:
    with breached(breach, sound, tmp_path) as stage:
        with pytest.raises(AssertionError, match=BREACHES[breach]):
            audit(stage)


@pytest.mark.parametrize("breach", [*BREACHES, falsify_the_audit, change_moments], ids=lambda breach: breach.__name__)
def test_a_breach_is_found_by_the_replay(breach: Callable[[Stage], None], sound: Path, tmp_path: Path) -> None:
    with breached(breach, sound, tmp_path) as stage:
        report = broken(stage)
        assert not report.sound
        assert report.partitions[0].differences
        print(report.partitions[0].differences[:3])


def test_the_replay_of_a_sound_log_finds_nothing(sound: Path, tmp_path: Path) -> None:
    with breached(lambda stage: None, sound, tmp_path) as stage:
        report = broken(stage)
    assert report.sound
    assert [p.instances for p in report.partitions] == [500, 500]
    assert sum(p.requests for p in report.partitions) == sum(p.asked for p in report.partitions) > 20


def test_a_difference_names_fields_and_never_values(sound: Path, tmp_path: Path) -> None:
    with breached(relabel, sound, tmp_path) as stage:
        lines = [line for p in broken(stage).partitions for line in p.differences]
    assert any(line.endswith("differs: label") for line in lines)
    assert not any("up" in line.split() or "down" in line.split() for line in lines)


@contextmanager
def breached(breach: Callable[[Stage], None], sound: Path, directory: Path) -> Iterator[Stage]:
    """Open a copy of the sound log after something was done to it."""
    for path in sound.glob("log.db*"):
        shutil.copy(path, directory)
    with closing(Stage(Place(directory), transport={"partitions": 2})) as stage:
        breach(stage)
    with closing(Stage(Place(directory), transport={"partitions": 2})) as stage:
        yield stage
