"""Streaming selective sampling: decide on each instance of a stream whether to ask for its label, within a budget.

Labels cost people's time, and a stream never ends. streamal reads instances from a log (Kafka, or one SQLite file),
asks annotators for the labels that would teach its online model most, never for more than the budget allows, and learns
from each answer. A partition is the unit of everything: its budget, its decisions and its commits need no other
partition. The model is a fold over one topic, `outcomes`, so that every worker has the same.

The path of one instance is the order in which to read::

    transport/log.py               records are polled from a log: embedded.py or kafka.py behind one contract
    decoding.py, messages.py       each is validated; a bad one becomes a dead letter, and nothing else changes
    learning/model.py              the model predicts the whole poll in one call
    selection/strategy.py          a strategy turns predictions into utilities and propensities; registry.py lists them
    selection/budget.py, coin.py   the budget permits or refuses, and a coin that a replay tosses alike decides
    sampler.py, lane.py            the core without I/O: a batch in, events out (events.py); simulate runs the same one
    pooling.py                     a strategy that pools compares the instances of a window at its end
    pending.py, voting.py          the features are kept as they were asked about, and votes until all are in
    service/clerk.py, outbox.py    requests, audit, positions and ledger go out in one transaction; somebody answers
    learning/fold.py               the answer comes back through `outcomes`; the model scores it first, then learns it

Around it: `settings` (what can be configured), `assemble` (the only module that knows every concrete class), `cli` and
`demo`, `web` (health and metrics), `annotate` (who answers), `evaluate` (was it worth it), and `errors` (all that can
go wrong).

One rule of imports holds it together: each part imports only what stands left of it, and left of `transport` nothing
touches Kafka, sockets, files, clocks, logging or the settings; the core gets plain values::

    errors messages events < selection learning pending < sampler < transport annotate web < service evaluate
    < assemble < cli demo

What users rely on is the wire format of the topics, the keys of the config, and the command line; modules may move.
"""

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.3.0"
