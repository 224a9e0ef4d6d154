"""Snapshots on disk: signed with the owner's key, replaced whole, and never in the way of the service."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from river import compose, naive_bayes

from streamal.errors import ConfigError
from streamal.learning import snapshot
from streamal.learning.allowed import ALLOWED
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel
from streamal.learning.presets import build
from streamal.messages import Moment, Moments
from streamal.service.snapshots import Checkpointer, SnapshotStore


def fresh() -> Model:
    return build("logistic_regression", parameters={}, seed=0)


def store_in(place: Path, config: str = "config", key_file: Path | None = None) -> SnapshotStore:
    return SnapshotStore(place, "s-0", config, allowed=ALLOWED["logistic_regression"], key_file=key_file)


def dumped(fold: Fold) -> bytes:
    allowed = ALLOWED["logistic_regression"]
    return snapshot.dump(fold.model, model_version=fold.version, config_hash="", key=b"k" * 32, allowed=allowed)


def folded(count: int) -> Fold:
    fold = Fold(fresh())
    fold.fold([(offset, Moments(0, 1, {"x": Moment(1, float(offset), 0.0)})) for offset in range(count)])
    return fold


def unpicklable() -> FactoryModel:
    pipeline: Any = compose.FuncTransformer(lambda features: features) | naive_bayes.GaussianNB()
    return FactoryModel(pipeline, task="classification", weighted=False)


def test_a_saved_fold_comes_back(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.restore(fresh).version == 0
    assert store.save(folded(7)) > 0
    assert store_in(tmp_path).restore(fresh).version == 7
    assert {path.name for path in tmp_path.iterdir()} == {"s-0.snapshot", "snapshot.key"}


def test_its_own_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    store_in(tmp_path).save(folded(1))
    assert stat.S_IMODE((tmp_path / "snapshot.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["config", "key", "bytes"])
def test_what_does_not_fit_is_ignored(tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    store_in(tmp_path).save(folded(7))
    if change == "key":
        (tmp_path / "snapshot.key").write_bytes(b"k" * 32)
    if change == "bytes":
        blob = bytearray((tmp_path / "s-0.snapshot").read_bytes())
        blob[-40] ^= 1
        (tmp_path / "s-0.snapshot").write_bytes(bytes(blob))
    store = store_in(tmp_path, "other" if change == "config" else "config")
    with caplog.at_level(logging.WARNING):
        assert store.restore(fresh).version == 0
    assert "folding the log instead" in caplog.text


def test_a_key_file_that_cannot_serve_is_named(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"k" * 31)
    for file, cause in ((short, "at least 32 bytes, found 31"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=cause):
            store_in(tmp_path, key_file=file).save(folded(1))


def test_it_is_saved_when_enough_has_come_and_not_twice(tmp_path: Path) -> None:
    fold = Fold(fresh())
    checkpoint = Checkpointer(store_in(tmp_path), fold, fresh, every_outcomes=5, every_seconds=0.0)
    for offset in range(12):
        fold.fold([(offset, Moments(0, 1, {"x": Moment(1, 1.0, 0.0)}))])
        checkpoint()
    assert store_in(tmp_path).restore(fresh).version == 10
    checkpoint.save()
    written = (tmp_path / "s-0.snapshot").stat().st_mtime_ns
    checkpoint.save()
    assert (tmp_path / "s-0.snapshot").stat().st_mtime_ns == written
    assert store_in(tmp_path).restore(fresh).version == 12


def test_a_model_that_cannot_be_saved_only_costs_the_snapshots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold = Fold(unpicklable())
    store = store_in(tmp_path)
    checkpoint = Checkpointer(store, fold, unpicklable, every_outcomes=1, every_seconds=0.0)
    with caplog.at_level(logging.WARNING):
        for offset in range(3):
            fold.fold([(offset, Moments(0, 1, {}))])
            checkpoint()
    assert caplog.text.count("no snapshots will be saved") == 1
    assert not (tmp_path / "s-0.snapshot").exists()


def moments(offset: int) -> Moments:
    return Moments(0, 1, {"x": Moment(1, float(offset), 0.0)})


@pytest.mark.parametrize("found", [None, moments(5), moments(6)])
def test_a_snapshot_of_another_log_is_given_up(
    tmp_path: Path, found: Moments | None, caplog: pytest.LogCaptureFixture
) -> None:
    store_in(tmp_path).save(folded(7))
    store = store_in(tmp_path)
    fold = store.restore(fresh)
    checkpoint = Checkpointer(store, fold, fresh, every_outcomes=1, every_seconds=0.0)
    with caplog.at_level(logging.WARNING):
        checkpoint.compare(found)
    same = found == moments(6)
    assert fold.version == (7 if same else 0)
    assert ("of another log" in caplog.text) is not same
    if not same:
        again = folded(3)
        fold.fold([(offset, moments(offset)) for offset in range(3)])
        assert fold.last == again.last
        assert dumped(fold) == dumped(again)
        checkpoint()
        assert store_in(tmp_path).restore(fresh).version == 3


def test_a_full_or_lost_disk_does_not_stop_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "snapshots"
    place.write_text("a file where the directory should be")
    fold = folded(3)
    store = store_in(place)
    checkpoint = Checkpointer(store, fold, fresh, every_outcomes=1, every_seconds=0.0)
    with caplog.at_level(logging.WARNING):
        fold.fold([(3, moments(3))])
        checkpoint()
    assert "snapshot not saved" in caplog.text
    assert checkpoint.saved_at == 0.0
    place.unlink()
    checkpoint()
    assert store_in(place).restore(fresh).version == 4


def test_a_snapshot_that_cannot_be_read_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s-0.snapshot").mkdir()
    with caplog.at_level(logging.WARNING):
        assert store_in(tmp_path).restore(fresh).version == 0
    assert "folding the log instead" in caplog.text
    with pytest.raises(IsADirectoryError):
        store_in(tmp_path).save(folded(1))
    assert {path.name for path in tmp_path.iterdir()} == {"s-0.snapshot", "snapshot.key"}


@pytest.mark.parametrize("length", [0, 31])
def test_a_key_that_was_cut_off_is_replaced(tmp_path: Path, length: int) -> None:
    (tmp_path / "snapshot.key").write_bytes(b"k" * length)
    store_in(tmp_path).save(folded(2))
    assert len((tmp_path / "snapshot.key").read_bytes()) == 32
    assert stat.S_IMODE((tmp_path / "snapshot.key").stat().st_mode) == 0o600
    assert store_in(tmp_path).restore(fresh).version == 2


def test_of_several_makers_of_a_key_the_first_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def outrun(draft: Path, own: Path) -> None:
        own.write_bytes(b"k" * 32)
        link(draft, own)

    monkeypatch.setattr(os, "link", outrun)
    store_in(tmp_path).save(folded(2))
    assert (tmp_path / "snapshot.key").read_bytes() == b"k" * 32
    assert store_in(tmp_path).restore(fresh).version == 2
    assert {path.name for path in tmp_path.iterdir()} == {"s-0.snapshot", "snapshot.key"}
