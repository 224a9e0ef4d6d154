"""The way to a Kafka cluster: connection, login and TLS by kafka-python, and what its errors mean to whoever operates.

kafka-python 3.0.12 takes each failure of a first connection for one that passes: with a wrong password or a wrong
authority it tries again until its time is over, and then tells of the time only. `FirstContact` gives up as soon as
another attempt cannot help, and finds out what is the matter. Once a client has been let in, everything is tried again
as kafka-python has it: a running worker outlives a broker that restarts and a password that is being changed.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Final, Literal

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as failed
from kafka.cluster import collect_hosts
from kafka.errors import KafkaError, KafkaTimeoutError, RetriableError
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector

from streamal.errors import AccessRefused, DeadlineMissed, LogDamaged, StreamalError, TransportError
from streamal.transport.tls import PROBE, encrypts, examine, tls_context

Delivery = Literal["exactly_once", "at_least_once"]

FETCH_BYTES = 128 * 1024  # per partition; kafka-python drains one partition's fetch before it turns to the next
FETCH_WAIT = 0.1  # seconds; a fetch that waits at the broker delays the first fetch after a seek
POLL_INTERVAL = 120.0  # seconds a worker may spend between polls; a rebalance waits that long for a stuck one
BLOCK = 10.0  # seconds a producer may wait for its transactional id, for metadata or for buffers
REACH_WITHIN = (
    8.0  # seconds for one broker to accept a connection; if none does, the supervisor's pauses are the better wait
)
LOGINS = 3  # connections a broker must have closed during the login before that is taken for its answer
GREETINGS = 8  # the same after the first request; more, as it costs no failed login and a broker that stops does it too
RETRY = 0.1  # seconds between two tries of an administrative request

# kafka-python raises the last two for unknown partitions and for headers and keys that it cannot send.
CLIENT_ERRORS = (KafkaError, ValueError, TypeError)

FENCED = (failed.ProducerFencedError, failed.InvalidProducerEpochError, failed.InvalidProducerIdMappingError)
EXPELLED = (failed.CommitFailedError, failed.IllegalGenerationError, failed.UnknownMemberIdError)
REBALANCING = (failed.RebalanceInProgressError, *EXPELLED)
TOO_LARGE = (failed.MessageSizeTooLargeError, failed.RecordListTooLargeError)
REFUSED = (
    failed.AuthorizationError,
    failed.SaslAuthenticationFailedError,
    failed.UnsupportedSaslMechanismError,
    failed.IllegalSaslStateError,
)
OUT_OF_LOG = (failed.OffsetOutOfRangeError, failed.LogTruncationError)

MEANINGS: Final = (
    (
        FENCED,
        "fenced: another process opened the writer of this slot, or this one was silent for longer than the "
        "transaction timeout; give every process its own slot, and let the supervisor restart this one",
    ),
    (
        REBALANCING,
        "expelled: the group has rebalanced since the records were polled, and their new owner decides them; let the "
        "supervisor restart this process, and if it recurs raise the session timeout or give it more CPU",
    ),
    (
        TOO_LARGE,
        "a record is larger than the client (max_request_size) or the topic (max.message.bytes) allows; raise the "
        "limit or lower instance.max_bytes",
    ),
    (
        OUT_OF_LOG,
        "the position is not in the log: retention removed it, the topic was made anew, or the cluster lost records; "
        "going on would lose or repeat instances, so set the group's offsets knowingly and recover the ledger",
    ),
    (
        failed.CorruptRecordError,
        "a batch fails its checksum: a disk or a network path is damaged; restore the replica, or if it is lost for "
        "good leave a batch of instances or answers out with `streamal skip`",
    ),
    (failed.AuthorizationError, "the principal lacks a right; `streamal topics acls` prints those that are needed"),
    (RetriableError, "the broker is away, overloaded or electing a leader; see the warnings of the logger kafka"),
)


def explain(error: BaseException) -> str:
    """Return the error's class, its message, and what it means for whoever operates the service.

    >>> explain(ValueError("Unrecognized partition 3"))
    'ValueError: Unrecognized partition 3'
    >>> explain(failed.CorruptRecordError("t-0")).partition(": a ")[2]
    'disk or a network path is damaged; restore the replica, or if it is lost for good leave a batch of \
instances or answers out with `streamal skip`)'
    """
    name, text = type(error).__name__, str(error)
    said = text if text.startswith(name) else f"{name}: {text}"
    for kinds, meaning in MEANINGS:
        if isinstance(error, kinds):
            return f"{said} ({meaning})"
    return said


def translate(error: Exception, doing: str) -> TransportError:
    """Return the project's error for one of kafka-python's."""
    kinds = (
        (KafkaTimeoutError, DeadlineMissed),
        (REFUSED, AccessRefused),
        (failed.CorruptRecordError, LogDamaged),
        (Exception, TransportError),
    )
    kind = next(ours for theirs, ours in kinds if isinstance(error, theirs))
    return kind(f"Kafka did not {doing}: {explain(error)}")


LOGIN: Final = (
    "check protocol, mechanism, username, and password or token under transport.security with the administrator of the "
    "brokers"
)


def reach(bootstrap_servers: str, patience: float) -> None:
    """Wait until one of the addresses accepts a connection.

    Raises:
        TransportError: none did in time.
    """
    deadline = monotonic() + patience
    while True:
        causes: dict[str, str] = {}
        for host, port, _ in collect_hosts(bootstrap_servers, randomize=False):
            try:
                socket.create_connection((host, port), min(PROBE, patience)).close()
            except OSError as error:
                causes[f"{host}:{port}"] = error.strerror or str(error) or type(error).__name__
            else:
                return
        if monotonic() > deadline:
            listed = "; ".join(f"{address}: {cause}" for address, cause in causes.items())
            message = (
                f"no Kafka broker accepted a connection within {patience:g} s ({listed}): nothing listens there, a "
                "firewall is between, or the name is wrong; start the broker, or correct transport.bootstrap_servers"
            )
            raise TransportError(message)
        sleep(RETRY)


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    """Gives kafka-python a token at each login, so that one which was replaced meanwhile is used."""

    def __init__(self, read: Callable[[], str]) -> None:
        super().__init__()
        self._read = read

    def token(self) -> str:
        """Return the token as it is now."""
        return self._read()


class FirstContact(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Connections whose opening ends at the first failure that no other attempt can mend."""

    def __init__(self, net: NetworkSelector, **options: object) -> None:
        super().__init__(net, **options)
        self._watched: KafkaConnection | None = None
        self._closings: Counter[str] = Counter()
        self._refusals: dict[str, StreamalError] = {}

    def get_connection(self, node_id: object, *args: object, **options: object) -> KafkaConnection:
        """Return a connection, or raise what speaks against it if there is nobody else to ask."""
        if node_id in self._refusals:
            if len(self._refusals) < len(self.cluster.bootstrap_brokers()):
                raise failed.NodeNotReadyError(node_id)
            raise self._refusals[str(node_id)]
        connection = super().get_connection(node_id, *args, **options)
        if self.cluster.is_bootstrap(node_id) and connection is not self._watched:
            self._watched = connection
            connection.close_future.add_errback(lambda error: self._judge(connection, error))
        return connection

    def _judge(self, connection: KafkaConnection, error: Exception) -> None:
        """Say whether it is of use to go on; called in kafka-python's thread when a first connection has failed."""
        if self.cluster.brokers():
            return
        node = self.cluster.broker_metadata(connection.node_id)
        if isinstance(error, StreamalError):
            self._refusals[connection.node_id] = error
        elif reason := self._reason(node.host, node.port, connection, error):
            self._refusals[connection.node_id] = AccessRefused(reason)

    def _reason(self, host: str, port: int, connection: KafkaConnection, error: Exception) -> str:
        place, mechanism = f"{host}:{port}", self.config["sasl_mechanism"]
        user = self.config["sasl_plain_username"] or "the bearer of this token"
        if isinstance(error, REFUSED):
            return f"{place} refused the login of {user} by {mechanism}: {error}; {LOGIN}"
        greeted = connection.init_future.succeeded() or connection.broker_version_data is not None
        if not greeted:
            return examine(host, port, self.config)
        # kafka-python overlooks a last word that comes together with the end of the connection.
        self._closings[connection.node_id] += 1
        closings, logged_in = self._closings[connection.node_id], connection.init_future.succeeded()
        if mechanism and not logged_in and closings >= LOGINS:
            return f"{place} ends each connection during the login of {user} by {mechanism}; {LOGIN}"
        if not mechanism and closings >= GREETINGS:
            return f"{place} closes each connection without a word, as brokers do that ask for a login; {LOGIN}"
        return ""


