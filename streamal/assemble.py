"""From settings to running objects: the only module that knows every concrete class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import orjson
from rich.console import Console
from rich.progress import Progress, TaskID

from streamal import pooling
from streamal.annotate.oracle import Oracle
from streamal.decoding import AnswerDecoder, InstanceDecoder, InstanceFormat
from streamal.errors import BadRecord, ConfigError
from streamal.evaluate.advise import LEAST_ROWS, Advice, Candidate, Grid, Half, Trials, advise
from streamal.evaluate.simulate import Simulation, control, simulate
from streamal.evaluate.stream import Row, read
from streamal.lane import SamplingPlan
from streamal.learning import allowed, presets
from streamal.learning.allowed import Allowed
from streamal.learning.drift import StreamWatch, WatchedModel
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.messages import Task
from streamal.sampler import SelectiveSampler
from streamal.selection import registry
from streamal.selection.budget import DEFAULT_BURST, BudgetPlan, Limit
from streamal.service import access
from streamal.service.ledgers import Topics
from streamal.service.loop import Craft
from streamal.service.process import Service
from streamal.service.replay import Subject
from streamal.service.reporter import Reporter
from streamal.service.shared_snapshots import SnapshotTopic
from streamal.service.snapshots import Checkpointer, SnapshotFile, SnapshotStore, own_key, read_key
from streamal.service.worker import Worker
from streamal.settings import Settings, revised
from streamal.transport.log import Log
from streamal.transport.rights import Right
from streamal.web.metrics import Metrics
from streamal.web.server import Server

OWN_DIRECTORY: Final = ".streamal"
TRIED_MODELS: Final[Mapping[Task, Sequence[str]]] = {
    "classification": ("logistic_regression", "gaussian_nb", "hoeffding_tree"),
    "regression": ("linear_regression", "hoeffding_tree_regressor"),
}
"""What `advise_on` tries beside what is configured, simpler ones first; forests and neighbours take far longer."""
TRIED_STRATEGIES: Final[Mapping[Task, Sequence[str]]] = {
    "classification": ("class_conditional", "random", "variable_uncertainty", "split"),
    "regression": ("random", "leverage"),
}
"""The default, the floor, and the two others of benchmarks/results/label_efficiency."""
LADDER: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Rates that are tried, relative to the configured one: each doubles what labels cost."""
SHOWN_CLASSES: Final = 3
CONTROL_SEEDS: Final = 1_000
"""Between the seeds of the random runs beside one simulation; the first has the simulation's own."""


def open_log(settings: Settings) -> Log:
    """Open the log; the embedded one is created where there is none, with its topics.

    Raises:
        TransportError: it cannot be reached.
    """
    transport = settings.transport
    if transport.kind == "embedded":
        from streamal.transport.embedded import EmbeddedLog

        log = EmbeddedLog(
            Path(transport.path),
            session_timeout=transport.session_timeout,
            retention=transport.retention or None,
        )
        create_topics(settings, log)
        return log
    from streamal.transport.kafka import KafkaLog

    return KafkaLog(
        transport.bootstrap_servers,
        delivery=settings.delivery.mode,
        session_timeout=transport.session_timeout,
        security=security_options(settings),
        token=transport.security.reveal_token if transport.security.token_file else None,
        start_deadline=transport.start_deadline,
    )


def security_options(settings: Settings) -> dict[str, Any]:
    """Return kafka-python's options for the security section; only those that are set."""
    security = settings.transport.security
    found = {
        "security_protocol": security.protocol,
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": security.reveal_password() if security.mechanism else "",
        "ssl_cafile": security.ca_file,
        "ssl_certfile": security.cert_file,
        "ssl_keyfile": security.key_file,
    }
    return {name: value for name, value in found.items() if value}


def topics_of(settings: Settings) -> Topics:
    """Return the names of the topics."""
    return Topics(**settings.topics.model_dump())


def principal_of(settings: Settings) -> str:
    """Return the name by which the brokers know this process, as far as the settings tell."""
    security = settings.transport.security
    if security.username:
        return f"User:{security.username}"
    return "User:streamal" if security.token_file or security.cert_file else "User:ANONYMOUS"


def rights_of(settings: Settings, party: Callable[[Topics, str], Iterable[Right]]) -> list[Right]:
    """Return what a party of `access` needs with these settings; without transactions nobody needs an id for them."""
    exactly_once = settings.delivery.mode == "exactly_once"
    needed = party(topics_of(settings), settings.transport.group)
    return [right for right in needed if exactly_once or right.resource != "transactional-id"]


