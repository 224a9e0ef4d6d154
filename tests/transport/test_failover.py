"""A client that outlives a broker asks the one that takes over, whatever it remembers of the one that died."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest
from broker import BrokerUnavailable
from cluster import Cluster
from story import until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

CLIENT: Final = """\
import sys
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Position, TopicPartition

log, place = KafkaLog(sys.argv[1], start_deadline=30.0), TopicPartition("instances", 0)
log.create_topics({place.topic: 1})
log.set_positions("group", {place: Position(7, "ledger")})
for line in sys.stdin:
    print(log.positions("group", [place])[place].metadata, flush=True)
log.close()
"""


def test_the_positions_of_a_group_are_told_whichever_broker_dies() -> None:
    try:
        cluster = Cluster()
    except BrokerUnavailable as error:
        if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    command = [sys.executable, "-c", CLIENT, cluster.bootstrap]
    with cluster, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:

        def told() -> str:
            assert client.stdin
            assert client.stdout
            print(file=client.stdin, flush=True)
            return client.stdout.readline().strip()

        assert told() == "ledger"
        for number in range(len(cluster.nodes)):
            until(cluster.whole, "all replicas are in sync")
            cluster.kill(number)
            assert told() == "ledger"
            cluster.start(number)
            assert told() == "ledger"
        client.communicate()
        assert client.returncode == 0
