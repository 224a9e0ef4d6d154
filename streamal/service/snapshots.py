"""Snapshots: signed with a key that only its owners can read, kept in a file, and shared in a topic if the key is.

A snapshot is a cache and never the truth: one that is missing, altered, or of other versions is ignored with a
warning, and the model is folded from the log instead. So is one that was made of another log: it carries the
fingerprint of the last record it has folded, which must lie where it lay.

The loop is held up for the writing of a small model, or for the fork that leaves a large one to a child; signing,
storing and sharing is done by a thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from streamal.errors import ConfigError, ModelError, SnapshotRefused, StreamalError, TransportError
from streamal.learning import snapshot
from streamal.learning.allowed import Allowed
from streamal.learning.fold import Fold
from streamal.learning.snapshot import Snapshot, Verified
from streamal.service import forked

logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32
SMALL: Final = 2**20
"""Bytes; writing so many takes the loop about as long as forking it does, some 20 ms."""
FINISH_WITHIN: Final = 5.0
"""Seconds that an orderly end waits for a snapshot that is being saved; without it a restart folds a longer tail."""
WRITTEN_WITHIN: Final = 60.0
"""Seconds for a child to write a model; a forest of 20 MB takes one."""


class Place(Protocol):
    """Where the newest snapshot is kept; `name` is what it is called in messages."""

    name: str

    def read(self) -> bytes | None:
        """Return the snapshot, or None if there is none; called once, before the worker joins its group.

        Raises:
            OSError: it cannot be read.
            SnapshotRefused: what is there is no snapshot.
            TransportError: the log cannot be reached.
        """

    def write(self, blob: bytes) -> None:
        """Replace the snapshot; a crash at any moment leaves the old one or the new one. Called in any thread.

        Raises:
            OSError: it cannot be written.
            TransportError: the log cannot be reached.
        """


class SnapshotFile:
    """A file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = f"the file {path.name}"

    def read(self) -> bytes | None:
        """Return what the file holds."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, blob: bytes) -> None:
        """Write a draft that takes the place of the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


class SnapshotStore:
    """The snapshots of one config (`config_hash`): in a file, and with `shared` there as well.

    `key` gives what they are signed with; it is asked for once, when it is needed. `allowed` lists what a model may be
    made of.
    """

    def __init__(
        self,
        file: Place,
        config_hash: str,
        *,
        key: Callable[[], bytes],
        allowed: Allowed,
        shared: Place | None = None,
    ) -> None:
        self._file = file
        self._shared = shared
        self._config_hash = config_hash
        self._ask_key = key
        self._key: bytes | None = None
        self.allowed = allowed

    def restore(self, check: Callable[[int, str], None]) -> Snapshot | None:
        """Return the newest snapshot that is usable.

        `check` is given version and fingerprint, and raises `SnapshotRefused` if they are not those of this log.
        """
        places = [self._file] if self._shared is None else [self._file, self._shared]
        refused: list[str] = []
        found = [(place, verified) for place in places if (verified := self._verified(place, refused)) is not None]
        restored = None
        for place, verified in sorted(found, key=lambda pair: pair[1].version, reverse=True):
            try:
                check(verified.version, verified.last)
                model = snapshot.read(verified.payload, self.allowed)
            except SnapshotRefused as error:
                refused.append(f"{place.name}: {error}")
            else:
                size = len(verified.payload)
                logger.info("snapshot restored", extra={"model_version": verified.version, "bytes": size})
                restored = Snapshot(model, verified.version, verified.last)
                break
        instead = "another one is used" if restored else "folding the log"
        for reason in refused:
            logger.warning("snapshot ignored, %s instead: %s", instead, reason)
        return restored

    def save(self, payload: bytes, version: int, last: str) -> bytes:
        """Sign a written model, keep it in the file, and return it.

        Raises:
            OSError: it cannot be stored.
        """
        blob = snapshot.seal(payload, version=version, last=last, config_hash=self._config_hash, key=self._secret())
        self._file.write(blob)
        return blob

    def share(self, blob: bytes) -> None:
        """Put a saved snapshot where the others find it, if there is such a place.

        Raises:
            TransportError: the log cannot be reached, or refuses it.
        """
        if self._shared is not None:
            self._shared.write(blob)

    def _verified(self, place: Place, refused: list[str]) -> Verified | None:
        try:
            blob = place.read()
            if blob is None:
                return None
            return snapshot.verify(blob, config_hash=self._config_hash, key=self._secret())
        except (OSError, SnapshotRefused, TransportError) as error:
            refused.append(f"{place.name}: {error}")
            return None

    def _secret(self) -> bytes:
        if self._key is None:
            self._key = self._ask_key()
        return self._key


