from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pilotfish_core.estimators import Acceptance, Average, Load, Response, RoundTrip, StepTime


def test_the_round_trip_now_follows_a_link_that_changed() -> None:
    trip = RoundTrip()
    for index in range(10):
        trip.observe(0.01, index * 0.5)
    trip.observe(0.2, 5.0)
    assert trip.now == 0.01  # one may be an accident
    trip.observe(0.2, 5.5)
    assert trip.now == 0.2
    assert trip.minimum == 0.01
    trip.observe(0.01, 20.0)
    assert trip.now == 0.01  # what was long ago does not count


def test_an_average_begins_evenly_and_forgets() -> None:
    average = Average(0.1)
    assert average.or_else(7.0) == 7.0
    for value in (1.0, 2.0, 3.0):
        average.observe(value)
    assert average.value == pytest.approx(2.0)
    for _ in range(100):
        average.observe(10.0)
    assert average.value == pytest.approx(10.0, abs=0.01)


def test_the_round_trips_minimum_is_that_of_the_last_ten_seconds() -> None:
    trip = RoundTrip()
    assert trip.minimum is None
    for second, rtt in enumerate([0.05, 0.03, 0.04, 0.06, 0.06, 0.05]):
        trip.observe(rtt, float(second))
    assert trip.minimum == 0.03
    for second in range(6, 20):
        trip.observe(0.2, float(second))
    assert trip.minimum == 0.2
    assert trip.smoothed == pytest.approx(0.2, abs=0.03)
    assert trip.deviation < 0.05


@pytest.mark.parametrize("true", [0.1, 0.6, 0.95])
def test_acceptance_is_found_and_bounded(true: float) -> None:
    rng, estimate = random.Random(1), Acceptance(half_life=200)
    assert (estimate.rate, estimate.lower, estimate.upper) == (0.5, 0.0, 1.0)
    for _ in range(2000):
        match = rng.random() < true
        estimate.observe(int(match), refuted=not match)
    assert estimate.rate == pytest.approx(true, abs=0.08)
    assert estimate.lower < true < estimate.upper


def test_acceptance_follows_a_change() -> None:
    estimate = Acceptance(half_life=32)
    estimate.observe(200, refuted=False)
    assert estimate.lower > 0.9
    for _ in range(64):
        estimate.observe(0, refuted=True)
    assert estimate.upper < 0.45


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 1.0)), min_size=1, max_size=40), st.integers(1, 200))
def test_step_time_never_falls_with_rows(seen: list[tuple[int, float]], rows: int) -> None:
    curve = StepTime()
    for count, duration in seen:
        curve.observe(count, duration)
    assert curve.of(rows) <= curve.of(rows + 1) + 1e-12
    assert curve.of(rows) > 0


def test_step_time_goes_in_stairs_where_rows_are_padded() -> None:
    curve = StepTime(row_sizes=(1, 2, 4, 8, 64, 96))
    for rows, seconds in ((1, 0.020), (3, 0.024), (64, 0.100), (65, 0.140), (64, 0.100), (90, 0.140)):
        curve.observe(rows, seconds)
    assert curve.of(1) == 0.020
    assert curve.of(2) == pytest.approx(0.020 + 0.004 / 3)
    assert curve.of(3) == curve.of(4) == 0.024
    assert curve.of(9) == curve.of(33) == curve.of(64) == 0.100
    assert curve.of(65) == curve.of(80) == curve.of(96) == 0.140
    assert curve.of(97) > 0.140
    assert curve.unseen(80) == 0
    assert curve.unseen(64) == 1
    assert curve.most == 96


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(0.001, 1.0)), min_size=1, max_size=40),
    st.lists(st.integers(1, 150), max_size=9, unique=True),
    st.integers(1, 300),
)
@example(seen=[(1, 1.0), (66, 0.5)], sizes=[65], rows=66)
def test_stairs_never_fall_either(seen: list[tuple[int, float]], sizes: list[int], rows: int) -> None:
    curve = StepTime(row_sizes=sorted(sizes))
    for count, duration in seen:
        curve.observe(count, duration)
    assert 0 < curve.of(rows) <= curve.of(rows + 1) + 1e-12
    assert curve.of(rows) == curve.base(rows)[rows]


def test_step_time_goes_through_what_was_seen() -> None:
    curve = StepTime()
    with pytest.raises(ValueError, match="no step"):
        curve.of(1)
    curve.observe(1, 0.040)
    assert (curve.of(1), curve.of(100)) == (0.040, 0.040)
    curve.observe(9, 0.048)
    assert curve.of(5) == pytest.approx(0.044)
    assert curve.of(17) == pytest.approx(0.056)
    curve.observe(4, 0.030)  # noise: pooled with the row before it
    assert curve.of(1) == curve.of(4) == pytest.approx(0.035)


