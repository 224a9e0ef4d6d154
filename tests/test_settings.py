from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from streamal import decoding
from streamal.errors import ConfigError
from streamal.learning.presets import PRESETS
from streamal.selection.registry import STRATEGIES
from streamal.settings import (
    FORMS,
    Budget,
    Model,
    Settings,
    Strategy,
    example_toml,
    format_duration,
    json_schema,
    load,
    parse_duration,
    show_toml,
    toml_value,
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("STREAMAL__")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "streamal.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return str(caught.value)


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, (*path, name))
        else:
            yield (*path, name)


def test_without_a_file_the_defaults_hold() -> None:
    settings = load(None)
    assert (settings.budget.rate, settings.budget.burst, settings.budget.cold_start_loan) == (0.05, None, 20)
    assert (settings.transport.kind, settings.strategy.name, settings.http.port) == (
        "embedded",
        "class_conditional",
        8080,
    )
    assert (settings.delivery.commit_interval, settings.budget.expiry) == (0.1, 604800.0)


def test_defaults_agree_with_the_wire() -> None:
    instance = load(None).instance
    wire = decoding.InstanceFormat()
    names = ("id", "features", "display", "label", "types", "cost", "max_bytes", "max_features")
    assert {name: getattr(instance, name) for name in names} == {name: getattr(wire, name) for name in names}


def test_the_example_holds_every_key_and_loads_as_the_defaults(tmp_path: Path) -> None:
    text = example_toml()
    assert load(write(tmp_path, text)) == load(None)
    found = tomllib.loads(text)
    for *section, key in leaves(Settings):
        table = found
        for name in section:
            table = table[name]
        assert key in table or f"# {key}" in text, f"{section} {key}"


def test_every_setting_is_described() -> None:
    bare = [path for path in leaves(Settings) if not describe(path)]
    assert bare == []


def describe(path: tuple[str, ...]) -> str | None:
    model: type[BaseModel] = Settings
    for name in path[:-1]:
        inner = model.model_fields[name].annotation
        assert isinstance(inner, type)
        model = inner
    return model.model_fields[path[-1]].description


