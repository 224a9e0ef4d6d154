"""Where snapshots are kept: one file per pipeline, replaced atomically, signed with a key that only its owner can read.

A snapshot is a cache and never the truth: one that is missing, altered, or of other versions is ignored with a
warning, and the model is folded from the log instead.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from streamal.errors import ConfigError, ModelError, SnapshotRefused
from streamal.learning import snapshot
from streamal.learning.fold import Fold
from streamal.learning.model import Model

logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32


class SnapshotStore:
    """Keeps the snapshots of one config (`config_hash`) in a directory.

    Without a key file it makes its own key. `trusted` names packages besides River whose classes a model may hold.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        config_hash: str,
        *,
        key_file: Path | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._path = directory / f"{name}.snapshot"
        self._config_hash = config_hash
        self._key_file = key_file
        self._trusted = trusted
        self._key: bytes | None = None

    def restore(self, build: Callable[[], Model]) -> Fold:
        """Return the fold as it was saved, or a new one."""
        try:
            blob = self._path.read_bytes()
        except FileNotFoundError:
            return Fold(build())
        try:
            model, version = snapshot.load(
                blob, config_hash=self._config_hash, key=self._secret(), trusted=self._trusted
            )
        except SnapshotRefused as refused:
            logger.warning("snapshot ignored, folding the log instead: %s", refused)
            return Fold(build())
        logger.info("snapshot restored", extra={"model_version": version, "bytes": len(blob)})
        return Fold(model, version)

    def save(self, fold: Fold) -> int:
        """Save the fold; returns the bytes written. A crash at any moment leaves the old snapshot or the new one."""
        blob = snapshot.dump(fold.model, model_version=fold.version, config_hash=self._config_hash, key=self._secret())
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        return len(blob)

    def _secret(self) -> bytes:
        if self._key is None:
            self._key = self._read_key()
        return self._key

    def _read_key(self) -> bytes:
        if self._key_file is not None:
            try:
                key = self._key_file.read_bytes().strip()
            except OSError as error:
                message = f"snapshot.key_file = {self._key_file}: cannot be read ({error.strerror})"
                raise ConfigError(message) from None
            if len(key) < KEY_BYTES:
                message = f"snapshot.key_file = {self._key_file}: expected at least {KEY_BYTES} bytes, found {len(key)}"
                raise ConfigError(message)
            return key
        self._directory.mkdir(parents=True, exist_ok=True)
        own = self._directory / "snapshot.key"
        try:
            handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return own.read_bytes()
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        return own.read_bytes()


class Checkpointer:
    """Saves a snapshot whenever both enough outcomes and enough seconds have gone by since the last one."""

    def __init__(self, store: SnapshotStore, fold: Fold, every_outcomes: int, every_seconds: float) -> None:
        self._store = store
        self._fold = fold
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

    def save(self) -> None:
        """Save now, unless nothing has changed since."""
        if self._fold.version == self._version or not self._possible:
            return
        try:
            self.bytes = self._store.save(self._fold)
        except ModelError as error:
            self._possible = False
            logger.warning("no snapshots will be saved; a restart folds the whole log: %s", error)
            return
        self.saved_at = time.time()
        self._version, self._at = self._fold.version, time.monotonic()
