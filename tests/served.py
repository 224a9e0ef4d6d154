"""A small stream that a real worker has gone through, on an embedded log: requests, answers, refusals and all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from specimens import stream, truth

from streamal import assemble
from streamal.messages import SCHEMA_HEADERS, LabelRequest
from streamal.settings import Settings, load, revised, show_toml
from streamal.transport.log import Append, Log, TopicPartition
from streamal.web.status import StatusBoard

ROWS: Final = 400
PARTITIONS: Final = 2
RATE: Final = 0.2
CLASSES: Final = ("rare", "usual")
WITHIN: Final = 60.0


def until(done: Callable[[], bool], what: str) -> None:
    """Wait until something has come about, and fail when it does not."""
    end = time.monotonic() + WITHIN
    while not done():
        assert time.monotonic() < end, f"{what}: not within {WITHIN:g} s"
        time.sleep(0.01)


def settings_in(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Return settings whose log lies in a folder; `sections` are changed beyond that."""
    settings = load(None)
    given: dict[str, dict[str, Any]] = {
        "transport": {"path": str(folder / "stream.db"), "partitions": PARTITIONS},
        "topics": {"predictions": "predictions"},
        "budget": {"rate": RATE},
        "delivery": {"commit_interval": 0.02},
        "http": {"port": 0},
    }
    for section in given.keys() | sections.keys():
        settings = revised(settings, section, given.get(section, {}) | sections.get(section, {}))
    return settings


def write_config(settings: Settings, folder: Path) -> Path:
    """Write settings as a file, and return where."""
    path = folder / "served.toml"
    path.write_text(show_toml(settings), encoding="utf-8")
    return path


def feed(log: Log, rows: int = ROWS) -> None:
    """Append instances in turn to the partitions."""
    appends = []
    for instance in stream(rows):
        value = orjson.dumps({"id": instance.id, "features": instance.features})
        appends.append(Append("instances", instance.offset % PARTITIONS, value, None, SCHEMA_HEADERS))
    writer = log.writer("feeder")
    writer.append(appends)
    writer.close()


def requests_of(log: Log) -> list[LabelRequest]:
    """Return all label requests."""
    found = []
    for p in range(PARTITIONS):
        place = TopicPartition("label-requests", p)
        found += [LabelRequest.decode(r.value or b"") for r in log.reader().read(place, *log.bounds(place))]
    return found


def serve_stream(folder: Path) -> Settings:
    """Let a worker decide on a stream, whose even-numbered requests are answered, then stop it.

    One instance and one answer are broken.
    """
    settings = settings_in(folder)
    log = assemble.open_log(settings)
    feed(log)
    writer = log.writer("annotator")
    writer.append([Append("instances", 0, b'{"features": ')])
    with working(settings, log) as board:
        until(lambda: board.read().seen == ROWS, "all instances decided")
        until(lambda: len(requests_of(log)) == board.read().asked, "all requests committed")
        answered = requests_of(log)[::2]
        writer.append([_answer(request) for request in answered] + [Append("answers", 1, b"[]")])
        until(lambda: board.read().answered == len(answered), "all answers matched")
        until(lambda: board.read().learned == len(answered), "all answers learned")
    return settings


def _answer(request: LabelRequest) -> Append:
    value = {"request_id": request.request_id, "label": truth(request.features), "annotator": "ada"}
    return Append("answers", request.partition, orjson.dumps(value))


@contextmanager
def working(settings: Settings, log: Log) -> Iterator[StatusBoard]:
    """Let a worker run meanwhile, and wait for its end; yields where its status is read."""
    service = assemble.build_service(settings, log)
    worker = threading.Thread(target=service.worker.run, name="worker")
    worker.start()
    try:
        yield service.reporter.board
    finally:
        service.worker.stop()
        worker.join(WITHIN)
        assert not worker.is_alive()
