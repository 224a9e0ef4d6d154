"""What keeps a start from coming about is said within ten seconds, in one message with the thing and the cure."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import pytest
from broker import free_port
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.protocol.consumer import JoinGroupRequest
from secure_broker import PASSWORD, USER, SecureBroker, settings_for
from story import until

from streamal import assemble
from streamal.errors import AccessRefused, ConfigError, StreamalError, TopicMissing, TransportError
from streamal.service.worker import Worker
from streamal.settings import Settings, load, revised
from streamal.transport import kafka_cluster
from streamal.transport.kafka import KafkaLog

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

WITHIN: Final = 10.0
"""Seconds in which a start must say what is the matter."""
SCRAM: Final = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": USER, "password_file": "password"}


class Way(NamedTuple):
    """A way in that is none: where to, the settings of `transport.security`, and what the message says."""

    listener: str
    security: Mapping[str, str]
    says: tuple[str, ...]
    host: str = "localhost"
    error: type[StreamalError] = AccessRefused


WAYS: Final = {
    "a wrong password by PLAIN": Way(
        "LOGIN",
        SCRAM | {"mechanism": "PLAIN", "password_file": "wrong"},
        ("login of streamal by PLAIN", "password", "transport.security"),
    ),
    "a wrong password by SCRAM-SHA-256": Way(
        "LOGIN",
        SCRAM | {"mechanism": "SCRAM-SHA-256", "password_file": "wrong"},
        ("login of streamal by SCRAM-SHA-256", "password", "transport.security"),
    ),
    "a wrong password by SCRAM-SHA-512": Way(
        "LOGIN", SCRAM | {"password_file": "wrong"}, ("login of streamal by SCRAM-SHA-512", "transport.security")
    ),
    "a user whom nobody knows": Way("LOGIN", SCRAM | {"username": "nobody"}, ("login of nobody", "username")),
    "a token that has expired": Way(
        "LOGIN",
        {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": "expired"},
        ("login of the bearer", "by OAUTHBEARER", "token"),
    ),
    "a token file that is not there": Way(
        "LOGIN",
        {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": "absent"},
        ("transport.security.token_file", "readable"),
        error=ConfigError,
    ),
    "an authority that signed nothing here": Way(
        "TLS", {"protocol": "SSL", "ca_file": "other.pem"}, ("is not trusted", "ca_file")
    ),
    "a name that is not in the certificate": Way(
        "TLS", {"protocol": "SSL"}, ("is not trusted", "127.0.0.1", "bootstrap_servers"), host="127.0.0.1"
    ),
    "no TLS on a port that speaks it": Way("TLS", {"protocol": "PLAINTEXT"}, ("speaks TLS", "set SSL")),
    "TLS on a port that speaks none": Way("PLAINTEXT", {"protocol": "SSL"}, ("does not speak TLS", "protocol")),
    "no certificate where one is wanted": Way("MUTUAL", {"protocol": "SSL"}, ("client certificate", "cert_file")),
    "no login where one is wanted": Way("LOGIN", {"protocol": "SSL"}, ("ask for a login", "mechanism")),
    "a login where none is wanted": Way("TLS", SCRAM, ("refused the login", "protocol")),
    "an authority's file that is not there": Way(
        "TLS", {"protocol": "SSL", "ca_file": "absent"}, ("transport.security, ca_file", "paths"), error=ConfigError
    ),
    "a key of another certificate": Way(
        "MUTUAL",
        {"protocol": "SSL", "cert_file": "client.pem", "key_file": "other.key"},
        ("cert_file and key_file", "belongs to"),
        error=ConfigError,
    ),
}


def refusal(start: Callable[[], object]) -> StreamalError:
    """Return what a start ends with, within the bound."""

    def attempt() -> StreamalError:
        with pytest.raises(StreamalError) as refused:
            start()
        return refused.value

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(attempt).result(WITHIN)


@pytest.mark.parametrize("name", WAYS)
def test_a_way_that_is_none_is_told_at_once(
    secured: SecureBroker, files: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    way = WAYS[name]
    settings = settings_for(files, secured.at(way.listener, way.host), way.security)
    with caplog.at_level(logging.WARNING, "kafka"):
        error = refusal(lambda: assemble.open_log(settings))
    print(error)
    assert type(error) is way.error
    assert [part for part in way.says if part not in str(error)] == []
    tries = [record for record in caplog.records if record.getMessage().startswith("Bootstrap connection")]
    assert len(tries) <= 3, "a storm of retries"
    for text in (str(error), caplog.text):
        assert PASSWORD not in text
        assert (files / "expired").read_text() not in text


class Kafka(NamedTuple):
    """A stream on the administrator's listener whose topics are there, and its log."""

    settings: Settings
    log: KafkaLog

    def worker(self, **topics: str) -> Worker:
        """Return a worker that has yet to be started; `topics` gives some of them other names."""
        return assemble.build_service(revised(self.settings, "topics", topics), self.log).worker


