"""A stream that is asked about window by window goes through a crash, and every decision of it is made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from auditor import audit, outcomes_of
from story import Place, Stage, command, decide, electricity, until

from streamal.messages import LabelRequest

WINDOW = 100


def answer_all(stage: Stage) -> None:
    """Answer what waits; a synthetic one like the instance it names, which is the nearest."""
    ended = {outcome.request_id for _, outcome in outcomes_of(stage)}
    for request in stage.read(stage.topics.label_requests):
        if request["request_id"] not in ended:
            label = electricity()[int(request["instance_id"].removeprefix("half-hour-"))].label
            stage.answer(request["partition"], {"request_id": request["request_id"], "label": label})
    until(lambda: stage.drained() and stage.caught_up(), "all answers matched, all outcomes folded")


@pytest.mark.parametrize(
    ("strategy", "parameters"),
    [
        ("pool", {"method": "top"}),
        ("pool", {"method": "badge"}),
        ("pool", {"method": "k_centre"}),
        ("synthesis", {"mode": "nearest", "share": 0.5}),
        ("synthesis", {"mode": "synthetic", "share": 0.5}),
    ],
    ids=["top", "badge", "k_centre", "nearest", "synthetic"],
)
def test_windows_are_asked_answered_interrupted_and_verified(
    embedded: Place, staged: Callable[..., Stage], strategy: str, parameters: dict[str, Any]
) -> None:
    own = {"name": strategy, "window": 64, "parameters": {"pool_window": WINDOW, **parameters}}
    stage = staged(embedded, strategy=own, transport={"partitions": 2})
    worker = stage.worker(0)
    stage.start(0)
    decide(stage, range(900))
    answer_all(stage)
    decide(stage, range(900, 1_250))
    worker.kill()
    stage.start(0)
    decide(stage, range(1_250, 2_000))
    answer_all(stage)
    decide(stage, range(2_000, 2_700))
    assert worker.end()[0] == 0
    found = audit(stage)
    assert found.instances == 2_700
    records = stage.tape(stage.topics.label_requests).records()
    requests = [LabelRequest.decode(record.value or b"") for record in records]
    late = [request for request in requests if request.budget["seen"] > request.offset + 1]
    assert len(late) >= 0.15 * len(requests)
    assert {request.budget["seen"] % WINDOW for request in late} == {0}
    assert any(request.synthetic for request in requests) == (parameters.get("mode") == "synthetic")
    assert "Everything that was replayed is equal to the last bit." in command(stage, "verify")
