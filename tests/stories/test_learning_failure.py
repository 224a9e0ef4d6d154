"""A model of the user's own raises at one label: that example is put aside, and everything else goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
from auditor import audit, check_models, letters_of, outcomes_of
from story import Place, Stage, electricity, until

ROWS = 300
TESTS = Path(__file__).parents[1]


def test_an_example_that_cannot_be_learned_is_put_aside(place: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(
        place,
        model={"factory": "fragile:build"},
        transport={"partitions": 1},
        budget={"rate": 1.0},
        strategy={"name": "random"},
    )
    stage.start(0, PYTHONPATH=str(TESTS))
    stage.append(stage.rows(range(ROWS)))
    until(lambda: stage.drained(), "all instances decided")
    requests = stage.read(stage.topics.label_requests)
    for number, request in enumerate(requests):
        label = "invoice" if number % 40 == 25 else electricity()[int(request["instance_id"][10:])].label
        stage.answer(0, {"request_id": request["request_id"], "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched, all outcomes folded")
    failed = {offset for offset, outcome in outcomes_of(stage) if outcome.label == "invoice"}
    until(lambda: len(letters_of(stage)) >= len(failed), "the failures put aside")
    stage.append(stage.rows(range(ROWS, ROWS + 20)))
    until(lambda: stage.drained(), "the loop goes on")
    assert stage.worker(0).end()[0] == 0
    found = audit(stage)
    assert len(failed) >= 3
    assert {letter[1:] for letter in letters_of(stage)} == {(0, offset, "learning_failed") for offset in failed}
    assert found.instances == ROWS + 20
    served = orjson.loads(stage.tape(stage.topics.label_requests).partitions[0][-1].value or b"")
    assert set(served["prediction"]["probabilities"]) == {"up", "down"}
    assert b"invoice" not in stage.worker(0).output.read_bytes()


def test_after_a_restart_the_same_examples_are_left_out(embedded: Place, staged: Callable[..., Stage]) -> None:
    stage = staged(embedded, model={"factory": "fragile:build"}, transport={"partitions": 1})
    stage.start(0, PYTHONPATH=str(TESTS))
    stage.append(stage.rows(range(ROWS)))
    until(lambda: stage.drained(), "all instances decided")
    for number, request in enumerate(stage.read(stage.topics.label_requests)):
        label = "invoice" if number == 7 else electricity()[int(request["instance_id"][10:])].label
        stage.answer(0, {"request_id": request["request_id"], "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched, all outcomes folded")
    until(lambda: letters_of(stage), "the failure put aside")
    stage.worker(0).kill()
    stage.start(0, PYTHONPATH=str(TESTS))
    stage.append(stage.rows(range(ROWS, 2 * ROWS)))
    until(lambda: stage.drained(), "the loop goes on")
    assert stage.worker(0).end()[0] == 0
    assert audit(stage).letters == {"learning_failed": 1}
    check_models(stage, 0)
