"""Every knob of the service: what it means, its unit, what more or less of it does, and why it stands where it stands.

A setting comes from the TOML file or from the environment (`STREAMAL__BUDGET__RATE=0.05`), which wins. Sections are
frozen and refuse keys they do not know, so that a typo never passes for a default. The annotated example, the
masked view and the JSON Schema are all generated from the fields below: there is no second place to keep up to date.

Only `assemble` and `cli` import this module; everything else gets plain values. Seconds are floats once loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import ipaddress
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from streamal.errors import ConfigError

PREFIX: Final = "STREAMAL__"
WIDTH: Final = 100
UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
BOUNDS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
EXPECTED: Final = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list in brackets",
    "dict_type": "a table, as {name = value}",
    "model_type": "a table, as {name = value}",
    "model_attributes_type": "a table, as {name = value}",
}
"""What pydantic calls by Python's names, in those of TOML."""
PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?) ?%")
AS_JSON: Final = """in the environment lists and tables are written as JSON, such as '[{"count": 500, "per": "1d"}]'"""
SECRETS: Final = (("transport", "security", "password"), ("http", "token"))
TOPIC: Final = r"^[a-zA-Z0-9._-]{1,249}$"
NO_TOPIC: Final = rf"^$|{TOPIC}"
FACTORY: Final = r"^$|^[\w.]+:\w+$"
FORMS: Final = {
    TOPIC: "1 to 249 letters, digits, '.', '_' or '-'",
    NO_TOPIC: "up to 249 letters, digits, '.', '_' or '-'",
    FACTORY: '"package.module:function"',
}
"""The patterns in words."""


def parse_duration(text: object) -> float:
    """Return a duration in seconds, from a number of seconds or from text with a unit.

    >>> [parse_duration(text) for text in ("100ms", "6s", "15m", "1.5h", "7d", "30", 2)]
    [0.1, 6.0, 900.0, 5400.0, 604800.0, 30.0, 2.0]
    >>> parse_duration("soon")
    Traceback (most recent call last):
    ...
    ValueError: expected seconds or a duration such as "100ms", "6s", "15m", "12h" or "7d", came 'soon'
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    if isinstance(text, str):
        if found := DURATION.fullmatch(text.strip()):
            # the division keeps 100 ms at 0.1, where a product with 0.001 would not
            return float(found[1]) / 1000 if found[2] == "ms" else float(found[1]) * UNITS[found[2]]
        if text.strip().replace(".", "", 1).isdecimal():
            return float(text)
    msg = f'expected seconds or a duration such as "100ms", "6s", "15m", "12h" or "7d", came {text!r}'
    raise ValueError(msg)


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit that leaves a whole number.

    >>> [format_duration(seconds) for seconds in (0.1, 6.0, 900.0, 5400.0, 604800.0, 0.0, 0.0005)]
    ['100ms', '6s', '15m', '90m', '7d', '0s', '0.5ms']
    """
    for unit in ("d", "h", "m", "s"):
        count = seconds / UNITS[unit]
        if count.is_integer() and (count or unit == "s"):
            return f"{count:.0f}{unit}"
    return f"{round(seconds * 1000, 9):.15g}ms"


def class_name(name: object) -> object:
    """Return a class as labels spell it; whole numbers become text, as they do on the wire.

    >>> class_name(1), class_name("fraud")
    ('1', 'fraud')
    """
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def number_or_name(cost: object) -> object:
    """Return a number written as text, which is all the environment can give, as a number.

    >>> number_or_name("2.5"), number_or_name("minutes")
    (2.5, 'minutes')
    """
    return float(cost) if isinstance(cost, str) and cost.replace(".", "", 1).isdecimal() else cost


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only; a name other than localhost counts as reachable.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": rf"^{DURATION.pattern}$"}, {"type": "number"}],
            "examples": ["100ms", "6s", "15m", "7d"],
        }
    ),
]
Topic = Annotated[str, Field(pattern=TOPIC)]
ClassName = Annotated[str, BeforeValidator(class_name), Field(min_length=1, max_length=256)]