loads = st.tuples(st.integers(0, 100_000), st.integers(0, 1_000_000))


@given(
    st.lists(st.tuples(st.integers(1, 600), st.floats(0.001, 1.0), loads), min_size=1, max_size=60),
    st.integers(1, 800),
    loads,
)
def test_step_time_never_falls_with_rows_or_context(
    seen: list[tuple[int, float, tuple[int, int]]], rows: int, load: tuple[int, int]
) -> None:
    curve = StepTime()
    for count, duration, (context, pairs) in seen:
        curve.observe(count, duration, Load(context, pairs))
    time = curve.of(rows, Load(*load))
    assert time > 0
    assert time <= curve.of(rows + 1, Load(*load)) + 1e-12
    assert time <= curve.of(rows, Load(load[0] + 1000, load[1] + 1000)) + 1e-12
    assert curve.of(rows) == curve.base(rows)[rows]


@pytest.mark.parametrize(("per_context", "per_pair"), [(3e-7, 1e-7), (3e-7, 0.0), (0.0, 2e-7), (0.0, 0.0)])
def test_what_a_context_costs_is_told_from_what_rows_cost(per_context: float, per_pair: float) -> None:
    rng, curve = random.Random(1), StepTime()

    def true(rows: int, load: Load) -> float:
        return 0.02 + 0.0003 * max(0, rows - 20) + per_context * load.context + per_pair * load.pairs

    lengths = [100] * 64
    for _ in range(3000):  # the more sequences, the more rows and the more context: only churn tells them apart
        drafts = rng.choice([0, 2, 4])
        lengths = [length + 1 + drafts // 2 if length < 2000 else rng.randrange(50, 500) for length in lengths]
        if rng.random() < 0.02:
            lengths = [rng.randrange(50, 1500) for _ in range(rng.choice([1, 8, 32, 64]))]
        load = Load(sum(lengths), sum(lengths) * (1 + drafts))
        rows = len(lengths) * (1 + drafts)
        curve.observe(rows, true(rows, load) * rng.uniform(0.95, 1.05), load)
    for count in (8, 64):
        for drafts in (0, 4):
            for length in (200, 1500):
                load = Load(count * length, count * length * (1 + drafts))
                rows = count * (1 + drafts)
                assert curve.of(rows, load) == pytest.approx(true(rows, load), rel=0.12)


def test_an_outlier_counts_for_little_and_a_changed_machine_is_believed() -> None:
    curve = StepTime()
    for _ in range(50):
        curve.observe(8, 0.030)
    curve.observe(8, 5.0)
    assert curve.of(8) < 0.040
    for _ in range(3):
        curve.observe(8, 0.500)
    assert curve.of(8) == pytest.approx(0.5)
    for _ in range(3):
        curve.observe(8, 0.020)
    assert curve.of(8) == pytest.approx(0.02)


def test_row_counts_that_do_not_come_up_any_more_are_forgotten() -> None:
    curve = StepTime()
    curve.observe(64, 9.0)
    for _ in range(5000):
        curve.observe(8, 0.030)
    assert curve.of(64) == pytest.approx(0.030)
    assert curve.most == 8


def test_response_and_gap_of_a_device() -> None:
    response = Response()
    response.committed(10, 1.0)
    response.committed(11, 1.03)  # the cloud goes on meanwhile
    response.opened(10, 1, 1.06)
    assert response.delay.value == pytest.approx(0.06)  # it answers the first one, alive or not
    response.continued(2, 1.08)
    assert response.gap.value == pytest.approx(0.01)
    response.committed(14, 2.0)
    response.continued(3, 2.5)  # the window was full until the commit
    assert response.gap.value == pytest.approx(0.01)
    response.opened(14, 4, 2.08)
    assert response.delay.value == pytest.approx(0.07)
    response.continued(1, 2.09)
    response.continued(3, 2.16)  # four after the first run, in 80 ms
    assert response.gap.value == pytest.approx((0.01 + 0.01 + 0.02) / 3)
    response.opened(99, 1, 3.0)  # begins where no commit ended that is remembered
    assert response.delay.count == 2


def test_empty_runs_say_nothing_of_the_pace() -> None:
    response = Response()
    response.opened(5, 0, 1.0)
    for _ in range(2):
        response.continued(0, 2.0)
    response.continued(2, 3.0)
    assert response.gap.or_else(0.0) == 1.0
