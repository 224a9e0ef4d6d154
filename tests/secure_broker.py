"""A broker that asks who comes: one node with a listener for each way in, a certificate authority, and rights.

Whoever comes by the plain listener is the administrator and may do everything; whoever else comes may do what was
granted, and nothing before that. The listeners share one store of rights, whatever the login.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import trustme
from broker import Broker, free_port
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from streamal.settings import Settings, load, toml_value
from streamal.transport.rights import Right

USER: Final = "streamal"
PASSWORD: Final = "pa55-w0rd-that-no-log-shows"
OTHERS: Final = ("feeder", "ada", "watcher")
"""Users who log in by PLAIN only, with the same password."""
SCRAM: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512")
LISTENERS: Final[Mapping[str, str]] = {
    "PLAINTEXT": "PLAINTEXT",
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "LOGIN": "SASL_SSL",
    "CLEAR": "SASL_PLAINTEXT",
}
"""Names of the listeners and their protocols; MUTUAL wants a certificate, LOGIN and CLEAR a password or token."""
MODULES: Final = "org.apache.kafka.common.security"


class Authority:
    """A certificate authority with what it signed, as PEM files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Return the files of a certificate and of its key, for hosts or else for a client of that name."""
        leaf = self._authority.issue_cert(*(hosts or (f"{name}@example.org",)), common_name=name)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        found = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        # Kafka reads no other form.
        key.write_bytes(found.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key

    def store(self, name: str, *hosts: str) -> Path:
        """Return a file with both, as a broker wants them."""
        certificate, key = self.issue(name, *hosts)
        found = self._directory / f"{name}-store.pem"
        found.write_bytes(key.read_bytes() + certificate.read_bytes())
        return found


def token(subject: str = USER, lifetime: float = 3600.0) -> str:
    """Return an unsigned token, which Kafka's own validator for tests takes."""

    def part(content: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now - 10, 'exp': now + lifetime})}."


class SecureBroker(Broker):
    """One node with all listeners; `hosts` are what its certificate is made out to."""

    def __init__(self, directory: Path, hosts: Sequence[str] = ("localhost",)) -> None:
        self.authority = Authority(directory)
        ports = {name: free_port() for name in LISTENERS}
        controller = free_port()
        places = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        jaas = "sasl.jaas.config"
        known = " ".join(f'user_{name}="{PASSWORD}"' for name in (USER, *OTHERS))
        properties = {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{places},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": ",".join(f"{name}://localhost:{port}" for name, port in ports.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in {**LISTENERS, "CONTROLLER": "PLAINTEXT"}.items()
            ),
            "inter.broker.listener.name": "PLAINTEXT",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.authority.store("broker", *hosts)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.file),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
        }
        for listener in ("login", "clear"):
            prefix = f"listener.name.{listener}"
            properties |= {
                f"{prefix}.sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM, "OAUTHBEARER")),
                f"{prefix}.plain.{jaas}": f"{MODULES}.plain.PlainLoginModule required {known};",
                f"{prefix}.oauthbearer.{jaas}": (
                    f'{MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
                ),
            } | {
                f"{prefix}.{mechanism.lower()}.{jaas}": f"{MODULES}.scram.ScramLoginModule required;"
                for mechanism in SCRAM
            }
        users = (f"{mechanism}=[name={USER},password={PASSWORD}]" for mechanism in SCRAM)
        super().__init__(properties, formatting=[part for user in users for part in ("--add-scram", user)])
        self._ports = ports
        self.port = ports["PLAINTEXT"]
        self.bootstrap = self.at("PLAINTEXT")

    def at(self, listener: str, host: str = "localhost") -> str:
        """Return the address of a listener."""
        return f"{host}:{self._ports[listener]}"

    def grant(self, principal: str, *rights: Right) -> None:
        """Give rights, as the printed commands would."""
        with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as client:
            given = client.create_acls([acl(principal, right) for right in rights])
        assert not given["failed"], given

    def revoke(self, principal: str, *rights: Right) -> None:
        """Take rights away again."""
        with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as client:
            client.delete_acls([acl(principal, right) for right in rights])


def acl(principal: str, right: Right) -> ACL:
    """Return a right as a broker keeps it."""
    kind = ResourceType[right.resource.upper().replace("-", "_")]
    pattern = ACLResourcePatternType.PREFIXED if right.prefixed else ACLResourcePatternType.LITERAL
    operation = ACLOperation[right.operation.upper()]
    return ACL(principal, "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, right.name, pattern))


def secrets(directory: Path, broker: SecureBroker) -> None:
    """Write good and bad secrets, certificates and authorities into a directory."""
    strangers = directory / "strangers"
    strangers.mkdir()
    certificate, key = broker.authority.issue(USER)
    other_certificate, other_key = Authority(strangers).issue(USER)
    contents = {
        "password": PASSWORD.encode(),
        "wrong": f"not {PASSWORD}".encode(),
        "token": token().encode(),
        "expired": token(lifetime=-3600.0).encode(),
        "ca.pem": broker.authority.file.read_bytes(),
        "client.pem": certificate.read_bytes(),
        "client.key": key.read_bytes(),
        "other.pem": (strangers / "ca.pem").read_bytes(),
        "other-client.pem": other_certificate.read_bytes(),
        "other.key": other_key.read_bytes(),
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)


def settings_for(directory: Path, address: str, security: Mapping[str, str], **sections: Mapping[str, Any]) -> Settings:
    """Return settings that go this way in; names of files are below `directory`, and TLS trusts its authority."""
    trusting = {"ca_file": "ca.pem"} if security.get("protocol", "").endswith("SSL") else {}
    found = {
        name: str(directory / value) if name.endswith("file") else value
        for name, value in (trusting | dict(security)).items()
    }
    transport = {"kind": "kafka", "bootstrap_servers": address, **sections.get("transport", {})}
    tables = {**sections, "transport": transport, "transport.security": found, "http": {"port": 0}}
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]
    path = directory / f"{uuid4().hex}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load(path)