class Section(BaseModel):
    """A table of the file: frozen, closed to unknown keys, and without booleans passing for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_boolean(cls, value: object, info: ValidationInfo) -> object:
        # pydantic reads `true` as 1, and `rate = true` would spend a label on every instance
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            msg = f"expected no boolean, came {str(value).lower()}"
            raise ValueError(msg)
        return value


class Security(Section):
    """How to reach a Kafka that asks for TLS or a login. Certificates and host names are always checked."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """SSL encrypts, SASL logs in; anything that leaves the host wants SASL_SSL or SSL."""
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = ""
    """The SASL mechanism; the brokers' administrator knows which. PLAIN without SSL shows the password."""
    username: str = ""
    """The SASL user; OAUTHBEARER has none."""
    password: SecretStr | None = None
    """The SASL password."""
    password_file: str = ""
    """A file that holds the SASL password, for secrets that are mounted; its line end is dropped."""
    token_file: str = ""
    """A file that holds the token for OAUTHBEARER. It is read anew at each login, so whoever fetches tokens replaces
    the file in time.
    """
    ca_file: str = ""
    """PEM file of the authorities to trust; "" trusts those of the system."""
    cert_file: str = ""
    """PEM file of this client's certificate, for brokers that ask for one."""
    key_file: str = ""
    """PEM file of that certificate's private key, without a password: only the file's mode protects it."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            msg = "cert_file and key_file belong together: set both or none"
            raise ValueError(msg)
        if (self.ca_file or self.cert_file) and not self.protocol.endswith("SSL"):
            msg = f"protocol {self.protocol} uses no certificates: set SSL or SASL_SSL, or leave the files out"
            raise ValueError(msg)
        if self.mechanism and not self.protocol.startswith("SASL"):
            msg = f"protocol {self.protocol} does not log in: set SASL_SSL, or leave mechanism out"
            raise ValueError(msg)
        password = self.username and (self.password or self.password_file)
        if self.protocol.startswith("SASL") and not (self.mechanism == "OAUTHBEARER" or (self.mechanism and password)):
            msg = f"protocol {self.protocol} needs mechanism, username and password_file, or OAUTHBEARER and token_file"
            raise ValueError(msg)
        if (self.mechanism == "OAUTHBEARER") != bool(self.token_file):
            msg = "mechanism OAUTHBEARER and token_file belong together: set both or none"
            raise ValueError(msg)
        return self

    def reveal_password(self) -> str:
        """Return the SASL password, or "" if there is none.

        Raises:
            ConfigError: `password_file` cannot be read or is empty.
        """
        return _reveal("transport.security.password_file", self.password, self.password_file)

    def reveal_token(self) -> str:
        """Return the token as the file has it now, or "" if there is none.

        Raises:
            ConfigError: `token_file` cannot be read or is empty.
        """
        return _reveal("transport.security.token_file", None, self.token_file)


class Transport(Section):
    """Where records live. The embedded log is one file on this host; Kafka is for everything beyond."""

    kind: Literal["embedded", "kafka"] = "embedded"
    """The embedded log needs nothing installed, which is why it is the default; kafka needs brokers."""
    bootstrap_servers: str = ""
    """Brokers to ask first, as "host:port,host:port"; two or three, so that one may be down. Kafka only."""
    client: Literal["kafka-python"] = "kafka-python"
    """The Kafka client library."""
    group: str = Field(default="streamal", pattern=TOPIC)
    """The consumer group; workers with the same one share the partitions. It holds the positions and the ledgers: a
    new start of stream and budget needs a new name here and new topics besides.
    """
    slot: int = Field(default=0, ge=0, le=9999)
    """Number of this process within the group, stable over restarts (a pod's ordinal). A second process with the
    same slot fences the first, which on the embedded log shows only once one of them commits: give each worker its own.
    """
    session_timeout: Duration = Field(default=6.0, ge=1.0, le=300.0)
    """How long a silent worker keeps its partitions. Less: a crash is taken over sooner; more: long pauses do not
    cause rebalances. 6s is the least that brokers accept by default.
    """
    start_deadline: Duration = Field(default=60.0, ge=1.0, le=3600.0)
    """How long the start may go without progress before the process gives up and is restarted; folding the outcomes
    counts as progress. More where brokers answer slowly.
    """
    path: str = Field(default="streamal.db", min_length=1)
    """File of the embedded log, from the working directory on."""
    partitions: int = Field(default=4, ge=1, le=1024)
    """Partitions of the topics that are created; the most workers that can share the stream. It cannot be lowered
    later. 4 leave room to grow and cost next to nothing.
    """
    retention: Duration = Field(default=14 * 86400.0, ge=0.0)
    """How long the embedded log keeps instances, requests, answers and audit records; outcomes stay. "0s" keeps
    all. Less saves disk, but it must not be under budget.expiry; 14d is twice that.
    """
    security: Security = Security()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.kind == "kafka" and not self.bootstrap_servers.strip():
            msg = 'kind = "kafka" needs bootstrap_servers, for instance "localhost:9092"'
            raise ValueError(msg)
        return self


class Topics(Section):
    """Names of the topics; all but outcomes, snapshots and control have the same number of partitions."""

    instances: Topic = "instances"
    """What arrives; yours, only read."""
    label_requests: Topic = "label-requests"
    """The questions to the annotators."""
    answers: Topic = "answers"
    """What the annotators say."""
    outcomes: Topic = "outcomes"
    """What became of each request, one partition: the model is folded from it; keep it for ever."""
    predictions: str = Field(default="", pattern=NO_TOPIC)
    """A prediction per instance; "" is off, since it multiplies what is written by 20 at a rate of 5 %."""
    decisions: Topic = "decisions"
    """The audit: enough to replay every decision."""
    dead_letters: Topic = "dead-letters"
    """Records that were refused, with their reason."""
    snapshots: Topic = "snapshots"
    """Compacted; holds the newest snapshot of the model if snapshot.key_file is set."""
    control: Topic = "control"
    """Compacted; orders to running workers, as `streamal budget set` and others give them."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [name for name in self.model_dump().values() if name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"each topic needs a name of its own, but {', '.join(map(repr, twice))} stands twice"
            raise ValueError(msg)
        return self


class Instance(Section):
    """Where in your JSON objects the parts of an instance stand; dotted paths reach into nested objects."""

    id: str = "id"
    """Key of your identifier; "" or an absent key falls back to partition and offset."""
    features: str = "features"
    """Key of the object that holds the features; "" takes the whole record."""
    display: str = "display"
    """Key of what annotators are shown beside the features; never learned from."""
    label: str = ""
    """Key of the label, where instances carry it already (replays, evaluation); "" if they do not."""
    types: dict[str, Literal["number", "string", "boolean"]] = {}
    """Expected types, as {amount = "number"}; a declared feature of another type is refused. Undeclared ones are
    taken as they come.
    """
    max_bytes: int = Field(default=262_144, ge=64, le=262_144)
    """Bytes of a record, more are refused unread. Written anew in a label request, features can become up to four times
    as large, and Kafka by default takes no record above 1 MiB; so this can be lowered but not raised.
    """
    max_features: int = Field(default=1_000, ge=1, le=100_000)
    """Features of an instance, more are refused: a model remembers every name it has ever met."""
    cost: float | str = 1.0
    """What one answer costs, in the unit of the cost limits: a number, or the name of a feature that holds it."""

    @field_validator("cost", mode="before")
    @classmethod
    def _positive(cls, cost: object) -> object:
        cost = number_or_name(cost)
        if cost == "" or (isinstance(cost, int | float) and not cost > 0):
            msg = f"expected a number greater than 0 or the name of a feature, came {cost!r}"
            raise ValueError(msg)
        return cost


class Model(Section):
    """What learns from the answers."""

    kind: Literal[
        "logistic_regression",
        "softmax",
        "gaussian_nb",
        "hoeffding_tree",
        "hoeffding_adaptive_tree",
        "adaptive_forest",
        "knn",
        "text_logistic",
        "linear_regression",
        "hoeffding_tree_regressor",
    ] = "logistic_regression"
    """A preset; logistic_regression had the best mean of three over our six development streams."""
    factory: str = Field(default="", pattern=FACTORY)
    """A function that returns any River pipeline, as "package.module:function"; it takes the place of `kind`."""
    parameters: dict[str, Any] = {}
    """Handed to the preset or the factory by name."""
    classes: tuple[ClassName, ...] = ()
    """The only classes there are, two at least; an answer with another one is refused. [] learns them from the answers.
    """
    scaling: Literal["all", "labelled"] = "all"
    """Whether the presets' scaler sees every instance or, as River by itself would, only those with a label. all:
    .023 kappa better at 5 % labels.
    """

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in classes if classes.count(name) > 1}):
            msg = f"expected different classes, came {repeated[0]!r} more than once; name each of them once"
            raise ValueError(msg)
        if len(classes) == 1:
            msg = f"expected two or more classes, came {classes[0]!r} alone; name the others, or [] to learn all"
            raise ValueError(msg)
        return classes


