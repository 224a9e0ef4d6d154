"""The log of an Apache Kafka cluster, by kafka-python: groups, transactions and fencing are Kafka's own.

Every choice below that looks odd guards against one measured fault of kafka-python 3.0.12:

- a transactional producer that met any error keeps the offsets of its aborted transaction and commits them with the
  next one, so a `TransactionalWriter` gives its producer away before each transaction and takes it back after success;
- a rejoin caused by changed metadata alone can be forgotten, after which `poll` is empty for ever, so `GroupMembership`
  asks for metadata first, mends the forgotten rejoin at each poll, and has a watchdog for what is left;
- a join that is done between two polls is thrown away and begun anew, with another rebalance for everybody, and members
  whose polls are short can go on like that for ever, so `keep_join` keeps it for the next poll;
- partitions that stay keep their fetch position through a rebalance, so every owned partition is sought to its
  committed position after each one;
- after an exception `poll` may spin for ever, so the first error of a membership is its last;
- a plain commit wipes the metadata, where the ledgers lie, so nothing is ever committed without it.

Crash-only: whoever gets a `TransportError` from here ends the process. kafka-python logs the cause of connection
troubles as warnings of the logger `kafka`; leave them on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar, cast

from kafka import (
    ConsumerGroupMetadata,
    ConsumerRebalanceListener,
    IsolationLevel,
    KafkaAdminClient,
    KafkaProducer,
    OffsetAndMetadata,
    OffsetSpec,
)
from kafka import TopicPartition as KafkaPartition
from kafka import errors as failed
from kafka.errors import KafkaError, RetriableError

from streamal.errors import AccessRefused, CommitRefused, ConfigError, DeadlineMissed, TopicMissing, TransportError
from streamal.transport.kafka_cluster import (
    CLIENT_ERRORS,
    FETCH_WAIT,
    REBALANCING,
    RETRY,
    Cluster,
    Delivery,
    Tokens,
    explain,
    milliseconds,
    translate,
)
from streamal.transport.log import Append, Membership, Position, Reader, Record, TopicPartition, Transaction, Writer
from streamal.transport.rights import Right, transactional_id

Answer = TypeVar("Answer")

METADATA_LIMIT = 4096  # bytes, the broker's default; beyond it a transaction's producer is lost
JOIN_PATIENCE = 10.0  # seconds beyond the session timeout for which a member may own nothing without a reason
SLOW_COMMIT = 1.0  # seconds; a packet of a slower commit may still be under way, and only a new producer outlaws it
FORBIDDEN = failed.TopicAuthorizationFailedError.errno
GRACE = 2.0  # seconds to abort a transaction, leave a group or close a client
LAG_AGE = 3.0  # seconds for which the ends of partitions are remembered


def check_metadata(positions: Mapping[TopicPartition, Position]) -> None:
    """Refuse metadata that the broker would refuse at the cost of the producer.

    >>> check_metadata({TopicPartition("instances", 0): Position(7, "x" * 4095)})

    Raises:
        CommitRefused: it is too long.
    """
    for partition, position in positions.items():
        size = len(position.metadata.encode())
        if size >= METADATA_LIMIT:
            message = (
                f"the metadata of {partition.topic}-{partition.partition} has {size} bytes, and the broker accepts "
                f"less than {METADATA_LIMIT}; the ledger has outgrown its place: report it"
            )
            raise CommitRefused(message)


def as_kafka(positions: Mapping[TopicPartition, Position]) -> dict[Any, Any]:
    """Return positions as kafka-python wants them."""
    return {KafkaPartition(*p): OffsetAndMetadata(offset, metadata) for p, (offset, metadata) in positions.items()}


def operations(described: Mapping[str, Any]) -> Collection[str] | None:
    """Return what the brokers let us do with a topic or group as they describe it; None where they do not say so.

    >>> operations({"error_code": 0, "authorized_operations": ["READ", "DESCRIBE_CONFIGS"]})
    ['Read', 'DescribeConfigs']
    >>> operations({"error_code": FORBIDDEN, "authorized_operations": None})
    ()
    """
    if described.get("error_code") == FORBIDDEN:
        return ()
    names = described.get("authorized_operations")
    return names and [name.title().replace("_", "") for name in names]


def subscription(member: Mapping[str, Any]) -> Collection[str]:
    """Return the topics that a member of a group has subscribed to."""
    metadata = member["member_metadata"]
    return metadata["topics"] if isinstance(metadata, Mapping) else ()


class KafkaLog:
    """A `Log` on a Kafka cluster.

    Args:
        bootstrap_servers: `host:port`, several separated by commas.
        delivery: with `at_least_once` records are visible sooner and may repeat after a failure.
        session_timeout: seconds without a heartbeat after which the group gives a member's partitions to others.
        transaction_timeout: seconds after which the broker aborts the transaction of a writer that died.
        security: kafka-python's `security_protocol`, `ssl_*` and `sasl_*` options.
        token: gives the token of each login, for OAUTHBEARER.
        start_deadline: seconds within which a broker must answer, and a reader must make progress.
        replication: replicas of the topics made by `create_topics`; -1 leaves it to the broker.

    Raises:
        ConfigError: an option in `security` does not exist, or a file that it names cannot be used.
        TransportError: no broker has answered in time.
        AccessRefused: the broker and this client do not accept each other.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        delivery: Delivery = "exactly_once",
        session_timeout: float = 6.0,
        transaction_timeout: float = 10.0,
        security: Mapping[str, object] | None = None,
        token: Callable[[], str] | None = None,
        start_deadline: float = 30.0,
        replication: int = -1,
    ) -> None:
        unknown = sorted(set(security or {}) - set(KafkaAdminClient.DEFAULT_CONFIG))
        if unknown:
            message = f"transport.security knows no {', '.join(unknown)}; see kafka-python's options for the names"
            raise ConfigError(message)
        self._replication = replication
        login = {"sasl_oauth_token_provider": Tokens(token)} if token else {}
        self._cluster = Cluster(
            bootstrap_servers,
            delivery,
            session_timeout,
            transaction_timeout,
            start_deadline,
            {**(security or {}), **login},
        )
        self._admin = self._cluster.admin()
        self._counts: dict[str, int] = {}
        self._created: set[str] = set()
        self._open: list[GroupMembership | TransactionalWriter | IdempotentWriter | PartitionReader] = []

    def create_topics(
        self,
        partitions: Mapping[str, int],
        *,
        compacted: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> Sequence[str]:
        """Create the topics that do not exist yet, with broker timestamps, and return their names."""
        wanted = {
            topic: {
                "num_partitions": count,
                "replication_factor": self._replication,
                "configs": {
                    "message.timestamp.type": "LogAppendTime",
                    "cleanup.policy": "compact" if topic in compacted else "delete",
                    **({"retention.ms": "-1", "retention.bytes": "-1"} if topic in kept else {}),
                },
            }
            for topic, count in partitions.items()
        }
        if not wanted:
            return []
        answer = self._ask("create topics", lambda: self._admin.create_topics(wanted, raise_errors=False))
        created: list[str] = []
        for topic in answer["topics"]:
            error = failed.for_code(topic["error_code"])
            if topic["error_code"] == 0:
                created.append(topic["name"])
                self._created.add(topic["name"])
            elif error is not failed.TopicAlreadyExistsError:
                raise translate(error(topic["error_message"]), f"create the topic {topic['name']}")
        self._ask("lead the new topics", lambda: self._admin.wait_for_topics(created))
        return created

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has.

        Raises:
            TopicMissing: it does not exist.
            AccessRefused: it may not be seen.
        """

        def describe() -> Sequence[Mapping[str, Any]]:
            answer: Sequence[Mapping[str, Any]] = self._admin.describe_topics([topic])
            if topic in self._created and not any(described["partitions"] for described in answer):
                raise failed.UnknownTopicOrPartitionError  # a broker that has not heard of it yet
            return answer

        answer = self._ask(f"describe the topic {topic}", describe)
        if any(described["error_code"] == FORBIDDEN for described in answer):
            message = (
                f"the topic {topic} on {self._cluster.bootstrap_servers} may not be seen by this client; `streamal "
                "topics acls` prints the rights that are needed"
            )
            raise AccessRefused(message)
        found: list[object] = [p for described in answer for p in described["partitions"]]
        if not found:
            message = (
                f"the topic {topic} does not exist on {self._cluster.bootstrap_servers}; create it with `streamal "
                "topics create`, or correct its name under [topics]"
            )
            raise TopicMissing(message)
        return len(found)

    def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that is kept and the last stable offset, which counts transaction markers too."""
        where = self._existing(partition)

        def offset(spec: object) -> int:
            found = self._admin.list_partition_offsets({where: spec}, isolation_level=IsolationLevel.READ_COMMITTED)
            return int(found[where].offset)

        doing = f"tell the bounds of {partition.topic}-{partition.partition}"
        return self._ask(doing, lambda: offset(OffsetSpec.EARLIEST)), self._ask(
            doing, lambda: offset(OffsetSpec.LATEST)
        )

    def positions(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Return a group's positions from outside it, for those partitions that have one.

        A coordinator that has just taken over may tell an administrative client that there are none. So what is missing
        is asked for once more by a consumer, for which the coordinator waits until what it knows is stable.
        """
        asked = {group: [KafkaPartition(*p) for p in partitions]}
        doing = f"tell the offsets of {group}"
        told = self._ask(doing, lambda: self._admin.list_group_offsets(asked))[group]
        missing = [where for where in asked[group] if where not in told or told[where].offset < 0]

        def stable() -> dict[KafkaPartition, OffsetAndMetadata]:
            limit = milliseconds(self._cluster.deadline)
            with closing(self._cluster.consumer(group_id=group)) as consumer:
                return {where: consumer.committed(where, metadata=True, timeout_ms=limit) for where in missing}

        if missing:
            told = {**told, **self._ask(doing, stable)}
        return {
            TopicPartition(*where): Position(found.offset, found.metadata or "")
            for where, found in told.items()
            if found is not None and found.offset >= 0
        }

    def set_positions(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        """Set a group's positions from outside it.

        Raises:
            CommitRefused: the group has members.
        """
        check_metadata(positions)
        wanted = as_kafka(positions)

        def alter() -> set[str]:
            found = {error for error in self._admin.alter_group_offsets(group, wanted).values()} - {failed.NoError}
            for error in found:
                if issubclass(error, RetriableError):
                    raise error
            return {error.__name__ for error in found}

        if refused := self._ask(f"set the offsets of {group}", alter):
            message = (
                f"the positions of group {group} were not set ({', '.join(sorted(refused))}): it has members; stop its "
                "workers, wait until their session has ended, and try again"
            )
            raise CommitRefused(message)

    def missing_rights(self, rights: Collection[Right]) -> Sequence[Right]:
        """Return those rights that the brokers say this client does not have.

        Without an authorizer, and of a topic or group that does not exist yet, they say that all is allowed or nothing.
        """
        topics = sorted({right.name for right in rights if right.resource == "topic"})
        described = self._ask("tell the rights to topics", lambda: self._admin.describe_topics(topics))
        allowed = {("topic", topic["name"]): operations(topic) for topic in described}
        for right in rights:
            where = right.resource, right.name
            if right.resource == "group":
                allowed[where] = self._allowed(partial(self._describe_group, right.name))
            elif right.resource == "transactional-id":
                # Seeing it is all that can be asked about; a writer that may only see it is refused when it opens.
                allowed[where] = self._allowed(partial(self._describe_writer, right.name))
        return [
            right
            for right in rights
            if (may := allowed[right.resource, right.name]) is not None and right.operation not in may
        ]

    def membership(self, group: str, topics: Sequence[str], on_revoke: Callable[[], object]) -> Membership:
        """Join a group on co-partitioned topics.

        Raises:
            TopicMissing: a topic does not exist, or they differ in their number of partitions.
            ConfigError: others use the group for something else.
        """
        counts = {topic: self.partitions(topic) for topic in topics}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{topic} {count}" for topic, count in counts.items())
            message = f"topics of one group need the same number of partitions, but: {listed}; add the missing ones"
            raise TopicMissing(message)
        self._refuse_strangers(group, topics)
        joined = GroupMembership(
            self._cluster, group, topics, on_revoke, overlooked=lambda: self._overlooks(group, topics[0])
        )
        self._open.append(joined)
        return joined

    def writer(self, slot: str) -> Writer:
        """Open the writer of a slot; a former transactional writer of the same slot is fenced."""
        exactly_once = self._cluster.delivery == "exactly_once"
        opened = (
            TransactionalWriter(self._cluster, transactional_id(slot))
            if exactly_once
            else IdempotentWriter(self._cluster)
        )
        self._open.append(opened)
        return opened

    def reader(self) -> Reader:
        """Open a reader."""
        opened = PartitionReader(self._cluster)
        self._open.append(opened)
        return opened

    def close(self) -> None:
        """Close what is still open. Idempotent."""
        while self._open:
            self._open.pop().close()
        self._admin.close()

    def _existing(self, partition: TopicPartition) -> KafkaPartition:
        count = self._counts.get(partition.topic, 0)
        if partition.partition >= count:
            count = self._counts[partition.topic] = self.partitions(partition.topic)
        if not 0 <= partition.partition < count:
            message = f"{partition.topic} has {count} partitions, so none with the number {partition.partition}"
            raise TopicMissing(message)
        return KafkaPartition(*partition)

    def _describe_group(self, group: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._admin.describe_groups([group])[group]
        if failed.GroupAuthorizationFailedError.__name__ in (found["error"] or ""):
            raise failed.GroupAuthorizationFailedError(group)
        return found

    def _describe_writer(self, transactional_id: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._admin.describe_transactions([transactional_id])
        return found

    def _allowed(self, describe: Callable[[], Mapping[str, Any]]) -> Collection[str] | None:
        """Return what may be done with what is described; None where the broker does not say so."""
        try:
            return operations(self._ask("tell the rights of this client", describe))
        except AccessRefused:
            return ()
        except TransportError as error:
            if isinstance(error.__cause__, failed.TransactionalIdNotFoundError):
                return None
            raise

    def _refuse_strangers(self, group: str, topics: Sequence[str]) -> None:
        """Refuse a group whose members do something else: they would get our partitions, or we theirs."""
        found = self._ask(f"describe the group {group}", lambda: self._describe_group(group))
        cure = "give transport.group a name of its own, or wait until a former worker's session has ended"
        if found["protocol_type"] not in ("", "consumer") or "not a classic group" in (found["error"] or ""):
            kind = found["protocol_type"] or "group.protocol=consumer"
            message = f"the group {group} is used by {kind} members, which do not share partitions as we do; {cure}"
            raise ConfigError(message)
        read = {topic for member in found["members"] for topic in subscription(member)}
        if strange := sorted(read - set(topics)):
            message = (
                f"the group {group} has members that read {', '.join(strange)}, and not {' and '.join(topics)} alone; "
                f"{cure}"
            )
            raise ConfigError(message)

    def _overlooks(self, group: str, topic: str) -> bool:
        """Whether a settled group leaves a member without partitions although it has some to spare."""
        try:
            found = self._admin.describe_groups([group])[group]
            return found["group_state"] in ("Stable", "Empty", "Dead") and len(found["members"]) < self.partitions(
                topic
            )
        except (KafkaError, TransportError):
            return False  # the broker is away, so nobody can own anything

    def _ask(self, doing: str, request: Callable[[], Answer]) -> Answer:
        """Repeat a request while the cluster settles: right after its start it has no coordinators yet.

        The client is made anew in between, since kafka-python's never asks for the successor of a coordinator that it
        knows, even if that one has died or says that it is none any more.
        """
        deadline = monotonic() + self._cluster.deadline
        while True:
            try:
                return request()
            except RetriableError as error:
                if monotonic() > deadline:
                    message = f"Kafka did not {doing} within {self._cluster.deadline:g} s: {explain(error)}"
                    raise DeadlineMissed(message) from error
                sleep(RETRY)
                self._admin.close()
                self._admin = self._cluster.admin()
            except KafkaError as error:
                raise translate(error, doing) from error


class Ownership(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """What the group has assigned; told in kafka-python's I/O thread, where a consumer call would never return."""

    def __init__(self, on_revoke: Callable[[], object]) -> None:
        self._on_revoke = on_revoke
        self.partitions: frozenset[TopicPartition] = frozenset()
        self.settled = True
        self.lost = False

    def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Give up everything, after the commit in flight: the generation is still valid."""
        if revoked:
            self._on_revoke()
        self.partitions = frozenset()

    def on_partitions_assigned(self, assigned: set[Any]) -> None:
        """Own these, unless this is the rejoin after a loss; their fetch positions are not to be trusted yet."""
        if not self.lost:
            self.partitions = frozenset(TopicPartition(*p) for p in assigned)
            self.settled = False

    def on_partitions_lost(self, lost: set[Any]) -> None:
        """Others own them already; nothing can be committed any more."""
        self.partitions = frozenset()
        self.lost = True


def keep_join(coordinator: Any) -> None:
    """Let a consumer's next poll have what a join has brought that was done between two polls.

    Private names, hence the pinned version.
    """
    attempt = coordinator._do_join_and_sync_async  # noqa: SLF001
    kept: tuple[object, bytes] | None = None

    async def join() -> bytes:
        nonlocal kept
        # Whoever has taken it is stable, an expelled member has no generation, and a heartbeat tells what came later.
        if kept and coordinator.rebalance_in_progress() and kept[0] is coordinator._generation:  # noqa: SLF001
            return kept[1]
        kept = None
        assignment: bytes = await attempt()
        kept = coordinator._generation, assignment  # noqa: SLF001
        return assignment

    coordinator._do_join_and_sync_async = join  # noqa: SLF001


class GroupMembership:
    """A `Membership` by a `KafkaConsumer`; its first error is its last."""

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: Sequence[str],
        on_revoke: Callable[[], object],
        *,
        overlooked: Callable[[], bool],
    ) -> None:
        self._group = group
        self._overlooked = overlooked
        self._confirms = cluster.delivery == "at_least_once"
        self._patience = cluster.session_timeout + JOIN_PATIENCE
        self._deadline_ms = milliseconds(cluster.deadline)
        self._failure: TransportError | None = None
        self._ownership = Ownership(on_revoke)
        self._owned_at = monotonic()
        self._ends: dict[TopicPartition, int] = {}
        self._ends_at = 0.0
        self._lag_known_at = monotonic()
        self._consumer = cluster.member(group)
        keep_join(self._consumer._coordinator)  # noqa: SLF001
        with self._crash_only("describe the topics of the group"):
            self._consumer.subscribe(topics=list(topics), listener=self._ownership)
            # A join before the metadata have come is followed by a second one, which is the one that may get lost.
            for topic in topics:
                self._consumer.partitions_for_topic(topic)

    @property
    def epoch(self) -> Hashable:
        """The generation, the member, and the assignment, which arrives after the generation has changed."""
        now = self._consumer.group_metadata()
        return now.generation_id, now.member_id, self._ownership.partitions

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """What this member owns now; empty during a rebalance."""
        return self._ownership.partitions

    def poll(self, timeout: float, limit: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return up to `limit` records; none in the turn in which the assignment has changed.

        Raises:
            TransportError: the membership is lost for good; the process must end.
        """
        with self._crash_only("deliver records"):
            self._mend_lost_join()
            try:
                polled = self._consumer.poll(timeout_ms=milliseconds(timeout), max_records=limit)
            except failed.NoOffsetForPartitionError:  # the group starts here for the first time
                self._ownership.settled = False
            if self._ownership.lost:
                message = "the group gave this member's partitions to others while it was silent; it must start afresh"
                raise TransportError(message)
            if not self._ownership.settled:
                self._settle()
                return {}
            self._watch()
        return {TopicPartition(*partition): records for partition, records in polled.items()}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue reading an owned partition at `offset`."""
        with self._crash_only(f"seek {partition.topic}-{partition.partition}"):
            self._consumer.seek(KafkaPartition(*partition), offset)

    def committed(self, partition: TopicPartition) -> Position | None:
        """Return the group's position in an owned partition; waits for commits that are still in flight elsewhere.

        Raises:
            DeadlineMissed: a commit elsewhere neither finished nor was aborted in time.
        """
        with self._crash_only(f"tell the position in {partition.topic}-{partition.partition}"):
            where = KafkaPartition(*partition)
            found = self._consumer.committed(where, metadata=True, timeout_ms=self._deadline_ms)
        return None if found is None else Position(found.offset, found.metadata or "")

    def token(self) -> object:
        """Return member and generation; the broker refuses the offsets of any but the current ones."""
        return self._consumer.group_metadata()

    def confirm(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Store positions with their metadata under at-least-once delivery; partitions given up meanwhile are left out.

        Raises:
            CommitRefused: the group is rebalancing; the next owner repeats these records.
        """
        owned = {p: position for p, position in positions.items() if p in self._ownership.partitions}
        if not (self._confirms and owned):
            return
        check_metadata(owned)
        with self._crash_only("store positions"):
            try:
                self._consumer.commit(as_kafka(owned), timeout_ms=self._deadline_ms)
            except REBALANCING as error:
                message = f"the positions were not stored: {explain(error)}"
                raise CommitRefused(message, retriable=True) from error

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return how many committed records, transaction markers included, lie ahead; at most some seconds old."""
        owned = self._ownership.partitions
        with self._crash_only("tell how far the log reaches"):
            if monotonic() - self._ends_at > LAG_AGE or owned - self._ends.keys():
                self._ends_at = monotonic()
                with suppress(RetriableError):  # an old figure is better than none while a broker is away
                    found = self._consumer.end_offsets([KafkaPartition(*p) for p in owned], timeout_ms=1000)
                    self._ends = {TopicPartition(*p): end for p, end in found.items()}
                    self._lag_known_at = monotonic()
            reached = {p: self._position(p) for p in owned & self._ends.keys()}
        self._ends.update((p, max(position, self._ends[p])) for p, position in reached.items())
        return {p: self._ends[p] - position for p, position in reached.items()}

    @property
    def lag_known_at(self) -> float:
        """When a broker last told the ends, by the monotonic clock."""
        return self._lag_known_at

    def close(self) -> None:
        """Leave the group at once. Idempotent."""
        self._failure = self._failure or TransportError("this membership was closed; join again")
        with suppress(KafkaError):
            self._consumer.close(timeout_ms=milliseconds(GRACE))

    def _position(self, partition: TopicPartition) -> int:
        position: int | None = self._consumer.position(KafkaPartition(*partition), timeout_ms=1000)
        return position or 0

    def _settle(self) -> None:
        """Seek everything owned to its committed position, or to the beginning where the group never was."""
        for partition in self._ownership.partitions:
            where, position = KafkaPartition(*partition), self.committed(partition)
            if position is None:
                offset = self._consumer.beginning_offsets([where], timeout_ms=self._deadline_ms)[where]
            else:
                offset = position.offset
            self._consumer.seek(where, offset)
        self._ownership.settled = True

    def _mend_lost_join(self) -> None:
        # A rejoin that changed metadata caused is forgotten when poll times out during SyncGroup: kafka-python then
        # neither awaits the join nor sends heartbeats. Private names, hence the pinned version.
        coordinator = self._consumer._coordinator  # noqa: SLF001
        if coordinator.rejoining and not coordinator.rejoin_needed:
            coordinator.request_rejoin()

    def _watch(self) -> None:
        now = monotonic()
        if self._ownership.partitions:
            self._owned_at = now
        elif now - self._owned_at > self._patience:
            self._owned_at = now
            if self._overlooked():
                message = (
                    f"this member of {self._group} has owned nothing for {self._patience:g} s although there are "
                    "partitions to spare; its join was lost: let the supervisor restart it"
                )
                raise TransportError(message)

    @contextmanager
    def _crash_only(self, doing: str) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except TransportError as error:
            if not error.retriable:
                self._failure = error
            raise
        except CLIENT_ERRORS as error:
            self._failure = translate(error, doing)
            raise self._failure from error


def send_all(producer: KafkaProducer, appends: Sequence[Append], timeout: float) -> list[int]:
    """Send records, wait for each of them, and return their offsets.

    Every future is asked: a record that fails before it reaches the buffer does not fail its transaction.
    """
    futures = [
        producer.send(
            append.topic,
            value=append.value,
            key=append.key,
            headers=[(name, b"" if value is None else value) for name, value in append.headers],
            partition=append.partition,
        )
        for append in appends
    ]
    producer.flush(timeout)
    return [future.get(timeout=0).offset for future in futures]


class TransactionalWriter:
    """A `Writer` whose every commit is one Kafka transaction."""

    def __init__(self, cluster: Cluster, transactional_id: str) -> None:
        self._cluster = cluster
        self._id = transactional_id
        self._timeout = cluster.transaction_timeout
        self._worn = False
        self._producer: KafkaProducer | None = self._start()

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        """Carry out a transaction and return its positions.

        Raises:
            CommitRefused: nothing of it is visible, unless the broker was lost in the last step, when the next owner
                finds out which it was. The writer is closed, and the process must end.
        """
        token = transaction.token
        if not isinstance(token, ConsumerGroupMetadata) or token.generation_id < 0 or not token.member_id:
            message = "the token was taken before the member had joined its group; it would not fence a stale owner"
            raise CommitRefused(message)
        with self._transaction() as producer:
            positions = transaction.positions(send_all(producer, transaction.appends, self._timeout))
            check_metadata(positions)
            if positions:
                producer.send_offsets_to_transaction(as_kafka(positions), token)
        return positions

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        """Append as one transaction outside any group; return the offsets in order.

        Raises:
            CommitRefused: as `commit`.
        """
        if not appends:
            return []
        with self._transaction() as producer:
            return send_all(producer, appends, self._timeout)

    def close(self) -> None:
        """Release the writer. Idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            release(producer)

    @contextmanager
    def _transaction(self) -> Iterator[KafkaProducer]:
        # Until the transaction has gone through, the writer has no producer: whatever interrupts it, nobody can use a
        # producer that may still hold the offsets of an aborted transaction.
        producer, self._producer = self._usable(), None
        connections, started = open_connections(producer), monotonic()
        try:
            producer.begin_transaction()
            yield producer
            producer.commit_transaction()
        except CommitRefused:
            abandon(producer)
            raise
        except CLIENT_ERRORS as error:
            abandon(producer)
            message = f"the transaction of {self._id} did not go through: {explain(error)}"
            raise CommitRefused(message) from error
        except BaseException:
            abandon(producer)
            raise
        self._producer = producer
        self._worn = monotonic() - started > SLOW_COMMIT or not connections <= open_connections(producer)

    def _usable(self) -> KafkaProducer:
        if self._producer is None:
            message = (
                f"the writer {self._id} was closed or has met an error, and may still hold the offsets of an aborted "
                "transaction; end the process, a new writer of the slot starts clean"
            )
            raise CommitRefused(message)
        if self._worn:
            former, self._producer = self._producer, None
            release(former)
            self._producer, self._worn = self._start(), False
        return self._producer

    def _start(self) -> KafkaProducer:
        producer = self._cluster.producer(self._id)
        try:
            producer.init_transactions()
        except KafkaError as error:
            release(producer)
            raise translate(error, f"hand out the transactional id {self._id}") from error
        return producer


class IdempotentWriter:
    """A `Writer` without transactions: records are visible at once, and `Membership.confirm` stores the positions."""

    def __init__(self, cluster: Cluster) -> None:
        self._timeout = cluster.deadline
        self._producer: KafkaProducer | None = cluster.producer()

    def commit(self, transaction: Transaction) -> Mapping[TopicPartition, Position]:
        """Send the records and return the positions, which are not stored yet.

        Raises:
            CommitRefused: a record was not accepted; others may be visible, and all will be repeated.
        """
        positions = transaction.positions(self.append(transaction.appends))
        check_metadata(positions)
        return positions

    def append(self, appends: Sequence[Append]) -> Sequence[int]:
        """Send the records and return their offsets in order.

        Raises:
            CommitRefused: as `commit`.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            message = "this writer was closed or has met an error; end the process, a new writer starts clean"
            raise CommitRefused(message)
        try:
            offsets = send_all(producer, appends, self._timeout)
        except CLIENT_ERRORS as error:
            release(producer)
            message = f"not every record was accepted: {explain(error)}"
            raise CommitRefused(message) from error
        self._producer = producer
        return offsets

    def close(self) -> None:
        """Release the writer. Idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            release(producer)


def open_connections(producer: KafkaProducer) -> set[tuple[object, object]]:
    """Return the producer's connections; one that is replaced during a commit may still deliver its request later."""
    return set(producer._sender._client._manager._conns.items())  # noqa: SLF001


def release(producer: KafkaProducer, grace: float = GRACE) -> None:
    """Close a producer, by force when its broker is away."""
    try:
        producer.close(timeout=grace)
    except KafkaError:
        producer._sender.force_close()  # noqa: SLF001


def abandon(producer: KafkaProducer) -> None:
    """Abort the transaction for the readers' sake and drop the producer; a fenced one has nothing to abort."""

    def abort() -> None:
        with suppress(KafkaError):
            producer.abort_transaction()

    # kafka-python waits for ever when the broker is away; then the broker aborts by the transaction timeout.
    aborting = Thread(target=abort, name="streamal-abort", daemon=True)
    aborting.start()
    aborting.join(GRACE)
    release(producer, 0)


class PartitionReader:
    """A `Reader` by one `KafkaConsumer`, which is aimed anew when it has been elsewhere meanwhile."""

    def __init__(self, cluster: Cluster) -> None:
        self._deadline = cluster.deadline
        # After each seek a poll sleeps for the backoff before it looks again, and a takeover seeks often.
        self._consumer = cluster.consumer(group_id=None, max_poll_records=5000, retry_backoff_ms=5)
        self._followed: TopicPartition | None = None
        self._next = 0

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[Record]:
        """Yield the committed records with `start <= offset < stop`; waits until the log has passed `stop`.

        Raises:
            DeadlineMissed: there was no progress within the deadline.
            TransportError: `start` is no longer in the log.
        """
        reached, moved_at = start, monotonic()
        while reached < stop:
            records, position = self._poll(partition, reached, FETCH_WAIT)
            for record in records:
                if record.offset >= stop:
                    return
                yield record
            if position > reached:
                reached, moved_at = position, monotonic()
            elif monotonic() - moved_at > self._deadline:
                message = (
                    f"{partition.topic}-{partition.partition} should pass offset {stop} and has stood at {reached} for "
                    f"{self._deadline:g} s; the broker is away, or a transaction of a dead writer is still open"
                )
                raise DeadlineMissed(message)

    def follow(self, partition: TopicPartition, start: int) -> None:
        """From now on `poll` returns what is committed to this partition at `start` and after."""
        self._followed, self._next = partition, start

    def poll(self, timeout: float) -> Sequence[Record]:
        """Return what has come on the followed partition, after at most about `timeout` seconds.

        Raises:
            TransportError: the position is no longer in the log.
        """
        if self._followed is None:
            return ()
        records, self._next = self._poll(self._followed, self._next, timeout)
        return records

    def close(self) -> None:
        """Release the reader. Idempotent."""
        with suppress(KafkaError):
            self._consumer.close(timeout_ms=milliseconds(GRACE))

    def _poll(self, partition: TopicPartition, position: int, timeout: float) -> tuple[Sequence[Record], int]:
        """Return records from `position` and the position after them, which also passes what is no record."""
        where = KafkaPartition(*partition)
        try:
            if self._consumer.assignment() != {where} or self._consumer.position(where) != position:
                self._consumer.assign([where])
                self._consumer.seek(where, position)
            polled = self._consumer.poll(timeout_ms=milliseconds(timeout))
            return cast("Sequence[Record]", polled.get(where, ())), int(self._consumer.position(where))
        except CLIENT_ERRORS as error:
            raise translate(error, f"read {partition.topic}-{partition.partition} from offset {position}") from error
