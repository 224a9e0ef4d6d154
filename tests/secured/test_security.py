"""Each way in, from end to end: a worker that decides and asks behind TLS and a login, with no right too many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
from secure_broker import PASSWORD, USER, SecureBroker, settings_for, token
from story import Place, Stage, instance, until

from streamal import assemble
from streamal.errors import AccessRefused
from streamal.service import access
from streamal.settings import load, show_toml
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Append, Log, TopicPartition

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

LOGIN: Final = {"protocol": "SASL_SSL", "username": USER, "password_file": "password"}
BEARER: Final = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": "token"}
WAYS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "TLS": ("TLS", {"protocol": "SSL"}),
    "mutual TLS": ("MUTUAL", {"protocol": "SSL", "cert_file": "client.pem", "key_file": "client.key"}),
    "PLAIN": ("LOGIN", LOGIN | {"mechanism": "PLAIN"}),
    "SCRAM-SHA-256": ("LOGIN", LOGIN | {"mechanism": "SCRAM-SHA-256"}),
    "SCRAM-SHA-512": ("LOGIN", LOGIN | {"mechanism": "SCRAM-SHA-512"}),
    "OAUTHBEARER": ("LOGIN", BEARER),
    "SCRAM without TLS": ("CLEAR", LOGIN | {"protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512"}),
}


def names(prefix: str) -> dict[str, str]:
    """Return topics that no other test uses."""
    return {key: f"{prefix}-{topic}" for key, topic in load(None).topics.model_dump().items() if topic}


@pytest.fixture
def root(secured: SecureBroker) -> Iterator[KafkaLog]:
    """The administrator's log."""
    with closing(KafkaLog(secured.bootstrap, delivery="at_least_once")) as log:
        yield log


def values(log: Log, topic: str) -> list[bytes | None]:
    """Return all that was committed to a topic with one partition."""
    where = TopicPartition(topic, 0)
    with closing(log.reader()) as reader:
        return [record.value for record in reader.read(where, *log.bounds(where))]


@pytest.mark.parametrize("name", WAYS)
def test_a_worker_works_by_each_way_in(
    secured: SecureBroker, files: Path, root: KafkaLog, tmp_path: Path, name: str
) -> None:
    listener, security = WAYS[name]
    prefix = f"way-{uuid4().hex[:8]}"
    settings = settings_for(
        files,
        secured.at(listener),
        security,
        transport={"group": prefix, "partitions": 1, "session_timeout": "3s"},
        topics=names(prefix),
        snapshot={"directory": str(tmp_path)},
        budget={"rate": 1.0},
    )
    assemble.create_topics(settings, root)
    secured.grant(f"User:{USER}", *assemble.rights_of(settings, access.of_worker))
    log = assemble.open_log(settings)
    until(lambda: not log.missing_rights(assemble.rights_of(settings, access.of_worker)), "the rights have arrived")
    service = assemble.build_service(settings, log)
    running = threading.Thread(target=service.worker.run)
    running.start()
    try:
        with closing(root.writer("feeder")) as writer:
            writer.append([Append(settings.topics.instances, 0, instance(number)) for number in range(50)])
        until(lambda: len(values(root, settings.topics.label_requests)) > 40, "the worker asks")
    finally:
        service.worker.stop()
        running.join()
    assert root.positions(prefix, [TopicPartition(settings.topics.instances, 0)])


@pytest.fixture
def staged(secured: SecureBroker, tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    with ExitStack() as stack:

        def build() -> Stage:
            stage = Stage(Place(tmp_path, secured.bootstrap), transport={"partitions": 2}, log={"level": "DEBUG"})
            stack.callback(lambda: print(stage.tell()))
            stack.callback(stage.close)
            return stage

        yield build


def variables(secured: SecureBroker, files: Path, **security: str) -> dict[str, str]:
    """Return what lets a worker's process log in: the password itself lies in the environment."""
    found = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": USER, "password": PASSWORD}
    found |= {"ca_file": str(files / "ca.pem")} | security
    own = {f"STREAMAL__TRANSPORT__SECURITY__{key.upper()}": value for key, value in found.items()}
    return own | {"STREAMAL__TRANSPORT__BOOTSTRAP_SERVERS": secured.at("LOGIN")}


def test_a_process_learns_behind_tls_and_login_and_shows_no_secret(
    secured: SecureBroker, files: Path, staged: Callable[[], Stage]
) -> None:
    stage = staged()
    secured.grant(f"User:{USER}", *assemble.rights_of(stage.settings, access.of_worker))
    with stage.annotator(400):
        stage.start(0, **variables(secured, files))
        stage.append(stage.rows(range(400)))
        until(stage.drained, "all instances decided")
        until(lambda: stage.read(stage.topics.outcomes), "outcomes")
        until(stage.caught_up, "all outcomes folded")
    assert stage.worker(0).end()[0] == 0
    assert stage.worker(0).starts == 1
    shown = stage.worker(0).output.read_text()
    assert '"message":"stopped"' in shown
    assert PASSWORD not in shown


def test_a_process_that_is_refused_says_so_once_and_ends_with_its_code(
    secured: SecureBroker, files: Path, staged: Callable[[], Stage]
) -> None:
    stage = staged()
    worker = stage.worker(0).start(**variables(secured, files, password=f"{PASSWORD}?"))
    assert worker.wait()[0] == AccessRefused.exit_code
    shown = worker.output.read_text()
    assert "login of streamal" in shown
    assert "Traceback" not in shown
    assert PASSWORD not in shown


def test_what_is_shown_of_the_settings_holds_no_secret(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAL__TRANSPORT__SECURITY__PASSWORD", PASSWORD)
    by_file = settings_for(files, "localhost:1", BEARER)
    by_variable = settings_for(files, "localhost:1", LOGIN | {"mechanism": "PLAIN", "password_file": "absent"})
    for settings in (by_file, by_variable):
        for text in (show_toml(settings), repr(settings), settings.model_dump_json()):
            assert PASSWORD not in text
            assert (files / "token").read_text() not in text
    assert "password: set (hidden)" in show_toml(by_variable)


def test_a_token_is_read_anew_at_each_login(secured: SecureBroker, files: Path, tmp_path: Path) -> None:
    current = tmp_path / "token"
    current.write_text(token())
    security = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": str(current)}
    with closing(assemble.open_log(settings_for(files, secured.at("LOGIN"), security))) as log:
        log.reader().close()
        current.write_text(token(lifetime=-3600.0))
        with pytest.raises(AccessRefused, match="by OAUTHBEARER"):
            log.reader()
        current.write_text(f"{token()}\n")
        log.reader().close()
