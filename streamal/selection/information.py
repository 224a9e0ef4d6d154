"""How far an instance lies from all that was asked about: its leverage under the information matrix of the requests.

The matrix is ``ridge * I + sum of kept^age * x x'`` over the vectors asked about, its inverse kept by the formula of
Sherman and Morrison (1950). A vector's leverage ``x' M^-1 x`` is, up to the noise's variance, the variance of a linear
model's prediction at x, and asking about x multiplies the determinant of the matrix by one plus it.

Forgetting fades the ridge as well, and a direction nobody asks about would one day have no bound. So each vector also
brings back the ridge of one coordinate in turn. Sums run in a fixed order, as in `streamal.selection.vectors`, and not
in that of a BLAS, which depends on the processor and the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamal.selection.vectors import Vector

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def padded(matrix: Matrix, width: int) -> Matrix:
    """Return a square matrix with zeros appended up to a width.

    >>> padded(np.ones((1, 1)), 2).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    return np.pad(matrix, (0, width - len(matrix)))


class InformationMatrix:
    """The inverse of the information matrix; only `grow` and `add` change it.

    `ridge` is what is taken to be known of every coordinate: more favours instances that lie far out, less those in
    directions nobody asked about. `memory` is how many vectors are looked back on; it must not be smaller than the
    widest vector, or the ridge fades before its turn comes.

    >>> known = InformationMatrix(ridge=1.0, memory=1_000)
    >>> known.grow(2)
    >>> x = np.array([2.0, 0.0])
    >>> before = known.leverage(x)
    >>> known.add(x)
    >>> before, round(known.leverage(x), 2), round(known.leverage(np.array([0.0, 2.0])), 2)
    (4.0, 0.8, 4.0)
    """

    __slots__ = ("_kept", "_ridge", "_turn", "inverse")

    def __init__(self, ridge: float, memory: int) -> None:
        self._ridge = ridge
        self._kept = 1.0 - 1.0 / memory
        self._turn = 0
        self.inverse: Matrix = np.zeros((0, 0))

    def grow(self, width: int) -> None:
        """Make room for vectors of this width; whatever was added before counts as 0 in the new coordinates."""
        if (known := len(self.inverse)) < width:
            self.inverse = padded(self.inverse, width)
            new = np.arange(known, width)
            self.inverse[new, new] = 1.0 / self._ridge

    def leverage(self, vector: Vector) -> float:
        """Return the leverage of a vector, 0 or more."""
        return max(0.0, float((self._through(vector) * vector).sum()))

    def add(self, vector: Vector) -> None:
        """Take in a vector that was asked about, and let the others fade."""
        width = len(self.inverse)
        restored = np.zeros(width)
        restored[self._turn] = math.sqrt((1.0 - self._kept) * self._ridge * width)
        self._turn = (self._turn + 1) % width
        self.inverse /= self._kept
        for more in (vector, restored):
            through = self._through(more)
            through /= math.sqrt(1.0 + float((through * more).sum()))
            # a product of one vector with itself stays symmetric to the last bit, without which rounding would grow
            self.inverse -= np.multiply.outer(through, through)

    def _through(self, vector: Vector) -> Vector:
        product: Vector = np.add.reduce(self.inverse * vector[:, None])
        return product
