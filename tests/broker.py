"""A real Apache Kafka 4.1 for tests and benchmarks: one KRaft node on loopback, started in three seconds.

The jars come from Maven Central, once, into `$STREAMAL_KAFKA_JARS` (by default `~/.cache/streamal-kafka`). A broker
keeps its files and its port through `kill` and `start`, so that clients see a crash and not another cluster.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

KAFKA_VERSION = "4.1.0"
START_DEADLINE = 60.0
STOP_DEADLINE = 15.0

POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamal</groupId>
  <artifactId>test-broker</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={logs}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=8388608
"""

# The first compiler tier and the serial collector halve the start-up time on a small machine.
JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


class BrokerUnavailable(RuntimeError):
    """This machine cannot run a broker; the message says what is missing."""


def require_jars() -> Path:
    """Return the directory of Kafka's jars, fetched on the first call.

    Raises:
        BrokerUnavailable: Java or Maven is missing, or Maven cannot get the jars.
    """
    for tool, package in (("java", "a Java 17 runtime"), ("mvn", "Maven")):
        if shutil.which(tool) is None:
            message = f"no {tool!r} on the PATH: install {package} to run a real broker"
            raise BrokerUnavailable(message)
    cache = Path(os.environ.get("STREAMAL_KAFKA_JARS", Path.home() / ".cache" / "streamal-kafka"))
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if not jars.is_dir():
        fetch_jars(cache, jars)
    return jars


def fetch_jars(cache: Path, jars: Path) -> None:
    """Copy Kafka and what it needs into `jars`, all or nothing."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pom, fresh = Path(scratch, "pom.xml"), Path(scratch, "jars")
        pom.write_text(POM)
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        fetched = subprocess.run([*command, f"-DoutputDirectory={fresh}"], capture_output=True, text=True, check=False)
        if fetched.returncode:
            message = f"Maven could not get kafka_2.13:{KAFKA_VERSION}: {ending(fetched)}"
            raise BrokerUnavailable(message)
        if not jars.exists():
            fresh.rename(jars)


def ending(process: subprocess.CompletedProcess[str]) -> str:
    """Return the last lines that a process wrote."""
    return (process.stdout + process.stderr).strip()[-500:]


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def new_cluster_id() -> str:
    """Return an id for a cluster that does not exist yet."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


class Broker:
    """One Kafka node; a context manager that starts it and leaves nothing behind.

    `properties` win over the usual ones or add to them; `formatting` are further arguments for formatting the storage.
    """

    def __init__(
        self, properties: Mapping[str, str] | None = None, *, cluster_id: str = "", formatting: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._java = ["java", *JVM, "-cp", f"{require_jars()}/*"]
        self._home = Path(tempfile.mkdtemp(prefix="streamal-broker-"))
        self._properties = self._home / "server.properties"
        text = PROPERTIES.format(port=self.port, controller=free_port(), logs=self._home / "logs")
        found = dict(line.split("=", 1) for line in text.splitlines()) | dict(properties or {})
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
        self._process: subprocess.Popen[bytes] | None = None
        cluster = cluster_id or new_cluster_id()
        self._run(
            "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(self._properties), *formatting
        )

    def start(self) -> None:
        """Start the node on its files and return when it accepts connections.

        Raises:
            BrokerUnavailable: it ended, or did not listen in time; the message ends with its log.
        """
        with Path(self._home, "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                message = f"Kafka {KAFKA_VERSION} does not listen on {self.bootstrap}: {self.log()[-2000:]}"
                self.kill()
                raise BrokerUnavailable(message)
            time.sleep(0.05)

    def log(self) -> str:
        """Return what the node has logged: its warnings and errors."""
        return Path(self._home, "broker.log").read_text(errors="replace")

    def stop(self) -> None:
        """End the node in order; its files stay. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node as a crash would (`kill -9`); its files stay. Idempotent."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let the node keep its connections and answer nothing, until `thaw`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def damage(self, topic: str, content: bytes) -> None:
        """Flip a bit of a record that holds this content, in partition 0 of a topic, as a failing disk would."""
        for segment in sorted(Path(self._home, "logs", f"{topic}-0").glob("*.log")):
            with segment.open("r+b") as file:
                at = file.read().find(content)
                if at >= 0:
                    file.seek(at)
                    file.write(bytes([content[0] ^ 1]))
                    return
        message = f"no segment of {topic}-0 holds {content!r}"
        raise LookupError(message)

    def close(self) -> None:
        """End the node and remove its files. Idempotent."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BrokerUnavailable:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([*self._java, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(self._home, ignore_errors=True)
            message = f"{arguments[0]} failed (Kafka 4 needs Java 17 or later): {ending(done)}"
            raise BrokerUnavailable(message)
