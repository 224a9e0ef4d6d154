"""Volume sampling on gradient embeddings: ask in proportion to how far an instance would move the model, and whither.

An instance's embedding is the gradient of the log loss of a linear model, if the class it predicts were the true one:
``g = (p - onehot(argmax p)) (outer) x``, x being the standardised features and a constant. It is long where the
prediction is unsure. With S the information matrix of the embeddings asked about, ``g' S^-1 g`` is long only in
directions not yet covered, and

    propensity = rate * g' S^-1 g / mean of g' S^-1 g over the stream,

where the mean is the trace of ``S^-1 A``, A the second moment of all embeddings.

Sources: Saran, Yousefi, Krishnamurthy, Langford, Ash: Streaming active learning with deep neural networks (2023), whose
algorithm is called VeSSAL; the embedding is that of Ash, Zhang, Krishnamurthy, Langford, Agarwal: Deep batch active
learning by diverse gradient embeddings (2020), with the features themselves in place of a network's last layer.

What differs: their rate looks ahead to a known end of the stream, this one is the steered rate of the budget. They
begin anew with each batch, whereas here both matrices fade. Where a propensity would be above 1 the rest is lost, so
they are calibrated (`streamal.selection.calibration`): a slow factor on all of them makes their mean the rate again.
The first class's part of the embedding is left out, since it is minus the sum of the others'. Embeddings of more than
`MOST_ENTRIES` are projected: the entries met first have a place of their own, and each further one is added to some
place with some sign, as in Weinberger et al.: Feature hashing for large scale multitask learning (2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamal.messages import Features, Prediction, best_label
from streamal.selection.calibration import Calibration
from streamal.selection.coin import mix
from streamal.selection.grounded import Grounded
from streamal.selection.information import InformationMatrix, Matrix, padded
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful
from streamal.selection.threshold import steered_rate
from streamal.selection.vectors import Standardiser, Vector

MOST_ENTRIES: Final = 128
"""Of an embedding: 20 features with 7 classes, or 127 with two, are not projected. Each decision passes five times over
a matrix of so many rows and columns; with 256 these passes alone took 150 us."""
RIDGE: Final = 0.01
"""The source's own."""
MEMORY: Final = 512
"""Requests; about as far back as 10,000 instances at 5 %."""


def place(entry: int) -> tuple[int, float]:
    """Return where an entry of the unprojected embedding, numbered as it was first met, is added, and with which sign.

    >>> place(7), place(1_000)
    ((7, 1.0), (72, -1.0))
    """
    if entry < MOST_ENTRIES:
        return entry, 1.0
    bits = mix(entry)
    return bits % MOST_ENTRIES, 1.0 if bits >> 63 else -1.0


class GradientEmbedding:
    """Turns an instance and its prediction into an embedding; only `add` changes it.

    Memory: 16 bytes for each pair of column and class, 4 MB at most with as many classes as a model may have.

    >>> embedding = GradientEmbedding()
    >>> embedding.add({}, {"a": 0.25, "b": 0.75})
    >>> embedding.vector({}, {"a": 0.25, "b": 0.75}), embedding.vector({}, {})
    (array([-0.25]), None)
    """

    __slots__ = ("_classes", "_met", "_places", "_scale", "_signs")

    def __init__(self) -> None:
        self._scale = Standardiser()
        self._classes: dict[str, None] = {}
        self._met = 0
        self._places = np.zeros((0, 1), dtype=np.intp)
        self._signs = np.zeros((0, 1))

    @property
    def width(self) -> int:
        """The number of entries so far."""
        return min(self._met, MOST_ENTRIES)

    def vector(self, features: Features, prediction: Prediction) -> Vector | None:
        """Return the embedding, None where the prediction says nothing or no second class is known; shape (width,)."""
        total = sum(prediction.values())
        if not (self._met and 0.0 < total < math.inf):
            return None
        best = best_label(prediction)
        shares = [min(1.0, max(0.0, prediction.get(label, 0.0) / total)) for label in self._classes]
        blame = [share - (label == best) for share, label in zip(shares, self._classes, strict=True)]
        columns = np.concatenate(((1.0,), self._scale.vector(features)))
        entries = self._signs * np.multiply.outer(blame[1:], columns)
        return np.bincount(self._places.ravel(), entries.ravel(), self.width).astype(np.float64, copy=False)

    def add(self, features: Features, prediction: Prediction) -> None:
        """Take in an instance's scale, its columns and its classes."""
        self._scale.add(features)
        self._classes.update(dict.fromkeys(prediction))
        known, shape = self._places.shape, (max(0, len(self._classes) - 1), self._scale.width + 1)
        if shape != known:
            more = [(0, now - before) for now, before in zip(shape, known, strict=True)]
            self._places, self._signs = np.pad(self._places, more), np.pad(self._signs, more)
            for row, column in np.ndindex(*shape):
                if row >= known[0] or column >= known[1]:
                    self._places[row, column], self._signs[row, column] = place(self._met)
                    self._met += 1


