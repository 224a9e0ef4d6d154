"""Contenders differ by their choice alone, and a run that was killed goes on where it stopped."""

from __future__ import annotations

import doctest
from collections import deque
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from benchmarks.label_efficiency import cells, contenders, peers, pictures, report, summary
from benchmarks.label_efficiency.__main__ import main
from benchmarks.label_efficiency.cells import Cell, find, grid, keep, kept, load, ring, run, run_all
from benchmarks.label_efficiency.contenders import CONTENDERS, FULL, OURS, Ledgered, Shipped, enter
from benchmarks.label_efficiency.peers import PEERS, Blind, Peer, Setting
from benchmarks.measure import STREAM
from streamal.errors import ConfigError
from streamal.evaluate.prequential import Prequential
from streamal.evaluate.stream import Row
from streamal.learning import presets

ROWS = 600
SETTING = Setting(rate=0.1, seed=1, classes=2, width=6)
CLASSES = ["down", "up"]


def rows(count: int = ROWS) -> list[Row]:
    return load(STREAM)[:count]


def cell(contender: str, rate: float = 0.1, seed: int = 0, count: int = ROWS) -> Cell:
    return Cell("electricity", "logistic_regression", contender, rate, 20, seed, count)


class Told:
    """A gate that opens when it is told to."""

    def __init__(self, wanted: list[bool]) -> None:
        self._wanted = deque(wanted)

    def opens(self, utility: float) -> bool:
        return self._wanted[0]

    def note(self, utility: float, *, asked: bool) -> None:
        assert asked == self._wanted.popleft()


@pytest.mark.parametrize("kind", cells.MODELS)
@pytest.mark.parametrize("delay", [0, 30])
def test_with_the_same_choice_a_peer_as_shipped_reaches_what_the_simulator_does(kind: str, delay: int) -> None:
    ledgered = enter("class_conditional", SETTING, presets.build(kind, parameters={}, seed=0), delay, CLASSES)
    assert isinstance(ledgered, Ledgered)
    wanted = [ledgered.step(number, row).asked for number, row in enumerate(rows())]
    shipped = Shipped(Peer(Blind(), Told(wanted)), presets.build(kind, parameters={}, seed=0), 0.1, delay)
    for number, row in enumerate(rows()):
        shipped.take(number, row)
    assert shipped.asked == ledgered.asked == sum(wanted) > 50
    assert shipped.scores.summary() == ledgered.scores.summary()


def test_every_strategy_and_every_peer_competes_once() -> None:
    assert len(set(CONTENDERS)) == len(CONTENDERS) == len(OURS) + 3 * len(PEERS)
    assert {"class_conditional", "random", "skactiveml.Split", "skactiveml.Split@ledger"} < set(CONTENDERS)


@pytest.mark.parametrize("contender", [name for name in CONTENDERS if name in OURS or "@" in name])
def test_nobody_overspends_behind_the_ledger(contender: str) -> None:
    found = run(cell(contender, count=300), STREAM)
    assert found.max_overshoot <= 0.0
    assert 20 <= found.asked <= 31
    assert found.seen == 300


def test_terms_differ_in_exploration_only() -> None:
    shipped, ledger, explored = (
        run(cell(f"skactiveml.Split{terms}"), STREAM) for terms in ("", "@ledger", "@explored")
    )
    assert shipped.max_overshoot > 0.0 >= max(ledger.max_overshoot, explored.max_overshoot)
    assert shipped.spent > 1.05
    assert ledger.curve != explored.curve


def test_full_supervision_asks_about_everything() -> None:
    found = run(cell(FULL, rate=1.0), STREAM)
    assert (found.asked, found.spent) == (ROWS, 1.0)
    assert found.kappa > run(cell("random", rate=0.05), STREAM).kappa


