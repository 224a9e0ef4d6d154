"""What the contract tests run on: every transport in turn, and names that no other test uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from broker import Broker
from simulation.cluster import Cluster
from simulation.memory_log import MemoryLog

from streamal.transport.embedded import EmbeddedLog
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Log


@pytest.fixture(params=["embedded", "memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """An open log of each transport, and of the simulation; topics of other tests may lie in it."""
    opened: EmbeddedLog | MemoryLog | KafkaLog
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("broker")
        opened = KafkaLog(broker.bootstrap, session_timeout=3.0)
    elif request.param == "memory":
        opened = MemoryLog(Cluster(time.time))
    else:
        opened = EmbeddedLog(tmp_path / "log.db")
    with closing(opened):
        yield opened


@pytest.fixture
def name() -> str:
    """A prefix for the topics, groups and slots of one test."""
    return f"test-{uuid4().hex[:12]}"