class Learn(Section):
    """What the model learns beside the answers. It costs the budget nothing, and is never counted as a label."""

    unlabelled_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the instances that nobody is asked about which go to topics.outcomes with their features: for the parts
    of a model.factory that learn without labels, and for self_training. Each costs a record that is kept for ever and
    that every worker folds. The presets need none, since their scaler sees all instances anyhow.
    """
    self_training: float | None = Field(default=None, gt=0.5, lt=1)
    """Let the model learn its own prediction for such an instance as the label (a pseudo-label), if it gives it at
    least this probability. Not set: never. In our trials it lost more than it gained; see the README.
    """

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.self_training is not None and not self.unlabelled_share:
            msg = "self_training learns from a share of the instances: set unlabelled_share as well, or leave it out"
            raise ValueError(msg)
        return self


class Limit(Section):
    """At most so many labels, or so much money, per period."""

    count: int | None = Field(default=None, ge=1)
    """Labels per period."""
    cost: float | None = Field(default=None, gt=0)
    """Sum of instance.cost per period, once for each answer that is asked for."""
    per: Duration = Field(default=86400.0, gt=0)
    """The period, on the records' timestamps; a day if it is left out."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.count is None) == (self.cost is None):
            msg = 'a limit needs exactly one of count and cost, for instance {count = 500, per = "1d"}'
            raise ValueError(msg)
        return self