def milliseconds(seconds: float) -> int:
    """Return a time as kafka-python wants it.

    >>> milliseconds(0.25)
    250
    """
    return round(seconds * 1000)


class Causes(logging.Handler):
    """Collects the exceptions that kafka-python logs while it connects, since it raises none but a timeout."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep each exception among the arguments once."""
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, Exception) and not isinstance(argument, KafkaTimeoutError):
                self._seen[str(argument)] = None

    def __str__(self) -> str:
        return ", ".join(self._seen) or "nothing"


@dataclass(frozen=True, slots=True)
class Cluster:
    """How to reach the brokers and what to ask of them; opens kafka-python's clients. All times in seconds."""

    bootstrap_servers: str
    delivery: Delivery
    session_timeout: float
    transaction_timeout: float
    deadline: float
    security: Mapping[str, object] = field(repr=False)

    def admin(self) -> KafkaAdminClient:
        """Open an administrative client, the first of all.

        Raises:
            ConfigError: a file of the security settings cannot be used.
            TransportError: no broker can be reached.
            AccessRefused: one can be, and does not let us in.
        """
        if encrypts(self.security):
            tls_context(self.security)
        reach(self.bootstrap_servers, min(REACH_WITHIN, self.deadline))
        return self._open(KafkaAdminClient, request_timeout_ms=milliseconds(BLOCK))

    def consumer(self, **options: object) -> KafkaConsumer:
        """Open a consumer of committed records that never resets a position by itself."""
        return self._open(
            KafkaConsumer,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=milliseconds(FETCH_WAIT),
            metrics_enabled=False,
            **{"retry_backoff_ms": 20, **options},
        )

    def member(self, group: str) -> KafkaConsumer:
        """Open a consumer that may join a group."""
        return self.consumer(
            group_id=group,
            session_timeout_ms=milliseconds(self.session_timeout),
            heartbeat_interval_ms=milliseconds(min(3.0, self.session_timeout / 3)),
            max_poll_interval_ms=milliseconds(POLL_INTERVAL),
            max_partition_fetch_bytes=FETCH_BYTES,
        )

    def producer(self, transactional_id: str | None = None) -> KafkaProducer:
        """Open an idempotent producer."""
        return self._open(
            KafkaProducer,
            transactional_id=transactional_id,
            transaction_timeout_ms=milliseconds(self.transaction_timeout),
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            batch_size=FETCH_BYTES,
            max_block_ms=milliseconds(BLOCK),
            # So long it waits for a coordinator that died before it asks for another one; the default is 30 s.
            request_timeout_ms=milliseconds(self.transaction_timeout / 2),
            # With the default of 100 ms each transaction waits that long for the one before to be written down.
            retry_backoff_ms=5,
            metrics_enabled=False,
        )

    def _open(self, client: Callable[..., Any], **options: object) -> Any:
        def connect(**options: object) -> KafkaNetClient:
            net = NetworkSelector(**options)
            return KafkaNetClient(net, FirstContact(net, **options), **options)

        connections, causes = logging.getLogger("kafka.net"), Causes()
        connections.addHandler(causes)
        try:
            return client(
                bootstrap_servers=self.bootstrap_servers,
                client_id="streamal",
                kafka_client=connect,
                bootstrap_timeout_ms=milliseconds(self.deadline),
                # With the default of 30 s a member comes back long after its session has ended.
                reconnect_backoff_max_ms=1000,
                **options,
                **self.security,
            )
        except KafkaTimeoutError as error:
            message = (
                f"no Kafka broker at {self.bootstrap_servers} let us in within {self.deadline:g} s (logged: {causes}); "
                "it is down, or answers slowly, or what listens there is none: check transport.bootstrap_servers and "
                "transport.security, or raise transport.start_deadline"
            )
            raise TransportError(message) from error
        except KafkaError as error:
            raise translate(error, f"open a connection to {self.bootstrap_servers}") from error
        finally:
            connections.removeHandler(causes)
