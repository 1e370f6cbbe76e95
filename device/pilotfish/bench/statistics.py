"""Medians, spread, and how sure a ratio is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
AT_ONCE: Final = 1_000_000  # drawn pairs that are held in memory
LEVEL: Final = 0.95
MIN_PAIRS: Final = 6  # of fewer, not even lowest and highest enclose the true median in 95% of all cases


@dataclasses.dataclass(frozen=True, slots=True)
class Quartiles:
    """A quarter, a half and three quarters of the values are below (linear between two)."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("quartiles of nothing")
        low, median, high = (
            float(value) for value in np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
        )
        return cls(low, median, high)


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and its confidence interval at ``LEVEL``; None where the pairs are too few to tell."""

    value: float
    interval: tuple[float, float] | None


def paired_ratio(pairs: Sequence[tuple[float, float]], *, seed: int = 0) -> Ratio:
    """The median of the pairs' ratios (first over second, both above 0), by a percentile bootstrap over the pairs.

    A pair is two measurements of the same thing shortly after each other: what slows both down cancels out. The same
    ``seed`` gives the same interval. Raises ValueError for no pairs.
    """
    if not pairs:
        raise ValueError("a ratio of nothing")
    first, second = np.asarray(pairs, dtype=np.float64).T
    ratios = first / second
    value = float(np.median(ratios))
    if len(ratios) < MIN_PAIRS:
        return Ratio(value, None)
    random = np.random.default_rng(seed)
    medians = np.empty(RESAMPLES)
    step = max(1, AT_ONCE // len(ratios))
    for begin in range(0, RESAMPLES, step):
        part = medians[begin : begin + step]
        part[:] = np.median(ratios[random.integers(len(ratios), size=(len(part), len(ratios)))], axis=1)
    low, high = np.quantile(medians, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Ratio(value, (float(low), float(high)))
