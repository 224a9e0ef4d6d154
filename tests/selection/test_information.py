"""The information matrix and its inverse against numpy's own inverse, for as long as a service runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamal.selection.information import InformationMatrix, Matrix

numbers = st.floats(-10.0, 10.0)
vectors = st.lists(st.lists(numbers, min_size=3, max_size=3).map(np.array), max_size=30)


class Direct:
    """The same matrix, not inverted."""

    def __init__(self, ridge: float, memory: int, width: int) -> None:
        self.ridge, self.kept, self.turn = ridge, 1.0 - 1.0 / memory, 0
        self.matrix: Matrix = ridge * np.eye(width)

    def add(self, vector: Matrix) -> None:
        width = len(self.matrix)
        self.matrix = self.kept * self.matrix + np.outer(vector, vector)
        at = self.turn % width
        self.matrix[at, at] += (1.0 - self.kept) * self.ridge * width
        self.turn = at + 1


@given(added=vectors, asked=st.lists(numbers, min_size=3, max_size=3).map(np.array), ridge=st.floats(0.01, 10.0))
def test_the_inverse_is_that_of_the_matrix(added: list[Matrix], asked: Matrix, ridge: float) -> None:
    known, direct = InformationMatrix(ridge, 64), Direct(ridge, 64, 3)
    known.grow(3)
    for vector in added:
        known.add(vector)
        direct.add(vector)
    inverse = np.linalg.inv(direct.matrix)
    assert known.inverse == pytest.approx(inverse, rel=1e-6, abs=1e-6 / ridge)
    assert known.leverage(asked) == pytest.approx(float(asked @ inverse @ asked), rel=1e-6, abs=1e-4 / ridge)


def test_a_new_coordinate_was_never_asked_about() -> None:
    known = InformationMatrix(2.0, 100)
    known.grow(1)
    known.add(np.array([3.0]))
    before = known.leverage(np.array([1.0]))
    known.grow(3)
    assert known.leverage(np.array([1.0, 0.0, 0.0])) == before
    assert known.leverage(np.array([0.0, 0.0, 1.0])) == 0.5
    known.grow(2)
    assert known.inverse.shape == (3, 3)


def test_asking_multiplies_the_determinant_by_one_plus_the_leverage() -> None:
    """Exactly so while nothing fades."""
    random = np.random.default_rng(0)
    known = InformationMatrix(1.0, 10**12)
    known.grow(4)
    for _ in range(20):
        vector = random.normal(size=4)
        leverage = known.leverage(vector)
        before = np.linalg.det(np.linalg.inv(known.inverse))
        known.add(vector)
        assert np.linalg.det(np.linalg.inv(known.inverse)) / before == pytest.approx(1.0 + leverage)


def test_what_was_asked_about_long_ago_fades() -> None:
    known, old = InformationMatrix(1.0, 64), np.array([1.0, 0.0])
    known.grow(2)
    for _ in range(200):
        known.add(old)
    assert known.leverage(old) < 0.02
    for _ in range(1_000):
        known.add(np.array([0.0, 1.0]))
    assert known.leverage(old) == pytest.approx(1.0, rel=0.05)


def test_neither_rounding_nor_a_neglected_direction_grows() -> None:
    random = np.random.default_rng(0)
    known, direct = InformationMatrix(0.01, 256), Direct(0.01, 256, 4)
    known.grow(4)
    for vector in random.normal(size=(20_000, 4)) * (10.0, 1.0, 0.01, 0.0):
        known.add(vector)
        direct.add(vector)
    assert known.inverse == pytest.approx(np.linalg.inv(direct.matrix), rel=1e-9, abs=1e-9)
    assert np.array_equal(known.inverse, known.inverse.T)
    assert 0.8 < 0.01 * known.leverage(np.array([0.0, 0.0, 0.0, 1.0])) < 1.25
    assert known.inverse.nbytes == 4 * 4 * 8


@pytest.mark.parametrize("width", [16, 256])
def test_the_ridge_never_runs_dry(width: int) -> None:
    """A turn comes at least once per memory, in which a ridge fades to 1/e."""
    known = InformationMatrix(1.0, 257)
    known.grow(width)
    for _ in range(3 * width):
        known.add(np.zeros(width))
        assert 0.49 < known.inverse.diagonal().min() <= known.inverse.diagonal().max() < math.e + 0.01