def check_rights(settings: Settings, log: Log) -> None:
    """Refuse to start a worker that the brokers would stop later.

    Raises:
        AccessRefused: a right is missing; the message gives it.
    """
    needed = rights_of(settings, access.of_worker)
    access.check(log, needed, principal_of(settings), settings.transport.bootstrap_servers)


def create_topics(settings: Settings, log: Log) -> list[str]:
    """Create the topics that do not exist; `instances` decides on the partitions of all if it is there."""
    topics = topics_of(settings)
    made = log.create_topics({topics.instances: settings.transport.partitions})
    count = log.partitions(topics.instances)
    wanted = topics.partitions(count)
    others = log.create_topics(wanted, compacted=[topics.snapshots, topics.control], kept=[topics.outcomes])
    return [*made, *others]


def build_model(settings: Settings) -> Model:
    """Build the model that was asked for.

    Raises:
        ConfigError: the preset or the factory has no such parameter.
        ModelError: the factory does not give one.
    """
    chosen, drift = settings.model, settings.drift
    if chosen.factory:
        model: Model = presets.from_factory(chosen.factory, **chosen.parameters)
    else:
        seed = settings.strategy.seed
        model = presets.build(chosen.kind, parameters=chosen.parameters, scaling=chosen.scaling, seed=seed)
    if not watches(settings):
        return model
    heard = None if drift.errors == "off" else drift.errors
    return WatchedModel(model, heard=heard, adapts=drift.adaptation == "active", gathers=drift.features)


def watches(settings: Settings) -> bool:
    """Say whether something of the drift's detection is part of the model."""
    return settings.drift.errors != "off" or settings.drift.features


def budgets_of(settings: Settings, partitions: int, *, paused: bool = False) -> list[BudgetPlan]:
    """Share the budget out to the partitions; while `paused` it grants nothing.

    Raises:
        ConfigError: a partition's share is too small.
    """
    budget = settings.budget
    whole = BudgetPlan(
        rate=budget.rate,
        loan=budget.cold_start_loan,
        burst=DEFAULT_BURST,
        limits=tuple(
            Limit("count", limit.count, limit.per) if limit.count else Limit("cost", limit.cost or 0.0, limit.per)
            for limit in budget.limits
        ),
        max_pending=budget.max_pending,
        expiry=budget.expiry or None,
        refund_expired=budget.refund_expired,
        paused=paused,
        spare=1,
    )
    return whole.deal(partitions, burst=budget.burst)


def plans_of(settings: Settings, task: Task, partitions: int, *, paused: bool = False) -> list[SamplingPlan]:
    """Return how each partition is sampled; while `paused` nothing is asked.

    Raises:
        ConfigError: the strategy does not fit the model, or a partition's share of the budget is too small.
    """
    strategy = settings.strategy
    registry.check(strategy.name, strategy.parameters, task)
    return [
        SamplingPlan(
            budget=plan,
            strategy=strategy.name,
            parameters=strategy.parameters,
            window=strategy.window,
            explore=strategy.explore,
            seed=strategy.seed,
            task=task,
            serve=bool(settings.topics.predictions),
            answers=settings.annotation.answers_per_request,
            unlabelled=settings.learn.unlabelled_share,
            self_training=settings.learn.self_training,
            duplicate_digits=strategy.duplicate_digits,
        )
        for plan in budgets_of(settings, partitions, paused=paused)
    ]


def replan(settings: Settings, task: Task, partitions: int, changed: Mapping[str, Any]) -> list[SamplingPlan]:
    """Return the plans with some keys of the budget changed, and perhaps `paused`.

    Raises:
        ConfigError: a value is out of its bounds, or does not go with the others.
    """
    values = dict(changed)
    paused = bool(values.pop("paused", False))
    return plans_of(revised(settings, "budget", values), task, partitions, paused=paused)


def made_with(settings: Settings) -> dict[str, str]:
    """Return the versions and the config that decisions depend on, besides the plan."""
    parts = [settings.instance.model_dump(mode="json"), config_hash(settings)]
    decoded = sha256(orjson.dumps(parts)).hexdigest()[:16]
    return {
        "streamal": version("streamal"),
        "river": version("river"),
        "config": decoded,
        "delivery": settings.delivery.mode,
    }


def subject_of(settings: Settings, log: Log) -> Subject:
    """Return what a verification of this stream needs."""
    task = check(settings).task
    return Subject(
        log=log,
        topics=topics_of(settings),
        group=settings.transport.group,
        build_model=partial(build_model, settings),
        instances=instance_decoder(settings, task),
        answers=answer_decoder(settings, task),
        made_with=made_with(settings),
    )


