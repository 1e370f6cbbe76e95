"""Medians, spread and the bootstrap, on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.bench import statistics
from pilotfish.bench.statistics import Quartiles, Ratio, paired_ratio


def test_quartiles() -> None:
    assert Quartiles.of([5, 1, 3, 2, 4]) == Quartiles(2, 3, 4)
    assert Quartiles.of([1, 2]) == Quartiles(1.25, 1.5, 1.75)
    assert Quartiles.of([7.5]) == Quartiles(7.5, 7.5, 7.5)
    with pytest.raises(ValueError, match="nothing"):
        Quartiles.of([])


def test_what_slows_both_of_a_pair_down_cancels_out() -> None:
    speeds = np.random.default_rng(1).uniform(5, 50, size=40)
    ratio = paired_ratio([(1.25 * speed, speed) for speed in speeds])
    assert ratio.value == pytest.approx(1.25)
    assert ratio.interval == pytest.approx((1.25, 1.25))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    held, widths = 0, []
    for experiment in range(200):
        ratios = 1.1 * np.exp(random.normal(0, 0.1, size=25))
        interval = paired_ratio([(ratio, 1.0) for ratio in ratios], seed=experiment).interval
        assert interval is not None
        held += interval[0] <= 1.1 <= interval[1]
        widths.append(interval[1] - interval[0])
    assert 0.90 <= held / 200 <= 0.99
    # The median's standard error is 1.25 times the mean's: 0.1 * 1.1 * 1.25 / 5 on either side, twice.
    assert np.median(widths) == pytest.approx(4 * 0.0275, rel=0.25)


def test_the_seed_decides_the_interval() -> None:
    pairs = [(1.0 + 0.37 * index % 0.2, 1.0) for index in range(9)]
    assert paired_ratio(pairs, seed=3) == paired_ratio(pairs, seed=3)
    assert paired_ratio(pairs, seed=3).value == paired_ratio(pairs, seed=4).value


def test_one_outlier_moves_little() -> None:
    ratio = paired_ratio([(1.2, 1.0)] * 14 + [(0.1, 1.0)])
    assert ratio.value == pytest.approx(1.2)
    assert ratio.interval == pytest.approx((1.2, 1.2))


def test_too_few_pairs() -> None:
    assert paired_ratio([(3.0, 2.0)]) == Ratio(1.5, None)
    assert paired_ratio([(3.0, 2.0)] * 5) == Ratio(1.5, None)
    assert paired_ratio([(3.0, 2.0)] * 6) == Ratio(1.5, (1.5, 1.5))
    with pytest.raises(ValueError, match="nothing"):
        paired_ratio([])


def test_what_does_not_fit_into_memory_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(2.0 + index % 3 * 0.5, 1.0) for index in range(11)]
    whole = paired_ratio(pairs)
    monkeypatch.setattr(statistics, "AT_ONCE", 5_000)
    assert paired_ratio(pairs) == whole
