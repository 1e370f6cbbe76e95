"""Fits with nothing but numpy: least squares without negative coefficients, robust against outliers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDS: Final = 12  # of reweighting
HUBER: Final = 1.345  # deviations beyond which an observation counts less: 95% efficiency for normal errors
TINY: Final = 1e-12


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """``coefficients``, none negative; ``ratios`` of what was observed over what they say."""

    coefficients: Array
    ratios: Array

    @property
    def median_error(self) -> float:
        """Median of the relative errors."""
        return float(np.median(np.abs(self.ratios - 1.0)))

    def spread(self, count: int) -> list[float]:
        """``count`` factors, each as likely: evenly spaced quantiles of the ratios."""
        shares = (np.arange(count) + 0.5) / count
        return [round(max(float(value), 0.01), 4) for value in np.quantile(self.ratios, shares)]


def nnls(matrix: Array, values: Array) -> Array:
    """The x >= 0 with the least |matrix x - values|. Lawson and Hanson, "Solving Least Squares Problems", 1974."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    gram, target = scaled.T @ scaled, scaled.T @ values
    x = np.zeros(matrix.shape[1])
    passive = np.zeros(len(x), dtype=np.bool_)
    enough = TINY * max(float(np.abs(target).max(initial=0.0)), 1.0)
    for _ in range(10 * len(x) + 10):
        slope = np.where(passive, -np.inf, target - gram @ x)
        if passive.all() or slope.max() <= enough:
            break
        passive[int(np.argmax(slope))] = True
        while True:
            inner = np.zeros(len(x))
            inner[passive] = np.linalg.lstsq(gram[np.ix_(passive, passive)], target[passive], rcond=None)[0]
            below = passive & (inner <= 0)
            if not below.any():
                break
            steps = x[below] / np.maximum(x[below] - inner[below], TINY)
            x = x + float(steps.min()) * (inner - x)
            passive &= x > TINY
            x[~passive] = 0.0
        x = inner
    solution: Array = x / scale
    return solution


def robust_fit(matrix: Array, values: Array) -> Fit:
    """Least squares of the relative errors with Huber's weights, x >= 0. ``values`` above 0.

    Raises ValueError without observations.
    """
    if not len(values):
        raise ValueError("nothing was observed")
    weights = np.ones(len(values))
    x = np.zeros(matrix.shape[1])
    for _ in range(ROUNDS):
        factor = np.sqrt(weights) / values
        x = nnls(matrix * factor[:, None], np.sqrt(weights))
        errors = np.abs(matrix @ x / values - 1.0)
        deviation = max(1.4826 * float(np.median(errors)), 1e-6)
        weights = np.minimum(1.0, HUBER * deviation / np.maximum(errors, TINY))
    return Fit(x, values / np.maximum(matrix @ x, TINY))


def knots(values: Sequence[int]) -> list[int]:
    """Where a curve over ``values`` may bend: powers of two between the least and the most, and these two."""
    least, most = min(values), max(values)
    between = [1 << power for power in range(31) if least < 1 << power < most]
    return sorted({least, *between, most})


def segments(values: Array, places: Sequence[int]) -> Array:
    """How far each value reaches into each stretch between neighbouring ``places``. (values, stretches)"""
    columns = [np.clip(values - low, 0.0, high - low) for low, high in itertools.pairwise(places)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(values), 0))
