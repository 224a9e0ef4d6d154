"""Where snapshots are kept: one file per pipeline, replaced atomically, signed with a key that only its owner can read.

A snapshot is a cache and never the truth: one that is missing, altered, or of other versions is ignored with a
warning, and the model is folded from the log instead. So is one that was made of another log: it carries the
fingerprint of the last record it has folded, which must lie where it lay.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning import snapshot
from streamal.learning.allowed import Allowed
from streamal.learning.fold import Fold, fingerprint
from streamal.learning.model import Model
from streamal.messages import Moments, Outcome

logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32


class SnapshotStore:
    """Keeps the snapshots of one config (`config_hash`) in a directory.

    Without a key file it makes its own key. `allowed` lists what a model may be made of.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        config_hash: str,
        *,
        allowed: Allowed,
        key_file: Path | None = None,
    ) -> None:
        self._directory = directory
        self._path = directory / f"{name}.snapshot"
        self._config_hash = config_hash
        self._key_file = key_file
        self._allowed = allowed
        self._key: bytes | None = None

    def restore(self, build: Callable[[], Model]) -> Fold:
        """Return the fold as it was saved, or a new one."""
        try:
            blob = self._path.read_bytes()
            found = snapshot.load(blob, config_hash=self._config_hash, key=self._secret(), allowed=self._allowed)
        except FileNotFoundError:
            return Fold(build())
        except (OSError, SnapshotRefused) as refused:
            logger.warning("snapshot ignored, folding the log instead: %s", refused)
            return Fold(build())
        logger.info("snapshot restored", extra={"model_version": found.version, "bytes": len(blob)})
        return Fold(*found)

    def save(self, fold: Fold) -> int:
        """Save the fold; returns the bytes written. A crash at any moment leaves the old snapshot or the new one."""
        blob = snapshot.dump(
            fold.model,
            model_version=fold.version,
            config_hash=self._config_hash,
            key=self._secret(),
            allowed=self._allowed,
            last=fold.last,
        )
        self._directory.mkdir(parents=True, exist_ok=True)
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
        return len(blob)

    def _secret(self) -> bytes:
        if self._key is None:
            self._key = self._own_key() if self._key_file is None else read_key(self._key_file)
        return self._key

    def _own_key(self) -> bytes:
        """Return the key in the directory; one that is missing or cut off is made, the first of several makers wins."""
        own = self._directory / "snapshot.key"
        with suppress(FileNotFoundError):
            if len(key := own.read_bytes()) >= KEY_BYTES:
                return key
        self._directory.mkdir(parents=True, exist_ok=True)
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
    """Saves a snapshot whenever both enough outcomes and enough seconds have gone by since the last one.

    `build` gives a fresh model, for a fold that turns out to be of another log.
    """

    def __init__(
        self, store: SnapshotStore, fold: Fold, build: Callable[[], Model], *, every_outcomes: int, every_seconds: float
    ) -> None:
        self._store = store
        self._fold = fold
        self._build = build
        self._outcomes = every_outcomes
        self._seconds = every_seconds
        self._version = fold.version
        self._at = time.monotonic()
        self._possible = True
        self.saved_at = 0.0
        self.bytes = 0

    def __call__(self) -> None:
        """Save if it is due; called between transactions."""
        due = self._fold.version - self._version >= self._outcomes and time.monotonic() - self._at >= self._seconds
        if due:
            self.save()

    def compare(self, found: Outcome | Moments | None) -> None:
        """Begin anew unless the record before the fold's version in `outcomes`, None if absent, is the one folded."""
        if self._fold.version == 0 or (found is not None and fingerprint(found) == self._fold.last):
            return
        logger.warning(
            "snapshot ignored, folding the log instead: it is of another log, whose record before version %d is not in "
            "this one; was the log deleted or created anew?",
            self._fold.version,
        )
        self._fold.begin_anew(self._build())
        self._version = 0

    def save(self) -> None:
        """Save now, unless nothing has changed since."""
        if self._fold.version == self._version or not self._possible:
            return
        try:
            self.bytes = self._store.save(self._fold)
        except ModelError as error:
            self._possible = False
            logger.warning("no snapshots will be saved; a restart folds the whole log: %s", error)
        except OSError as error:
            self._at = time.monotonic()
            logger.warning("snapshot not saved, it is tried again when the next one is due: %s", error)
        else:
            self.saved_at = time.time()
            self._version, self._at = self._fold.version, time.monotonic()