def answer_decoder(settings: Settings, task: Task) -> AnswerDecoder:
    """Return what turns records into answers."""
    return AnswerDecoder(task, settings.model.classes, settings.instance.max_bytes)


def instance_format(settings: Settings, task: Task) -> InstanceFormat:
    """Return where the parts of an instance stand."""
    return InstanceFormat(**settings.instance.model_dump(), task=task, classes=settings.model.classes)


def instance_decoder(settings: Settings, task: Task) -> InstanceDecoder:
    """Return what turns records into instances."""
    return InstanceDecoder(instance_format(settings, task))


def check(settings: Settings) -> Model:
    """Refuse what cannot work before anything is started; returns the model, fresh.

    Raises:
        ConfigError: settings that do not go together.
        ModelError: the model cannot be built.
    """
    model, strategy, types = build_model(settings), settings.strategy, settings.instance.types
    numbers = not types or any(kind != "string" for kind in types.values())
    registry.check(strategy.name, strategy.parameters, model.task, ensemble=model.ensemble, numbers=numbers)
    plans = plans_of(settings, model.task, settings.transport.partitions)
    if settings.learn.self_training is not None and model.task == "regression":
        message = (
            f"learn.self_training takes the most probable class for the label, but "
            f"{model_name(settings)} predicts numbers: leave it out, or choose a classifier"
        )
        raise ConfigError(message)
    if settings.model.classes and model.task == "regression":
        message = (
            f"model.classes lists the only labels that are taken, but {model_name(settings)} learns numbers, and each "
            "answer would be refused: leave it out, or choose a classifier by model.kind or model.factory"
        )
        raise ConfigError(message)
    chooser = plans[0].build_strategy(Fold(model)).pools
    if chooser is not None and "pool_window" in strategy.parameters:
        pooling.check(chooser.size, plans[0].budget)
    return model


def warnings(settings: Settings) -> list[str]:
    """Return what works, but is hardly what was meant; a line each.

    Raises:
        ModelError: the model cannot be built.
    """
    learn, name = settings.learn, model_name(settings)
    if not learn.unlabelled_share or learn.self_training is not None or build_model(settings).observes:
        return []
    return [
        f"learn.unlabelled_share = {learn.unlabelled_share:g} has no effect: nothing in {name} learns without a label, "
        "so no such instance is put on the log; a model.factory whose transformers do would, and so would "
        "learn.self_training"
    ]


def config_hash(settings: Settings) -> str:
    """Return what a snapshot depends on besides the log: the model's settings, in short."""
    drift = settings.drift.model_dump(mode="json", exclude={"utilities"})
    parts = [settings.model.model_dump(mode="json"), drift, settings.strategy.seed, settings.topics.outcomes]
    return sha256(orjson.dumps(parts)).hexdigest()[:16]


def snapshot_store(settings: Settings) -> SnapshotStore:
    """Return where snapshots are kept; they are shared where their key is.

    Raises:
        ConfigError: the key cannot be read.
    """
    chosen, transport = settings.snapshot, settings.transport
    beside = Path(transport.path).parent if transport.kind == "embedded" else Path()
    directory = Path(chosen.directory) if chosen.directory else beside / OWN_DIRECTORY
    file = SnapshotFile(directory / f"{settings.pipeline}-{transport.slot}.snapshot")
    allowed, config = allowed_in(settings), config_hash(settings)
    if not chosen.key_file:
        return SnapshotStore(file, config, key=partial(own_key, directory), allowed=allowed)
    key = read_key(Path(chosen.key_file))
    topic = SnapshotTopic(partial(open_log, settings), settings.topics.snapshots, f"{slot_of(settings)}-snapshots")
    return SnapshotStore(file, config, key=lambda: key, allowed=allowed, shared=topic)


def slot_of(settings: Settings) -> str:
    """Return the name of this process's writer."""
    return f"{settings.transport.group}-{settings.transport.slot}"


def allowed_in(settings: Settings) -> Allowed:
    """Return what snapshots of the model may be made of."""
    chosen = settings.model
    around = allowed.WATCHED if watches(settings) else frozenset()
    if not chosen.factory:
        return allowed.ALLOWED[chosen.kind] | around
    return allowed.allowed_in(build_model(settings), chosen.factory.partition(":")[0].partition(".")[0]) | around


