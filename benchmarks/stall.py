"""For how long one snapshot of a large model holds the loop up: written by it, and left to a child."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.measure import Spread
from streamal.learning import snapshot
from streamal.learning.allowed import ALLOWED
from streamal.learning.fold import Fold
from streamal.learning.presets import build
from streamal.service.snapshots import Checkpointer, SnapshotFile, SnapshotStore

KIND: Final = "adaptive_forest"
SIZES: Final = ((10, 4_000, 10), (50, 4_000, 30))
"""Trees, outcomes and numeric features; ten classes."""
CLASSES: Final = 10
MILLISECONDS: Final = 1000.0


def stall(stream: Path, repeats: int) -> Sequence[Mapping[str, Any]]:
    """Save a forest, in the loop's thread as a whole, then as the worker does; beside both, the fold's undo copy."""
    results = []
    for trees, outcomes, features in SIZES:
        fold = forest(trees, outcomes, features)
        with TemporaryDirectory() as folder:
            file = SnapshotFile(Path(folder, "forest.snapshot"))
            store = SnapshotStore(file, "config", key=lambda: b"k" * snapshot.MIN_KEY, allowed=ALLOWED[KIND])
            size, inline, apart, copied = 0, [], [], []
            for _ in range(repeats):
                begun = time.perf_counter()
                size = len(store.save(snapshot.write(fold.model, ALLOWED[KIND]), fold.version, fold.last))
                inline.append(MILLISECONDS * (time.perf_counter() - begun))
                apart.append(MILLISECONDS * held_up(store, fold))
                begun = time.perf_counter()
                fold.model.copy()
                copied.append(MILLISECONDS * (time.perf_counter() - begun))
        results.append(
            {
                "trees": trees,
                "outcomes": outcomes,
                "features": features,
                "bytes": size,
                "inline_ms": Spread.of(inline),
                "child_ms": Spread.of(apart),
                "copy_ms": Spread.of(copied),
            }
        )
    return results


def forest(trees: int, outcomes: int, features: int) -> Fold:
    """Return a forest that has learned."""
    model, random = build(KIND, parameters={"models": trees}, seed=1), Random(1)
    for _ in range(outcomes):
        row = {f"x{number}": random.gauss(0, 1) for number in range(features)}
        model.learn(row, f"class {int(abs(row['x0'] + row['x1']) * 5) % CLASSES}")
    fold = Fold(model)
    fold.version = outcomes
    return fold


def held_up(store: SnapshotStore, fold: Fold) -> float:
    """Return the longest time between two looks at the clock while a snapshot is saved, that of the call included."""
    checkpoint = Checkpointer(store, fold, every_outcomes=1, every_seconds=0.0)
    fold.version += 1
    last, longest = time.perf_counter(), 0.0
    checkpoint(share=False)
    while True:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        if not checkpoint.busy:
            return longest
        time.sleep(0.0005)
