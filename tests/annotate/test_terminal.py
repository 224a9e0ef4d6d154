"""One key answers one request; what was answered is in the log however the person ends."""

from __future__ import annotations

import io
import os
import pty
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson
import pytest

from streamal.annotate.terminal import Choices, Terminal, read_key, show
from streamal.decoding import AnswerDecoder
from streamal.messages import LabelRequest
from streamal.transport.embedded import EmbeddedLog
from streamal.transport.log import Record, TopicPartition

OPEN = Choices(("ok", "fraud"))


def request(offset: int, *, display: Any = None) -> LabelRequest:
    return LabelRequest(
        partition=1,
        offset=offset,
        instance_id=f"tx-{offset}",
        features={"amount": 12.5, "country": "NL", "night": None},
        display=display,
        prediction={"ok": 0.5123, "fraud": 0.4877},
        utility=0.9,
        propensity=1.0,
        reason="uncertainty",
        would_select=True,
        strategy="class_conditional",
        model_version=3,
        requested_at=0.0,
        expires_at=None,
        budget={"seen": 10, "asked": 1, "allowed": 1.0},
    )


REQUESTS = [request(offset) for offset in range(5)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    found = EmbeddedLog(tmp_path / "log.db")
    found.create_topics({"answers": 2})
    yield found
    found.close()


def records(log: EmbeddedLog) -> list[Record]:
    place = TopicPartition("answers", 1)
    return list(log.reader().read(place, *log.bounds(place)))


def answers(log: EmbeddedLog) -> list[dict[str, Any]]:
    found = [orjson.loads(record.value or b"") for record in records(log)]
    for answer in found:
        assert answer.pop("annotator") == "ada"
    return found


def press(log: EmbeddedLog, keys: str, choices: Choices = OPEN) -> int:
    left = iter(keys)
    return Terminal(log, "answers", "ada", choices, key=lambda: next(left, "")).answer_all(REQUESTS)


def test_each_key_is_an_answer(log: EmbeddedLog) -> None:
    assert press(log, "12uis") == 5
    assert answers(log) == [
        {"request_id": "1-0", "label": "ok"},
        {"request_id": "1-1", "label": "fraud"},
        {"request_id": "1-2", "kind": "unsure"},
        {"request_id": "1-3", "kind": "invalid"},
        {"request_id": "1-4", "kind": "skip"},
    ]


def test_the_service_takes_every_answer(log: EmbeddedLog) -> None:
    press(log, "12uis")
    decode = AnswerDecoder("classification", ("ok", "fraud"))
    assert [decode(record).kind for record in records(log)] == ["label", "label", "unsure", "invalid", "skip"]


def test_other_keys_are_passed_over(log: EmbeddedLog) -> None:
    assert press(log, "x9\n 3U1q") == 1
    assert answers(log) == [{"request_id": "1-0", "label": "ok"}]


@pytest.mark.parametrize("end", ["q", ""])
def test_the_end_keeps_what_was_answered(log: EmbeddedLog, end: str) -> None:
    assert press(log, f"1{end}") == 1
    assert len(answers(log)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, EOFError, click.Abort])
def test_an_interrupt_is_an_end(log: EmbeddedLog, error: type[BaseException]) -> None:
    keys: Iterator[str | type[BaseException]] = iter(["2", error])

    def key() -> str:
        found = next(keys)
        if isinstance(found, str):
            return found
        raise found

    assert Terminal(log, "answers", "ada", OPEN, key).answer_all(REQUESTS) == 1
    assert answers(log) == [{"request_id": "1-0", "label": "fraud"}]


def test_what_ended_meanwhile_is_not_shown_and_an_answer_that_comes_too_late_not_given(
    log: EmbeddedLog, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, news = iter("1221"), iter([["1-1"], [], [], [], ["1-2"], ["1-4"]])
    terminal = Terminal(log, "answers", "ada", OPEN, lambda: next(keys, ""), ended=lambda: next(news, []))
    assert terminal.answer_all(REQUESTS) == 2
    assert answers(log) == [{"request_id": "1-0", "label": "ok"}, {"request_id": "1-3", "label": "fraud"}]
    said = capsys.readouterr().out
    assert [number for number in range(1, 6) if f"{number} of 5" in said] == [1, 3, 4]
    assert said.index("(request 1-2,") < said.index("too late") < said.index("(request 1-3,")


def test_nothing_to_answer(log: EmbeddedLog) -> None:
    assert Terminal(log, "answers", "ada", OPEN, key=lambda: "1").answer_all([]) == 0


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_another_class_is_typed(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "0chargeback\n0\nok\n")
    assert Terminal(log, "answers", "ada", OPEN).answer_all(REQUESTS) == 2
    assert [answer["label"] for answer in answers(log)] == ["chargeback", "ok"]


def test_a_number_is_typed_for_regression(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "0twelve\n12.5\n10")
    assert Terminal(log, "answers", "ada", Choices((), "regression")).answer_all(REQUESTS) == 1
    assert answers(log) == [{"request_id": "1-0", "label": 12.5}]
    assert AnswerDecoder("regression", ())(records(log)[0]).label == 12.5


def test_closed_classes_leave_nothing_to_type(log: EmbeddedLog) -> None:
    closed = Choices(("ok", "fraud"), closed=True)
    assert press(log, "01", closed) == 1
    assert "[0]" not in show(REQUESTS[0], 1, 5, closed)


def test_a_class_without_a_key_is_typed_and_checked(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Choices(tuple(f"c{number}" for number in range(12)), closed=True)
    typed(monkeypatch, "0c99\nc11\n9")
    assert Terminal(log, "answers", "ada", many).answer_all(REQUESTS) == 2
    assert [answer["label"] for answer in answers(log)] == ["c11", "c8"]


def test_the_guess_is_not_shown_before_the_answer() -> None:
    text = show(REQUESTS[0], 1, 5, OPEN)
    assert "51" not in text
    assert "48" not in text
    assert "tx-0" in text
    assert "[1] ok  [2] fraud  [0] another class" in text


@pytest.mark.parametrize(
    ("display", "expected"),
    [
        (None, ["amount                   12.5", "country                  NL", "night                    None"]),
        ({"text": "card used abroad"}, ["text                     card used abroad"]),
        ("card used abroad", ["    card used abroad"]),
    ],
)
def test_what_is_shown_is_the_display_above_the_features(display: Any, expected: list[str]) -> None:
    text = show(request(0, display=display), 1, 1, OPEN)
    assert [line for line in expected if line not in text] == []
    assert "amount                   12.5" in text
    assert display is None or text.index("card used abroad") < text.index("amount")


def test_a_synthetic_request_is_not_taken_for_the_real_instance() -> None:
    assert "1 of 1   made up, near tx-0   (request 1-0," in show(replace(request(0), synthetic=True), 1, 1, OPEN)


def test_on_a_terminal_one_key_needs_no_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    done = threading.Event()

    def press_until_done() -> None:
        # switching the terminal to single keys drops what was typed before
        while not done.wait(0.02):
            os.write(ours, b"2")

    person = threading.Thread(target=press_until_done)
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        person.start()
        found = read_key()
        done.set()
        person.join()
    os.close(ours)
    assert found[0] == "2"


def test_every_choice_has_its_keys() -> None:
    many = Choices(tuple("abcdefghijkl"), closed=True)
    assert list(many.keyed) == list("123456789")
    assert many.typed == "another class"