def build_service(settings: Settings, log: Log) -> Service:
    """Put a worker together: the model, the sampler, the loop's surroundings, the HTTP port.

    Raises:
        StreamalError: something does not fit; see `check`.
    """
    topics = topics_of(settings)
    task = check(settings).task
    check_rights(settings, log)
    plans = plans_of(settings, task, log.partitions(topics.instances))
    store = snapshot_store(settings)
    fold, chosen = Fold(build_model(settings)), settings.snapshot
    checkpointer = Checkpointer(store, fold, every_outcomes=chosen.every_outcomes, every_seconds=chosen.every)
    metrics = Metrics(
        settings.pipeline,
        settings.model.classes,
        config_hash=settings.fingerprint(),
        instances=topics.instances,
        answers=topics.answers,
    )
    watch = StreamWatch(utilities=settings.drift.utilities, features=settings.drift.features)
    reporter = Reporter(settings.pipeline, plans, metrics, lambda: fold.version, lambda: checkpointer.saved_at, watch)
    craft = Craft(
        topics=topics,
        sampler=SelectiveSampler(plans, fold),
        instances=instance_decoder(settings, task),
        answers=answer_decoder(settings, task),
        commit_interval=settings.delivery.commit_interval,
        clock=time.time,
        observer=reporter,
        checkpoint=checkpointer,
        made_with=made_with(settings),
        replan=partial(replan, settings, task, len(plans)),
    )
    worker = Worker(
        log,
        craft,
        group=settings.transport.group,
        slot=slot_of(settings),
        beat=reporter.beat,
    )
    http = settings.http
    server = Server(reporter.board, metrics, http.host, http.port, http.reveal_token()) if http.port else None
    return Service(worker, reporter, server, settings.transport.start_deadline)


def simulate_all(
    runs: Sequence[Settings],
    oracles: Sequence[Oracle],
    stream: Sequence[Row],
    *,
    controls: int,
    quiet: bool,
) -> list[Simulation]:
    """Run one simulation after the other on a labelled stream, with a progress bar unless `quiet`.

    Beside each there are so many random runs with as many labels, of which the first has the same seed.

    Raises:
        ConfigError: the settings do not fit; see `check`.
    """
    found = []
    with progress_bar(quiet) as progress:
        for settings, oracle in zip(runs, oracles, strict=True):
            name = f"{settings.strategy.name} (seed {settings.strategy.seed})"
            bar = progress.add_task(name, total=len(stream))
            one = simulate_one(settings, oracle, stream, progress=partial(_advance, progress, bar))
            progress.update(bar, completed=len(stream))
            beside: list[Simulation] = []
            seeds = range(controls if settings.strategy.name != "random" else 0)
            for seed in progress.track(seeds, description="random with as many labels") if seeds else ():
                beside.append(control_of(one, settings, oracle, stream, shift=seed))
            found.append(replace(one, controls=tuple(beside)))
    return found


