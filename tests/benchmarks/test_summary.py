"""The figures of the report are those of known results, and the report shows losses as it shows gains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.label_efficiency.__main__ import main
from benchmarks.label_efficiency.cells import Cell, Result, keep
from benchmarks.label_efficiency.contenders import FULL
from benchmarks.label_efficiency.report import blocks_table, report
from benchmarks.label_efficiency.summary import (
    Block,
    Summary,
    cliques,
    critical_difference,
    labels_for,
)
from streamal.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n"
SEEN = 1_000
RATES = (0.01, 0.1)
STREAMS = ("north", "south")
LEVEL = {
    "class_conditional": 0.5,
    "random": 0.4,
    "split": 0.3,
    "skactiveml.Split": 0.45,
    "skactiveml.Split@ledger": 0.42,
}


def result(stream: str, contender: str, rate: float, seed: int, kappa: float, asked: int | None = None) -> Result:
    cell = Cell(stream, "gaussian_nb", contender, rate, 0, seed, SEEN)
    spent = round(rate * SEEN) if asked is None else asked
    return Result(cell, SEEN, spent, spent - rate * SEEN - 1.0, {"kappa": kappa}, [kappa / 2, kappa], 0.1)


def results() -> list[Result]:
    """Return runs in which kappa rises by .1 from the low rate to the high one, and by .02 from seed to seed."""
    found = []
    for stream in STREAMS:
        for seed in (0, 1):
            found.append(result(stream, FULL, 1.0, seed, 0.8))
            for contender, level in LEVEL.items():
                lost = stream == "south" and contender == "class_conditional"
                for number, rate in enumerate(RATES):
                    kappa = level + 0.1 * number + 0.02 * seed - (0.25 if lost else 0.0)
                    found.append(result(stream, contender, rate, seed, kappa))
    return found


def summary() -> Summary:
    return Summary.of(results())


def test_means_are_over_blocks_and_deviations_over_seeds() -> None:
    found = summary().mean("random")
    assert found.mean == pytest.approx(0.46)
    assert found.deviation == pytest.approx(0.02 / math.sqrt(2.0))
    assert summary().mean("random", summary().where(rate=0.01)).mean == pytest.approx(0.41)
    assert summary().mean(FULL).mean == pytest.approx(0.8)
    assert summary().by_kappa(["split", "random", "skactiveml.Split"]) == ["skactiveml.Split", "random", "split"]


def test_only_what_all_have_run_counts() -> None:
    every = results()
    without_a_seed = [run for run in every if run.cell[:6] != ("south", "gaussian_nb", "split", 0.1, 0, 1)]
    assert Summary.of(without_a_seed).seeds == (0,)
    assert len(Summary.of(without_a_seed).blocks) == 4
    without_a_block = [run for run in every if (run.cell.stream, run.cell.contender) != ("south", "split")]
    assert {block.stream for block in Summary.of(without_a_block).blocks} == {"north"}
    assert Summary.of(without_a_block).seeds == (0, 1)
    longer = [run._replace(cell=run.cell._replace(rows=2 * SEEN)) for run in every if run.cell.stream == "north"]
    assert len(Summary.of([*every, *longer]).blocks) == 2
    assert len(Summary.of([*every, *longer], SEEN).blocks) == 4
    shifted = [run._replace(cell=run.cell._replace(shift=400)) for run in every if run.cell.stream == "north"]
    assert len(Summary.of([*every, *shifted]).blocks) == 4
    assert len(Summary.of([*every, *shifted], shift=400).blocks) == 2
    with pytest.raises(ConfigError, match="of 0 cells none can be compared"):
        Summary.of([])
    with pytest.raises(ConfigError, match="none can be compared"):
        Summary.of([run for run in every if run.cell.contender != FULL])


def test_ranks_are_shared_by_ties_and_counted_over_blocks_or_streams() -> None:
    contenders = ["class_conditional", "random", "split"]
    ranks = summary().ranks(contenders)
    assert ranks.mean == {"class_conditional": 2.0, "random": 1.5, "split": 2.5}
    assert ranks.blocks == 4
    assert 0.0 < ranks.p < 1.0
    assert summary().ranks(contenders, lambda block: block.stream).blocks == 2
    assert math.isnan(summary().ranks(contenders[:2]).p)


def test_critical_differences_are_those_of_the_tables() -> None:
    # q at 5 % for 2, 5 and 10 contenders as published: 1.960, 2.728, 3.164
    for contenders, q in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = q * math.sqrt(contenders * (contenders + 1) / (6.0 * 20))
        assert critical_difference(contenders, 20) == pytest.approx(expected, rel=1e-3)


def test_cliques_join_what_does_not_differ() -> None:
    assert cliques({"a": 1.0, "b": 2.0, "c": 3.0}, 5.0) == [(1.0, 3.0)]
    assert cliques({"a": 1.0, "b": 2.0, "c": 3.0}, 0.5) == []
    assert cliques({"a": 1.0, "b": 1.2, "c": 1.4, "d": 3.0, "e": 3.1}, 0.3) == [(1.0, 1.2), (1.2, 1.4), (3.0, 3.1)]


def test_labels_are_read_off_where_the_goal_is_crossed_first() -> None:
    curve = [(10.0, 0.2), (100.0, 0.6), (200.0, 0.5), (1_000.0, 0.8)]
    assert labels_for(0.4, curve) == pytest.approx(10.0**1.5)
    assert labels_for(0.6, curve) == pytest.approx(100.0)
    assert labels_for(0.65, curve) == pytest.approx(200.0 * 5.0**0.5)
    assert labels_for(0.1, curve) == 10.0


def test_labels_needed_are_compared_per_stream() -> None:
    found = summary().needed("skactiveml.Split", "random", "gaussian_nb", 0)
    # both lie on lines of equal slope between the high rate and full supervision, at .76 of .8
    own, other = (100.0 * 10.0 ** ((0.76 - high) / (0.8 - high)) for high in (0.56, 0.51))
    assert found.ratio == pytest.approx(other / own)
    assert (found.streams, found.bounds) == (2, 0)
    poor = [run._replace(scores={"kappa": 0.05}) if run.cell.contender == FULL else run for run in results()]
    assert Summary.of(poor).needed("split", "random", "gaussian_nb", 0).streams == 0
    easy = [run._replace(scores={"kappa": 0.2}) if run.cell.contender == FULL else run for run in results()]
    found = Summary.of(easy).needed("split", "random", "gaussian_nb", 0)
    assert found.ratio == pytest.approx(1.0)
    assert found.bounds == 2


def test_who_never_asks_needs_no_number_of_labels() -> None:
    silent = [
        run._replace(asked=0, scores={"kappa": 0.0}) if run.cell.contender == "split" else run for run in results()
    ]
    assert Summary.of(silent).needed("split", "random", "gaussian_nb", 0).streams == 0
    assert "| split | - |" in report(Summary.of(silent), "random", {})


def test_duels_and_losses_are_told_by_stream() -> None:
    duel = summary().duel("class_conditional", "random")
    assert (duel.won, duel.tied) == (0.5, 0.0)
    assert duel.difference == pytest.approx(-0.025)
    assert duel.streams == {"north": pytest.approx(0.1), "south": pytest.approx(-0.15)}
    losses = list(summary().losses("class_conditional", "random"))
    assert [block for block, _ in losses] == [Block("south", "gaussian_nb", rate, 0) for rate in RATES]
    assert losses[0][1] == pytest.approx((-0.15, 0.0), abs=1e-9)
    assert list(summary().losses("random", "split")) == []


def test_spending_is_beside_what_is_allowed() -> None:
    lavish = [run._replace(asked=2 * run.asked, max_overshoot=9.5) for run in results() if run.cell.stream == "north"]
    found = Summary.of([*lavish, *(run for run in results() if run.cell.stream == "south")]).spending("split")
    assert found == pytest.approx((1.5, 1.0, 2.0, 9.5))


def test_the_report_tells_losses_as_well() -> None:
    ran = [run._replace(commit="abc") for run in results()]
    text = report(Summary.of(ran), "class_conditional", {"python": "3"})
    assert "# Label efficiency: class_conditional and its peers" in text
    assert "- commits: abc" in text
    assert "- python: 3" in text
    assert "2 of 4 blocks." in text
    assert "| south | GNB | 1% | 0 | 0.260 | 0.410 | -0.150 ± 0.000 |" in text
    assert "| random | 50% | 0% | -0.025 | +0.100 | -0.150 | 50% |" in text
    ranks, with_shipped = (part.split("##")[0] for part in text.split("## Ranks")[1:])
    assert "skactiveml.Split@ledger" in ranks
    assert "skactiveml.Split |" not in ranks
    assert "| skactiveml.Split | 1.50 | 1.50 | 1.50 |" in with_shipped
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 120


def test_the_table_of_blocks_has_every_one() -> None:
    head, *lines = blocks_table(summary()).splitlines()
    assert len(lines) == 4 * len(LEVEL) + 2
    assert {line.count(",") for line in lines} == {head.count(",")}
    assert "north,gaussian_nb,0.01,0,split,2,1000,10.0,0.3100,0.0141,-1.00" in lines


def test_the_command_prints_and_keeps_the_report(tmp_path: Path) -> None:
    cells = tmp_path / "cells.jsonl"
    list(keep(results(), cells, ""))
    out = tmp_path / "out"
    printed = CliRunner().invoke(main, ["report", "--cells", str(cells), "--out", str(out)])
    assert printed.exit_code == 0, printed.output
    assert (out / "report.md").read_text(encoding="utf-8") in printed.stdout
    pictures = sorted(out.glob("*.png"))
    assert [path.name for path in pictures] == ["curves.png", "labels.png", "ranks.png"]
    for path in pictures:
        assert path.read_bytes().startswith(PNG)
    wrong = CliRunner().invoke(main, ["report", "--cells", str(cells), "--out", str(out), "--subject", "duo"])
    assert wrong.exit_code == 2
    assert "--subject duo: expected one that has run" in wrong.stderr


def test_without_results_the_command_says_what_is_missing(tmp_path: Path) -> None:
    failed = CliRunner().invoke(main, ["report", "--cells", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)])
    assert failed.exit_code == ConfigError.exit_code
    assert "none can be compared: expected every contender" in failed.stderr
