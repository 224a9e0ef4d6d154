"""Who needs which rights: the table behind `streamal topics acls` and behind the check at the start of a worker.

It is the least with which each of them works. Nobody needs a right on the cluster, and nobody but an administrator may
create topics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from streamal.errors import AccessRefused
from streamal.service.ledgers import Topics
from streamal.transport.log import Log
from streamal.transport.rights import Operation, Right, kafka_acls, transactional_id

ANNOTATORS: Final = "annotators"
"""Names of consumer groups of annotators begin so."""


def of_topics(operation: Operation, *topics: str) -> Iterator[Right]:
    """Return a right on each topic that is in use."""
    return (Right(operation, "topic", topic) for topic in topics if topic)


def of_worker(topics: Topics, group: str) -> list[Right]:
    """Return what a worker needs; what it writes it also reads back when it takes a partition over."""
    both = (topics.answers, topics.label_requests, topics.outcomes, topics.decisions, topics.snapshots)
    return [
        *of_topics("Read", topics.instances, *both, topics.control),
        *of_topics("Write", *both, topics.dead_letters, topics.predictions),
        Right("Read", "group", group),
        Right("Write", "transactional-id", transactional_id(f"{group}-"), prefixed=True),
    ]


def of_producer(topics: Topics, group: str) -> list[Right]:
    """Return what a producer of instances needs, `streamal produce` included."""
    return [
        *of_topics("Write", topics.instances),
        Right("Write", "transactional-id", transactional_id(f"produce-{topics.instances}-"), prefixed=True),
    ]


def of_annotator(topics: Topics, group: str) -> list[Right]:
    """Return what an annotator needs, with a consumer group or with `streamal answer`, which asks what waits."""
    return [
        *of_topics("Read", topics.label_requests, topics.outcomes),
        *of_topics("Write", topics.answers),
        *of_topics("Describe", topics.instances),
        Right("Describe", "group", group),
        Right("Read", "group", ANNOTATORS, prefixed=True),
        Right("Write", "transactional-id", transactional_id("answers-"), prefixed=True),
    ]


def of_operator(topics: Topics, group: str) -> list[Right]:
    """Return what an operator needs: to look at everything, to give orders, and to put lost ledgers back."""
    return [
        *of_topics("Read", *topics.used()),
        *of_topics("Write", topics.control),
        Right("Read", "group", group),
        Right("Write", "transactional-id", transactional_id("control"), prefixed=True),
    ]


def check(log: Log, needed: Collection[Right], principal: str, bootstrap_servers: str) -> None:
    """Ask the log what this process may do; nothing is sent.

    Raises:
        AccessRefused: a right is missing; each one that is stands in the message, with the command that gives it.
    """
    if missing := log.missing_rights(needed):
        message = (
            f"{principal} may not do all that it needs to on {bootstrap_servers}; let an administrator run these "
            "commands, or correct the user in transport.security:"
        )
        raise AccessRefused(
            "\n".join([message, *(f"  {kafka_acls(r, principal, bootstrap_servers)}" for r in missing)])
        )
