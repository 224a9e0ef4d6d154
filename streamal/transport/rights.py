"""What a client must be allowed to do on a shared log, and the command that allows it on Kafka.

A right names one operation on one resource. Whoever may read or write a resource may also see it, so `describe` is a
right of its own only where neither is needed.
"""

from __future__ import annotations

import shlex
from typing import Literal, NamedTuple

Operation = Literal["Read", "Write", "Describe"]
Resource = Literal["topic", "group", "transactional-id"]


class Right(NamedTuple):
    """An operation on a resource; `prefixed` takes in all names that begin with `name`."""

    operation: Operation
    resource: Resource
    name: str
    prefixed: bool = False


def transactional_id(slot: str) -> str:
    """Return the name by which a broker knows the writer of a slot.

    >>> transactional_id("payments-labels-0")
    'streamal-payments-labels-0'
    """
    return f"streamal-{slot}"


def kafka_acls(right: Right, principal: str, bootstrap_servers: str) -> str:
    """Return the command that gives a principal a right.

    >>> print(kafka_acls(Right("Read", "group", "fraud"), "User:CN=a b", "b:9"))
    kafka-acls.sh --bootstrap-server b:9 --add --allow-principal 'User:CN=a b' --operation Read --group fraud
    """
    words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers, "--add", "--allow-principal", principal]
    words += ["--operation", right.operation, f"--{right.resource}", right.name]
    return shlex.join([*words, "--resource-pattern-type", "prefixed"] if right.prefixed else words)
