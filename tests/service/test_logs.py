"""A log line is one JSON object, or one line for people, on standard error, and chatter stays out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from streamal.service.logs import configure

logger = logging.getLogger("streamal.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    before = root.handlers[:], root.level, kafka.level
    yield
    root.handlers, root.level = before[0], before[1]
    kafka.setLevel(before[2])


def test_a_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    logger.info("partitions taken over: %d", 2, extra={"partitions": [0, 1]})
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO",
        "logger": "streamal.test",
        "message": "partitions taken over: 2",
        "partitions": [0, 1],
    }


def test_what_json_does_not_know_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    logger.warning("odd", extra={"cause": ValueError("x"), "lines": "a\nb"})
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["cause"] == "x"
    assert json.loads(line)["lines"] == "a\nb"


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_comes_with_its_traceback(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure("INFO", "json" if form == "json" else "text")
    try:
        int("x")
    except ValueError:
        logger.exception("ending")
    said = capsys.readouterr().err
    assert "test_an_exception_comes_with_its_traceback" in said
    assert "ValueError" in said
    if form == "json":
        assert len(said.splitlines()) == 1
        assert "ValueError" in json.loads(said)["exception"]


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "text")
    logger.info("started", extra={"phase": "fold", "seconds": 0.1})
    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    started phase=fold seconds=0.1\n"


def test_the_level_holds_and_the_clients_chatter_stays_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "text")
    logger.debug("too fine")
    logging.getLogger("kafka.conn").info("connecting")
    logging.getLogger("kafka.conn").warning("lost")
    said = capsys.readouterr().err
    assert "lost" in said
    assert "too fine" not in said
    assert "connecting" not in said
    configure("ERROR", "text")
    logging.getLogger("kafka.conn").warning("lost")
    assert capsys.readouterr().err == ""


def test_configuring_twice_does_not_say_all_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "text")
    configure("INFO", "text")
    logger.info("once")
    assert capsys.readouterr().err.count("once") == 1