class Budget(Section):
    """What labels may cost. Absolute numbers are for the whole stream and are dealt out to the partitions."""

    rate: float = Field(default=0.05, gt=0, le=1)
    """Labels per instance, as a share: the bound that always holds. More learns faster and keeps more annotators
    busy; 0.05 is the middle of the rates the default strategy was measured at (1 to 20 %).
    """
    burst: float | None = Field(default=None, ge=3)
    """How much unused allowance is kept, in labels. More saves quiet times up for busy ones, and lets more
    questions come at once. Not set: 25 per partition; 3 per partition is the least.
    """
    cold_start_loan: int = Field(default=20, ge=0, le=100_000)
    """Labels that may be asked for ahead of the allowance while the model knows little: the first at once, the last
    when the rate has caught up with them. 0 makes the bound strict from the first instance on.
    """
    limits: tuple[Limit, ...] = ()
    """Further bounds, as [{count = 500, per = "1d"}, {cost = 40.0, per = "1d"}]: what your annotators can manage,
    or what you can pay. All of them hold; `per` is a day if it is left out.
    """
    max_pending: int = Field(default=10_000, ge=1, le=10_000_000)
    """Requests that may wait for an answer; beyond, none is asked. More takes memory: each keeps its features."""
    expiry: Duration = Field(default=7 * 86400.0, ge=0.0)
    """How long an answer is waited for; a later one is refused. "0s" waits for ever. 7d outlasts a week-end."""
    refund_expired: bool = False
    """Give the label back to the budget when a request expires; off, since it may cost an annotator's time."""