def test_the_environment_does_not_leak_into_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = example_toml()
    monkeypatch.setenv("STREAMAL__BUDGET__RATE", "0.5")
    assert example_toml() == plain


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAL__BUDGET__RATE", "0.2")
    monkeypatch.setenv("STREAMAL__BUDGET__LIMITS", '[{"count": 500, "per": "1h"}]')
    monkeypatch.setenv("STREAMAL__INSTANCE__COST", "2.5")
    monkeypatch.setenv("STREAMAL__TRANSPORT__SLOT", "3")
    settings = load(write(tmp_path, "[budget]\nrate = 0.1\nmax_pending = 7\n"))
    assert (settings.budget.rate, settings.budget.max_pending) == (0.2, 7)
    assert (settings.budget.limits[0].count, settings.budget.limits[0].per) == (500, 3600.0)
    assert (settings.instance.cost, settings.transport.slot) == (2.5, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[budget]\nrtae = 0.1", ["budget.rtae: no such key", "did you mean 'rate'?", "streamal.toml"]),
        ("rate = 0.1", ["rate: no such key", "[budget] has a key of that name"]),
        ("[bugdet]\nrate = 0.1", ["bugdet: no such key", "did you mean 'budget'?"]),
        ("[budget]\nrate = 5", ["budget.rate: expected a number less than or equal to 1, came 5", "as a share"]),
        ("[budget]\nrate = 0", ["budget.rate", "greater than 0"]),
        (
            "[budget]\nrate = '5%'",
            ["expected a number such as 0.05, came '5%' (in streamal.toml); 5% is written 0.05. "],
        ),
        ("[budget]\nrate = '2.5 %'", ["2.5 % is written 0.025"]),
        ("[budget]\nrate = '0,05'", ["expected a number such as 0.05, came '0,05' (in streamal.toml). Labels per"]),
        ("[budget]\nmax_pending = 1.5", ["expected a whole number such as 10000, came 1.5"]),
        ("[budget]\nburst = 'much'", ["budget.burst: expected a number, came 'much'"]),
        ("[budget]\nrefund_expired = 'maybe'", ["expected true or false, came 'maybe'"]),
        ("[budget]\nlimits = 500", ["budget.limits: expected a list in brackets, came 500"]),
        ("[budget]\nlimits = [500]", ["budget.limits.0: expected a table, as {name = value}, came 500"]),
        ("budget = 3", ["budget: expected a table, as {name = value}, came 3"]),
        ("[model]\nparameters = 3", ["model.parameters: expected a table, as {name = value}, came 3"]),
        ("[transport]\nsession_timeout = '10m'", ["expected a duration less than or equal to 5m, came 10m"]),
        ("[transport]\npath = ''", ["transport.path: expected text of 1 or more characters, came ''"]),
        ("pipeline = 3", ["pipeline: expected text in quotes, came 3"]),
        ("[budget]\nrate = nan", ["budget.rate"]),
        ("[budget]\nrate = true", ["budget.rate", "no boolean"]),
        ("[budget]\nexpiry = 'soon'", ["budget.expiry", "'soon'", '"7d"']),
        ("[budget]\nlimits = [{count = 1, cost = 2.0}]", ["budget.limits.0", "exactly one of count and cost"]),
        ("[[budget.limits]]\nper = '1d'", ["budget.limits.0", "exactly one of count and cost"]),
        ("[learn]\nunlabelled_share = 1.5", ["learn.unlabelled_share", "less than or equal to 1"]),
        ("[learn]\nunlabelled_share = 0.1\nself_training = 0.5", ["learn.self_training", "greater than 0.5"]),
        ("[learn]\nself_training = 0.9", ["learn", "set unlabelled_share as well"]),
        ("[transport]\nkind = 'kafka'", ["transport", "needs bootstrap_servers"]),
        (
            "[transport]\nkind = 'kafak'",
            ["expected one of 'embedded' or 'kafka', came 'kafak'", "did you mean 'kafka'? "],
        ),
        ("[transport]\nclient = 'confluent'", ["transport.client: expected 'kafka-python', came 'confluent'"]),
        (
            "[model]\nkind = 'gausian_nb'",
            [
                "model.kind: expected one of 'logistic_regression', ",
                "(in streamal.toml); did you mean 'gaussian_nb'? A",
            ],
        ),
        (
            "[transport.security]\nprotocol = 'SASL_SSL'",
            ["transport.security", "mechanism, username and password_file", "token_file"],
        ),
        (
            "[transport.security]\nprotocol = 'SASL_SSL'\nmechanism = 'OAUTHBEARER'",
            ["mechanism OAUTHBEARER and token_file belong together"],
        ),
        (
            "[transport.security]\nprotocol = 'SASL_SSL'\nmechanism = 'PLAIN'\nusername = 'u'",
            ["needs mechanism, username and password_file"],
        ),
        ("[transport.security]\nmechanism = 'PLAIN'", ["PLAINTEXT does not log in", "set SASL_SSL"]),
        ("[transport.security]\nca_file = 'ca.pem'", ["PLAINTEXT uses no certificates", "set SSL or SASL_SSL"]),
        ("[transport.security]\ncert_file = 'c.pem'", ["cert_file and key_file belong together"]),
        ("[transport]\nretention = '1d'", ["transport.retention (1d)", "budget.expiry (7d)"]),
        ("[transport]\nretention = '9d'\n[budget]\nexpiry = '0s'", ["transport.retention (9d)", "for ever"]),
        ("[topics]\nanswers = 'outcomes'", ["topics", "'outcomes' stands twice"]),
        (
            "[topics]\nanswers = 'a b'",
            ["topics.answers: expected 1 to 249 letters, digits, '.', '_' or '-', came 'a b'"],
        ),
        ("[instance]\ncost = -1", ["instance.cost", "greater than 0 or the name of a feature"]),
        ("[instance]\nmax_bytes = 262145", ["instance.max_bytes", "262144"]),
        ("[instance]\ntypes = {a = 'numbr'}", ["instance.types", "'numbr'"]),
        ("[model]\nclasses = [true]", ["model.classes"]),
        (
            "[model]\nclasses = ['a']",
            ["model.classes: expected two or more classes, came 'a' alone; name the others, or []"],
        ),
        ("[model]\nclasses = ['b', 1, 'b']", ["model.classes: expected different classes, came 'b' more than once"]),
        ("[model]\nclasses = ['']", ["model.classes.0: expected text of 1 or more characters, came ''"]),
        ("[model]\nfactory = 'nothing'", ["model.factory: expected \"package.module:function\", came 'nothing'"]),
        ("[drift]\nadaptation = 'active'\nerrors = 'off'", ["drift: adaptation", "goes by the errors", "passive"]),
        ("[http]\nhost = '0.0.0.0'", ["http", "token_file", "127.0.0.1"]),
        ("[http]\nhost = 'example.org'", ["http", "token_file"]),
        ("[http]\nport = 99999", ["http.port", "65535"]),
        ("budget = ", ["expected TOML in UTF-8", "streamal.toml"]),
    ],
)
def test_a_wrong_setting_is_explained(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert [part for part in parts if part not in message] == []


def fields(model: type[BaseModel]) -> Iterator[FieldInfo]:
    """Yield every field of the file, those of tables in lists too."""
    for field in model.model_fields.values():
        yield field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind)