def advise_on(
    base: Settings,
    oracle: Oracle,
    stream: Sequence[Row],
    grid: Grid,
    *,
    quiet: bool,
) -> Advice:
    """Search a grid around the settings on a labelled stream, with a progress bar unless `quiet`.

    Raises:
        ConfigError: the stream has too few rows.
    """
    seeds = grid.seeds
    if len(stream) < LEAST_ROWS:
        message = f"--advise needs {LEAST_ROWS} labelled rows at least, found {len(stream)}"
        raise ConfigError(message)
    halves = {"earlier": stream[: len(stream) // 2], "later": stream[len(stream) // 2 :]}
    with progress_bar(quiet) as progress:
        bar = progress.add_task("runs", total=grid.runs)

        def shifted(seed: int, half: Half) -> Sequence[Row]:
            found = halves[half]
            start = len(found) * seeds.index(seed) // len(seeds)
            return [*found[start:], *found[:start]]

        def run(candidate: Candidate, seed: int, half: Half) -> Simulation:
            progress.update(bar, description=f"{candidate.strategy} on {candidate.model}")
            found = simulate_one(tried(base, candidate, seed), replace(oracle, seed=seed), shifted(seed, half))
            progress.advance(bar)
            return found

        def beside(candidate: Candidate, seed: int, half: Half, simulation: Simulation) -> Simulation:
            chosen, asked_of = tried(base, candidate, seed), replace(oracle, seed=seed)
            found = control_of(simulation, chosen, asked_of, shifted(seed, half))
            progress.advance(bar)
            return found

        found = advise(grid, Trials(run, beside), len(stream))
        progress.update(bar, completed=grid.runs)
    return found


def grid_of(base: Settings, *, models: Sequence[str], strategies: Sequence[str], seeds: Sequence[int]) -> Grid:
    """Return what is tried: what was named, else what is configured, and then what goes with its task.

    A pair is left out where the strategy does not fit the model, unless the strategy was named for it.

    Raises:
        ConfigError: a named pair does not fit, models are for different tasks, or the settings do not fit; see `check`.
    """
    own, rate = model_name(base), base.budget.rate
    first, *_ = chosen = models or (own,)
    task = build_model(tried(base, Candidate(first, "random", rate), seeds[0])).task
    pairs = []
    for model in dict.fromkeys((*chosen, *(() if models else TRIED_MODELS[task]))):
        built = build_model(tried(base, Candidate(model, "random", rate), seeds[0]))
        if built.task != task:
            message = f"{model} is for {built.task} and {first} for {task}: name models for one kind of label"
            raise ConfigError(message)
        for strategy in dict.fromkeys(strategies or (base.strategy.name, *TRIED_STRATEGIES[task])):
            if (model in chosen and strategy in strategies) or _fits(strategy, built):
                pairs.append((model, strategy))
    rates = [rate * factor for factor in LADDER if factor <= 1.0 or rate * factor < 1.0]
    for pair, each in product(pairs, rates):
        check(tried(base, Candidate(*pair, each), seeds[0]))
    return Grid(pairs, rates, rate, seeds)


def _fits(strategy: str, model: Model) -> bool:
    """Say whether a strategy goes with a model; one that does not exist is left to `check`."""
    entry = registry.STRATEGIES.get(strategy)
    return entry is None or (model.task in entry.tasks and (model.ensemble or not entry.ensemble))


def model_name(settings: Settings) -> str:
    """Return what the model is called: its factory, else its kind."""
    return settings.model.factory or settings.model.kind


def tried(base: Settings, candidate: Candidate, seed: int) -> Settings:
    """Return the settings of a candidate; what it has in common with the base keeps its parameters."""
    model, strategy, rate = candidate
    found = revised(base, "budget", {"rate": rate})
    if model != model_name(base):
        found = revised(found, "model", {"kind": model, "factory": "", "parameters": {}})
    chosen: dict[str, Any] = {"name": strategy, "seed": seed}
    return revised(found, "strategy", chosen | ({} if strategy == base.strategy.name else {"parameters": {}}))


def read_whole(file: Path, settings: Settings, task: Task, *, label: str, rows: int | None) -> list[Row]:
    """Read a labelled stream, or its first rows, whose instances are as the service would take them.

    Raises:
        ConfigError: it cannot be read, there is none, or it has other classes; see `streamal.evaluate.stream.read`.
    """
    classes = settings.model.classes
    try:
        stream = list(islice(read(file, label=label, task=task, form=instance_format(settings, task)), rows))
    except BadRecord as bad:
        raise ConfigError(str(bad)) from None
    if not stream:
        message = f"{file.name}: expected labelled rows, found none"
        raise ConfigError(message)
    found = {row.label for row in stream if isinstance(row.label, str)}
    if classes and (strange := sorted(found - set(classes))):
        named = ", ".join(repr(shorten(name, 20)) for name in strange[:SHOWN_CLASSES])
        message = (
            f"{file.name}: {len(strange)} of the {len(found)} classes in its column '{label}' are not among "
            f"model.classes, such as {named}, and a service would refuse such answers: add them, or choose another "
            "column by --label"
        )
        raise ConfigError(message)
    return stream


def simulate_one(
    settings: Settings,
    oracle: Oracle,
    stream: Sequence[Row],
    *,
    plan: SamplingPlan | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Simulation:
    """Run one simulation, by the settings' plan unless there is another one."""
    model = build_model(settings)
    return simulate(
        stream,
        len(stream),
        plan or plans_of(settings, model.task, 1)[0],
        model,
        oracle,
        model_name=model_name(settings),
        classes=sorted({row.label for row in stream if isinstance(row.label, str)}),
        progress=progress,
    )


def control_of(
    simulation: Simulation, settings: Settings, oracle: Oracle, stream: Sequence[Row], *, shift: int = 0
) -> Simulation:
    """Sample the same rows at random, with as many labels as a simulation has asked for and the seed shifted."""
    seed = settings.strategy.seed + shift * CONTROL_SEEDS
    seeded = revised(settings, "strategy", {"seed": seed})
    other = replace(oracle, seed=oracle.seed + shift * CONTROL_SEEDS)
    [plan] = plans_of(seeded, build_model(seeded).task, 1)
    return control(simulation, plan, lambda chosen: simulate_one(seeded, other, stream, plan=chosen))


def progress_bar(quiet: bool) -> Progress:
    """Return a progress bar on the standard error, or a silent one where that is no terminal."""
    console = Console(stderr=True)
    return Progress(*Progress.get_default_columns(), console=console, disable=quiet or not console.is_terminal)


def _advance(progress: Progress, bar: TaskID, rows: int) -> None:
    progress.update(bar, completed=rows)
