"""Fixtures that every test may ask for."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest
from broker import Broker, BrokerUnavailable
from hypothesis import HealthCheck, settings

# The wall clock of a busy machine decides nothing: speed belongs to the benchmarks.
settings.register_profile("streamal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("streamal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run all that needs a broker, so that there is one, while the other runs the rest."""
    for item in items:
        if item.get_closest_marker("kafka"):
            item.add_marker(pytest.mark.xdist_group("kafka"))
            # kafka-python leaves the sockets of connections that were refused to the garbage collector.
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let go of what kafka-python left behind after a test that expects it, and not within a later one.

    Not before its end: what pytest keeps of its log holds exceptions, and these the sockets.
    """
    result = yield
    if any("unclosed" in text for mark in item.iter_markers("filterwarnings") for text in mark.args):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
            gc.collect()
    return result


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real Apache Kafka; skips where it cannot run, fails there when `STREAMAL_REQUIRE_ALL=1`."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(Broker())
        except BrokerUnavailable as error:
            if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
                raise
            pytest.skip(str(error))
        yield running