def test_every_pattern_has_words() -> None:
    found = [getattr(entry, "pattern", None) for field in fields(Settings) for entry in field.metadata]
    assert {pattern for pattern in found if pattern} == FORMS.keys()


@pytest.mark.parametrize("value", ["x", 3, 1.5, True, [], {}, -1, "1970-01-01"])
def test_no_fault_is_told_in_words_of_pydantic(tmp_path: Path, value: object) -> None:
    for section, *key in [path for path in leaves(Settings) if len(path) > 1]:
        text = f"[{'.'.join((section, *key[:-1]))}]\n{key[-1]} = {toml_value(value)}"
        with suppress(ConfigError):
            load(write(tmp_path, text))
            continue
        found = refusal(tmp_path, text).split(":", 1)[1]
        assert not re.search(r"[Ii]nput|should|valid (number|integer|string|dict|tuple|bool)|parse", found), found


def test_the_models_and_strategies_are_those_there_are() -> None:
    assert get_args(Model.model_fields["kind"].annotation) == tuple(PRESETS)
    assert get_args(Strategy.model_fields["name"].annotation) == tuple(STRATEGIES)


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[budget]\nrate = 5\n[http]\nport = -1")
    assert "budget.rate" in message
    assert "http.port" in message


def test_a_fault_in_the_environment_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAL__STRATEGY__EXPLORE", "7")
    with pytest.raises(ConfigError, match="from STREAMAL__STRATEGY__EXPLORE"):
        load(None)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("STREAMAL__BUGDET__RATE", "0.1", "did you mean 'budget'"),
        ("STREAMAL__BUDGET__RTAE", "0.1", "did you mean 'rate'"),
        ("STREAMAL__BUDGET__LIMITS", "[", "written as JSON"),
        ("STREAMAL__BUDGET__LIMITS", "9" * 5_000, "written as JSON"),
    ],
)
def test_a_wrong_variable_is_no_default(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        load(None)


def test_a_variable_that_is_no_json_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAL__BUDGET__LIMITS", "[{count = 500}]")
    monkeypatch.setenv("STREAMAL__HTTP__TOKEN", "hunter2")
    with pytest.raises(ConfigError) as caught:
        load(None)
    assert str(caught.value) == (
        "STREAMAL__BUDGET__LIMITS: in the environment lists and tables are written as JSON, such as "
        """'[{"count": 500, "per": "1d"}]'; came something else """
        "(Expecting property name enclosed in double quotes, column 3)"
    )
    monkeypatch.delenv("STREAMAL__BUDGET__LIMITS")
    monkeypatch.setenv("STREAMAL__HTTP", "token = 'hunter2'")
    with pytest.raises(ConfigError, match="STREAMAL__HTTP: in the environment") as caught:
        load(None)
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="streamal config init"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="readable file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[http]\ntoken = 'hunter2'", "[transport.security]\npassword = 'hunter2'", "[http]\ntoken = {x = 'hunter2'}"],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, text)
    assert "secrets do not belong" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("text", ["[transport]\nsecurity = 'hunter2'", "[transport.security]\npasswrd = 'hunter2'"])
