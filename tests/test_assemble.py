"""From settings to running objects: what is built is what was asked for, and what cannot work is refused first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from served import PARTITIONS, ROWS, requests_of, serve_stream, settings_in
from specimens import dump

from streamal import assemble
from streamal.annotate.oracle import Oracle
from streamal.assemble import TRIED_STRATEGIES
from streamal.errors import ConfigError, ModelError
from streamal.evaluate.advise import Candidate, Grid
from streamal.evaluate.stream import Row
from streamal.learning.allowed import WATCHED
from streamal.learning.drift import WatchedModel
from streamal.learning.presets import PRESETS
from streamal.learning.snapshot import load as load_snapshot
from streamal.selection.registry import STRATEGIES
from streamal.settings import Settings, load, revised
from streamal.transport.log import TopicPartition

STREAM = [Row({"x": float(n % 7)}, "a" if n % 7 > 3 else "b") for n in range(400)]


def changed(**sections: dict[str, Any]) -> Settings:
    settings = load(None)
    for section, values in sections.items():
        settings = revised(settings, section, values)
    return settings


def test_an_embedded_log_is_made_with_its_topics(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    log = assemble.open_log(settings)
    topics = assemble.topics_of(settings)
    assert {topic: log.partitions(topic) for topic in topics.partitions(1)} == topics.partitions(PARTITIONS)
    assert assemble.create_topics(settings, log) == []
    log.close()


def test_existing_instances_decide_on_the_partitions(tmp_path: Path) -> None:
    assemble.open_log(settings_in(tmp_path, transport={"partitions": 3})).close()
    wanted = settings_in(tmp_path, transport={"partitions": 7}, topics={"answers": "others"})
    log = assemble.open_log(wanted)
    assert log.partitions("others") == 3
    log.close()


def test_new_topics_are_named_in_full(tmp_path: Path) -> None:
    from streamal.transport.embedded import EmbeddedLog

    log = EmbeddedLog(tmp_path / "new.db")
    settings = settings_in(tmp_path)
    wanted = assemble.topics_of(settings).partitions(PARTITIONS)
    assert sorted(assemble.create_topics(settings, log)) == sorted(wanted)
    log.close()


def test_the_budget_is_dealt_out_whole() -> None:
    limits = ({"count": 500, "per": "1d"}, {"cost": 40.0, "per": "1h"})
    settings = changed(budget={"cold_start_loan": 21, "max_pending": 103, "limits": limits, "expiry": 0})
    plans = [plan.budget for plan in assemble.plans_of(settings, "classification", 4)]
    assert sum(plan.loan for plan in plans) == 21
    assert sum(plan.max_pending for plan in plans) == 103
    assert [sum(plan.limits[i].most for plan in plans) for i in (0, 1)] == [500, pytest.approx(40.0)]
    assert {plan.rate for plan in plans} == {0.05}
    assert {plan.expiry for plan in plans} == {None}


def test_a_share_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="burst"):
        assemble.plans_of(changed(budget={"burst": 5.0}), "classification", 4)


@pytest.mark.parametrize("strategy", ["pool", "synthesis"])
def test_a_window_that_the_burst_does_not_hold_is_refused_with_the_cure(strategy: str) -> None:
    def check(burst: float | None, **parameters: int) -> None:
        own = {"name": strategy, "parameters": parameters}
        assemble.check(changed(strategy=own, transport={"partitions": 3}, budget={"burst": burst}))

    check(None)
    check(None, pool_window=440)
    check(84.0, pool_window=500)
    cure = r"burst of 25 leaves room for 22: leave pool_window out, for windows of 440, or set budget.burst to 28"
    with pytest.raises(ConfigError, match=cure):
        check(None, pool_window=500)
    with pytest.raises(ConfigError, match=r"burst of 27\.9667 .* for windows of 499"):
        check(83.9, pool_window=500)


@pytest.mark.parametrize("kind", PRESETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_with_every_model_or_says_which_does(kind: str, strategy: str) -> None:
    settings = changed(model={"kind": kind}, strategy={"name": strategy})
    model, entry = assemble.build_model(settings), STRATEGIES[strategy]
    if model.task not in entry.tasks:
        with pytest.raises(ConfigError, match=r"use one of: \w+"):
            assemble.check(settings)
    elif entry.ensemble and not model.ensemble:
        cure = r"model\.kind = 'adaptive_forest'" if model.task == "classification" else r"'river\.forest:ARFRegressor'"
        with pytest.raises(ConfigError, match=cure):
            assemble.check(settings)
    else:
        assert assemble.check(settings).task == model.task


def test_what_is_said_to_cure_a_lack_of_members_does() -> None:
    chosen = {"factory": "river.forest:ARFRegressor", "parameters": {"n_models": 4}}
    assert assemble.check(changed(model=chosen, strategy={"name": "variance"})).ensemble


def test_a_strategy_that_measures_distances_needs_numbers() -> None:
    with pytest.raises(ConfigError, match=r"'coreset' measures distances.*instance\.types declares none"):
        assemble.check(changed(strategy={"name": "coreset"}, instance={"types": {"city": "string"}}))
    assemble.check(changed(strategy={"name": "coreset"}, instance={"types": {"city": "string", "x": "number"}}))


@pytest.mark.parametrize(
    ("name", "parameters", "refused"),
    [
        ("pool", {}, False),
        ("pool", {"method": "k_centre"}, True),
        ("bandit", {}, True),
        ("bandit", {"arms": ["random", "split"]}, False),
        ("bandit", {"arms": ["random", "density"]}, True),
    ],
)
def test_what_measures_distances_with_some_parameters_needs_numbers_then(
    name: str, parameters: dict[str, Any], refused: bool
) -> None:
    settings = changed(
        strategy={"name": name, "parameters": parameters}, instance={"types": {"city": "string"}}, budget={"rate": 0.1}
    )
    with pytest.raises(ConfigError, match="measures distances") if refused else nullcontext():
        assemble.check(settings)


def test_a_factory_takes_the_place_of_the_kind() -> None:
    settings = changed(model={"kind": "knn", "factory": "river.linear_model:LinearRegression"})
    assert assemble.build_model(settings).task == "regression"
    with pytest.raises(ConfigError, match=r"takes optimizer, loss, l2, .* came l3 "):
        assemble.check(changed(model={"factory": "river.linear_model:LinearRegression", "parameters": {"l3": 1}}))
    with pytest.raises(ModelError, match="cannot be imported"):
        assemble.check(changed(model={"factory": "no.where:build"}))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"budget": {"rate": 0.1}}, True),
        ({"http": {"port": 9}}, True),
        ({"model": {"kind": "gaussian_nb"}}, False),
        ({"model": {"parameters": {"l2": 0.1}}}, False),
        ({"strategy": {"seed": 1}}, False),
        ({"topics": {"outcomes": "others"}}, False),
        ({"drift": {"utilities": False}}, True),
        ({"drift": {"errors": "exploration"}}, False),
        ({"drift": {"features": True}}, False),
        ({"drift": {"adaptation": "active"}}, False),
    ],
)
def test_a_snapshot_fits_as_long_as_the_model_does(change: dict[str, dict[str, Any]], same: bool) -> None:
    assert (assemble.config_hash(changed(**change)) == assemble.config_hash(load(None))) is same


@pytest.mark.parametrize(
    ("drift", "watched", "scales"),
    [
        ({}, True, False),
        ({"errors": "off"}, False, False),
        ({"errors": "off", "features": True}, True, True),
        ({"adaptation": "active"}, True, False),
    ],
)
def test_a_model_is_watched_where_something_is_to_be_watched(
    drift: dict[str, Any], watched: bool, scales: bool
) -> None:
    settings = changed(drift=drift, model={"kind": "gaussian_nb"})
    model = assemble.build_model(settings)
    assert isinstance(model, WatchedModel) is watched
    assert model.scales is scales
    assert (WATCHED <= assemble.allowed_in(settings)) is watched
    made = changed(drift=drift, model={"factory": "river.naive_bayes:GaussianNB"})
    assert isinstance(assemble.build_model(made), WatchedModel) is watched
    blob = dump(assemble.build_model(made), version=1, allowed=assemble.allowed_in(made), key=b"k" * 32)
    assert load_snapshot(blob, config_hash="c", key=b"k" * 32, allowed=assemble.allowed_in(made)).version == 1


def test_only_the_security_options_that_are_set_reach_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert assemble.security_options(load(None)) == {"security_protocol": "PLAINTEXT"}
    (tmp_path / "password").write_text("hunter2\n")
    given = {
        "protocol": "SASL_SSL",
        "mechanism": "SCRAM-SHA-512",
        "username": "ada",
        "password_file": str(tmp_path / "password"),
        "ca_file": "ca.pem",
    }
    assert assemble.security_options(changed(transport={"security": given})) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ada",
        "sasl_plain_password": "hunter2",
        "ssl_cafile": "ca.pem",
    }


def test_http_is_off_at_port_zero(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    log = assemble.open_log(settings)
    assert assemble.build_service(settings, log).server is None
    on = revised(settings, "http", {"port": 8080})
    service = assemble.build_service(on, log)
    assert service.server is not None
    assert service.server.port == 8080
    log.close()


def test_the_built_worker_decides_asks_learns_and_keeps_a_snapshot(tmp_path: Path) -> None:
    settings = serve_stream(tmp_path)
    log = assemble.open_log(settings)
    requests = requests_of(log)
    ends = {
        topic: sum(log.bounds(TopicPartition(topic, p))[1] for p in range(log.partitions(topic)))
        for topic in assemble.topics_of(settings).used()
    }
    assert ends["predictions"] == ROWS
    assert len({request.request_id for request in requests}) == len(requests) > 0.9 * settings.budget.rate * ROWS
    assert ends["outcomes"] >= len(requests[::2])
    assert ends["dead-letters"] == 2
    assert ends["decisions"] > 0
    log.close()
    restored = assemble.snapshot_store(settings).restore(lambda version, last: None)
    assert restored is not None
    assert restored.version == ends["outcomes"]
    assert restored.model.predict([{"x": 2.0, "y": -1.0}])[0]["rare"] > 0.5


def test_simulations_keep_their_order() -> None:
    runs = [changed(strategy={"name": name}) for name in ("random", "split")]
    found = assemble.simulate_all(runs, [Oracle(), Oracle(delay=5)], STREAM[:60], controls=0, quiet=True)
    assert [(run.strategy, run.instances, run.delay) for run in found] == [("random", 60, 0), ("split", 60, 5)]


def test_random_runs_with_as_many_labels_stand_beside_a_simulation() -> None:
    runs = [changed(strategy={"name": name, "seed": 4}) for name in ("random", "split")]
    oracles = [Oracle(delay=9, seed=4)] * 2
    alone, ours = assemble.simulate_all(runs, oracles, STREAM, controls=2, quiet=True)
    assert alone.controls == ()
    assert [control.asked for control in ours.controls] == [ours.asked] * 2
    assert [control.seed for control in ours.controls] == [4, 4 + assemble.CONTROL_SEEDS]
    assert {(control.strategy, control.delay, control.model) for control in ours.controls} == {
        ("random", 9, ours.model)
    }


def test_classes_that_the_settings_do_not_know_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "stream.csv"
    file.write_text("x,target\n" + "".join(f"{n},class {n % 6}\n" for n in range(60)))
    known, fewer = (
        changed(model={"classes": names}) for names in ([f"class {n}" for n in range(6)], ["class 3", "other"])
    )
    assert len(assemble.read_whole(file, known, "classification", label="target", rows=50)) == 50
    with pytest.raises(ConfigError, match=r"5 of the 6 classes .*'class 0', 'class 1', 'class 2', and") as caught:
        assemble.read_whole(file, fewer, "classification", label="target", rows=None)
    assert "class 4" not in str(caught.value)


def test_progress_is_shown_to_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    with assemble.progress_bar(quiet=False) as progress:
        progress.advance(progress.add_task("runs", total=1))
    assert capsys.readouterr().err == ""


def grid(base: Settings, models: Sequence[str] = (), strategies: Sequence[str] = ()) -> Grid:
    return assemble.grid_of(base, models=models, strategies=strategies, seeds=(0, 1))


def test_the_grid_begins_with_what_is_configured() -> None:
    base = changed(
        model={"kind": "gaussian_nb"},
        strategy={"name": "pool", "parameters": {"pool_window": 50}},
        budget={"rate": 0.4, "burst": 200},
    )
    found = grid(base)
    assert list(dict.fromkeys(model for model, _ in found.pairs)) == [
        "gaussian_nb",
        "logistic_regression",
        "hoeffding_tree",
    ]
    assert [strategy for _, strategy in found.pairs][:3] == ["pool", "class_conditional", "random"]
    assert len(found.pairs) == 3 * 5
    assert found.rates == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert found.pairs[0] == ("gaussian_nb", "pool")
    assert grid(base, models=("knn", "knn"), strategies=("split",)).pairs == [("knn", "split")]
    regression = grid(base, models=("linear_regression",))
    assert regression.pairs == [("linear_regression", "random"), ("linear_regression", "leverage")]


def test_a_pair_that_nobody_named_is_left_out_where_it_does_not_fit() -> None:
    base = changed(
        model={"kind": "adaptive_forest"}, strategy={"name": "committee", "parameters": {"measure": "max_kl"}}
    )
    committee = [model for model, strategy in grid(base).pairs if strategy == "committee"]
    assert committee == ["adaptive_forest"]
    assert ("logistic_regression", "class_conditional") in grid(base).pairs
    assert {strategy for _, strategy in grid(base, models=("knn",)).pairs} == {*TRIED_STRATEGIES["classification"]}


@pytest.mark.parametrize(
    ("model", "strategy", "named", "part"),
    [
        ("adaptive_forest", "committee", {"models": ("knn",), "strategies": ("committee",)}, "several members"),
        ("knn", "random", {"strategies": ("random", "committee")}, "several members"),
        ("knn", "splt", {"models": ("gaussian_nb",)}, "did you mean 'split'?"),
        ("knn", "random", {"models": ("knn", "linear_regression")}, "linear_regression is for regression and knn for"),
    ],
)
def test_a_pair_that_somebody_meant_is_refused_with_the_reason(
    model: str, strategy: str, named: dict[str, tuple[str, ...]], part: str
) -> None:
    with pytest.raises(ConfigError, match=part.replace("?", r"\?")):
        grid(changed(model={"kind": model}, strategy={"name": strategy}), **named)


@pytest.mark.parametrize("parameters", [{"stp": 0.1}, {"step": "wide"}])
def test_a_wrong_parameter_of_the_configured_strategy_is_refused_whatever_the_model(parameters: dict[str, Any]) -> None:
    base = changed(strategy={"name": "split", "parameters": parameters})
    with pytest.raises(ConfigError, match="step"):
        grid(base, models=("gaussian_nb",))


def test_a_candidate_keeps_the_parameters_of_what_it_shares_with_the_settings() -> None:
    base = changed(
        model={"kind": "softmax", "parameters": {"l2": 0.1}}, strategy={"name": "split", "parameters": {"step": 0.1}}
    )
    same = assemble.tried(base, Candidate("softmax", "split", 0.1), 3)
    assert (same.model.parameters, same.strategy.parameters) == ({"l2": 0.1}, {"step": 0.1})
    assert (same.budget.rate, same.strategy.seed) == (0.1, 3)
    other = assemble.tried(base, Candidate("gaussian_nb", "random", 0.1), 3)
    assert (other.model.kind, other.model.parameters, other.strategy.parameters) == ("gaussian_nb", {}, {})


def test_learning_beside_the_answers_is_part_of_the_plan() -> None:
    settings = changed(learn={"unlabelled_share": 0.25, "self_training": 0.9})
    for plan in assemble.plans_of(settings, "classification", 3):
        assert (plan.unlabelled, plan.self_training) == (0.25, 0.9)
    [plan] = assemble.plans_of(load(None), "classification", 1)
    assert (plan.unlabelled, plan.self_training) == (0.0, None)
    assert assemble.config_hash(settings) == assemble.config_hash(load(None)), "the records say it all"


def test_self_training_of_a_regression_is_refused() -> None:
    learn = {"unlabelled_share": 0.25, "self_training": 0.9}
    with pytest.raises(ConfigError, match="linear_regression predicts numbers"):
        assemble.check(changed(learn=learn, model={"kind": "linear_regression"}, strategy={"name": "random"}))
    assert assemble.check(changed(learn=learn)).task == "classification"


def test_a_share_that_nothing_would_learn_from_is_warned_of() -> None:
    [line] = assemble.warnings(changed(learn={"unlabelled_share": 0.25}))
    assert line.startswith("learn.unlabelled_share = 0.25 has no effect: nothing in logistic_regression learns")
    assert assemble.warnings(changed(learn={"unlabelled_share": 0.25, "self_training": 0.9})) == []
    assert assemble.warnings(load(None)) == []
    assert assemble.warnings(changed(learn={"unlabelled_share": 0.25}, model={"factory": "specimens:scaled"})) == []