def own_key(directory: Path) -> bytes:
    """Return the key in a directory; one that is missing or cut off is made, the first of several makers wins."""
    own = directory / "snapshot.key"
    with suppress(FileNotFoundError):
        if len(key := own.read_bytes()) >= KEY_BYTES:
            return key
    directory.mkdir(parents=True, exist_ok=True)
    # Whole before it has its name: nobody may ever read half a key.
    draft = own.with_suffix(f".{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        os.link(draft, own)
    except FileExistsError:
        if own.stat().st_size < KEY_BYTES:
            draft.replace(own)
    finally:
        draft.unlink(missing_ok=True)
    return own.read_bytes()


def read_key(path: Path) -> bytes:
    """Return the key of a file that the owner provides.

    Raises:
        ConfigError: it cannot be read, or is too short.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        message = f"snapshot.key_file = {path}: cannot be read ({error.strerror})"
        raise ConfigError(message) from None
    if len(key) < KEY_BYTES:
        message = f"snapshot.key_file = {path}: expected at least {KEY_BYTES} bytes, found {len(key)}"
        raise ConfigError(message)
    return key


class Checkpointer:
    """Saves a snapshot whenever both enough outcomes and enough seconds have gone by since the last one."""

    def __init__(self, store: SnapshotStore, fold: Fold, *, every_outcomes: int, every_seconds: float) -> None:
        self._store = store
        self._fold = fold
        self._outcomes = every_outcomes
        self._seconds = every_seconds
        self._version = fold.version
        self._at = time.monotonic()
        self._size = 0
        self._possible = True
        self._saving: threading.Thread | None = None
        self.saved_at = 0.0

    def restore(self, check: Callable[[int, str], None]) -> None:
        """Let the fold go on from the newest snapshot, if there is a usable one; `check` as in the store."""
        found = self._store.restore(check)
        if found is not None:
            self._fold.resume(*found)
            self._version = found.version

    def __call__(self, *, share: bool) -> None:
        """Save if it is due and the last one is through; called between transactions.

        `share` says whether this worker is the one whose snapshots are shared.
        """
        now = time.monotonic()
        due = self._fold.version - self._version >= self._outcomes and now - self._at >= self._seconds
        if not due or not self._possible or self.busy:
            return
        self._at = now
        with self._only_warning():
            job = partial(self._store_away, self._written(), self._fold.version, self._fold.last, share)
            self._saving = threading.Thread(target=job, name="snapshot", daemon=True)
            self._saving.start()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being saved."""
        return self._saving is not None and self._saving.is_alive()

    def finish(self, *, share: bool) -> None:
        """Wait for what is being saved, and save what has changed since; called once, at the orderly end."""
        if self._saving is not None:
            self._saving.join(FINISH_WITHIN)
            if self._saving.is_alive():
                return
        if self._fold.version != self._version and self._possible:
            write = partial(snapshot.write, self._fold.model, self._store.allowed)
            self._store_away(write, self._fold.version, self._fold.last, share)

    def _written(self) -> Callable[[], bytes]:
        """Write the model if it is known to be small, else let a child do so; returns what gives the bytes."""
        write = partial(snapshot.write, self._fold.model, self._store.allowed)
        if forked.POSSIBLE and not 0 < self._size <= SMALL:
            return partial(forked.Forked(write).result, WRITTEN_WITHIN)
        written = write()
        return lambda: written

    def _store_away(self, written: Callable[[], bytes], version: int, last: str, share: bool) -> None:
        with self._only_warning():
            blob = self._store.save(written(), version, last)
            self.saved_at, self._version, self._size = time.time(), version, len(blob)
            if share:
                self._store.share(blob)

    @contextmanager
    def _only_warning(self) -> Iterator[None]:
        """A snapshot is worth no more than a warning; one that cannot be written at all is not tried again."""
        try:
            yield
        except ModelError as error:
            self._possible = False
            logger.warning("no snapshots will be saved; a restart folds the whole log: %s", error)
        except OSError as error:
            logger.warning("snapshot not saved, it is tried again when the next one is due: %s", error)
        except StreamalError as error:
            logger.warning("snapshot saved, but not shared; that is tried again with the next one: %s", error)