def test_a_misplaced_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    assert "hunter2" not in refusal(tmp_path, text)


def test_secrets_come_from_files_or_the_environment_and_stay_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    path = write(tmp_path, f"[http]\nhost = '0.0.0.0'\ntoken_file = {toml_value(str(secret))}\n")
    assert load(path).http.reveal_token() == "from-file"
    monkeypatch.setenv("STREAMAL__HTTP__TOKEN", "hunter2")
    monkeypatch.setenv("STREAMAL__TRANSPORT__SECURITY__PASSWORD", "hunter3")
    settings = load(path)
    assert (settings.http.reveal_token(), settings.transport.security.reveal_password()) == ("hunter2", "hunter3")
    for text in (show_toml(settings), repr(settings), settings.model_dump_json()):
        assert "hunter" not in text
    assert "# token: set (hidden)" in show_toml(settings)


def test_a_token_is_read_each_time_it_is_asked_for(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2\n")
    lines = ["[transport.security]", 'protocol = "SASL_SSL"', 'mechanism = "OAUTHBEARER"']
    settings = load(write(tmp_path, "\n".join([*lines, f"token_file = {toml_value(str(token))}"])))
    assert settings.transport.security.reveal_token() == "hunter2"
    token.write_text("hunter3\n")
    assert settings.transport.security.reveal_token() == "hunter3"
    assert "hunter" not in show_toml(settings) + repr(settings) + settings.model_dump_json()
    token.unlink()
    with pytest.raises(ConfigError, match=r"transport\.security\.token_file"):
        settings.transport.security.reveal_token()


def test_an_unreadable_or_empty_secret_is_an_error(tmp_path: Path) -> None:
    lost = load(write(tmp_path, f"[http]\ntoken_file = {toml_value(str(tmp_path / 'none'))}"))
    with pytest.raises(ConfigError, match=r"http\.token_file"):
        lost.http.reveal_token()
    (tmp_path / "empty").write_text("\n")
    empty = load(write(tmp_path, f"[http]\ntoken_file = {toml_value(str(tmp_path / 'empty'))}"))
    with pytest.raises(ConfigError, match="empty"):
        empty.http.reveal_token()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_no_token(tmp_path: Path, host: str) -> None:
    assert load(write(tmp_path, f"[http]\nhost = '{host}'")).http.reveal_token() == ""


def test_a_port_of_zero_needs_no_token(tmp_path: Path) -> None:
    assert load(write(tmp_path, "[http]\nhost = '0.0.0.0'\nport = 0")).http.port == 0


def test_what_is_shown_loads_as_the_same(tmp_path: Path) -> None:
    text = """
    pipeline = "fraud"
    [budget]
    burst = 60
    expiry = "90s"
    [[budget.limits]]
    count = 500
    [[budget.limits]]
    cost = 40.0
    per = "1h"
    [model]
    classes = [0, 1, "other"]
    parameters = {"learning rate" = 0.1, nested = {a = [1, 2]}}
    [instance]
    types = {"a.b" = "number"}
    cost = "minutes"
    """
    settings = load(write(tmp_path, text))
    assert settings.model.classes == ("0", "1", "other")
    assert load(write(tmp_path, show_toml(settings))) == settings


def test_settings_are_frozen() -> None:
    settings = load(None)
    with pytest.raises(ValidationError):
        settings.budget.rate = 1.0
    with pytest.raises(ValidationError):
        settings.budget = Budget(rate=1.0)


def test_the_fingerprint_is_that_of_the_pipeline_and_not_of_the_process() -> None:
    plain = load(None)
    transport = plain.transport.model_copy(update={"slot": 4})
    assert plain.model_copy(update={"transport": transport}).fingerprint() == plain.fingerprint()
    assert plain.model_copy(update={"budget": Budget(rate=0.1)}).fingerprint() != plain.fingerprint()


def test_the_schema_knows_every_section_and_bound() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Settings.model_fields)
    rate = schema["$defs"]["Budget"]["properties"]["rate"]
    assert (rate["exclusiveMinimum"], rate["maximum"], rate["default"]) == (0, 1, 0.05)


@given(st.integers(0, 10**10))
def test_durations_survive_being_shown(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


SCALAR = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(VALUE)
def test_written_values_are_read_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}
