"""People change their minds while the service runs: about the budget, about an answer, about a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
from auditor import check_models, check_replay, outcomes_of
from story import Place, Stage, command, decide, until

from streamal import assemble
from streamal.service.verify import verify
from streamal.transport.log import Append


def audits(stage: Stage) -> list[dict[str, Any]]:
    return [record for record in stage.read(stage.topics.decisions) if record["to"] > record["from"]]


def asked(stage: Stage) -> int:
    return len(stage.read(stage.topics.label_requests))


def applied(stage: Stage, rows: Iterable[int]) -> None:
    """Feed rows one by one until every partition was decided on knowing all orders."""
    fed = iter(rows)
    version = stage.tape(stage.topics.control).partitions[0][-1].offset + 1

    def everywhere() -> bool:
        stage.append(stage.rows([next(fed) for _ in range(stage.count)]))
        until(stage.drained, "all instances decided")
        last = {record["partition"]: record["control_version"] for record in audits(stage)}
        return len(last) == stage.count and min(last.values()) >= version

    until(everywhere, f"orders up to {version} are known everywhere")


def test_the_budget_is_changed_while_running(place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(place, transport={"partitions": 2}, budget={"cold_start_loan": 0, "rate": 0.1})
    stage.start(0)
    decide(stage, range(2_000))
    before = asked(stage)
    assert 180 <= before <= 200
    assert "0.5" in command(stage, "budget", "set", "rate=0.5", "--by", "ada")
    applied(stage, range(2_000, 3_000))
    begun = asked(stage)
    decide(stage, range(3_000, 4_000))
    assert 0.45 * 1_000 <= asked(stage) - begun <= 0.55 * 1_000
    command(stage, "pause", "--by", "grace")
    applied(stage, range(4_000, 5_000))
    paused = asked(stage)
    decide(stage, range(5_000, 6_000))
    assert asked(stage) == paused
    assert stage.worker(0).end()[0] == 0
    stage.start(0)  # a new worker knows the orders before it decides
    decide(stage, range(6_000, 6_200))
    assert asked(stage) == paused
    command(stage, "resume")
    command(stage, "budget", "reset", "rate")
    applied(stage, range(6_200, 7_000))
    begun = asked(stage)
    decide(stage, range(7_000, 8_000))
    assert 80 <= asked(stage) - begun <= 150
    shown = orjson.loads(command(stage, "budget", "show", "--json"))
    assert (shown["rate"]["in_force"], shown["paused"]["in_force"]) == (0.1, False)
    check_replay(stage)
    taken = [(record["takeover"] or {}).get("plan") or record["plan"] for record in stage.read(stage.topics.decisions)]
    plans = [plan["budget"] for plan in taken if plan]
    assert {(plan["rate"], plan["paused"]) for plan in plans} >= {(0.1, False), (0.5, False), (0.5, True)}


def test_an_order_that_no_worker_can_follow_changes_nothing(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded, transport={"partitions": 2})
    stage.start(0)
    for key, value in ((b"rate", b'{"value": 7}'), (b"rate", b"no"), (b"colour", b'{"value": 1}'), (None, None)):
        stage.append([Append(stage.topics.control, 0, value, key)])
    applied(stage, range(1_000))
    assert not any(record["plan"] for record in stage.read(stage.topics.decisions))
    assert stage.worker(0).running
    check_replay(stage)


def test_answers_are_corrected_and_questions_taken_back(place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(place, transport={"partitions": 2})
    stage.start(0)
    decide(stage, range(1_000))
    requests = stage.read(stage.topics.label_requests)
    assert len(requests) > 8
    first, second, third, fourth, fifth, sixth = requests[:6]

    def say(request: dict[str, Any], **fields: Any) -> None:
        stage.answer(request["partition"], {"request_id": request["request_id"], **fields})

    def tombstone(request: dict[str, Any], ahead: int = 0) -> None:
        partition = (request["partition"] + ahead) % stage.count
        stage.append([Append(stage.topics.answers, partition, None, request["request_id"].encode())])

    say(first, label="up")
    say(first, label="down", revision=1, annotator="ada")
    say(first, label="up", revision=1)
    say(second, label="up", revision=2)
    say(second, kind="unsure", revision=3)
    say(second, label="down", revision=3)
    tombstone(third)
    tombstone(third)
    say(third, label="up")
    say(fourth, kind="cancel")
    say(fourth, label="down", revision=5)
    tombstone(sixth, 1)  # on another partition than its request
    say(fifth, kind="unsure")
    say(fifth, label="down", revision=1)
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched")
    found = [(o.request_id, o.kind, o.label, o.revision) for _, o in outcomes_of(stage)]
    names = [request["request_id"] for request in requests[:5]]
    assert [entry for entry in found if entry[0] == names[0]] == [
        (names[0], "learned", "up", 0),
        (names[0], "corrected", "down", 1),
    ]
    assert [entry for entry in found if entry[0] == names[1]] == [
        (names[1], "learned", "up", 2),
        (names[1], "corrected", None, 3),
    ]
    assert [entry[1] for entry in found if entry[0] in names[2:4]] == ["cancelled", "cancelled"]
    assert [entry[1] for entry in found if entry[0] == sixth["request_id"]] == ["cancelled"]
    assert [entry[1:] for entry in found if entry[0] == names[4]] == [("abstained", None, 0), ("corrected", "down", 1)]
    letters = [
        dict(record.headers)["__streamal.errors.reason"] for record in stage.tape(stage.topics.dead_letters).records()
    ]
    assert sorted(letter or b"" for letter in letters) == [
        b"cancelled", b"cancelled", b"conflict", b"conflict", b"duplicate"
    ]  # fmt: skip
    stage.worker(0).kill()  # and the next owner knows what became of them
    stage.worker(0).start()
    until(lambda: stage.covered((0,)), "the worker is back")
    say(first, label="up", revision=2)
    say(third, label="up", revision=9)
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched")
    assert [entry for _, entry in outcomes_of(stage)][-1].revision == 2
    assert stage.worker(0).end()[0] == 0
    check_models(stage, 0)
    check_replay(stage)
    report = verify(assemble.subject_of(stage.settings, stage.log))
    assert sum(p.learned for p in report.partitions) == 5
