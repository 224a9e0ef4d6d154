"""Unlabelled data: what learning beside the answers gains or loses, by kappa over all instances of a stream.

`self_training` lets presets learn their own sure predictions as labels. `observing` lets the scaler of a user's own
pipeline see instances without a label, which the presets' scaler sees anyhow. Runs are paired: the same rows, seed and
budget with and without, though not the same requests, since another model has other doubts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from river import compose, linear_model, multiclass, preprocessing

from benchmarks.drift import spread, streams
from streamal.annotate.oracle import Oracle
from streamal.evaluate.simulate import Simulation, simulate
from streamal.evaluate.stream import Row
from streamal.lane import SamplingPlan
from streamal.learning import presets
from streamal.learning.model import Model
from streamal.learning.online import FactoryModel
from streamal.selection.budget import BudgetPlan

RATE: Final = 0.05
ROWS: Final = 4_000
"""Of a run: the first thousands are where unlabelled data has most to offer."""
DELAYS: Final = (0, 100)
MODELS: Final = ("logistic_regression", "gaussian_nb", "hoeffding_tree")
TRAINED: Final = ((0.9, 0.2), (0.99, 1.0))
"""Bars of self-training, with the share of the instances."""
SHARES: Final = (0.1, 1.0)


def self_training(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Compare with learning from answers only; `stream` is Electricity's file, or a folder of streams."""
    found = []
    for (name, rows), kind, delay in product(streams(stream).items(), MODELS, DELAYS):

        def build(seed: int, kind: str = kind) -> Model:
            return presets.build(kind, parameters={}, seed=seed)

        plain = list(runs(rows, build, delay, repeats))
        for bar, share in TRAINED:
            trained = list(runs(rows, build, delay, repeats, share, bar))
            right = [run.pseudo_accuracy for run in trained if run.pseudo_accuracy is not None]
            found.append(
                {
                    "stream": name,
                    "model": kind,
                    "delay": delay,
                    "bar": bar,
                    "share": share,
                    **gain(plain, trained),
                    "pseudo_labels": round(fmean(run.pseudo_labelled for run in trained)),
                    "right": round(fmean(right), 3) if right else None,
                }
            )
    return found


def observing(stream: Path, repeats: int) -> list[dict[str, Any]]:
    """Compare with a pipeline whose scaler sees labelled rows only; `stream` as in `self_training`."""
    found = []
    for (name, rows), delay in product(streams(stream).items(), DELAYS):
        plain = list(runs(rows, pipeline, delay, repeats))
        for share in SHARES:
            observed = list(runs(rows, pipeline, delay, repeats, share))
            found.append({"stream": name, "delay": delay, "share": share, **gain(plain, observed)})
    return found


def pipeline(seed: int) -> Model:
    """Return what a `model.factory` might: River's scaler before its logistic regression."""
    last = multiclass.OneVsRestClassifier(linear_model.LogisticRegression())
    return FactoryModel(compose.Pipeline(preprocessing.StandardScaler(), last), task="classification", weighted=True)


def runs(
    rows: Sequence[Row],
    build: Callable[[int], Model],
    delay: int,
    repeats: int,
    share: float = 0.0,
    bar: float | None = None,
) -> Iterator[Simulation]:
    """Yield a simulation per seed, each of which begins at another row of the stream."""
    classes = sorted({str(row.label) for row in rows})
    for seed in range(repeats):
        start = seed * max(0, len(rows) - ROWS) // repeats
        stretch = rows[start : start + ROWS]
        plan = SamplingPlan(BudgetPlan(RATE), seed=seed, unlabelled=share, self_training=bar)
        yield simulate(stretch, len(stretch), plan, build(seed), Oracle(delay), model_name="", classes=classes)


def gain(plain: Sequence[Simulation], other: Sequence[Simulation]) -> Mapping[str, Any]:
    """Return means and deviations over the seeds, and in how many of them it lost."""
    before, after = ([run.scores["kappa"] or 0.0 for run in those] for those in (plain, other))
    gains = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "answers_only": spread(before),
        "with": spread(after),
        "gain": spread(gains),
        "worst": round(min(gains), 3),
        "lost": f"{sum(one < 0.0 for one in gains)} of {len(gains)}",
    }