def test_rows_that_no_answer_can_have_reached_are_not_scored() -> None:
    late = cell(FULL, rate=1.0)._replace(delay=ROWS // 2)
    race = enter(FULL, SETTING, presets.build(late.model, parameters={}, seed=0), late.delay, CLASSES)
    silent = 0
    for number, row in enumerate(rows()):
        if number == late.delay:
            silent, race.scores = race.scores.count, Prequential()
        race.take(number, row)
    assert (silent, race.scores.count) == (late.delay, ROWS - late.delay)
    assert run(late, STREAM).scores["accuracy"] == race.scores.accuracy > 0.5


def test_a_cell_gives_the_same_whenever_it_is_run_and_another_seed_another_result() -> None:
    first, again, other = (run(cell("split", seed=seed), STREAM)._replace(cpu_s=0.0) for seed in (3, 3, 4))
    assert first == again
    assert first.curve != other.curve
    assert len(first.curve) == cells.CURVE_POINTS
    assert first.curve[-1] == round(first.kappa, 4)


def test_each_seed_begins_elsewhere_and_sees_each_row_once() -> None:
    numbers = list(range(1_000))
    starts = set()
    for seed in range(10):
        found = ring(rows(1_000), seed, 2_000)
        order = [numbers[(int(seed * cells.SPACING % 1.0 * 1_000) + at) % 1_000] for at in range(1_000)]
        assert found == [rows(1_000)[number] for number in order]
        starts.add(order[0])
    assert len(starts) == 10
    assert min(abs(one - other) for one in starts for other in starts if one != other) > 50
    assert len(ring(rows(1_000), 1, 300)) == 300


def test_streams_are_found_by_name(tmp_path: Path) -> None:
    assert find(None) == {"electricity": STREAM}
    (tmp_path / "b.csv.gz").write_bytes(b"")
    (tmp_path / "a.csv.gz").write_bytes(b"")
    assert list(find(tmp_path)) == ["a", "b"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"none: expected labelled streams \(\*\.csv\.gz"):
        find(tmp_path / "none")


def test_results_are_kept_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "cells.jsonl"
    found = [run(cell(name, count=60), STREAM) for name in ("random", "skactiveml.Split")]
    results = [result._replace(commit="abc") for result in found]
    assert kept(path) == []
    assert list(keep(found[:1], path, "abc")) == results[:1]
    assert list(keep(found[1:], path, "abc")) == results[1:]
    assert kept(path) == results


def test_a_torn_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, second = (run(cell("random", seed=seed, count=60), STREAM) for seed in (0, 1))
    list(keep([first, second], path, ""))
    path.write_bytes(path.read_bytes()[:-20])
    assert kept(path) == [first]
    list(keep([second], path, ""))
    assert kept(path) == [first, second]


def test_the_grid_has_full_supervision_once_and_seeds_outermost() -> None:
    found = list(grid(["a", "b"], ["gaussian_nb"], ["random", "split"], [0.1, 0.2], [0, 100], 2, 50))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * (1 + 2 * 2)
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert sum(cell.contender == FULL for cell in found) == 8


def test_several_processes_give_what_one_gives() -> None:
    todo = [cell(name, count=60) for name in ("random", "split", "skactiveml.Split@ledger")]
    paths = {"electricity": STREAM}
    alone = [result._replace(cpu_s=0.0) for result in run_all(todo, paths, 1)]
    together = sorted(run_all(todo, paths, 2), key=lambda result: todo.index(result.cell))
    assert [result._replace(cpu_s=0.0) for result in together] == alone


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = str(tmp_path / "cells.jsonl")
    chosen = ["--model", "gaussian_nb", "--rate", "0.1", "--delay", "0", "--rows", "50", "--cells", path]
    some = ["--strategy", "random", "--seeds", "1"]
    more = ["--strategy", "random", "--strategy", "skactiveml.Spl*", "--seeds", "2"]
    assert "2 cells, 2 of them new" in call("run", *chosen, *some).stdout
    assert "2 cells, 0 of them new" in call("run", *chosen, *some).stdout
    assert "10 cells, 8 of them new" in call("run", *chosen, *more).stdout
    assert len(kept(Path(path))) == 10


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--strategy splitt", ["--strategy splitt: expected one of class_conditional", "skactiveml.Split@explored"]),
        ("--stream elec", ["--stream elec: expected one of electricity"]),
        ("--model svm", ["'svm' is not one of 'logistic_regression'"]),
    ],
)
def test_a_wrong_choice_is_explained(arguments: str, parts: list[str]) -> None:
    message = call("run", *arguments.split(), code=2).stderr
    assert [part for part in parts if part not in " ".join(message.split())] == []


@pytest.mark.parametrize("module", [cells, contenders, peers, pictures, report, summary])
def test_the_examples_in_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_rows_come_in_the_order_of_the_file() -> None:
    assert [row.features["period"] for row in islice(load(STREAM), 2)] == [0.0, 0.021277]