class Strategy(Section):
    """Which labels to ask for."""

    name: Literal[
        "class_conditional",
        "random",
        "periodic",
        "fixed_uncertainty",
        "variable_uncertainty",
        "randomised_uncertainty",
        "split",
        "selective_sampling",
        "importance_weighted",
        "class_balanced",
        "bandit",
        "reinforced",
        "density",
        "cognitive",
        "coreset",
        "pool",
        "synthesis",
        "duo",
        "volume",
        "probabilistic",
        "committee",
        "variance",
        "leverage",
        "improvement",
    ] = "class_conditional"
    """The query strategy; what each reached on our development streams is in 'What the labels bought'."""
    explore: float = Field(default=0.05, ge=0.001, le=1)
    """Share of the labels asked for at random, whatever the model thinks: they make the accuracy estimate honest
    and find what the model does not know. More: narrower intervals, fewer labels where they teach most. While most
    requests wait for an answer, more are drawn at random, up to all, since a model that nobody teaches cannot choose
    well; so a first backlog is mostly `exploration`.
    """
    window: int = Field(default=512, ge=8, le=100_000)
    """Past instances of the same predicted class a utility is compared with. Less follows changes faster, more is
    steadier and tells low rates apart: a rank among 512 can be as fine as 0.2 %. 128 to 512 are equal within noise.
    """
    duplicate_digits: int = Field(default=4, ge=0, le=15)
    """While an instance waits for its answer, the strategy chooses none that is the same to so many significant digits
    of each fraction, and otherwise equal, codes in whole numbers included; chance still may. More: only what is closer
    counts as the same. 0: off.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the coin; the same seed and stream give the same decisions."""
    parameters: dict[str, Any] = {}
    """The strategy's own."""


class Annotation(Section):
    """How the annotators' answers are put together."""

    answers_per_request: int = Field(default=1, ge=1, le=9)
    """Annotators who have to answer each request; the model learns once, what most of them say. Each request costs so
    many answers: cost limits count them all, budget.rate and everything else counts requests.
    """


class Drift(Section):
    """How a change of the stream is noticed, and what is done about it; told in log, metrics and /api/v1/status."""

    errors: Literal["answers", "exploration", "off"] = "answers"
    """Whose errors are watched. answers: all, which are those on hard instances, but rise when the stream changes.
    exploration: only those that chance asked about, unbiased but few: 25 in 10,000 instances by default, too few to
    notice most changes in time.
    """
    utilities: bool = True
    """Watch the mean utility on each partition: it needs no answers, and also moves while the model still learns fast.
    """
    features: bool = False
    """Watch the means of the numeric features on each partition, of the first 100 that come: every 1,000 instances,
    once a second at most. Off, since seasons and trends are told as well; their moments go to topics.outcomes, as they
    do anyhow for models that scale.
    """
    adaptation: Literal["passive", "active"] = "passive"
    """passive: the model learns on. active: from a warning on, a second one learns beside it from nothing, and takes
    its place after a drift of the errors, once it errs no more; a gain where the old answers no longer hold.
    """

    @model_validator(mode="after")
    def _heard(self) -> Self:
        if self.adaptation == "active" and self.errors == "off":
            msg = 'adaptation = "active" goes by the errors: set errors to "answers", or adaptation to "passive"'
            raise ValueError(msg)
        return self


class Delivery(Section):
    """What a crash may repeat."""

    mode: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """exactly_once: one transaction per interval, nothing is ever repeated. at_least_once: lower latency, and a
    crash may repeat requests, with the same request_id.
    """
    commit_interval: Duration = Field(default=0.1, ge=0.005, le=60.0)
    """How much of the stream one commit covers. Less: requests appear sooner; more: less overhead. A commit per
    poll would cost a third of the throughput.
    """


class Snapshot(Section):
    """Signed copies of the model that make a restart short; without one the model is folded from the outcomes."""

    directory: str = ""
    """Where they are kept; "" is beside the embedded log, or ./.streamal with Kafka. A persistent volume helps."""
    every_outcomes: int = Field(default=1_000, ge=1, le=10_000_000)
    """Outcomes between two; both this and `every` must have passed."""
    every: Duration = Field(default=60.0, ge=1.0, le=86400.0)
    """Time between two. Less shortens restarts, more spares the disk: large forests take many MB."""
    key_file: str = ""
    """File with the key they are signed with, at least 32 bytes, the same for all workers: then they share snapshots
    in topics.snapshots. "" makes one in the directory, and shares nothing.
    """