@pytest.fixture
def kafka(secured: SecureBroker, files: Path, tmp_path: Path) -> Iterator[Kafka]:
    prefix = f"refused-{uuid4().hex[:8]}"
    settings = settings_for(
        files,
        secured.bootstrap,
        {},
        transport={"group": prefix, "partitions": 2},
        topics={key: f"{prefix}-{name}" for key, name in load(None).topics.model_dump().items() if name},
        snapshot={"directory": str(tmp_path)},
    )
    with closing(KafkaLog(secured.bootstrap)) as log:
        assemble.create_topics(settings, log)
        yield Kafka(settings, log)


@pytest.mark.parametrize("topic", ["instances", "answers", "outcomes"])
def test_a_topic_that_is_not_there_is_named(kafka: Kafka, topic: str) -> None:
    error = refusal(lambda: kafka.worker(**{topic: "nowhere"}).start())
    assert type(error) is TopicMissing
    assert "the topic nowhere does not exist" in str(error)
    assert "`streamal topics create`" in str(error)


@pytest.mark.parametrize("topic", ["answers", "label_requests", "outcomes"])
def test_a_topic_with_other_partitions_is_named(kafka: Kafka, topic: str) -> None:
    name = f"{kafka.settings.transport.group}-wide"
    kafka.log.create_topics({name: 5})
    error = refusal(lambda: kafka.worker(**{topic: name}).start())
    assert type(error) is TopicMissing
    assert f"'{name}' has 5 partitions; expected" in str(error)
    assert "recreate it" in str(error)


def test_a_group_that_reads_something_else_is_named(secured: SecureBroker, kafka: Kafka) -> None:
    other, group = kafka.settings.topics.decisions, kafka.settings.transport.group
    with closing(KafkaConsumer(other, bootstrap_servers=secured.bootstrap, group_id=group)) as consumer:
        consumer.partitions_for_topic(other)  # else kafka-python may forget the join
        until(lambda: [consumer.poll(timeout_ms=1000), consumer.assignment()][1], "the other member has joined")
        error = refusal(lambda: kafka.worker().start())
    assert type(error) is ConfigError
    assert f"the group {group} has members that read {other}" in str(error)
    assert "transport.group" in str(error)


def test_a_group_of_another_protocol_is_named(secured: SecureBroker, kafka: Kafka) -> None:
    group = kafka.settings.transport.group
    with closing(KafkaAdminClient(bootstrap_servers=secured.bootstrap)) as client:
        join(client, group, "connect")
        error = refusal(lambda: kafka.worker().start())
    assert type(error) is ConfigError
    assert f"the group {group} is used by connect members" in str(error)
    assert "transport.group" in str(error)


def join(client: KafkaAdminClient, group: str, protocol: str) -> None:
    """Let a member of another kind join the group and stay there for as long as its session lasts."""
    protocols = [JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=b"")]
    member = ""

    def joined() -> bool:
        return bool(client.describe_groups([group])[group]["protocol_type"] == protocol)

    for _ in range(100):  # the first answer is the member's id, and a coordinator may have to be found first
        if joined():
            return
        request = JoinGroupRequest(
            group_id=group,
            session_timeout_ms=30_000,
            rebalance_timeout_ms=30_000,
            member_id=member,
            protocol_type=protocol,
            protocols=protocols,
        )
        coordinator = client._manager.run(client._find_coordinator_id, group)
        member = client._manager.run(client._manager.send, request, coordinator).member_id
    assert joined()


def test_a_port_where_nothing_listens_is_named(files: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    error = refusal(lambda: assemble.open_log(settings_for(files, place, {})))
    assert type(error) is TransportError
    assert f"{place}: Connection refused" in str(error)
    assert "correct transport.bootstrap_servers" in str(error)


def test_a_name_that_nobody_has_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_cluster, "REACH_WITHIN", 0.5)
    error = refusal(lambda: assemble.open_log(settings_for(files, "broker.invalid:9092", {})))
    assert type(error) is TransportError
    assert "broker.invalid:9092: " in str(error)


def test_a_broker_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.socket() as listener:

        def come(_: float) -> None:
            listener.bind(("127.0.0.1", port))
            listener.listen()

        monkeypatch.setattr(kafka_cluster, "sleep", come)
        kafka_cluster.reach(f"127.0.0.1:{port}", WITHIN)
