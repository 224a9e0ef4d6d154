"""The peer of `kafka/loop`: what a skilled engineer writes by hand in an afternoon with kafka-python and River.

Big polls, orjson, checksums in C, large batches of the producer, one commit a second. It keeps no ledger, validates
nothing, may lose and repeat requests, and overspends: it is what the service's promises are to be paid against.

The rule is variable uncertainty after Zliobaite, Bifet, Pfahringer, Holmes (2014): Active learning with drifting
streaming data.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Final

import orjson
from kafka import KafkaConsumer, KafkaProducer
from river import linear_model, preprocessing

BUDGET: Final = 0.05
STEP: Final = 0.01
FORGET: Final = 1 - 1 / 100


def loop(bootstrap: str, group: str, instances: str, requests: str, answers: str) -> None:
    """Decide, ask and learn until SIGTERM."""
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_bytes=50 << 20,
        max_partition_fetch_bytes=4 << 20,
        metrics_enabled=False,
    )
    consumer.subscribe([instances, answers])
    for topic in (instances, answers):
        consumer.partitions_for_topic(topic)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=256 << 10, metrics_enabled=False)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    pending: dict[str, dict[str, float]] = {}
    threshold, spent, committed = 1.0, 0.0, time.monotonic()
    while not stopping:
        for place, records in consumer.poll(timeout_ms=100, max_records=2000).items():
            if place.topic == answers:
                for record in records:
                    answer = orjson.loads(record.value)
                    features = pending.pop(answer["request_id"], None)
                    if features is not None:
                        model.learn_one(features, answer["label"] == "up")
                continue
            for record in records:
                instance = orjson.loads(record.value)
                features = instance["features"]
                confidence = max(model.predict_proba_one(features).values())
                spent *= FORGET
                if spent / 100 < BUDGET:
                    if confidence < threshold:
                        threshold *= 1 - STEP
                        spent += 1
                        name = f"{record.partition}-{record.offset}"
                        pending[name] = features
                        request = {"request_id": name, "instance_id": instance["id"], "features": features}
                        producer.send(requests, orjson.dumps(request), partition=record.partition)
                    else:
                        threshold *= 1 + STEP
        if time.monotonic() - committed > 1.0:
            consumer.commit()
            committed = time.monotonic()
    consumer.close()
    producer.close()


if __name__ == "__main__":
    loop(*sys.argv[1:])