class Http(Section):
    """Health, metrics and status for probes and people."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; "0.0.0.0" for all. Anything but loopback needs a token."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 is off."""
    token: SecretStr | None = None
    """The token callers must send (Authorization: Bearer)."""
    token_file: str = ""
    """A file that holds that token. /healthz, /readyz and /metrics stay open for probes and Prometheus."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.port and not is_loopback(self.host) and not (self.token or self.token_file):
            msg = (
                f"host {self.host!r} can be reached from other machines and needs token_file (or {PREFIX}HTTP__TOKEN); "
                'without one, use "127.0.0.1"'
            )
            raise ValueError(msg)
        return self

    def reveal_token(self) -> str:
        """Return the bearer token, or "" if there is none.

        Raises:
            ConfigError: `token_file` cannot be read or is empty.
        """
        return _reveal("http.token_file", self.token, self.token_file)


class Log(Section):
    """What the process writes to its standard error; never values of features, labels or secrets."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe level that is written."""
    format: Literal["json", "text"] = "json"
    """json for collectors, one object a line; text for people."""


class Settings(BaseSettings):
    """Every setting. Making one by hand reads the environment too, which wins; see `load` for the file."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, env_prefix=PREFIX, env_nested_delimiter="__"
    )

    pipeline: str = Field(default="streamal", min_length=1, max_length=64)
    """Name of this stream in metrics and logs; give each stream its own."""
    transport: Transport = Transport()
    topics: Topics = Topics()
    instance: Instance = Instance()
    model: Model = Model()
    learn: Learn = Learn()
    budget: Budget = Budget()
    strategy: Strategy = Strategy()
    annotation: Annotation = Annotation()
    drift: Drift = Drift()
    delivery: Delivery = Delivery()
    snapshot: Snapshot = Snapshot()
    http: Http = Http()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file gave."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _outlive(self) -> Self:
        kept, expiry = self.transport.retention, self.budget.expiry
        if self.transport.kind == "embedded" and 0 < kept < (expiry or float("inf")):
            msg = (
                f"transport.retention ({format_duration(kept)}) must not be shorter than budget.expiry "
                f"({format_duration(expiry) if expiry else 'for ever'}): requests would vanish while they wait"
            )
            raise ValueError(msg)
        return self

    def fingerprint(self) -> str:
        """Return a short hash of all settings but secrets: equal on workers that are configured alike."""
        shown = self.model_dump(mode="json", exclude={"transport": {"slot": True}})
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:12]


def load(path: Path | None) -> Settings:
    """Return the settings of a TOML file (None: the defaults) under those of the environment.

    Raises:
        ConfigError: with a line for each fault: which key, what was expected, what came, from where.
    """
    found = {} if path is None else _read(path)
    _refuse_strangers()
    try:
        return Settings(**found)
    except ValidationError as error:
        lines = [_explain(fault, path) for fault in error.errors(include_url=False)]
        msg = "\n".join(["the configuration is not valid:", *(f"  {line}" for line in lines)])
        raise ConfigError(msg) from None
    except SettingsError as error:
        raise ConfigError(_unread(error)) from None


def revised(settings: Settings, section: str, values: Mapping[str, Any]) -> Settings:
    """Return settings with some values of a section replaced, validated as those of a file are.

    Raises:
        ConfigError: a value is out of its bounds.
    """
    if not values:
        return settings
    found: BaseModel = getattr(settings, section)
    try:
        changed = type(found).model_validate(found.model_dump() | dict(values))
    except ValidationError as error:
        lines = [_explain(fault | {"loc": (section, *fault["loc"])}, None) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None
    return settings.model_copy(update={section: changed})


def example_toml() -> str:
    """Return the annotated file of all defaults."""
    head = [
        "# Every setting with its default. A key that is left out keeps its default. The environment wins over",
        f"# this file: {PREFIX}BUDGET__RATE=0.1 sets rate in [budget]. Durations: 100ms, 6s, 15m, 12h, 7d, or seconds.",
        "",
    ]
    # not Settings(): the environment must not leak into the example
    return "\n".join([*head, *_table((), Settings, Settings.model_construct().model_dump(mode="json"), annotated=True)])


def show_toml(settings: Settings) -> str:
    """Return settings as a file that could be loaded, secrets masked."""
    return "\n".join(_table((), Settings, settings.model_dump(mode="json"), annotated=False)).lstrip("\n")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors and checks."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def toml_value(value: object) -> str:
    r"""Return a value as TOML.

    >>> print(toml_value([{"count": 500, "per": "1d"}, 'a "b"', True, 1e-05]))
    [{count = 500, per = "1d"}, "a \"b\"", true, 1e-05]
    """
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            pairs = (f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items() if item is not None)
            return "{" + ", ".join(pairs) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _table(
    path: tuple[str, ...], section: type[BaseModel], values: Mapping[str, Any], *, annotated: bool
) -> Iterator[str]:
    tables = {name: field for name, field in section.model_fields.items() if _is_table(field)}
    if path:
        yield ""
        if annotated:
            yield from _comment(inspect.getdoc(section) or "")
        yield f"[{'.'.join(path)}]"
    for name, field in section.model_fields.items():
        if name not in tables:
            yield from _entry((*path, name), field, values[name], annotated=annotated)
    for name, field in tables.items():
        assert isinstance(field.annotation, type)
        yield from _table((*path, name), field.annotation, values[name], annotated=annotated)
    if not path:
        yield ""


def _entry(path: tuple[str, ...], field: FieldInfo, value: object, *, annotated: bool) -> Iterator[str]:
    if annotated:
        yield from _comment(f"{field.description} {_bounds(field)}".rstrip())
    if SecretStr in get_args(field.annotation):
        yield f"# {path[-1]}: {'set (hidden)' if value else 'not set'}; only from the environment, {_variable(path)}"
    elif value is None:
        yield f"# {path[-1]} = (not set)"
    else:
        yield f"{path[-1]} = {toml_value(value)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def _bounds(field: FieldInfo) -> str:
    """Return what a field accepts, in brackets: its choices or its bounds."""
    if get_origin(field.annotation) is Literal:
        return f"({', '.join(toml_value(choice) for choice in get_args(field.annotation))})"
    bounds = [
        f"{sign} {format_duration(bound) if _is_duration(field) else bound}"
        for entry in field.metadata
        for name, sign in BOUNDS.items()
        if (bound := getattr(entry, name, None)) is not None
    ]
    return f"({', '.join(bounds)})" if bounds else ""


def _is_duration(field: FieldInfo) -> bool:
    return any(isinstance(entry, PlainSerializer) for entry in field.metadata)


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _reveal(key: str, secret: SecretStr | None, path: str) -> str:
    if secret or not path:
        return secret.get_secret_value() if secret else ""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{key}: expected a readable text file, came {path!r} ({type(error).__name__}); check its mode"
        raise ConfigError(msg) from None
    if not text:
        msg = f"{key}: expected a secret in {path!r}, but the file is empty"
        raise ConfigError(msg)
    return text


def _read(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{path}: no such file; `streamal config init` writes one with every default"
        raise ConfigError(msg) from None
    except OSError as error:
        msg = f"{path}: expected a readable file, came {type(error).__name__}; check its mode and that it is no folder"
        raise ConfigError(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: expected TOML in UTF-8, came something else: {error}"
        raise ConfigError(msg) from None
    for *section, key in SECRETS:
        if key in _dig(found, section):
            name = ".".join((*section, key))
            msg = f"{name}: secrets do not belong into {path.name}; use {name}_file or {_variable((*section, key))}"
            raise ConfigError(msg)
    return found


def _dig(found: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        inner = found.get(key)
        found = inner if isinstance(inner, Mapping) else {}
    return found


def _variable(path: tuple[str | int, ...]) -> str:
    return PREFIX + "__".join(str(part).upper() for part in path)


def _refuse_strangers() -> None:
    """Refuse variables whose first part names no section; pydantic-settings would overlook them."""
    for variable in sorted(os.environ):
        first = variable.upper().removeprefix(PREFIX).split("__")[0].lower()
        if variable.upper().startswith(PREFIX) and first not in Settings.model_fields:
            msg = f"{variable}: no such setting{_nearest(first, Settings)}"
            raise ConfigError(msg)


def _explain(fault: ErrorDetails, path: Path | None) -> str:
    """Return one line on a fault: key, expectation, what came, from where, and the first sentence on the key."""
    section, field, known = _locate(fault["loc"])
    key = ".".join(map(str, known)) or "the settings"
    if fault["type"] == "extra_forbidden":
        *table, name = map(str, fault["loc"])
        own = (
            f"; parameters of a {table[-1]} stand in [{key}.parameters]" if "parameters" in section.model_fields else ""
        )
        return f"{'.'.join((*table, name))}: no such key{_origin(fault['loc'], path)}{own}{_nearest(name, section)}"
    if fault["type"] == "value_error":
        text, hint = fault["msg"].removeprefix("Value error, "), ""
    else:
        secret = "security" in known or "token" in known
        came = "" if secret else f", came {_shown(fault['input'], field)}"
        text, hint = f"expected {_expected(fault, field)}{came}", "" if secret else _cure(fault)
    said = f"{key}: {text}{_origin(known, path)}{hint}"
    purpose = " ".join(field.description.split()).split(". ")[0] if field and field.description else ""
    return f"{said}{' ' if said.endswith('?') else '. '}{purpose}".rstrip(". ")


def _expected(fault: ErrorDetails, field: FieldInfo | None) -> str:
    """Return what a field takes, in the words of the file rather than of Python."""
    match fault["type"], fault.get("ctx", {}):
        case kind, _ if kind in EXPECTED:
            example = field.default if field and kind.startswith(("float", "int")) else None
            return EXPECTED[kind] + (f" such as {toml_value(example)}" if isinstance(example, int | float) else "")
        case "literal_error", {"expected": choices}:
            return f"one of {choices}" if " or " in choices else choices
        case "string_pattern_mismatch", {"pattern": pattern}:
            return FORMS[pattern]
        case "string_too_short" | "too_short", {"min_length": least}:
            return f"text of {least} or more characters"
        case "string_too_long" | "too_long", {"max_length": most}:
            return f"text of {most} or fewer characters"
    text = fault["msg"].removeprefix("Input should be ")
    bound, number = re.search(r"[\d.]+$", text), "a duration" if field and _is_duration(field) else "a number"
    if bound and number == "a duration":
        text = text[: bound.start()] + format_duration(float(bound[0]))
    return f"{number} {text}" if bound else text


def _shown(given: object, field: FieldInfo | None) -> str:
    if field and _is_duration(field) and isinstance(given, int | float):
        return format_duration(given)
    return textwrap.shorten(repr(given), 60)


def _cure(fault: ErrorDetails) -> str:
    """Return what was probably meant, or nothing."""
    if fault["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        close = get_close_matches(str(fault["input"]), choices, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""
    share = PERCENT.fullmatch(str(fault["input"]).strip())
    return f"; {share[0]} is written {round(float(share[1]) / 100, 9):g}" if share else ""


def _locate(loc: tuple[str | int, ...]) -> tuple[type[BaseModel], FieldInfo | None, tuple[str | int, ...]]:
    """Follow a location as far as it names settings; what pydantic adds for unions and functions is left off."""
    section: type[BaseModel] = Settings
    field: FieldInfo | None = None
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            continue
        if part not in section.model_fields:
            return section, field, loc[:depth]
        field = section.model_fields[part]
        inner = [field.annotation, *get_args(field.annotation)]
        section = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
    return section, field, loc


def _nearest(key: str, section: type[BaseModel]) -> str:
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and key in getattr(field.annotation, "model_fields", {}):
            return f"; [{name}] has a key of that name"
    if close := get_close_matches(key, section.model_fields, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {', '.join(section.model_fields)}"


def _unread(error: SettingsError) -> str:
    """Say which variable holds no JSON; pydantic-settings names only the section, so it is found by its value."""
    cause = error.__cause__
    if not isinstance(cause, json.JSONDecodeError):
        return f"{error}; {AS_JSON}"
    given = sorted(os.environ.items())
    names = [name for name, value in given if name.upper().startswith(PREFIX) and value == cause.doc]
    return f"{', '.join(names)}: {AS_JSON}; came something else ({cause.msg}, column {cause.colno})"


def _origin(loc: tuple[str | int, ...], path: Path | None) -> str:
    names = {name.upper() for name in os.environ}
    variables = [_variable(loc[: depth + 1]) for depth in range(len(loc))]
    if named := [name for name in variables if name in names]:
        return f" (from {named[-1]})"
    return f" (in {path.name})" if path and loc else ""
