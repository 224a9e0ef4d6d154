from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are one more package to install

from streamal.settings import example_toml, load
from streamal.web.metrics import Metrics
from streamal.web.server import Server
from streamal.web.status import PartitionStatus, Status, StatusBoard

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("STREAMAL__")]:
        monkeypatch.delenv(name)


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def alerts() -> Iterator[dict[str, Any]]:
    for group in read_yaml("alerts.yml")["groups"]:
        yield from (rule for rule in group["rules"] if "alert" in rule)


def instructions(keyword: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(line.split()[1:]) for line in text.splitlines() if line.startswith(f"{keyword} ")]


def test_the_example_configuration_is_the_generated_one() -> None:
    path = DEPLOY / "streamal.toml"
    assert path.read_text(encoding="utf-8") == example_toml(), "write streamal.settings.example_toml() to it anew"
    assert load(path) == load(None)


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("STREAMAL_REQUIRE_ALL") == "1":
            pytest.fail("promtool is not installed, and STREAMAL_REQUIRE_ALL=1")
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.mark.promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_prometheus_takes_the_rules(promtool: str, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_shown_to_fire_and_not_to_fire() -> None:
    fires: dict[str, set[bool]] = {}
    for case in read_yaml("alerts_test.yml")["tests"]:
        for check in case["alert_rule_test"]:
            fires.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in alerts()}


def test_rules_name_only_metrics_that_exist() -> None:
    metrics = Metrics("fraud")
    metrics.reflect(Status("fraud", "running", 0.0, 0.0, 0.05, {0: PartitionStatus(1, 0, 0.05, lag={"instances": 1})}))
    exported = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    expressions = [rule["expr"] for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]]
    named = {name for expression in expressions for name in re.findall(r"(?<![:\w])streamal_\w+", expression)}
    assert len(named) >= 10
    assert named - exported == set()


def test_rules_match_only_label_values_that_exist() -> None:
    text = Metrics("fraud").render()[0].decode()
    for rule in (rule for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]):
        for label, value in re.findall(r'(\w+)="([^"]+)"', rule["expr"]):
            assert label == "job" or f'{label}="{value}"' in text, rule


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}
        assert rule["annotations"].keys() == {"summary", "action"}


def test_compose_waits_for_what_it_needs() -> None:
    services = read_yaml("compose.yaml")["services"]
    assert services["kafka"]["image"] == "apache/kafka:4.1.0"
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert services["topics"]["command"][:2] == ["topics", "create"]
    assert services["streamal"]["depends_on"] == {"topics": {"condition": "service_completed_successfully"}}
    assert (DEPLOY / services["streamal"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["streamal"]["build"]["dockerfile"]).exists()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_mounts_files_that_exist() -> None:
    compose = read_yaml("compose.yaml")
    for service in compose["services"].values():
        for source, _, _ in (volume.partition(":") for volume in service.get("volumes", ())):
            assert source in compose["volumes"] or (DEPLOY / source).is_file()


@pytest.mark.parametrize("service", ["topics", "streamal"])
def test_compose_configures_what_streamal_accepts(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in read_yaml("compose.yaml")["services"][service]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "a secret", value))
    settings = load(DEPLOY / "streamal.toml")
    assert (settings.transport.kind, settings.transport.bootstrap_servers) == ("kafka", "kafka:9092")
    assert (settings.http.host, settings.http.reveal_token()) == ("0.0.0.0", "a secret")


def test_prometheus_scrapes_the_port_that_is_served() -> None:
    targets = read_yaml("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"streamal:{load(None).http.port}"]


def test_the_image_takes_any_base_and_runs_unprivileged_as_process_one() -> None:
    assert instructions("ARG")[0] == "BASE=python:3.11-slim"
    assert {line.split()[0] for line in instructions("FROM")} == {"${BASE}"}
    assert instructions("USER") == ["10001:10001"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["streamal"]
    assert json.loads(instructions("CMD")[0]) == ["run", "-c", "/etc/streamal/streamal.toml"]
    assert any("--require-hashes" in line and "requirements.lock" in line for line in instructions("RUN"))
    assert any("--no-deps" in line for line in instructions("RUN"))
    assert any("compileall" in line for line in instructions("RUN"))


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {source for line in instructions("COPY") if not line.startswith("--from") for source in line.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == copied


@pytest.mark.parametrize(("beat", "code"), [(time.monotonic, 0), (lambda: time.monotonic() - 3600.0, 1)])
def test_the_health_check_sees_whether_the_loop_turns(beat: Callable[[], float], code: int) -> None:
    command = json.loads(instructions("HEALTHCHECK")[0].split("CMD ")[1])
    assert command[0] == "python"
    board = StatusBoard(Status("fraud", "running", beat(), 0.0, 0.05))
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0).start()
    try:
        environment = os.environ | {"STREAMAL__HTTP__PORT": str(server.port)}
        done = subprocess.run(
            [sys.executable, *command[1:]], env=environment, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == code, done.stderr
    finally:
        server.stop()
