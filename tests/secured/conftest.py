"""A broker that asks who comes, and what kafka-python leaves behind when it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from broker import BrokerUnavailable
from secure_broker import SecureBroker, secrets


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """A broker with a listener for each way in; skips or fails as `broker` does."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(SecureBroker(tmp_path_factory.mktemp("secured")))
        except BrokerUnavailable as error:
            if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
                raise
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="session")
def files(secured: SecureBroker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with good and bad secrets, certificates and authorities."""
    directory = tmp_path_factory.mktemp("files")
    secrets(directory, secured)
    return directory
