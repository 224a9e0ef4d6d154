"""Where the stories play: on the embedded log and on a real broker; what the processes logged is shown on failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from broker import Broker
from story import Place, Stage


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on each transport."""
    if request.param == "embedded":
        return Place(tmp_path)
    broker: Broker = request.getfixturevalue("broker")
    return Place(tmp_path, broker.bootstrap)


@pytest.fixture
def embedded(tmp_path: Path) -> Place:
    """An empty place for the embedded log."""
    return Place(tmp_path)


@pytest.fixture
def staged() -> Iterator[Callable[..., Stage]]:
    """Builds stages and takes them down; the ends of their logs go to the captured output."""
    with ExitStack() as stack:

        def build(place: Place, **sections: Any) -> Stage:
            stage = Stage(place, **sections)
            stack.callback(lambda: print(stage.tell()))
            stack.callback(stage.close)
            return stage

        yield build
