"""A simulation spends what it may and no more, reports what was agreed, and shows that choosing pays."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from statistics import fmean

import pytest
from specimens import Constant, stream, truth

from streamal.annotate.oracle import Oracle
from streamal.evaluate.simulate import Simulation, Simulator, control, lead, simulate
from streamal.evaluate.stream import Row
from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.selection.budget import BudgetPlan
from streamal.selection.registry import STRATEGIES

CLASSIFYING = sorted(name for name, entry in STRATEGIES.items() if "classification" in entry.tasks)

KEYS = """instances asked allowed max_overshoot spent_ratio accuracy kappa macro_f1 balanced_accuracy log_loss
strategy model rate seed delay estimated_accuracy estimated_low estimated_high naive_accuracy""".split()
"""What `simulate --json` promises to its readers."""


def rows(count: int, seed: int = 0) -> list[Row]:
    """Return a stream that can be learned, drifts half-way, and has one label in ten wrong near the boundary."""
    random, found = Random(seed), []
    for instance in stream(count, seed):
        label = truth(instance.features)
        if instance.offset > count // 2:
            label = truth({"x": instance.features["y"], "y": instance.features["x"]})
        if random.random() < 0.02:
            label = "usual" if label == "rare" else "rare"
        found.append(Row(instance.features, label))
    return found


def run(
    stream_rows: list[Row],
    *,
    strategy: str = "class_conditional",
    kind: str = "logistic_regression",
    rate: float = 0.1,
    loan: int = 20,
    seed: int = 0,
    oracle: Oracle | None = None,
) -> Simulation:
    model = presets.build(kind, parameters={}, scaling="all", seed=seed)
    plan = SamplingPlan(BudgetPlan(rate, loan), strategy, seed=seed, task=model.task, serve=True)
    return simulate(
        stream_rows, len(stream_rows), plan, model, oracle or Oracle(), model_name=kind, classes=["rare", "usual"]
    )


@pytest.mark.parametrize("strategy", CLASSIFYING)
@pytest.mark.parametrize("loan", [0, 20])
def test_the_budget_holds_at_every_prefix_and_is_used(strategy: str, loan: int) -> None:
    found = run(rows(5_000), strategy=strategy, loan=loan)
    assert found.max_overshoot <= 0.0
    assert found.instances == 5_000
    assert found.allowed == pytest.approx(500.0)
    assert found.spent_ratio == found.asked / found.allowed
    assert found.spent_ratio >= (0.95 if strategy == "pool" else 0.97), "what the last window has earned may be unspent"


def test_the_budget_is_used_fully_on_average() -> None:
    ratios = [
        run(rows(int(500 / rate), seed), strategy=strategy, rate=rate, loan=loan, seed=seed).spent_ratio
        for seed, (strategy, rate, loan) in enumerate(
            (strategy, rate, loan)
            for strategy in ("class_conditional", "split")
            for rate in (0.05, 0.2)
            for loan in (0, 20)
        )
    ]
    assert fmean(ratios) >= 0.99
    assert min(ratios) >= 0.97


def test_the_default_is_better_than_random_and_random_better_than_nothing() -> None:
    def kappa(strategy: str, rate: float) -> float:
        found = [run(rows(4_000, seed), strategy=strategy, rate=rate, seed=seed).scores["kappa"] for seed in range(5)]
        return fmean(score or 0.0 for score in found)

    for rate in (0.02, 0.05):
        assert kappa("class_conditional", rate) > kappa("random", rate) + 0.01 > 0.28


def test_the_summary_is_what_readers_were_promised() -> None:
    found = json.loads(json.dumps(run(rows(1_000), seed=3, oracle=Oracle(delay=25)).summary()))
    assert [key for key in KEYS if key not in found] == []
    assert (found["strategy"], found["model"], found["rate"]) == ("class_conditional", "logistic_regression", 0.1)
    assert (found["seed"], found["delay"], found["instances"]) == (3, 25, 1_000)
    assert "curve" not in found
    assert all(isinstance(found[key], int | float) for key in KEYS if key not in ("strategy", "model"))


def test_what_a_service_would_know_of_the_accuracy_stands_beside_the_true_one() -> None:
    found = run(rows(6_000), oracle=Oracle(delay=10)).summary()
    assert found["estimated_accuracy"] == pytest.approx(found["accuracy"], abs=0.2)
    assert found["estimated_low"] < found["estimated_accuracy"] < found["estimated_high"]
    assert found["naive_accuracy"] < found["accuracy"] - 0.05
    assert (found["estimated_mae"], found["naive_mae"]) == (None, None)


def test_the_summary_has_the_recall_of_each_class_and_who_answered() -> None:
    found = run(rows(2_000), oracle=Oracle(silence=0.3)).summary()
    assert fmean(found["recall"].values()) == pytest.approx(found["balanced_accuracy"])
    assert found["response"].keys() == {"selected", "rest"}
    assert found["response"]["selected"] == pytest.approx(0.7, abs=0.1)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    stream_rows = rows(1_500)
    first = run(stream_rows, oracle=Oracle(delay=40, error=0.1, silence=0.1))
    assert first == run(stream_rows, oracle=Oracle(delay=40, error=0.1, silence=0.1))
    assert first != run(stream_rows, seed=1, oracle=Oracle(delay=40, error=0.1, silence=0.1))


@pytest.mark.parametrize("delay", [0, 100])
def test_an_answer_is_learned_when_its_time_has_come(delay: int) -> None:
    found = run(rows(2_000), oracle=Oracle(delay=delay))
    assert found.learned <= found.asked
    assert found.asked - found.learned <= delay
    assert (found.learned < found.asked) == (delay == 100)


def test_answers_come_in_the_order_of_their_delays() -> None:
    model, oracle = Constant({"usual": 1.0}), Oracle(delay=30, distribution="exponential", seed=2)
    stream_rows = rows(400)
    simulator = Simulator(SamplingPlan(BudgetPlan(0.5), "periodic"), model, oracle, ["rare", "usual"])
    asked = [number for number, row in enumerate(stream_rows) if simulator.step(number, row).asked]
    due = sorted((number + oracle.latency(number), number) for number in asked)
    answered = [number for late, number in due if late <= len(stream_rows) - 1]
    assert answered != sorted(answered)
    assert 0 < len(asked) - len(answered) < 100
    assert [features for features, _, _ in model.learned] == [stream_rows[number].features for number in answered]


@pytest.mark.parametrize("delay", [0, 130])
def test_an_answer_is_about_the_row_that_was_asked_about_also_where_that_came_long_before(delay: int) -> None:
    model = Constant({"usual": 0.5, "rare": 0.5})
    stream_rows = [Row(instance.features, truth(instance.features)) for instance in stream(1_000)]
    plan = SamplingPlan(BudgetPlan(0.2, loan=0), "pool", {"pool_window": 100})
    simulator = Simulator(plan, model, Oracle(delay=delay), ["rare", "usual"])
    late = sum(simulator.step(number, row).asked for number, row in enumerate(stream_rows))
    assert late < simulator.learned
    assert len(model.learned) == simulator.learned > 150
    assert all(label == truth(features) for features, label, _ in model.learned)


def test_late_answers_silence_and_mistakes_cost_but_the_budget_is_used() -> None:
    stream_rows = rows(4_000)
    best = run(stream_rows)
    for oracle in (Oracle(delay=1_000), Oracle(silence=0.7), Oracle(error=0.4)):
        worse = run(stream_rows, oracle=oracle)
        assert worse.max_overshoot <= 0.0
        assert worse.spent_ratio >= 0.95
        assert (worse.scores["kappa"] or 0.0) < (best.scores["kappa"] or 0.0)


def test_several_annotators_answer_each_request_and_fewer_mistakes_are_learned() -> None:
    stream_rows = [Row(instance.features, truth(instance.features)) for instance in stream(4_000)]

    def wrong(answers: int) -> float:
        model = Constant({"usual": 0.5, "rare": 0.5})
        plan = SamplingPlan(BudgetPlan(0.2), "periodic", answers=answers)
        simulator = Simulator(plan, model, Oracle(error=0.2, delay=5, distribution="exponential"), ["rare", "usual"])
        for number, row in enumerate(stream_rows):
            simulator.step(number, row)
        assert simulator.max_overshoot <= 0.0
        assert len(model.learned) == simulator.learned > 700
        assert answers * simulator.learned <= simulator.answers <= answers * simulator.lane.asked
        return fmean(label != truth(features) for features, label, _ in model.learned)

    # 0.2, and 3 * 0.2**2 * 0.8 + 0.2**3 for a majority of three
    assert wrong(1) == pytest.approx(0.2, abs=0.04)
    assert wrong(3) == pytest.approx(0.104, abs=0.03)


def test_silence_is_not_learned() -> None:
    found = run(rows(2_000), oracle=Oracle(silence=1.0))
    assert (found.learned, found.scores["kappa"]) == (0, 0.0)
    assert found.spent_ratio >= 0.95
    part = run(rows(2_000), oracle=Oracle(silence=0.5))
    assert part.learned == pytest.approx(part.asked / 2, rel=0.25)


def test_a_mistaken_annotator_names_one_of_the_classes() -> None:
    model = Constant({"usual": 1.0})
    plan = SamplingPlan(BudgetPlan(0.5), "random", serve=True)
    simulate(rows(400), 400, plan, model, Oracle(error=1.0), model_name="constant", classes=["rare", "usual"])
    truths = {repr(row.features): row.label for row in rows(400)}
    assert model.learned
    assert all({label, truths[repr(features)]} == {"rare", "usual"} for features, label, _ in model.learned)


def test_the_curve_leads_to_the_result() -> None:
    heard: list[int] = []
    model = presets.build("gaussian_nb", parameters={}, scaling="all", seed=0)
    plan = SamplingPlan(BudgetPlan(0.1), serve=True)
    found = simulate(rows(2_000), 2_000, plan, model, Oracle(), model_name="nb", classes=[], progress=heard.append)
    assert [point.seen for point in found.curve] == heard == list(range(10, 2_001, 10))
    assert found.curve[-1].scores == found.scores
    assert found.curve[-1].asked == found.asked
    assert fmean(point.accuracy or 0.0 for point in found.curve) == pytest.approx(found.scores["accuracy"])


def test_a_regression_is_simulated_with_its_own_scores() -> None:
    stream_rows = [Row(i.features, 2.0 * float(str(i.features["x"])) + 1.0) for i in stream(2_000)]
    found = run(stream_rows, strategy="random", kind="linear_regression", oracle=Oracle(delay=20))
    assert found.scores["kappa"] is None
    assert (found.scores["mae"] or 9.0) < 0.6
    assert found.curve[-1].accuracy is None
    assert found.max_overshoot <= 0.0


def test_nothing_to_see_is_nothing_spent() -> None:
    found = run([])
    assert (found.instances, found.asked, found.allowed, found.spent_ratio, found.curve) == (0, 0, 0.0, 0.0, ())


def test_a_plan_that_serves_no_predictions_is_scored_all_the_same() -> None:
    plan = SamplingPlan(BudgetPlan(0.1), serve=False)
    results = [
        simulate(
            rows(500),
            500,
            chosen,
            presets.build("gaussian_nb", parameters={}, scaling="all", seed=0),
            Oracle(),
            model_name="nb",
            classes=[],
        )
        for chosen in (plan, replace(plan, serve=True))
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("strategy", "parameters", "rate", "loan", "delay"),
    [
        ("fixed_uncertainty", {"spill": False}, 0.3, 20, 0),
        ("class_conditional", {}, 0.05, 20, 0),
        ("class_conditional", {}, 0.02, 0, 300),
        ("pool", {"pool_window": 100}, 0.1, 20, 50),
        ("periodic", {}, 1.0, 0, 0),
    ],
)
def test_the_control_asks_for_exactly_as_many_labels(
    strategy: str, parameters: dict[str, object], rate: float, loan: int, delay: int
) -> None:
    stream_rows = rows(1_500)
    plan = SamplingPlan(BudgetPlan(rate, loan), strategy, parameters)

    def sampled(chosen: SamplingPlan) -> Simulation:
        model = presets.build("gaussian_nb", parameters={}, seed=0)
        return simulate(stream_rows, 1_500, chosen, model, Oracle(delay), model_name="nb", classes=["rare", "usual"])

    ours = sampled(plan)
    found = control(ours, plan, sampled)
    assert 0 < found.asked == ours.asked
    assert (found.strategy, found.instances, found.seed) == ("random", 1_500, plan.seed)
    if strategy == "fixed_uncertainty":
        assert ours.asked < 0.9 * ours.allowed, "with the budget's rate the control would have had more labels"


def test_the_control_of_a_strategy_that_asked_nothing_asks_nothing() -> None:
    stream_rows = rows(300)
    plan = SamplingPlan(BudgetPlan(0.1, loan=0, paused=True))

    def sampled(chosen: SamplingPlan) -> Simulation:
        return simulate(stream_rows, 300, chosen, Constant({}), Oracle(), model_name="none", classes=[])

    ours = sampled(plan)
    assert control(ours, plan, sampled).asked == ours.asked == 0


def test_the_control_asks_over_the_whole_stream() -> None:
    stream_rows = rows(3_000)
    plan = SamplingPlan(BudgetPlan(0.1))

    def sampled(chosen: SamplingPlan) -> Simulation:
        return simulate(stream_rows, 3_000, chosen, Constant({"usual": 1.0}), Oracle(), model_name="c", classes=[])

    found = control(sampled(plan), plan, sampled)
    done = next(point.seen for point in found.curve if point.asked == found.asked)
    assert done >= 0.9 * 3_000
    half = next(point.asked for point in found.curve if point.seen >= 1_500)
    assert half == pytest.approx(found.asked / 2, rel=0.1)


def test_a_lead_is_more_kappa_or_less_error() -> None:
    better, worse = run(rows(600), rate=0.5), run(rows(600), rate=0.02, loan=0)
    assert lead(better, worse, "kappa") == (better.scores["kappa"] or 0.0) - (worse.scores["kappa"] or 0.0) > 0.0
    near, far = (replace(better, scores={"mae": error}) for error in (1.5, 2.0))
    assert lead(near, far, "mae") == 0.5


def test_the_summary_has_the_mean_of_the_controls() -> None:
    one = run(rows(500))
    assert one.summary()["random_kappa"] is None
    beside = tuple(replace(one, scores=one.scores | {"kappa": kappa}) for kappa in (0.2, 0.4))
    found = json.loads(json.dumps(replace(one, controls=beside).summary()))
    assert found["random_kappa"] == pytest.approx(0.3)
    assert "controls" not in found


@pytest.mark.parametrize("delay", [0, 100])
def test_self_training_is_told_with_how_often_it_was_right(delay: int) -> None:
    def trained(bar: float | None) -> Simulation:
        model = presets.build("gaussian_nb", parameters={}, seed=0)
        plan = SamplingPlan(BudgetPlan(0.1), "random", unlabelled=0.5, self_training=bar)
        return simulate(rows(2_000), 2_000, plan, model, Oracle(delay), model_name="", classes=["rare", "usual"])

    plain, low, high = trained(None), trained(0.6), trained(0.95)
    assert (plain.unlabelled, plain.pseudo_labelled, plain.pseudo_accuracy) == (0, 0, None)
    assert 700 > low.pseudo_labelled > high.pseudo_labelled > 10
    assert low.unlabelled == 0
    for found in (low, high):
        assert found.pseudo_accuracy is not None
        assert 0.5 < found.pseudo_accuracy < 1.0
        assert found.learned <= found.asked <= 201
        assert found.max_overshoot <= 0.0
        assert found.estimates.audit_labels <= found.learned, "no pseudo-label is an audit"
        assert found.scores != plain.scores
