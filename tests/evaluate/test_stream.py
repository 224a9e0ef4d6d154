"""Labelled files are read in their order, and what is wrong with one is said with file and row."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from streamal.decoding import InstanceFormat
from streamal.errors import BadRecord, ConfigError
from streamal.evaluate.stream import Row, number, numeric, read


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_has_numbers_strings_and_gaps(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'x,city,target\n1.5,Oslo,1\n,"a, b",0\n-2e3,,1\n')
    assert list(read(path)) == [
        Row({"x": 1.5, "city": "Oslo"}, "1"),
        Row({"x": None, "city": "a, b"}, "0"),
        Row({"x": -2000.0, "city": None}, "1"),
    ]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_gzipped_files_are_read_as_well(tmp_path: Path, name: str) -> None:
    text = "x,target\n1,ok\n" if "csv" in name else '{"x": 1.0, "target": "ok"}\n'
    assert list(read(write(tmp_path, name, gzip.compress(text.encode())))) == [Row({"x": 1.0}, "ok")]


def test_json_lines_have_scalars_beside_the_label_or_an_object_of_features(tmp_path: Path) -> None:
    text = '{"x": 1, "b": true, "n": null, "target": 1}\n{"features": {"x": 2.5}, "target": false}\n'
    assert list(read(write(tmp_path, "a.jsonl", text))) == [
        Row({"x": 1, "b": True, "n": None}, "1"),
        Row({"x": 2.5}, "false"),
    ]


def test_what_names_or_shows_an_instance_is_no_feature(tmp_path: Path) -> None:
    assert list(read(write(tmp_path, "a.csv", "id,x,display,target\n7,1,seven,ok\n"))) == [Row({"x": 1.0}, "ok")]
    text = '{"id": 7, "x": 1, "target": "ok"}\n{"id": 8, "features": {"x": 2, "id": 3}, "at": 9, "target": "ok"}\n'
    assert list(read(write(tmp_path, "a.jsonl", text))) == [Row({"x": 1}, "ok"), Row({"x": 2, "id": 3}, "ok")]


def test_instances_stand_where_the_format_says(tmp_path: Path) -> None:
    row = '{"tx": {"id": 1, "text": "abroad"}, "values": {"amount": 2}, "n": 3, "verdict": {"is": "ok", "by": "ada"}}\n'
    path = write(tmp_path, "a.jsonl", row)
    nested = InstanceFormat(id="tx.id", display="tx.text", features="values")
    assert list(read(path, label="verdict.is", form=nested)) == [Row({"amount": 2}, "ok")]
    assert list(read(path, label="amount", task="regression", form=nested)) == [Row({}, 2.0)]
    flat = InstanceFormat(id="tx.id", display="values", features="")
    assert list(read(path, label="verdict.is", form=flat)) == [Row({"n": 3}, "ok")]
    with pytest.raises(ConfigError, match=r"'tx' must be a number .* \[instance\] in the config says in which"):
        list(read(path, label="verdict.is"))
    with pytest.raises(ConfigError, match=r"row 1: no column 'verdict\.was' for the label; there are tx, values, n"):
        list(read(path, label="verdict.was", form=nested))


def test_the_label_may_stand_elsewhere_and_be_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "y,x\n1.5,2\n")
    assert list(read(path, label="y", task="regression")) == [Row({"x": 2.0}, 1.5)]
    assert list(read(path, label="y")) == [Row({"x": 2.0}, "1.5")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "x,target\n1,2\n1,secret\n",
            "a number, came text; choose a classifier by --model, or another column",
        ),
        ("a.csv", "x,target\n1,2\n1,nan\n", "came text"),
        ("a.csv", "x,target\n1,2\n1,\n", "came nothing; leave such rows out"),
        ("a.csv", "x,target\n1,2\n1\n", "came nothing"),
        ("a.jsonl", '{"x": 1, "target": 2}\n{"x": 1, "target": true}\n', "came a boolean"),
        ("a.jsonl", '{"x": 1, "target": 2}\n{"x": 1, "target": [1]}\n', "came a list"),
        ("a.jsonl", '{"x": 1, "target": 2}\n{"x": 1, "target": {}}\n', "came an object"),
    ],
)
def test_a_regression_takes_numbers_only(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(read(write(tmp_path, name, content), task="regression"))
    assert f"{name}, row 2, column 'target': expected" in str(caught.value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([n / 7 for n in range(200)], 200),
        ([float(n % 51) for n in range(900)], 51),
        ([float(n % 50) for n in range(900)], 0),
        ([float(n) for n in range(11)], 11),
        ([float(n) for n in range(10)], 0),
        ([*range(200), "other"], 0),
        ([f"class {n}" for n in range(200)], 0),
    ],
)
def test_numbers_that_are_hardly_classes_are_counted(labels: list[object], told: int) -> None:
    assert numeric(Row({}, str(label)) for label in labels) == told
    assert numeric(Row({}, 1.0 * n) for n in range(200)) == 0


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "\ufefftarget,x\nok,1\n")
    assert list(read(path)) == [Row({"x": 1.0}, "ok")]


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.jsonl", '{"x": 1, "target": "ok"}\n{broken'))
    assert next(rows) == Row({"x": 1}, "ok")


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert list(read(write(tmp_path, "a.csv", ""))) == []
    assert list(read(write(tmp_path, "b.csv", "x,target\n"))) == []
    assert list(read(write(tmp_path, "a.jsonl", ""))) == []


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.xlsx", "", ["a.xlsx", ".csv or .jsonl"]),
        ("a.csv", "x,y\n1,2\n", ["a.csv, row 1", "no column 'target'", "x, y", "--label"]),
        ("a.csv", "x,target\n1,ok\n1,ok,7\n", ["a.csv, row 2", "more fields"]),
        ("a.csv", "x,target\n1e101,ok\n", ["a.csv, row 1", "x"]),
        ("a.csv", b"x,target\n\xff,ok\n", ["a.csv", "UTF-8"]),
        ("a.csv.gz", "x,target\n1,ok\n", ["a.csv.gz", "gzip"]),
        ("a.csv.gz", gzip.compress(b"x,target\n" + b"1,ok\n" * 9_999, mtime=0)[:60], ["a.csv.gz"]),
        ("a.jsonl", '{"x": 1, "target": "ok"}\n{"x": NaN, "target": "ok"}\n', ["a.jsonl, row 2", "JSON"]),
        ("a.jsonl", "[1]\n", ["a.jsonl, row 1", "JSON object"]),
        ("a.jsonl", '{"features": [1], "target": "ok"}\n', ["a.jsonl, row 1", "features"]),
        ("a.jsonl", '{"x": {"y": 1}, "target": "ok"}\n', ["a.jsonl, row 1", "x"]),
        ("a.jsonl", '{"x": 1e101, "target": "ok"}\n', ["a.jsonl, row 1", "x"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: str | bytes, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        list(read(write(tmp_path, name, content)))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv.*labelled stream"):
        list(read(tmp_path / "none.csv"))


@pytest.mark.parametrize("content", ["x,target\n1,ok\n1,\n", "x,target\n1,ok\n1\n"])
def test_a_row_without_a_label_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadRecord, match=r"a\.csv, row 2, column 'target': expected a label, came nothing") as caught:
        list(read(write(tmp_path, "a.csv", content)))
    assert caught.value.reason == "bad_label"


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "0x10", "12a"])
def test_what_is_no_finite_number_stays_a_string(text: str) -> None:
    assert number(text) == text
