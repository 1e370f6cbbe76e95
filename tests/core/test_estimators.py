from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.estimators import Acceptance, Average, Response, RoundTrip, StepTime


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
