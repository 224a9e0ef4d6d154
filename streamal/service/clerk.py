"""The clerk takes records in: instances are decided on, answers matched, and what comes of it goes into an outbox.

Here bytes become instances and answers, and a bad one a dead letter. The loop hands the clerk what it has polled; a
replay hands it what the audit says was polled, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamal.decoding import AnswerDecoder, InstanceDecoder, received
from streamal.errors import BadRecord
from streamal.events import RecordRefused
from streamal.messages import DeadLetter, Instance, Received
from streamal.sampler import SelectiveSampler
from streamal.service.outbox import Holding, Outbox
from streamal.transport.log import Record, TopicPartition


class Clerk:
    """Works for one sampler; `topic` is the one of the instances."""

    def __init__(
        self, topic: str, sampler: SelectiveSampler, instances: InstanceDecoder, answers: AnswerDecoder
    ) -> None:
        self._topic = topic
        self._sampler = sampler
        self._instances = instances
        self._answers = answers

    def skip(self, outbox: Outbox, holding: Holding) -> None:
        """Leave out what a new owner was told to; put aside what is known of it: where it lay, and who said so."""
        for order in holding.skips:
            topic, partition, first, following = order["topic"], order["partition"], order["first"], order["next"]
            message = f"left out up to offset {following}, by order of {order['by']}: {order['why']}"
            lost = Received(topic, partition, first, round(order["at"] * 1000), None, None, ())
            outbox.collect([RecordRefused(DeadLetter(lost, "skipped", message))])
            outbox.cover(TopicPartition(topic, partition), first, following)
            if topic == self._topic:
                holding.position = following
            else:
                holding.answers = following
        holding.skips = ()

    def match(self, outbox: Outbox, holding: Holding, record: Record) -> None:
        """Match one answer with the request it is for."""
        holding.answers = record.offset + 1
        outbox.cover(TopicPartition(record.topic, record.partition), record.offset, record.offset + 1)
        try:
            answer = self._answers(record)
        except BadRecord as bad:
            refuse(outbox, record, bad)
        else:
            outbox.collect(self._sampler.answer(record.partition, [answer], outbox.now))

    def decide(self, outbox: Outbox, holding: Holding, records: Sequence[Record]) -> None:
        """Decide on a stretch of instances of one partition; refused ones are put aside and do not count."""
        batch: list[Instance] = []
        for record in records:
            try:
                batch.append(self._instances(record))
            except BadRecord as bad:
                refuse(outbox, record, bad)
        first, last = records[0], records[-1]
        holding.position = last.offset + 1
        outbox.cover(TopicPartition(first.topic, first.partition), first.offset, last.offset + 1)
        if batch:
            outbox.collect(self._sampler.see(first.partition, batch, outbox.now))


def refuse(outbox: Outbox, record: Record, bad: BadRecord) -> None:
    """Put a bad record aside."""
    outbox.collect([RecordRefused(DeadLetter(received(record), bad.reason, str(bad)))])
