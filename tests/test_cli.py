"""Every command as its user runs it: on a real log, with what it prints, writes, and ends with."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from served import PARTITIONS, RATE, ROWS, feed, requests_of, serve_stream, settings_in, until, working, write_config
from specimens import stream

from streamal import assemble, errors
from streamal.cli import looking, main, wording
from streamal.cli.looking import TOPICS
from streamal.evaluate.agreement import Agreement, Annotator
from streamal.messages import LabelRequest, decode_outcome
from streamal.service.producing import produce
from streamal.settings import Settings, example_toml, load, revised
from streamal.transport.log import TopicPartition

JSON_KEYS = (
    "instances asked allowed max_overshoot spent_ratio accuracy kappa macro_f1 balanced_accuracy log_loss "
    "strategy model rate seed delay"
)
PNG = b"\x89PNG\r\n\x1a\n"
WIDTH = 80


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("STREAMAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def call(*arguments: str | Path, code: int = 0, **options: Any) -> Result:
    """Run a command in this process and check how it ends: by exit, never by a traceback."""
    result = CliRunner().invoke(main, list(map(str, arguments)), **options)
    assert result.exit_code == code, f"{arguments} ended with {result.exit_code}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    folder = tmp_path_factory.mktemp("served")
    settings = serve_stream(folder)
    return write_config(settings, folder), settings


@pytest.fixture(scope="module")
def requests(served: tuple[Path, Settings]) -> list[LabelRequest]:
    log = assemble.open_log(served[1])
    found = requests_of(log)
    log.close()
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "stream.csv"
    random = Random(1)
    rows = []
    for _ in range(400):
        x, y = random.gauss(0, 1), random.gauss(0, 1)
        rows.append(f"{x},{y},{random.choice('ab')},{'yes' if x + y > 0.3 else 'no'}")
    path.write_text("\n".join(["x,y,colour,target", *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda found: "-".join(found) if isinstance(found, tuple) else ""
)
def test_help_fits_the_terminal_and_its_examples_are_real(path: tuple[str, ...], command: click.Command) -> None:
    text = call(*path, "--help").stdout
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "..." not in text.replace("[ARGS]...", "")
    shown = [line.strip() for line in text.split("Examples:")[1].splitlines() if line.strip()]
    assert shown
    for example in shown:
        words = shlex.split(example.split(" > ")[0])
        while "=" in words[0]:
            words.pop(0)
        assert words[: len(path) + 1] == ["streamal", *path]
        known_options(words[1:], main)


def known_options(words: Sequence[str], command: click.Command) -> None:
    """Check that each option of an example exists."""
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_programs_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom streamal.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("Usage:")
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    assert loaded.isdisjoint(
        {"river", "kafka", "pydantic", "pydantic_settings", "rich", "orjson", "starlette", "numpy"}
    )


def test_the_version_is_that_of_the_package() -> None:
    from streamal import __version__

    assert __version__ in call("--version").stdout


def test_topics_are_created_once(tmp_path: Path) -> None:
    planned = call("topics", "create", "--dry-run").stdout
    assert "instances: 4 partitions" in planned
    assert "outcomes: 1 partition\n" in planned
    assert not (tmp_path / "streamal.db").exists()
    made = call("topics", "create").stdout
    assert "instances" in made
    assert "outcomes" in made
    assert (tmp_path / "streamal.db").exists()
    assert call("topics", "create").stdout == "all topics are there\n"


def test_topics_are_described(served: tuple[Path, Settings]) -> None:
    text = call("topics", "describe", "-c", served[0]).stdout
    [line] = [line for line in text.splitlines() if line.startswith("instances")]
    each = ROWS // PARTITIONS
    assert line.split() == ["instances", str(PARTITIONS), f"{ROWS + 1}", f"{each + 1}", f"{each}"]


@pytest.mark.parametrize("command", ["status", "tail instances", "explain 0-1", "answer", "topics describe"])
def test_looking_makes_no_log(tmp_path: Path, command: str) -> None:
    result = call(*command.split(), code=errors.TransportError.exit_code)
    assert "streamal.db: there is no log yet" in result.stderr
    assert not (tmp_path / "streamal.db").exists()


def test_a_dry_run_starts_nothing(tmp_path: Path, served: tuple[Path, Settings]) -> None:
    text = call("run", "--dry-run").stdout
    assert "streamal.db, which does not exist yet" in text
    assert "strategy: class_conditional on logistic_regression (classification)" in text
    assert not (tmp_path / "streamal.db").exists()
    text = call("run", "--dry-run", "-c", served[0]).stdout
    assert f"topic predictions: {PARTITIONS} partitions" in text
    assert f"budget: {RATE} labels per instance" in text


def test_a_config_is_written_checked_and_shown(tmp_path: Path) -> None:
    call("config", "init")
    path = tmp_path / "streamal.toml"
    assert path.read_text(encoding="utf-8") == example_toml()
    assert "exists" in call("config", "init", code=1).stderr
    path.write_text("[budget]\nrate = 0.1\n", encoding="utf-8")
    assert call("config", "check").stdout.startswith("streamal.toml is valid.\n")
    assert "rate = 0.1\n" in call("config", "show").stdout
    call("config", "init", "--force")
    assert load(path) == load(None)


def test_what_is_shown_can_be_loaded_and_hides_secrets(tmp_path: Path) -> None:
    secrets = {"STREAMAL__HTTP__TOKEN": "hunter2", "STREAMAL__TRANSPORT__SECURITY__PASSWORD": "hunter3"}
    text = call("config", "show", env=secrets).stdout
    assert "hunter" not in text
    assert text.count("set (hidden)") == 2
    (tmp_path / "streamal.toml").write_text(text, encoding="utf-8")
    call("config", "check")


def test_the_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(call("config", "schema").stdout)
    assert {"transport", "budget", "strategy"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ("[budget]\nrtae = 0.1", 2, ["budget.rtae", "did you mean 'rate'?", "streamal.toml"]),
        ("[strategy]\nname = 'randm'", 2, ["came 'randm' (in ", "did you mean 'random'?"]),
        ("[strategy]\nname = 'split'\nparameters = {spil = 1}", 2, ["strategy.parameters.spil", "It takes: spill"]),
        (
            "[strategy]\nstep = 0.1",
            2,
            ["strategy.step: no such key (in ", "of a strategy stand in [strategy.parameters]"],
        ),
        ("[strategy]\npool_window = 9", 2, ["stand in [strategy.parameters]; did you mean 'window'?"]),
        ("[model]\nl2 = 0.1", 2, ["model.l2: no such key (in ", "parameters of a model stand in [model.parameters]"]),
        (
            "[model]\nkind = 'gausian_nb'",
            2,
            ["model.kind: expected one of 'logistic_regression', ", "(in streamal.toml); did you mean 'gaussian_nb'?"],
        ),
        ("[model]\nparameters = {l3 = 1}", 2, ["model.parameters: logistic_regression has no parameter 'l3'"]),
        (
            "[model]\nkind = 'linear_regression'",
            2,
            ["'class_conditional' needs class probabilities", "random, periodic"],
        ),
        (
            "[model]\nkind = 'linear_regression'\nclasses = ['ok', 'fraud']\n[strategy]\nname = 'random'",
            2,
            ["model.classes lists", "linear_regression learns numbers", "leave it out, or choose a classifier"],
        ),
        ("[model]\nfactory = 'no.where:build'", 8, ["cannot be imported"]),
        (
            "[model]\nfactory = 'river.naive_bayes:GaussianNB'\nparameters = {depth = 1}",
            2,
            ["model.parameters: model.factory 'river.naive_bayes:GaussianNB' takes none, came depth"],
        ),
        ("[budget]\nburst = 5", 2, ["burst"]),
        ("rate = 1", 2, ["[budget] has a key of that name"]),
    ],
)
def test_a_wrong_config_is_refused_with_its_cure(tmp_path: Path, text: str, code: int, parts: list[str]) -> None:
    (tmp_path / "streamal.toml").write_text(text, encoding="utf-8")
    message = call("config", "check", code=code).stderr
    assert [part for part in parts if part not in message] == []
    assert "Traceback" not in message


def test_without_a_config_a_check_says_what_was_looked_for(tmp_path: Path) -> None:
    said = " ".join(call("config", "check").stdout.split())
    assert f"There is no streamal.toml in {tmp_path}, and --config names no other file" in said
    assert "`streamal config init` writes one" in said


def test_a_broker_that_cannot_be_reached_ends_with_its_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = f"127.0.0.1:{closed.getsockname()[1]}"
    given = {"kind": "kafka", "bootstrap_servers": place, "start_deadline": 1.0}
    config = write_config(settings_in(tmp_path, transport=given), tmp_path)
    for command in ("status", "run --no-supervisor"):
        said = call(*command.split(), "--config", config, code=3).stderr
        assert f"{place}: Connection refused" in said


def test_a_missing_config_says_how_to_get_one() -> None:
    for command in ("run", "status", "config check"):
        assert "streamal config init" in call(*command.split(), "-c", "none.toml", code=2).stderr


def test_simulate_prints_a_table_that_fits(table: Path) -> None:
    text = call("simulate", table, "--rate", "0.2", "--strategy", "class_conditional", "--strategy", "random").stdout
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "logistic_regression, 400 instances, 80 labels allowed" in text
    assert "The budget held at every prefix." in text
    assert "…" not in text
    rows = [line.split()[0] for line in text.splitlines() if "%" in line and "95 %" not in line]
    assert rows == ["class_conditional", "random", "yes", "no"]


def test_several_seeds_are_averaged_within_the_width(table: Path) -> None:
    names = ["class_conditional", "randomised_uncertainty"]
    chosen = [word for name in names for word in ("--strategy", name)]
    text = call("simulate", table, *chosen, "--seed", "0", "--seed", "1", "--rows", "200").stdout
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    assert text.count("±.") >= 2 * 5
    assert "2 seeds" in text


def test_simulate_prints_one_json_line_a_run(table: Path) -> None:
    chosen = [
        "--strategy",
        "split",
        "--strategy",
        "random",
        "--seed",
        "3",
        "--seed",
        "4",
        "--delay",
        "7",
        "--loan",
        "0",
    ]
    found = lines(call("simulate", table, "--rate", "0.1", *chosen, "--json"))
    assert [(run["strategy"], run["seed"]) for run in found] == [
        ("split", 3),
        ("split", 4),
        ("random", 3),
        ("random", 4),
    ]
    for run in found:
        assert run.keys() >= set(JSON_KEYS.split())
        assert (run["instances"], run["allowed"], run["rate"], run["delay"]) == (400, pytest.approx(40.0), 0.1, 7)
        assert 0 < run["asked"] <= run["allowed"]
        assert run["max_overshoot"] <= 0
    assert found[0] == lines(call("simulate", table, "--rate", "0.1", *chosen, "--json"))[0]


def test_what_is_named_twice_is_simulated_once(table: Path) -> None:
    chosen = "--strategy random --strategy random --seed 3 --seed 3 --model gaussian_nb --model gaussian_nb".split()
    [run] = lines(call("simulate", table, *chosen, "--rows", "50", "--no-control", "--json"))
    assert (run["strategy"], run["seed"], run["model"]) == ("random", 3, "gaussian_nb")


def test_simulate_sets_random_with_as_many_labels_beside_a_strategy(table: Path) -> None:
    text = call("simulate", table, "--rate", "0.2").stdout
    assert "Random sampling with exactly as many labels:" in text
    [run] = lines(call("simulate", table, "--rate", "0.2", "--json"))
    [alone] = lines(call("simulate", table, "--rate", "0.2", "--no-control", "--json"))
    assert alone["random_kappa"] is None
    assert -1.0 <= run["random_kappa"] <= 1.0
    assert run | {"random_kappa": None, "random_accuracy": None} == alone


ADVISED = (
    "--advise --model gaussian_nb --model logistic_regression --strategy class_conditional --strategy random".split()
)


def test_simulate_advises_with_its_evidence(table: Path) -> None:
    text = call("simulate", table, *ADVISED, "--seed", "0", "--seed", "1", "--rate", "0.2").stdout
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    for part in ("200 rows chosen on, 200 judged on", "Advice: ", "too small to tell", "[budget]", "random, as many"):
        assert part in text, part
    [found] = lines(call("simulate", table, *ADVISED, "--seed", "0", "--seed", "1", "--rate", "0.2", "--json"))
    assert f"Advice: {found['strategy']} on {found['model']} at {found['rate']:g} labels per instance." in text
    assert [step["rate"] for step in found["rates"]] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    assert len(found["pairs"]) == 4
    assert found["held_out"]["random"]["asked"] == found["held_out"]["chosen"]["asked"]


def test_simulate_compares_with_what_does_not_share_the_configured_parameters(table: Path) -> None:
    Path("streamal.toml").write_text(
        '[model]\nparameters = {l2 = 0.1}\n[strategy]\nname = "split"\nparameters = {step = 0.02}\n'
    )
    found = lines(call("simulate", table, "--strategy", "split", "--strategy", "random", "--no-control", "--json"))
    assert [run["strategy"] for run in found] == ["split", "random"]
    [other] = lines(call("simulate", table, "--model", "gaussian_nb", "--no-control", "--json"))
    assert (other["model"], other["strategy"]) == ("gaussian_nb", "split")
    [plain] = lines(call("simulate", table, "--model", "logistic_regression", "--no-control", "--json"))
    assert plain == found[0]


def test_what_is_advised_is_the_config_that_was_measured(table: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        f'[model]\nparameters = {{l2 = 0.1}}\nclasses = ["yes", "no", "{"other " * 20}"]\n'
        '[strategy]\nname = "split"\nparameters = {step = 0.02}\nseed = 7\n'
        "[learn]\nunlabelled_share = 0.5\n[http]\nport = 9\n"
    )
    chosen = "--advise --model logistic_regression --strategy split --seed 0 --seed 1 --loan 7".split()
    [found] = lines(call("simulate", table, *chosen, "-c", own, "--json"))
    pasted = tmp_path / "pasted.toml"
    pasted.write_text(found["config"])
    expected = revised(load(own), "budget", {"rate": found["rate"], "cold_start_loan": 7})
    assert load(pasted) == revised(expected, "http", {"port": load(None).http.port})
    text = call("simulate", table, *chosen, "-c", own).stdout
    assert text.split("To use it:\n\n")[1].rstrip() == found["config"]
    [other] = lines(call("simulate", table, *chosen, "--model", "gaussian_nb", "--strategy", "random", "--json"))
    assert "parameters" not in other["config"]


def test_simulate_advises_on_regression(table: Path) -> None:
    chosen = "--label y --model linear_regression --strategy random --advise --seed 0 --seed 1 --json".split()
    [found] = lines(call("simulate", table, *chosen))
    assert found["ceiling"]["mae"]
    assert found["held_out"]["runner_up"] is None


def test_an_annotator_who_is_silent_teaches_nothing(table: Path) -> None:
    [run] = lines(call("simulate", table, "--no-answer", "1", "--json"))
    assert run["asked"] > 0
    assert run["learned"] == 0


def test_simulate_lets_answers_come_out_of_order(table: Path) -> None:
    def learned(*chosen: str) -> int:
        [run] = lines(call("simulate", table, "--rate", "0.2", "--delay", "100", *chosen, "--json"))
        return int(run["learned"])

    constant, lognormal = learned(), learned("--delay-distribution", "lognormal")
    assert lognormal > constant
    assert learned("--delay-distribution", "lognormal") == lognormal


def test_simulate_draws_a_picture(table: Path, tmp_path: Path) -> None:
    chosen = ["--strategy", "class_conditional", "--strategy", "periodic", "--seed", "0", "--seed", "1"]
    text = call("simulate", table, *chosen, "--plot", "curves.png").stdout
    assert "learning curves: curves.png" in text
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(PNG)
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1080, 600]
    assert len(content) > 10_000


def test_with_json_only_json_is_on_the_output(table: Path) -> None:
    result = call("simulate", table, "--json", "--plot", "curves.png", "--rows", "50")
    assert len(lines(result)) == 1
    assert "curves.png" in result.stderr


def test_simulate_takes_regression(table: Path) -> None:
    [run] = lines(call("simulate", table, *"--label y --model linear_regression --strategy random --json".split()))
    assert (run["accuracy"], run["recall"], run["estimated_accuracy"]) == (None, None, None)
    assert run["mae"] > 0


def test_simulate_estimates_the_error_of_a_regression(table: Path) -> None:
    chosen = "--label y --model linear_regression --strategy random --rate 0.8".split()
    [run] = lines(call("simulate", table, *chosen, "--json"))
    assert run["estimated_mae"] == pytest.approx(run["mae"], rel=0.3)
    assert run["naive_mae"] > 0
    assert "What the answers alone say of the error" in call("simulate", table, *chosen).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ("--label fraud", 2, ["stream.csv, row 1", "no column 'fraud'", "x, y, colour, target", "--label"]),
        ("--strategy random --strategy splt", 2, ["did you mean 'split'?"]),
        ("--model linear_regression", 2, ["needs class probabilities", "random, periodic"]),
        ("--model linear_regression --strategy random", 2, ["stream.csv, row 1, column 'target'", "came text"]),
        ("--label y --model linear_regression --strategy random --annotator-error 0.1", 2, ["a regression has none"]),
        ("--label y --model linear_regression --advise --annotator-error 0.1", 2, ["a regression has none"]),
        ("--delay-distribution lognormal", 2, ["lognormal spreads delays", "--delay, which is 0"]),
        ("--rate 5", 2, ["budget.rate", "less than or equal to 1"]),
        ("--plot none/curves.png --label fraud", 2, ["none/curves.png", "cannot be written"]),
        ("--rows 0", 2, ["--rows"]),
        ("--model knn --model softmax", 2, ["--model softmax", "--advise"]),
        ("--advise --seed 3", 2, ["at least two seeds"]),
        ("--advise --rows 100", 2, ["200 labelled rows at least, found 100"]),
        ("--advise --plot curves.png", 2, ["--plot", "leave one of them out"]),
        ("--advise --strategy splt", 2, ["did you mean 'split'?"]),
        ("--advise --model linear_regression --strategy split", 2, ["needs class probabilities"]),
    ],
)
def test_simulate_explains_what_is_wrong(table: Path, arguments: str, code: int, parts: list[str]) -> None:
    message = call("simulate", table, *arguments.split(), code=code).stderr
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("name", "content", "code", "part"),
    [
        ("a.jsonl", b'{"a": 1, "target": "x"}\n{"a":\n', 2, "a.jsonl"),
        ("a.csv", b"a,target\n", 2, "found none"),
        ("a.csv", b"a;target\n1;x\n", 2, "there are a;target: the fields must be separated by commas"),
        ("a.csv", b"a\ttarget\n1,5\tx\n", 2, "target: the fields must be separated by commas"),
        ("a.csv", b"a,target\n1,x\n2,\n", 2, "a.csv, row 2, column 'target'"),
        ("a.csv", b"a,target\n1,\xff\n", 2, "a.csv"),
        ("a.csv.gz", b"a,target\n1,x\n", 2, "a.csv.gz"),
        ("a.txt", b"", 2, "ending in .csv or .jsonl"),
    ],
)
def test_simulate_explains_a_broken_file(tmp_path: Path, name: str, content: bytes, code: int, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert part in call("simulate", name, code=code).stderr


def test_simulate_warns_of_what_is_unlikely_to_be_meant(table: Path) -> None:
    said = call("simulate", table, "--label", "y", "--unlabelled-share", "0.1", "--rows", "60", "--no-control").stderr
    first, second = said.splitlines()
    assert first.startswith("warning: learn.unlabelled_share = 0.1 has no effect")
    assert second.startswith("warning: 60 distinct numeric labels")
    assert "did you mean --model linear_regression, or another --label?" in second
    assert call("simulate", table, "--rows", "60").stderr == ""


def test_a_missing_file_is_named() -> None:
    assert "'none.csv' does not exist" in call("simulate", "none.csv", code=2).stderr


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_a_tail(served: tuple[Path, Settings], topic: str) -> None:
    found = lines(call("tail", topic, "-n", "3", "-c", served[0]))
    assert bool(found) == (topic not in ("snapshots", "control"))
    for record in found:
        assert record["topic"] == topic
        assert record.keys() == {"topic", "partition", "offset", "timestamp", "key", "headers", "value"}
    assert max(sum(record["partition"] == p for record in found) for p in range(PARTITIONS)) <= 3


def test_dead_letters_say_why(served: tuple[Path, Settings]) -> None:
    letters = {r["headers"]["__streamal.errors.topic"]: r for r in lines(call("tail", "dead_letters", "-c", served[0]))}
    assert letters.keys() == {"instances", "answers"}
    assert letters["instances"]["headers"]["__streamal.errors.reason"] == "decode_error"
    assert letters["instances"]["value"] == '{"features": '


def test_the_tail_of_a_topic_that_is_off_or_unknown(tmp_path: Path) -> None:
    call("topics", "create")
    assert "topics.predictions is switched off" in call("tail", "predictions", code=1).stderr
    assert "'dead-letters'" in call("tail", "letters", code=2).stderr


def test_status_counts_what_was_done(served: tuple[Path, Settings], requests: list[LabelRequest]) -> None:
    [found] = lines(call("status", "--json", "-c", served[0]))
    pending = len(requests) - len(requests[::2])
    assert (found["seen"], found["asked"], found["pending"], found["lag"]) == (ROWS, len(requests), pending, 0)
    assert found["allowed"] == pytest.approx(RATE * ROWS)
    assert [standing["partition"] for standing in found["partitions"]] == list(range(PARTITIONS))
    assert sum(standing["asked"] for standing in found["partitions"]) == found["asked"]
    assert found["estimates"]["instances"] == ROWS
    accuracy = found["estimates"]["measures"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] < accuracy["high"]
    text = call("status", "-c", served[0]).stdout
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"on the answered ones {found['estimates']['naive']['accuracy']:.2f}." in text
    [total] = [line for line in text.splitlines() if line.startswith("all")]
    assert total.split() == [
        "all",
        str(ROWS),
        str(len(requests)),
        f"{RATE * ROWS:.1f}",
        str(pending),
        "0",
    ]


def test_status_before_anything_was_decided(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    log = assemble.open_log(settings)
    feed(log, 10)
    log.close()
    [found] = lines(call("status", "--json", "-c", write_config(settings, tmp_path)))
    assert (found["seen"], found["asked"], found["lag"]) == (0, 0, 10)


def test_explain_says_why_and_what_became_of_it(served: tuple[Path, Settings], requests: list[LabelRequest]) -> None:
    answered, waiting = requests[0], requests[1]
    text = call("explain", answered.request_id, "-c", served[0]).stdout
    assert f"Request {answered.request_id} about instance {answered.instance_id}" in text
    assert f"({answered.reason}, strategy class_conditional)" in text
    assert "Outcome: learned as" in text
    assert "by ada" in text
    assert "No outcome yet" in call("explain", waiting.request_id, "-c", served[0]).stdout


def test_explain_shows_the_records(served: tuple[Path, Settings], requests: list[LabelRequest]) -> None:
    request, outcome = call("explain", requests[0].request_id, "--json", "-c", served[0]).stdout.splitlines()
    assert LabelRequest.decode(request.encode()) == requests[0]
    assert decode_outcome(outcome.encode()).partition == requests[0].partition


@pytest.mark.parametrize(
    ("request_id", "part"),
    [
        ("0-999999", "no label request 0-999999: that instance was not decided on yet, or has not come; "),
        ("9-1", f"no label request 9-1: there are the partitions 0 to {PARTITIONS - 1}; "),
        ("x", "<partition>"),
    ],
)
def test_explain_of_what_never_was(served: tuple[Path, Settings], request_id: str, part: str) -> None:
    assert part in call("explain", request_id, "-c", served[0], code=1).stderr


def test_explain_says_that_nobody_was_asked(served: tuple[Path, Settings], requests: list[LabelRequest]) -> None:
    asked = {request.request_id for request in requests}
    unasked = next(f"0-{offset}" for offset in range(ROWS) if f"0-{offset}" not in asked)
    said = call("explain", unasked, "-c", served[0], code=1).stderr
    assert f"no label request {unasked}: nobody was asked about that instance; " in said


def test_answers_are_typed_with_one_key_each(
    served: tuple[Path, Settings], requests: list[LabelRequest], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(served[1].transport.path, copy)
    environment = {"STREAMAL__TRANSPORT__PATH": str(copy)}
    result = call("answer", "--annotator", "eve", "-c", served[0], input="1?u0odd\nq", env=environment)
    assert result.stdout.endswith("3 answers given\n")
    assert "[1] " in result.stdout
    found = [r["value"] for r in lines(call("tail", "answers", "-n", "3", "-c", served[0], env=environment))]
    given = {answer["request_id"]: answer for answer in found if answer and answer.get("annotator") == "eve"}
    waiting = requests[1::2]
    assert list(given) == [request.request_id for request in waiting[:3]]
    assert [sorted(answer.items() - {("annotator", "eve")}) for answer in given.values()] == [
        [("label", given[waiting[0].request_id]["label"]), ("request_id", waiting[0].request_id)],
        [("kind", "unsure"), ("request_id", waiting[1].request_id)],
        [("label", "odd"), ("request_id", waiting[2].request_id)],
    ]


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "streamal", *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def test_a_worker_runs_until_it_is_asked_to_end(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    settings = settings_in(tmp_path)
    path = write_config(settings, tmp_path)
    log = assemble.open_log(settings)
    feed(log)
    places = [TopicPartition("decisions", p) for p in range(PARTITIONS)]
    process = started("run", "-c", path)
    until(lambda: all(log.bounds(place)[1] for place in places), "decisions on each partition")
    until(lambda: lines(call("status", "--json", "-c", path))[0]["seen"] == ROWS, "all instances decided")
    log.close()
    process.send_signal(signal.SIGTERM)
    output, said = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "")
    entries = [json.loads(line) for line in said.splitlines()]
    assert (entries[0]["message"], entries[0]["config"]) == ("settings read", str(path))
    assert entries[-1]["message"] == "stopped"
    assert str(stream(1)[0].features["x"]) not in said
    [found] = lines(call("status", "--json", "-c", path))
    assert found["seen"] == ROWS
    assert found["lag"] == 0


def test_a_worker_stops_in_order_once_its_supervisor_was_killed(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    settings = settings_in(tmp_path)
    path = write_config(settings, tmp_path)
    with closing(assemble.open_log(settings)) as log:
        feed(log)
    process = started("run", "-c", path)
    until(lambda: lines(call("status", "--json", "-c", path))[0]["seen"] == ROWS, "all instances decided")
    process.kill()
    # the worker holds the same stderr, which thus ends when the worker does
    _, said = process.communicate(timeout=60)
    entries = [json.loads(line) for line in said.splitlines()]
    [gone] = [entry for entry in entries if entry["message"] == "the supervisor is gone, stopping"]
    assert gone["supervisor"] == process.pid
    assert entries[-1]["message"] == "stopped"


def test_a_worker_says_that_the_defaults_hold(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started("run")
    assert process.stderr is not None
    first = json.loads(process.stderr.readline())
    assert first["message"] == "no config was found, the defaults hold"
    assert first["looked_for"] == str(tmp_path / "streamal.toml")


def test_a_worker_that_cannot_be_built_is_not_started_again(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    (tmp_path / "streamal.toml").write_text("[model]\nfactory = 'no.where:build'\n", encoding="utf-8")
    process = started("run")
    _, said = process.communicate(timeout=60)
    assert process.returncode == errors.ModelError.exit_code
    *_, last = [json.loads(line) for line in said.splitlines()]
    assert (last["error"], last["code"]) == ("ModelError", errors.ModelError.exit_code)
    assert said.count("cannot be imported") == 1


def test_lines_from_a_script_reach_the_embedded_log(tmp_path: Path) -> None:
    instances = tmp_path / "instances.jsonl"
    instances.write_text("".join(json.dumps({"id": f"i{n}", "features": {"x": n}}) + "\n" for n in range(7)) + "\n")
    assert "7 records appended" in call("produce", "instances", instances).output
    assert "2 records appended" in call("produce", "instances", input='{"features": {}}\n{"features": {}}\n').output
    log = assemble.open_log(load(None))
    ends = [log.bounds(TopicPartition("instances", p))[1] for p in range(4)]
    assert ends == [3, 2, 2, 2]
    call("produce", "answers", input='{"request_id": "2-0", "label": "ok"}\n')
    assert [log.bounds(TopicPartition("answers", p))[1] for p in range(4)] == [0, 0, 1, 0]
    log.close()


@pytest.mark.parametrize(
    ("topic", "line", "cause"),
    [
        ("instances", "[1]", "expected one JSON object per line, came list"),
        ("instances", "{x", "expected a string key, column 2); nothing was appended"),
        ("instances", '{"features": {"ö": NaN}}', "NaN and Infinity are no JSON: leave the feature out or send null; "),
        ("instances", '{"features": {"x": -Infinity}}', "NaN and Infinity are no JSON: leave"),
        ("instances", "amount,country", "column 1); CSV is what `streamal simulate` reads; nothing"),
        ("answers", '{"label": "ok"}', "its request_id is missing or none of ours"),
        ("answers", '{"request_id": "x", "label": "ok"}', "its request_id is missing or none of ours"),
        ("answers", '{"request_id": "9-1", "label": "ok"}', "which has 4 partitions, came 9-1; "),
    ],
)
def test_lines_that_no_worker_could_read_are_named(tmp_path: Path, topic: str, line: str, cause: str) -> None:
    good = '{"features": {}, "request_id": "0-0"}\n'
    (tmp_path / "broken.jsonl").write_text(good * 700 + line + "\n" + good)
    said = call("produce", topic, "broken.jsonl", code=2).stderr
    assert said.startswith("ConfigError: broken.jsonl, line 701: expected ")
    assert cause in said
    assert said.endswith("; nothing was appended\n")
    with closing(assemble.open_log(load(None))) as log:
        assert [log.bounds(TopicPartition(topic, p))[1] for p in range(4)] == [0, 0, 0, 0]


def test_a_pipe_that_breaks_off_says_what_was_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.BufferedReader):
        name = "<stdin>"

        def seekable(self) -> bool:
            return False

    with closing(assemble.open_log(load(None))) as log:
        for before, done in (
            (500, "the first 500 records were appended, the rest was not"),
            (9, "nothing was appended"),
        ):
            pipe = Pipe(io.BytesIO(b'{"features": {}}\n' * before + b"{\n"))
            with pytest.raises(errors.ConfigError, match=f"<stdin>, line {before + 1}: expected .*; {done}"):
                produce(log, "instances", pipe, answers=False)
        assert sum(log.bounds(TopicPartition("instances", p))[1] for p in range(4)) == 500


def test_a_line_of_a_pipe_is_appended_before_the_next_one_comes() -> None:
    outlet, inlet = os.pipe()
    said = [f'{{"request_id": "0-{number}"}}'.encode() for number in range(4)]
    with closing(assemble.open_log(load(None))) as log, os.fdopen(outlet, "rb") as pipe:
        reader = log.reader()
        reader.follow(TopicPartition("answers", 0), 0)
        thread = threading.Thread(target=produce, args=(log, "answers", pipe), kwargs={"answers": True})
        thread.start()
        try:
            os.write(inlet, said[0] + b"\n" + said[1][:9])
            assert [record.value for record in reader.poll(60.0)] == said[:1]
            os.write(inlet, said[1][9:] + b"\n\n" + said[2] + b"\n" + said[3])
            assert [record.value for record in reader.poll(60.0)] == said[1:3]
        finally:
            os.close(inlet)
            thread.join(60)
        assert [record.value for record in reader.poll(0.0)] == said[3:]


def test_two_at_once_do_not_fence_each_other() -> None:
    pipes = [os.pipe() for _ in range(2)]
    counts: list[int] = []
    with closing(assemble.open_log(load(None))) as log:

        def feed_by(outlet: int) -> None:
            with closing(assemble.open_log(load(None))) as own, os.fdopen(outlet, "rb") as pipe:
                counts.append(produce(own, "answers", pipe, answers=True))

        threads = [threading.Thread(target=feed_by, args=(outlet,)) for outlet, _ in pipes]
        for thread in threads:
            thread.start()
        for number in range(1, 4):
            for partition, (_, inlet) in enumerate(pipes):
                os.write(inlet, f'{{"request_id": "{partition}-{number}"}}\n'.encode())
                place = TopicPartition("answers", partition)
                until(lambda: log.bounds(place)[1] == number, "each has appended its line")  # noqa: B023
        for (_, inlet), thread in zip(pipes, threads, strict=True):
            os.close(inlet)
            thread.join(60)
    assert counts == [3, 3]


def test_a_class_that_would_be_refused_is_not_offered(served: tuple[Path, Settings]) -> None:
    settings = {"STREAMAL__MODEL__CLASSES": '["ok", "fraud"]'}
    result = call("answer", "-c", served[0], "--classes", "ok,bad", code=2, env=settings, input="q")
    assert "bad: not in model.classes" in result.stderr


def test_what_was_served_can_be_verified(served: tuple[Path, Settings]) -> None:
    result = call("verify", "--config", served[0])
    assert "Everything that was replayed is equal to the last bit." in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= WIDTH
    [report] = lines(call("verify", "--json", "--config", served[0]))
    assert report["sound"]
    assert sum(partition["instances"] for partition in report["partitions"]) == ROWS
    [report] = lines(call("verify", "--json", "--partition", "1", "--config", served[0]))
    assert [partition["partition"] for partition in report["partitions"]] == [1]
    [report] = lines(call("verify", "--json", "--until", "2020-01-01T00:00:00Z", "--config", served[0]))
    assert sum(partition["transactions"] for partition in report["partitions"]) == 0
    said = call("verify", "--until", "2020-01-01T00:00:00Z", "--config", served[0]).stdout
    assert "There was nothing to replay" in said
    assert "equal" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ("verify --since yesterday", 2, "expected a time such as 2026-11-21T10:00:00Z"),
        ("verify --partition 9", 2, "there are the partitions 0 to"),
        ("budget set rate", 2, "expected KEY=VALUE, such as rate=0.02"),
        ("budget set expiry=3d", 2, "can be changed while running; edit the config and restart"),
        ("budget set rate=7", 2, "budget.rate"),
        ("budget set max_pending=1", 2, "some could never ask"),
        ("budget reset colour", 2, "colour: only rate"),
        ("skip instances 0 5 --why disk", 2, "expected first <= OFFSET < --to <= end"),
        ("skip instances 0 0 --to 0 --why disk", 2, "--to"),
        ("skip decisions 0 0 --why disk", 2, "decisions"),
    ],
)
def test_orders_are_checked_before_they_are_given(tmp_path: Path, arguments: str, code: int, part: str) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    result = call(*shlex.split(arguments), "--config", config, code=code)
    assert part in " ".join(result.stderr.split())


def test_orders_say_who_gave_them(tmp_path: Path) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    assert "would be taken" in call("budget", "set", "rate=0.5", "--dry-run", "--config", config).stdout
    assert "rate = 0.5: set" in call("budget", "set", "rate=0.5", "--by", "ada", "--config", config).stdout
    limits = 'limits=[{"count": 500, "per": "1d"}]'
    call("budget", "set", limits, "refund_expired=true", "--by", "grace", "--config", config)
    [order] = lines(call("tail", "control", "-n", "1", "--config", config))
    assert (order["key"], order["headers"]["by"], order["value"]) == ("refund_expired", "grace", {"value": True})
    said = call("pause", "--by", "ada", "--config", config).stdout
    assert said.startswith(
        "Paused, within about a second: nothing is asked; instances are still read, and answers learned"
    )
    assert "`streamal status` shows it, `streamal resume` ends it." in said
    for command in ("status", "run --dry-run"):
        assert "Paused by ada at 20" in call(*command.split(), "--config", config).stdout
    planned = call("run", "--dry-run", "--config", config).stdout
    assert "budget: 0.5 labels per instance, cold-start loan 20 labels, at most 500 labels per 1d" in planned
    assert "by order: rate (ada), limits (grace), refund_expired (grace); `streamal budget show` tells all" in planned
    [standing] = lines(call("status", "--json", "--config", config))
    assert standing["paused"] is True
    [shown] = lines(call("budget", "show", "--json", "--config", config))
    assert (shown["rate"]["in_force"], shown["rate"]["by"]) == (0.5, "ada")
    assert (shown["limits"]["in_force"], shown["limits"]["by"]) == ([{"count": 500, "per": "1d"}], "grace")
    assert shown["paused"]["in_force"] is True
    assert shown["max_pending"]["by"] is None
    assert "labels are asked for again" in call("resume", "--config", config).stdout
    assert "Paused" not in call("status", "--config", config).stdout
    [standing] = lines(call("status", "--json", "--config", config))
    assert standing["paused"] is False
    assert "as in the config again" in call("budget", "reset", "rate", "limits", "--config", config).stdout
    [shown] = lines(call("budget", "show", "--json", "--config", config))
    assert [key for key, row in shown.items() if row["by"]] == ["refund_expired"]
    planned = call("run", "--dry-run", "--config", config).stdout
    assert (f"budget: {RATE} labels per instance" in planned, "Paused" in planned) == (True, False)
    table = call("budget", "show", "--config", config).stdout
    assert "grace" in table
    assert max(map(len, table.splitlines())) <= WIDTH


def test_a_limit_without_a_period_is_per_day_and_says_so(tmp_path: Path) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    said = call("budget", "set", 'limits=[{"count": 500}]', "--by", "ada", "--config", config).stdout
    assert 'limits = [{count = 500, per = "1d"}]: set' in said
    [shown] = lines(call("budget", "show", "--json", "--config", config))
    assert shown["limits"]["in_force"] == [{"count": 500, "per": "1d"}]
    (tmp_path / "streamal.toml").write_text("[budget]\nlimits = [{count = 500}]\n", encoding="utf-8")
    assert 'limits = [{count = 500, per = "1d"}]' in call("config", "show").stdout
    assert "at most 500 labels per 1d" in " ".join(call("config", "check").stdout.split())


def test_tables_are_folded_and_never_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    limits = '[{"count": 123456, "per": "1d"}, {"cost": 40.5, "per": "12h"}, {"count": 654321, "per": "90d"}]'
    call("budget", "set", f"limits={limits}", "--by", "somebody-with-a-long-name@example.org", "--config", config)
    shown = call("budget", "show", "--config", config).stdout
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "…" not in shown
    assert [figure for figure in ("123456", "40.5", "12h", "654321", "90d") if figure not in shown] == []
    figures = ["12", "1,234", "1,234,567", "12,345,678", "1,234,567", "1,234,567", "12,345"]
    found = wording.table("partition", "takeovers", "transactions", "instances", "requests", "outcomes", "letters")
    found.add_row(*figures)
    wording.show_table(found)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    assert text.splitlines()[-1].split() == figures


@pytest.mark.parametrize("name", ["ops[/team]", "[bold]bob", ":fire:"])
def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    call("budget", "set", "rate=0.5", "--by", name, "--config", config)
    assert name in call("budget", "show", "--config", config).stdout
    looking._print_annotators(Agreement(1, 2, None, None, None, [Annotator(name, 2, 0, 0, None, 0, None)], ""))
    assert name in capsys.readouterr().out


def test_there_is_no_ledger_to_put_back_where_nothing_was_decided(tmp_path: Path) -> None:
    config = write_config(settings_in(tmp_path), tmp_path)
    call("topics", "create", "--config", config)
    assert "nothing was decided" in call("ledger", "recover", "--config", config).stdout
    assert "Nothing was decided" not in call("verify", "--config", config).stdout


@pytest.mark.parametrize(
    ("budget", "held", "said"),
    [
        ({"max_pending": 6}, "queue_full", "as many requests wait as budget.max_pending"),
        ({"limits": [{"count": 6, "per": "1000d"}]}, "limit_count", "a limit of budget.limits is used up"),
        ({}, None, ""),
    ],
)
def test_status_says_why_nothing_more_is_asked(
    tmp_path: Path, budget: dict[str, Any], held: str | None, said: str
) -> None:
    settings = settings_in(tmp_path, budget={"rate": 0.2} | budget)
    config = write_config(settings, tmp_path)
    log = assemble.open_log(settings)
    feed(log, 200)
    with working(settings, log) as board:
        until(lambda: board.read().seen == 200, "all decided")
    shown = call("status", "-c", config).stdout.replace("\n", " ")
    assert ("Nothing more is chosen on 2 of 2 partitions" in shown) == bool(held)
    assert said in shown
    [found] = lines(call("status", "--json", "-c", config))
    assert {partition["held"] for partition in found["partitions"]} == {held}


def test_several_annotators_are_asked_by_name_and_compared(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, annotation={"answers_per_request": 2}, model={"classes": ["rare", "usual"]})
    config = write_config(settings, tmp_path)
    log = assemble.open_log(settings)
    feed(log, 60)
    with working(settings, log) as board:
        until(lambda: board.read().pending >= 4 and board.read().seen == 60, "all decided")
        assert "--annotator NAME" in call("answer", "-c", config, code=2, input="q").stderr
        assert "No request has had several answers" in call("annotators", "-c", config).stdout
        waiting = board.read().pending
        assert "4 answers given" in call("answer", "--annotator", "ada", "-c", config, input="1221q").stdout
        until(
            lambda: f"1 of {waiting - 4} " in call("answer", "--annotator", "ada", "-c", config, input="q").stdout, "4"
        )
        assert "4 answers given" in call("answer", "--annotator", "bob", "-c", config, input="1211q").stdout
        until(lambda: board.read().answered == 4, "the requests ended")
    [found] = lines(call("annotators", "--json", "-c", config))
    assert (found["requests"], found["answers"]) == (4, 8)
    assert [(one["name"], one["answers"], one["agreed"]) for one in found["annotators"]] == [
        ("ada", 4, 0.75),
        ("bob", 4, 0.75),
    ]
    assert found["kappa"] == pytest.approx(0.5)
    text = call("annotators", "-c", config).stdout
    assert "Cohen's kappa: 0.50" in text
    assert f"Krippendorff's alpha: {found['alpha']:.2f}" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    [status] = lines(call("status", "--json", "-c", config))
    assert status["estimates"]["alpha"] == pytest.approx(found["alpha"])
    assert f"{found['alpha']:.2f} by Krippendorff's alpha" in call("status", "-c", config).stdout


def test_what_several_answers_cost_is_said(tmp_path: Path, table: Path) -> None:
    settings = settings_in(tmp_path, annotation={"answers_per_request": 3}, learn={"unlabelled_share": 0.1})
    config = write_config(settings, tmp_path)
    costs = "Each request costs 3 answers: 0.2 requests per instance are 0.6 answers."
    for command in ("config check", "run --dry-run"):
        said = call(*command.split(), "-c", config)
        assert costs in said.stdout
        assert "warning: learn.unlabelled_share = 0.1 has no effect" in said.stderr
    call("topics", "create", "-c", config)
    call("budget", "set", "rate=0.1", "-c", config)
    text = call("budget", "show", "-c", config).stdout
    assert "0.1 requests per instance are 0.3 answers" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    [shown] = lines(call("budget", "show", "--json", "-c", config))
    assert shown["answers_per_request"]["in_force"] == 3
    chosen = ("--answers-per-request", "3", "--annotator-error", "0.2")
    [run] = lines(call("simulate", table, *chosen, "--json"))
    assert (run["answers_per_request"], run["answers"]) == (3, 3 * run["asked"])
    assert "20 labels allowed with 3 answers each" in call("simulate", table, *chosen).stdout
    assert "Each request costs" not in call("config", "check").stdout


def test_the_check_warns_of_what_has_no_effect() -> None:
    found = call("config", "check", env={"STREAMAL__LEARN__UNLABELLED_SHARE": "0.1"})
    assert "the defaults are in force, which are valid" in found.stdout
    assert "warning: learn.unlabelled_share = 0.1 has no effect" in found.stderr
    assert call("config", "check").stderr == ""


def test_simulate_learns_beside_the_answers(table: Path) -> None:
    options = ["--unlabelled-share", "1", "--self-training", "0.6", "--model", "gaussian_nb", "--rate", "0.4", "--json"]
    found = json.loads(call("simulate", table, *options).stdout)
    assert found["pseudo_labelled"] > 20
    assert found["asked"] <= found["allowed"] + 1
    assert "set unlabelled_share as well" in call("simulate", table, "--self-training", "0.6", code=2).stderr