class Volume(Unmindful):
    """Asks in proportion to the volume an instance's embedding adds to those asked about.

    `ridge` (0.01) is what is taken to be known of each direction: more makes it care less for new directions, and more
    for being unsure. `memory` (512) is how many requests are looked back on; A looks back on one window of instances.

    Memory: two matrices of at most 128 by 128 numbers, and the embedding's.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        self.warmup = 4 * spec.window
        self._rate = spec.rate
        self._window = spec.window
        self._embedding = GradientEmbedding()
        ridge = spec.number("ridge", RIDGE, least=1e-6, most=1e6)
        self._asked = InformationMatrix(ridge, spec.whole("memory", MEMORY, least=MOST_ENTRIES, most=1_000_000))
        self._moment: Matrix = np.zeros((0, 0))
        self._shown = 0
        self._mean = 0.0
        self._calibration = Calibration(spec.rate)

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Compare the instance's volume with the mean; its utility is 1 on average."""
        vector = self._embedding.vector(features, prediction)
        if vector is None:
            return Proposal(min(1.0, steered_rate(standing)), math.inf)
        volume = self._asked.leverage(vector)
        mean = self._mean + self._share * (volume - self._mean)
        utility = volume / mean if mean > 0.0 else 1.0
        return Grounded(self._calibration.propensity(self._chance(utility), standing), utility, (vector, mean))

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Take in the embedding, as one of all and as one asked about."""
        self._embedding.add(features, prediction)
        if (width := self._embedding.width) > len(self._moment):
            self._moment = padded(self._moment, width)
            self._asked.grow(width)
        vector, mean = proposal.grounds if isinstance(proposal, Grounded) else (None, self._mean)
        if vector is None or len(vector) < width:
            vector = self._embedding.vector(features, prediction)
            if vector is None:
                return
            mean = self._mean + self._share * (self._asked.leverage(vector) - self._mean)
        share = self._share
        self._moment *= 1.0 - share
        self._moment += np.multiply.outer(vector * share, vector)
        self._shown += 1
        if asked:
            self._asked.add(vector)
            # a change of S reaches all of A; until the next one the trace follows from each embedding's own volume
            mean = float((self._moment * self._asked.inverse).sum())
        self._mean = mean
        if proposal.utility != math.inf:
            self._calibration.adapt(self._chance(proposal.utility))

    @property
    def _share(self) -> float:
        """What the next instance counts for in the second moment, as one of the window."""
        return 1.0 / min(self._shown + 1, self._window)

    def _chance(self, utility: float) -> float:
        return max(0.0, min(1.0, self._rate * self._calibration.factor * utility))

    def state(self) -> dict[str, Any]:
        """Return the factor that makes the mean propensity the rate."""
        return {"factor": self._calibration.factor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the factor."""
        self._calibration.factor = float(state.get("factor", 1.0))
