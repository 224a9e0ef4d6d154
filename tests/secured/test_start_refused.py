"""What keeps a start from coming about is said within ten seconds, in one message with the thing and the cure."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest
from broker import free_port
from secure_broker import PASSWORD, USER, Authority, SecureBroker, token

from streamal import assemble
from streamal.errors import AccessRefused, ConfigError, DeadlineMissed, StreamalError, TopicMissing
from streamal.settings import Settings, load, toml_value

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


@pytest.fixture(scope="module")
def files(secured: SecureBroker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with good and bad secrets, certificates and authorities."""
    directory = tmp_path_factory.mktemp("files")
    strangers = tmp_path_factory.mktemp("strangers")
    texts = {"password": PASSWORD, "wrong": f"not {PASSWORD}", "expired": token(lifetime=-3600.0)}
    for name, text in texts.items():
        (directory / name).write_text(f"{text}\n")
    certificate, _ = secured.authority.issue("client")
    _, key = Authority(strangers).issue("client")
    copies = {
        "ca.pem": secured.authority.file,
        "client.pem": certificate,
        "other.pem": strangers / "ca.pem",
        "other.key": key,
    }
    for name, path in copies.items():
        (directory / name).write_bytes(path.read_bytes())
    return directory


def settings_for(directory: Path, address: str, security: Mapping[str, str], **sections: Mapping[str, Any]) -> Settings:
    """Return the settings of a worker that goes this way in; names of files are below `directory`."""
    trusting = {"ca_file": "ca.pem"} if security["protocol"].endswith("SSL") else {}
    found = {
        name: str(directory / value) if name.endswith("file") else value for name, value in (trusting | security).items()
    }
    tables: dict[str, Mapping[str, Any]] = {
        "transport": {"kind": "kafka", "bootstrap_servers": address},
        **sections,
        "transport.security": found,
        "http": {"port": 0},
    }
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]
    path = directory / f"{uuid4().hex}.toml"
    path.write_text("\n".join(lines))
    return load(path)


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
        assert token()[:20] not in text
