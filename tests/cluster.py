"""A real Kafka cluster for tests and benchmarks: KRaft nodes on loopback, each of them broker and controller.

With three of them every topic has three replicas and takes no record that two do not have, the group's positions and
the transactions included, so one node may be killed at any time and all of them at once: nothing that was confirmed is
lost. Each node has a second listener behind a proxy of its own; a client that starts from `behind` stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, Final, Self

from broker import Broker, free_port, new_cluster_id
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from proxy import Proxy

REPLICATED: Final = ("default.replication.factor", "offsets.topic.replication.factor")
BEHIND: Final = "PROXIED"
ASK_WITHIN: Final = 5_000
"""Milliseconds for the cluster to say how it stands."""


class Cluster:
    """Nodes numbered from 0; a context manager that starts them and leaves nothing behind."""

    def __init__(self, size: int = 3) -> None:
        self._stack = ExitStack()
        ports = [(free_port(), free_port(), free_port()) for _ in range(size)]
        self.proxies = [self._stack.enter_context(Proxy(behind)) for _, _, behind in ports]
        voters = ",".join(f"{number}@127.0.0.1:{controller}" for number, (_, controller, _) in enumerate(ports, 1))
        cluster_id = new_cluster_id()

        def build(number: int) -> Broker:
            port, controller, behind = ports[number]
            node = Broker(
                {
                    "node.id": f"{number + 1}",
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},"
                    f"{BEHIND}://127.0.0.1:{behind}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},"
                    f"{BEHIND}://127.0.0.1:{self.proxies[number].port}",
                    "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,{BEHIND}:PLAINTEXT",
                    "inter.broker.listener.name": "PLAINTEXT",
                    # Several voters would wait for rights that lie in the log which they are to elect a leader of.
                    "authorizer.class.name": "",
                    **dict.fromkeys(REPLICATED, f"{size}"),
                    "transaction.state.log.replication.factor": f"{size}",
                    "transaction.state.log.min.isr": f"{size // 2 + 1}",
                    "min.insync.replicas": f"{size // 2 + 1}",
                    "unclean.leader.election.enable": "false",
                },
                cluster_id=cluster_id,
            )
            node.port, node.bootstrap = port, f"127.0.0.1:{port}"
            self._stack.callback(node.close)
            return node

        with self._stack as building:
            self.nodes: list[Broker] = at_once(build, range(size))
            self._stack = building.pop_all()
        self._down = set(range(size))
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes)
        self.behind = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)

    def start(self, *numbers: int) -> None:
        """Start those of these nodes, all by default, that are down, at once: a majority serves or none does."""
        down = self._down & set(numbers or range(len(self.nodes)))
        self._down -= down
        at_once(lambda number: self.nodes[number].start(), down)

    def kill(self, *numbers: int) -> None:
        """End these nodes, all by default, as a crash would."""
        chosen = numbers or range(len(self.nodes))
        at_once(lambda number: self.nodes[number].kill(), chosen)
        self._down |= set(chosen)

    def whole(self) -> bool:
        """Say whether every partition has a leader and all its replicas are in sync."""
        try:
            with admin(self.bootstrap) as client:
                topics: list[dict[str, Any]] = client.describe_topics()
        except KafkaError:
            return False
        partitions = [partition for topic in topics for partition in topic["partitions"]]
        return bool(partitions) and all(
            p["leader_id"] >= 0 and len(p["isr_nodes"]) == len(p["replica_nodes"]) for p in partitions
        )

    def close(self) -> None:
        """End the nodes and the proxies and remove all files. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def at_once(action: Callable[[int], Any], numbers: Iterable[int]) -> list[Any]:
    """Do the same for several numbers in threads; the first failure is raised after all have ended."""
    with ThreadPoolExecutor() as pool:
        return [future.result() for future in [pool.submit(action, number) for number in numbers]]


def admin(bootstrap: str) -> Any:
    """Open an administrative client; a context manager."""
    return closing(
        KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=ASK_WITHIN, request_timeout_ms=ASK_WITHIN)
    )
