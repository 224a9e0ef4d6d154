"""The cases by their permanent ids: an id is never given to another case, and a case never changes what it measures.

A case that is no longer wanted leaves the table, and its history stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.chaos import at_least_once, exactly_once
from benchmarks.decisions import decisions
from benchmarks.drift import adaptation, cost, detection
from benchmarks.embedded import embedded
from benchmarks.estimates import coverage, drawn, stopping
from benchmarks.restart import restart
from benchmarks.service import delivery, heritage, kafka_loop, never_answered
from benchmarks.stall import stall
from benchmarks.strategies import cost as strategies_cost
from benchmarks.unlabelled import observing, self_training


class Case(NamedTuple):
    """What a case measures, and its aim; `run` gets the stream and the number of repetitions and returns table rows."""

    what: str
    aim: str
    run: Callable[[Path, int], Sequence[Mapping[str, Any]]]


CORE: Final = "CPU per decision of the sampler without I/O ({}), beside bare predict_proba_one"

CASES: Final[Mapping[str, Case]] = {
    "core/lr": Case(CORE.format("logistic regression"), "", partial(decisions, "logistic_regression")),
    "core/gnb": Case(CORE.format("Gaussian naive Bayes"), "", partial(decisions, "gaussian_nb")),
    "core/ht": Case(CORE.format("Hoeffding tree"), "", partial(decisions, "hoeffding_tree")),
    "kafka/loop": Case(
        "CPU per instance end to end on a real Kafka, answers included, beside a tuned hand-written kafka-python loop",
        "ratio <= 1.5",
        kafka_loop,
    ),
    "kafka/delivery": Case(
        "CPU per instance end to end on a real Kafka with exactly-once delivery, beside at-least-once",
        "ratio <= 1.1",
        delivery,
    ),
    "kafka/heritage": Case(
        "time in which a new owner reads what it needs of a partition, without and with its warm-up",
        "ledger <= 50 ms a partition, whatever the history",
        heritage,
    ),
    "memory/never-answered": Case(
        "memory of the worker over 1,000,000 instances with requests that nobody ever answers",
        "peak <= 215 MiB, flat once the queue is full",
        never_answered,
    ),
    "restart/outcomes": Case(
        "seconds until a worker is ready with 1,000,000 outcomes: with a snapshot and a tail, and by the fold",
        "with a snapshot <= 2 s",
        restart,
    ),
    "chaos/exactly-once": Case(
        "what a stream of 500,000 instances survives on three brokers: workers and brokers killed, frozen and cut off",
        "no violation",
        exactly_once,
    ),
    "chaos/at-least-once": Case(
        "what the same faults repeat under at-least-once delivery",
        "no repetition under another request_id",
        at_least_once,
    ),
    "drift/detection": Case(
        "after how many instances a drift is found, in how many runs, and how many alarms are false",
        "errors of answers: at most 1 false alarm in 10,000 instances",
        detection,
    ),
    "drift/adaptation": Case(
        "kappa with active adaptation beside passive, on streams with a drift, without, and of unknown drift",
        "no loss without a drift, on average",
        adaptation,
    ),
    "drift/cost": Case(
        "CPU per instance that watching for drift adds",
        "at most 2 us by default",
        cost,
    ),
    "estimates/coverage": Case(
        "how often the 95 % intervals of the live estimates hold the truth in 400 simulated runs, and the naive bias",
        "accuracy: 92 to 98 % of the intervals",
        coverage,
    ),
    "strategies/cost": Case(
        "CPU per instance of each strategy itself, without any model, beside the default strategy",
        "default <= 10 us with 8 features and 2 classes, none above 100 us",
        strategies_cost,
    ),
    "strategies/embedded": Case(
        "each strategy over 20,000 instances in the service on the embedded log: late answers, a crash, and the audit",
        "no violation",
        embedded,
    ),
    "estimates/stopping": Case(
        "by the true gain of the later half of the labels: how often it is said that labels pay, or no longer",
        "no longer: at most 5 % where 3 points and more were gained",
        stopping,
    ),
    "estimates/drawn": Case(
        "the same for models that are right with given chances, by the number of audit labels, 400 draws each",
        "no longer: at most 5 % where 5 points and more were gained",
        drawn,
    ),
    "unlabelled/self-training": Case(
        "kappa with self-training beside that with answers only, on streams with answers at once and 100 rows late",
        "none: it is off by default",
        self_training,
    ),
    "unlabelled/observing": Case(
        "kappa of a pipeline whose scaler observes unlabelled instances, beside one that sees answers only",
        "no loss, on average",
        observing,
    ),
    "stall/snapshot": Case(
        "longest stall of the loop's thread by one snapshot of a forest: written by the loop, and by a child",
        "child <= 50 ms",
        stall,
    ),
}
