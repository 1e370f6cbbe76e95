"""Least squares without negative coefficients, and without being led astray."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_sim.fitting import knots, nnls, robust_fit, segments


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_no_feasible_neighbour_is_better(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    matrix, values = random.normal(size=(20, width)), random.normal(size=20)
    x = nnls(matrix, values)
    assert (x >= 0).all()
    slope = matrix.T @ (matrix @ x - values)  # Karush, Kuhn, Tucker
    assert slope.min() > -1e-7
    assert slope[x > 0] == pytest.approx(0.0, abs=1e-7)


def test_outliers_do_not_move_a_robust_fit() -> None:
    random = np.random.default_rng(1)
    rows = random.integers(1, 33, size=400).astype(float)
    matrix = np.stack([np.ones(400), rows], axis=1)
    values = (30 + 1.5 * rows) * random.normal(1.0, 0.02, size=400)
    values[::20] *= 6.0
    fit = robust_fit(matrix, values)
    assert fit.coefficients == pytest.approx([30, 1.5], rel=0.05)
    assert fit.median_error < 0.03
    spread = fit.spread(41)
    assert spread == sorted(spread)
    assert spread[-1] > 5 > spread[-4]
    with pytest.raises(ValueError, match="nothing"):
        robust_fit(np.zeros((0, 2)), np.zeros(0))


def test_segments_add_up() -> None:
    places = knots([1, 3, 40])
    assert places == [1, 2, 4, 8, 16, 32, 40]
    values = np.array([1.0, 3.0, 40.0])
    assert segments(values, places).sum(axis=1) == pytest.approx(values - 1)
    assert segments(values, [5]).shape == (3, 0)
