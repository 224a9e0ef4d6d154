"""Snapshots on disk: signed with the owner's key, replaced whole, and never in the way of the service."""

from __future__ import annotations

import logging
import stat
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from river import compose, naive_bayes
from specimens import dump

from streamal.errors import ConfigError, SnapshotRefused, TransportError
from streamal.learning import snapshot
from streamal.learning.allowed import ALLOWED
from streamal.learning.fold import Fold
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel
from streamal.learning.presets import build
from streamal.messages import Moment, Moments
from streamal.service import forked
from streamal.service.snapshots import Checkpointer, Place, SnapshotFile, SnapshotStore, own_key, read_key

LISTED = ALLOWED["logistic_regression"]


def fresh() -> Model:
    return build("logistic_regression", parameters={}, seed=0)


def store_in(place: Path, config: str = "config", shared: Place | None = None) -> SnapshotStore:
    return SnapshotStore(
        SnapshotFile(place / "s-0.snapshot"), config, key=partial(own_key, place), allowed=LISTED, shared=shared
    )


def checkpointer(store: SnapshotStore, fold: Fold, every: int = 1) -> Checkpointer:
    return Checkpointer(store, fold, every_outcomes=every, every_seconds=0.0)


def moments(offset: int) -> Moments:
    return Moments(0, 1, {"x": Moment(1, float(offset), 0.0)})


def folded(count: int) -> Fold:
    fold = Fold(fresh())
    fold.fold([(offset, moments(offset)) for offset in range(count)])
    return fold


def save(store: SnapshotStore, fold: Fold) -> bytes:
    return store.save(snapshot.write(fold.model, LISTED), fold.version, fold.last)


def anything(version: int, last: str) -> None:
    """Take any snapshot for one of this log."""


def restored(store: SnapshotStore) -> int:
    """Return the version that is restored, 0 for none."""
    found = store.restore(anything)
    return 0 if found is None else found.version


def saved(checkpoint: Checkpointer, *, share: bool = False) -> None:
    """Let a snapshot be saved if it is due, and wait for it."""
    checkpoint(share=share)
    for thread in threading.enumerate():
        if thread.name == "snapshot":
            thread.join()


class Elsewhere:
    """A place that is told what to hold."""

    def __init__(self, blob: bytes | None = None, error: Exception | None = None) -> None:
        self.blob = blob
        self.error = error
        self.name = "elsewhere"

    def read(self) -> bytes | None:
        if self.error:
            raise self.error
        return self.blob

    def write(self, blob: bytes) -> None:
        if self.error:
            raise self.error
        self.blob = blob


