"""A simulated annotator as a process of its own: answers each label request with the stream's label, over Kafka.

It knows nothing of streamal but the wire: `request_id` and `instance_id` come, `request_id` and `label` go.
On SIGTERM it prints how many requests it has answered.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks.measure import electricity


def answer_all(bootstrap: str, requests: str, answers: str, stream: Path) -> int:
    """Answer until SIGTERM; returns how many."""
    labels = [row.label for row in electricity(stream)]
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    consumer.assign([TopicPartition(requests, p) for p in sorted(consumer.partitions_for_topic(requests))])
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
    answered = 0
    while not stopping:
        for place, records in consumer.poll(timeout_ms=100).items():
            for record in records:
                request = orjson.loads(record.value)
                label = labels[int(request["instance_id"]) % len(labels)]
                answer = orjson.dumps({"request_id": request["request_id"], "label": label})
                producer.send(answers, answer, partition=place.partition)
                answered += 1
    producer.close()
    consumer.close()
    return answered


if __name__ == "__main__":
    print(answer_all(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
