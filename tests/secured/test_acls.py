"""What `streamal topics acls` prints is enough, and nothing of it is too much: each right is missed once it is gone.

The commands are read back as a broker's administrator would type them; with what they give, and nothing else, every
party does its work.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from broker import Broker
from click.testing import CliRunner, Result
from secure_broker import USER, SecureBroker, settings_for
from story import Place, Stage, instance, until

from streamal import assemble
from streamal.cli import main
from streamal.errors import AccessRefused, TransportError
from streamal.service import access
from streamal.service.ledgers import Topics
from streamal.settings import Settings, load, revised, show_toml
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Append, Log
from streamal.transport.rights import Right, kafka_acls, transactional_id

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

PRINCIPAL: Final = f"User:{USER}"
CLEAR: Final = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": USER, "password_file": "password"}
NEEDED: Final = access.of_worker(Topics(predictions="predictions"), "streamal")


def read_back(line: str) -> tuple[str, Right]:
    """Return whom a printed command gives which right."""
    words = shlex.split(line)
    assert words[:2] == ["kafka-acls.sh", "--bootstrap-server"]
    assert words[3:5] == ["--add", "--allow-principal"]
    options = dict(zip(words[6::2], words[7::2], strict=True))
    operation: Any = options.pop("--operation")
    prefixed = options.pop("--resource-pattern-type", "literal") == "prefixed"
    [(resource, name)] = options.items()
    kind: Any = resource.removeprefix("--")
    return words[5], Right(operation, kind, name, prefixed)


@pytest.fixture(scope="module")
def settings(secured: SecureBroker, files: Path) -> Settings:
    """Settings of a worker whose topics are there and which has every right it needs."""
    prefix = f"acls-{uuid4().hex[:8]}"
    topics = {key: f"{prefix}-{key}" for key in load(None).topics.model_dump()}
    found = settings_for(files, secured.at("CLEAR"), CLEAR, transport={"group": prefix, "partitions": 1}, topics=topics)
    with closing(KafkaLog(secured.bootstrap)) as root:
        assemble.create_topics(found, root)
    secured.grant(PRINCIPAL, *assemble.rights_of(found, access.of_worker))
    return found


@pytest.fixture(scope="module")
def log(settings: Settings) -> Iterator[Log]:
    with closing(assemble.open_log(settings)) as opened:
        yield opened


def own(settings: Settings, right: Right) -> Right:
    """Return what stands for this right with the names of these settings."""
    return assemble.rights_of(settings, access.of_worker)[NEEDED.index(right)]


@pytest.mark.kafka
@pytest.mark.parametrize("right", NEEDED, ids=lambda right: f"{right.operation} {right.resource} {right.name}")
def test_each_right_is_missed_by_its_name(secured: SecureBroker, settings: Settings, log: Log, right: Right) -> None:
    needed, taken = assemble.rights_of(settings, access.of_worker), own(settings, right)
    until(lambda: not log.missing_rights(needed), "every right is there")
    secured.revoke(PRINCIPAL, taken)
    try:
        until(lambda: log.missing_rights(needed), "one is missed")
        with closing(assemble.open_log(settings)) as fresh, pytest.raises(AccessRefused) as refused:
            assemble.build_service(settings, fresh)
    finally:
        secured.grant(PRINCIPAL, taken)
    told = [line.strip() for line in str(refused.value).splitlines() if "kafka-acls.sh" in line]
    assert told == [kafka_acls(taken, PRINCIPAL, secured.at("CLEAR"))]
    assert read_back(told[0]) == (PRINCIPAL, taken)


@pytest.mark.kafka
def test_all_that_is_missing_comes_at_once(secured: SecureBroker, files: Path, settings: Settings) -> None:
    stranger = settings_for(files, secured.at("CLEAR"), CLEAR | {"username": "feeder"})
    stranger = stranger.model_copy(update={"topics": settings.topics})
    needed = assemble.rights_of(stranger, access.of_worker)
    with closing(assemble.open_log(stranger)) as log, pytest.raises(AccessRefused) as refused:
        assemble.build_service(stranger, log)
    told = [read_back(line) for line in str(refused.value).splitlines()[1:]]
    assert told == [("User:feeder", right) for right in needed]


@pytest.mark.kafka
def test_a_writer_that_may_only_be_seen_is_refused_when_it_opens(
    secured: SecureBroker, settings: Settings, log: Log
) -> None:
    seen = Right("Describe", "transactional-id", transactional_id("seen"))
    secured.grant(PRINCIPAL, seen)
    until(lambda: not log.missing_rights([Right("Write", "transactional-id", seen.name)]), "it is seen")
    with pytest.raises(AccessRefused, match=r"streamal-seen.*topics acls"):
        log.writer("seen")


@pytest.mark.kafka
def test_without_an_authorizer_nothing_is_missed() -> None:
    with Broker({"authorizer.class.name": ""}) as broker, closing(KafkaLog(broker.bootstrap)) as log:
        log.create_topics({"instances": 1})
        assert log.missing_rights(NEEDED) == []


def test_the_commands_are_printed_for_each_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "streamal.toml"
    config.write_text('[transport]\nkind = "kafka"\nbootstrap_servers = "broker:9092"\ngroup = "fraud"\n')
    parties = {"--principal": "User:w", "--producer": "User:p", "--annotator": "User:ada", "--operator": "User:CN=o p"}
    found = CliRunner().invoke(main, ["topics", "acls", *(word for pair in parties.items() for word in pair)])
    assert found.exit_code == 0, found.output
    lines = [line for line in found.output.splitlines() if not line.startswith("#")]
    given = [read_back(line) for line in lines]
    assert {who for who, _ in given} == set(parties.values())
    assert [right for who, right in given if who == "User:w"] == access.of_worker(Topics(), "fraud")
    assert ("User:w", Right("Write", "transactional-id", "streamal-fraud-", True)) in given
    assert ("User:ada", Right("Write", "topic", "answers")) in given
    assert not {right for who, right in given if who != "User:w"} & {
        Right("Write", "topic", topic) for topic in ("outcomes", "decisions", "snapshots", "label-requests")
    }
    found = CliRunner().invoke(main, ["topics", "acls", "--annotator", "User:ada"])
    assert {read_back(line)[0] for line in found.output.splitlines() if line[0] != "#"} == {"User:ada"}
    config.write_text(config.read_text() + '[delivery]\nmode = "at_least_once"\n')
    found = CliRunner().invoke(main, ["topics", "acls"])
    assert "User:ANONYMOUS" in found.output
    assert "transactional-id" not in found.output


def test_the_embedded_log_has_no_rights_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["topics", "acls"])
    assert found.exit_code == 1
    assert "the embedded log is a file" in found.output


class Party:
    """A user with the rights that the commands give, who runs commands on a stage."""

    def __init__(
        self,
        stage: Stage,
        secured: SecureBroker,
        files: Path,
        name: str,
        needed: Callable[[Topics, str], Iterable[Right]],
    ) -> None:
        security = settings_for(files, secured.at("CLEAR"), CLEAR | {"username": name}).transport.security
        chosen = {"bootstrap_servers": secured.at("CLEAR"), "security": security.model_dump()}
        self.settings = revised(stage.settings, "transport", chosen)
        self._config = files / f"{uuid4().hex}.toml"
        self._config.write_text(show_toml(self.settings))
        rights = assemble.rights_of(self.settings, needed)
        secured.grant(f"User:{name}", *rights)
        with closing(assemble.open_log(self.settings)) as log:
            until(lambda: not log.missing_rights(rights), f"the rights of {name}")

    def run(self, *words: str, lines: bytes | None = None) -> Result:
        """Run a command to its end."""
        return CliRunner().invoke(main, [*words, "--config", str(self._config)], input=lines)


@pytest.mark.kafka
def test_every_party_does_its_work_with_its_rights_and_no_others(
    secured: SecureBroker, files: Path, tmp_path: Path
) -> None:
    stage = Stage(Place(tmp_path, secured.bootstrap), transport={"partitions": 1}, budget={"rate": 1.0})
    with closing(stage):
        feeder = Party(stage, secured, files, "feeder", access.of_producer)
        ada = Party(stage, secured, files, "ada", access.of_annotator)
        watcher = Party(stage, secured, files, "watcher", access.of_operator)
        Party(stage, secured, files, USER, access.of_worker)

        fed = feeder.run("produce", "instances", lines=b"\n".join(instance(number) for number in range(30)))
        assert "30 records appended" in fed.output, fed.output
        stage.start(
            0,
            STREAMAL__TRANSPORT__BOOTSTRAP_SERVERS=secured.at("CLEAR"),
            STREAMAL__TRANSPORT__SECURITY__PROTOCOL="SASL_PLAINTEXT",
            STREAMAL__TRANSPORT__SECURITY__MECHANISM="PLAIN",
            STREAMAL__TRANSPORT__SECURITY__USERNAME=USER,
            STREAMAL__TRANSPORT__SECURITY__PASSWORD_FILE=str(files / "password"),
        )
        until(lambda: stage.read(stage.topics.label_requests), "questions")
        answered = ada.run("answer", "--annotator", "ada", "--classes", "UP,DOWN", lines=b"1q")
        assert "1 answer given" in answered.output, answered.output
        until(lambda: stage.read(stage.topics.outcomes), "an outcome")
        for words in (("status",), ("topics", "describe"), ("tail", "decisions"), ("tail", "dead-letters")):
            looked = watcher.run(*words)
            assert looked.exit_code == 0, looked.output

        denied = feeder.run("status")
        assert denied.exit_code == AccessRefused.exit_code
        assert "topics acls" in denied.output
        plain = revised(ada.settings, "delivery", {"mode": "at_least_once"})
        with closing(assemble.open_log(plain)) as log, pytest.raises(TransportError, match="lacks a right"):
            log.writer("ada").append([Append(stage.topics.outcomes, 0, b"{}")])
        assert stage.worker(0).end()[0] == 0