def test_a_saved_fold_comes_back(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert restored(store) == 0
    fold = folded(7)
    assert len(save(store, fold)) > 0
    found = store_in(tmp_path).restore(anything)
    assert found is not None
    assert found[1:] == (7, fold.last)
    assert {path.name for path in tmp_path.iterdir()} == {"s-0.snapshot", "snapshot.key"}


def test_its_own_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    save(store_in(tmp_path), folded(1))
    assert stat.S_IMODE((tmp_path / "snapshot.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["config", "key", "bytes", "nothing in it"])
def test_what_does_not_fit_is_ignored(tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    blob = bytearray(save(store_in(tmp_path), folded(7)))
    if change == "key":
        (tmp_path / "snapshot.key").write_bytes(b"k" * 32)
    if change == "bytes":
        blob[-40] ^= 1
        (tmp_path / "s-0.snapshot").write_bytes(bytes(blob))
    if change == "nothing in it":
        (tmp_path / "s-0.snapshot").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert restored(store_in(tmp_path, "other" if change == "config" else "config")) == 0
    assert caplog.messages[0].startswith("snapshot ignored, folding the log instead: the file s-0.snapshot: ")


def test_a_snapshot_of_another_log_is_ignored_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def of_another(version: int, last: str) -> None:
        message = f"it is of another log than {version}"
        raise SnapshotRefused(message)

    save(store_in(tmp_path), folded(7))
    fold = Fold(fresh())
    with caplog.at_level(logging.WARNING):
        checkpointer(store_in(tmp_path), fold).restore(of_another)
    assert "it is of another log than 7" in caplog.text
    assert fold.version == 0
    fold.fold([(offset, moments(offset)) for offset in range(3)])
    again = folded(3)
    assert (fold.last, snapshot.write(fold.model, LISTED)) == (again.last, snapshot.write(again.model, LISTED))


def test_the_newest_usable_snapshot_of_both_places_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(store_in(tmp_path), folded(7))
    key = own_key(tmp_path)

    def elsewhere(version: int, key: bytes = key) -> Elsewhere:
        return Elsewhere(dump(folded(version).model, version=version, allowed=LISTED, key=key, config_hash="config"))

    assert restored(store_in(tmp_path, shared=elsewhere(9))) == 9
    assert restored(store_in(tmp_path, shared=elsewhere(5))) == 7
    assert restored(store_in(tmp_path, shared=Elsewhere())) == 7
    assert not caplog.records
    for place in (elsewhere(9, b"k" * 32), Elsewhere(b"x"), Elsewhere(error=TransportError("it is away"))):
        caplog.clear()
        assert restored(store_in(tmp_path, shared=place)) == 7
        assert caplog.messages[0].startswith("snapshot ignored, another one is used instead: elsewhere: ")
    (tmp_path / "s-0.snapshot").unlink()
    assert restored(store_in(tmp_path, shared=elsewhere(9))) == 9


def test_the_newest_gives_way_to_the_one_that_is_of_this_log(tmp_path: Path) -> None:
    def only_5(version: int, last: str) -> None:
        if version != 5:
            message = "another log"
            raise SnapshotRefused(message)

    save(store_in(tmp_path), folded(7))
    blob = dump(folded(5).model, version=5, allowed=LISTED, key=own_key(tmp_path), config_hash="config")
    found = store_in(tmp_path, shared=Elsewhere(blob)).restore(only_5)
    assert found is not None
    assert found.version == 5


def test_a_key_file_that_cannot_serve_is_named(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"k" * 31)
    for file, cause in ((short, "at least 32 bytes, found 31"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=cause):
            read_key(file)


def test_it_is_saved_when_enough_has_come_and_not_twice(tmp_path: Path) -> None:
    fold = Fold(fresh())
    checkpoint = checkpointer(store_in(tmp_path), fold, every=5)
    for offset in range(12):
        fold.fold([(offset, moments(offset))])
        saved(checkpoint)
    assert restored(store_in(tmp_path)) == 10
    checkpoint.finish(share=False)
    written = (tmp_path / "s-0.snapshot").stat().st_mtime_ns
    checkpoint.finish(share=False)
    assert (tmp_path / "s-0.snapshot").stat().st_mtime_ns == written
    assert restored(store_in(tmp_path)) == 12


def test_only_the_one_that_shares_writes_elsewhere_and_a_failure_costs_the_sharing_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold, place = folded(3), Elsewhere()
    checkpoint = checkpointer(store_in(tmp_path, shared=place), fold)
    for share in (False, True):
        fold.fold([(fold.version, moments(fold.version))])
        saved(checkpoint, share=share)
        assert (place.blob is not None) is share
    assert place.blob == (tmp_path / "s-0.snapshot").read_bytes()
    place.error = TransportError("the brokers are away")
    fold.fold([(5, moments(5))])
    with caplog.at_level(logging.WARNING):
        saved(checkpoint, share=True)
    assert "snapshot saved, but not shared; that is tried again with the next one: the brokers are away" in caplog.text
    assert restored(store_in(tmp_path)) == 6
    place.error = None
    fold.fold([(6, moments(6))])
    checkpoint.finish(share=True)
    assert place.blob == (tmp_path / "s-0.snapshot").read_bytes()


def unpicklable() -> FactoryModel:
    pipeline: Any = compose.FuncTransformer(lambda features: features) | naive_bayes.GaussianNB()
    return FactoryModel(pipeline, task="classification", weighted=False)


@pytest.mark.parametrize("possible", [True, False])
def test_a_model_that_cannot_be_saved_only_costs_the_snapshots(
    possible: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "POSSIBLE", possible)
    fold = Fold(unpicklable())
    checkpoint = checkpointer(store_in(tmp_path), fold)
    with caplog.at_level(logging.WARNING):
        for offset in range(3):
            fold.fold([(offset, Moments(0, 1, {}))])
            saved(checkpoint)
        checkpoint.finish(share=False)
    assert caplog.text.count("no snapshots will be saved") == 1
    assert "must hold no local function" in caplog.text
    assert not (tmp_path / "s-0.snapshot").exists()


def test_a_full_or_lost_disk_does_not_stop_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "snapshots"
    place.write_text("a file where the directory should be")
    fold = folded(3)
    checkpoint = checkpointer(store_in(place), fold)
    with caplog.at_level(logging.WARNING):
        fold.fold([(3, moments(3))])
        saved(checkpoint)
    assert "snapshot not saved" in caplog.text
    assert checkpoint.saved_at == 0.0
    place.unlink()
    saved(checkpoint)
    assert restored(store_in(place)) == 4


def test_no_process_to_spare_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", refuse)
    fold = Fold(fresh())
    checkpoint = checkpointer(store_in(tmp_path), fold)
    fold.fold([(0, moments(0))])
    with caplog.at_level(logging.WARNING):
        saved(checkpoint)
    assert "snapshot not saved, it is tried again" in caplog.text
    checkpoint.finish(share=False)
    assert restored(store_in(tmp_path)) == 1


def test_a_large_model_is_written_by_a_child_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[int] = []

    class Counted(forked.Forked):
        def __init__(self, work: Any) -> None:
            super().__init__(work)
            forks.append(self.pid)

    monkeypatch.setattr(forked, "Forked", Counted)
    fold = Fold(fresh())
    checkpoint = checkpointer(store_in(tmp_path), fold)
    for offset, expected in ((0, 1), (1, 1), (2, 2)):
        if offset == 2:
            monkeypatch.setattr("streamal.service.snapshots.SMALL", 100)
        fold.fold([(offset, moments(offset))])
        saved(checkpoint)
        assert len(forks) == (expected if forked.POSSIBLE else 0)
        assert restored(store_in(tmp_path)) == offset + 1


def test_while_one_is_saved_no_other_begins_and_what_the_model_learns_is_not_in_it(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Elsewhere):
        def write(self, blob: bytes) -> None:
            begun.set()
            assert go_on.wait(60)
            super().write(blob)

    fold = folded(3)
    slow = Slow()
    checkpoint = Checkpointer(
        SnapshotStore(slow, "config", key=lambda: b"k" * 32, allowed=LISTED), fold, every_outcomes=1, every_seconds=0.0
    )
    fold.fold([(3, moments(3))])
    then = snapshot.write(fold.model, LISTED)
    checkpoint(share=False)
    fold.fold([(4, moments(4))])
    checkpoint(share=False)
    assert begun.wait(60)
    assert checkpoint.busy
    go_on.set()
    checkpoint.finish(share=False)
    assert slow.blob is not None
    assert snapshot.verify(slow.blob, config_hash="config", key=b"k" * 32).version == 5
    assert bytes(snapshot.verify(slow.blob, config_hash="config", key=b"k" * 32).payload) != then


def test_a_snapshot_that_cannot_be_read_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s-0.snapshot").mkdir()
    with caplog.at_level(logging.WARNING):
        assert restored(store_in(tmp_path)) == 0
    assert "folding the log instead" in caplog.text
    with pytest.raises(IsADirectoryError):
        save(store_in(tmp_path), folded(1))
    assert {path.name for path in tmp_path.iterdir()} == {"s-0.snapshot", "snapshot.key"}


@pytest.mark.parametrize("length", [0, 31])
def test_a_key_that_was_cut_off_is_replaced(tmp_path: Path, length: int) -> None:
    (tmp_path / "snapshot.key").write_bytes(b"k" * length)
    save(store_in(tmp_path), folded(2))
    assert len((tmp_path / "snapshot.key").read_bytes()) == 32
    assert stat.S_IMODE((tmp_path / "snapshot.key").stat().st_mode) == 0o600
    assert restored(store_in(tmp_path)) == 2
