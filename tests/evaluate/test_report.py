"""Tables fit a terminal of 80 columns whatever is compared, and pictures are real pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from streamal.errors import ConfigError
from streamal.evaluate import report
from streamal.evaluate.prequential import Recall
from streamal.evaluate.simulate import CurvePoint, Simulation
from streamal.selection.registry import STRATEGIES
from streamal.web.status import Estimate, Estimates, Improvement

CLASSES = {"accuracy": 0.9, "kappa": 0.8, "macro_f1": 0.7, "balanced_accuracy": 0.6, "log_loss": 0.5}
NUMBERS = {"mae": 12.5, "rmse": 1234.5, "r2": -0.5}
NONE = dict.fromkeys(report.SHOWN)


def simulation(
    strategy: str, scores: Mapping[str, float], seed: int = 0, *, overshoot: float = 0.0, shift: float = 0.0
) -> Simulation:
    found = NONE | {name: value + shift for name, value in scores.items()}
    return Simulation(
        instances=45_312,
        asked=2_264,
        allowed=2_265.6,
        max_overshoot=overshoot,
        spent_ratio=0.9993,
        scores=found,
        estimates=estimates(found),
        strategy=strategy,
        model="logistic_regression",
        rate=0.05,
        seed=seed,
        delay=0,
        learned=2_264,
        answers_per_request=1,
        answers=2_264,
        unlabelled=0,
        pseudo_labelled=0,
        pseudo_accuracy=None,
        curve=tuple(CurvePoint(seen, seen // 20, 0.5, found) for seen in range(200, 2_200, 200)),
    )


def estimates(scores: Mapping[str, float | None]) -> Estimates:
    """Return what the answers would have said: a bit too much, in a wide interval, and far too little by themselves."""
    name = "mae" if scores["accuracy"] is None else "accuracy"
    true = scores[name] or 0.0
    measures = {name: Estimate(true + 0.01, true - 0.04, true + 0.03, 100)}
    return Estimates(1_000, 100, measures, naive={name: true - 0.15}, response={"selected": 1.0, "rest": 1.0})


def rendered(results: dict[str, list[Simulation]]) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report.table(results))
    return captured.get()


def test_all_strategies_with_several_seeds_fit_80_columns() -> None:
    results = {name: [simulation(name, CLASSES, seed, shift=seed / 10) for seed in (0, 1)] for name in STRATEGIES}
    text = rendered(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert [name for name in STRATEGIES if name not in text] == []
    assert "±.071" in text
    assert "Means ± standard deviations of 2 seeds." in text


def test_what_was_spent_stands_beside_what_was_reached() -> None:
    text = rendered({"random": [simulation("random", CLASSES)]})
    assert "logistic_regression, 45,312 instances, 2,266 labels allowed" in text
    row, _ = [line.split() for line in text.splitlines() if line.startswith("random")]
    assert row == ["random", "2,264", "99.9%", "0.900", "0.800", "0.700", "0.600", "0.500"]
    assert "The budget held at every prefix." in text
    assert "mae" not in text


def test_the_true_accuracy_stands_beside_what_the_answers_say_of_it() -> None:
    text = rendered({"random": [simulation("random", CLASSES)]})
    assert report.KNOWN["accuracy"] in text
    assert "answered were" not in text
    _, row = [line.split() for line in text.splitlines() if line.startswith("random")]
    assert row == ["random", "0.900", "0.910", "0.860", "0.930", "0.750", "-", "-"]
    assert max(map(len, text.splitlines())) <= 80


def test_what_the_later_labels_brought_stands_beside_it() -> None:
    one = simulation("random", CLASSES)
    gain = Improvement(0.012, -0.03, 0.054, 1_132, 113, None)
    text = rendered({"random": [replace(one, estimates=replace(one.estimates, improvement=gain))]})
    _, row = [line.split() for line in text.splitlines() if line.startswith("random")]
    assert row[-2:] == ["0.012", "0.054"]


@pytest.mark.parametrize(("scores", "measure", "lead"), [(CLASSES, "kappa", "0.150"), (NUMBERS, "mae", "-0.150")])
def test_random_with_as_many_labels_stands_beside_a_strategy(
    scores: Mapping[str, float], measure: str, lead: str
) -> None:
    beside = tuple(simulation("random", scores, shift=shift) for shift in (-0.1, -0.2))
    ours = replace(simulation("randomised_uncertainty", scores), controls=beside)
    text = rendered({"randomised_uncertainty": [ours], "random": [simulation("random", scores)]})
    table = text.split(report.BESIDE)[1].splitlines()
    assert table[3].split()[:2] == ["strategy", "asked"]
    assert measure in table[3]
    rows = [line.split() for line in table if line.startswith("random")]
    mean = scores[measure]
    assert rows[0] == ["randomised_uncertainty", "2,264", f"{mean:.3f}", f"{mean - 0.15:.3f}", lead, "2"]
    assert report.BESIDE not in rendered({"random": [simulation("random", scores)]})
    assert max(map(len, text.splitlines())) <= 80


def test_the_true_error_stands_beside_what_the_answers_say_of_it() -> None:
    text = rendered({"random": [simulation("random", NUMBERS)]})
    assert report.KNOWN["mae"] in text
    _, row = [line.split() for line in text.splitlines() if line.startswith("random")]
    assert row == ["random", "12.500", "12.510", "12.460", "12.530", "12.350", "-", "-"]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ([Estimates(900, 3)], "split: unknown with 3 audit labels; 5 are needed."),
        (
            [Estimates(900, 7, response={"selected": 0.0, "rest": 1.0})],
            "split: unknown, since none of the requests the model chose is answered.",
        ),
        (
            [Estimates(900, 7, response={"selected": 1.0})],
            "split: unknown, since nothing is answered that the model would not have chosen.",
        ),
        ([Estimates(900, 4), None], "split: unknown in 1 of 2 seeds with 4 audit labels; 5 are needed."),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(known: list[Estimates | None], said: str) -> None:
    runs = [simulation("split", CLASSES, seed) for seed in range(len(known))]
    runs = [replace(run, estimates=one) if one else run for run, one in zip(runs, known, strict=True)]
    text = rendered({"split": runs})
    assert report.KNOWN["accuracy"] in text
    assert said in text
    assert ("mated" in text) == (None in known)


def test_the_share_that_was_answered_is_told_unless_it_is_all() -> None:
    one = simulation("split", CLASSES)
    text = rendered({"split": [replace(one, estimates=replace(one.estimates, response={"selected": 0.5}))]})
    assert "split: answered were 50.0% of the requests the model chose, 100.0% of those" in text


def test_the_recall_of_each_class_stands_beside_its_share_the_rarest_first() -> None:
    recall = {"fraud": Recall(0.25, 0.01), "[ok]": Recall(0.99, 0.99)}
    text = rendered({name: [replace(simulation(name, CLASSES), recall=recall)] for name in STRATEGIES})
    rows = [line.split() for line in text.split(report.RECALLED)[1].splitlines() if "%" in line]
    assert rows[:2] == [["fraud", "1.0%", *["0.250"] * 4], ["[ok]", "99.0%", *["0.990"] * 4]]
    assert sum(row.count("0.250") for row in rows) == len(STRATEGIES)
    assert max(map(len, text.splitlines())) <= 80
    assert report.RECALLED not in rendered({"random": [simulation("random", NUMBERS)]})


def test_of_many_classes_the_rarest_are_shown() -> None:
    recall = {f"a class with a long name {n}": Recall(0.5, n / 300) for n in range(25)}
    text = rendered({name: [replace(simulation(name, CLASSES), recall=recall)] for name in STRATEGIES})
    assert "a class with a …" in text
    assert "8.0%" not in text.split(report.RECALLED)[1]
    assert text.count("6.3%") == -(-len(STRATEGIES) // report.ABREAST)
    assert "5 more are in --json." in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_the_loan_bought_and_what_taught_nothing_is_told() -> None:
    one = replace(simulation("split", CLASSES), allowed=10.0, loan=3_000)
    text = rendered({"split": [one], "random": [replace(simulation("random", CLASSES), learned=0)]})
    assert "split asked for more than the rate allows: the first 3,000 labels are the" in text
    assert "random learned nothing, since no answer came" in text
    assert "random asked for more" not in text
    assert "split learned nothing" not in text
    silent = replace(one, asked=0, learned=0)
    assert "split learned nothing, since it asked for nothing" in rendered({"split": [silent]})


def test_a_broken_budget_is_not_hidden_by_other_runs() -> None:
    runs = {
        "a": [simulation("a", CLASSES, 0), simulation("a", CLASSES, 1, overshoot=1.5)],
        "b": [simulation("b", CLASSES)],
    }
    assert "The budget was exceeded by up to 1.50 labels." in rendered(runs)


def test_regression_has_its_own_columns() -> None:
    text = rendered({"random": [simulation("random", NUMBERS)]})
    assert ["12.500", "1234.500", "-0.500"] == text.split("99.9%")[1].split()[:3]
    assert "kappa" not in text


@pytest.mark.parametrize("scores", [CLASSES, NUMBERS])
def test_a_plot_is_a_png_with_a_line_for_each_strategy(tmp_path: Path, scores: dict[str, float]) -> None:
    shifts = {"class_conditional": 0.1, "random": 0.0}
    runs = {name: [simulation(name, scores, seed, shift=shift) for seed in (0, 1)] for name, shift in shifts.items()}
    report.plot(runs, tmp_path / "curves", title="stream.csv")
    picture = (imread(tmp_path / "curves", format="png")[:, :, :3] * 255).round()
    assert picture.shape == (600, 1080, 3)
    for colour in report.COLOURS[:2]:
        drawn = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (picture == drawn).all(axis=2).sum() > 500
    third = [int(report.COLOURS[2][at : at + 2], 16) for at in (1, 3, 5)]
    assert not (picture == third).all(axis=2).any()


def test_runs_without_a_first_score_are_drawn(tmp_path: Path) -> None:
    report.draw({"a": [[(1, None), (2, 0.5)]]}, tmp_path / "a.png", title="", ylabel="")
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [("none/a.png", "none is no such folder"), ("folder", "Is a directory"), ("file/a.png", "not a folder")],
)
def test_a_picture_that_cannot_be_written_is_explained(tmp_path: Path, name: str, cause: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"{name}: the picture cannot be written.*{cause}"):
        report.plot({"a": [simulation("a", CLASSES)]}, tmp_path / name, title="")


def test_a_picture_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'streamal\[plot\]'"):
        report.check_picture(tmp_path / "a.png")
