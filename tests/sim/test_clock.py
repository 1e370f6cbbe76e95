"""The virtual clock: order, determinism, alarms that move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_sim.clock import FIRST, LAST, Alarm, Clock


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from([FIRST, LAST])), max_size=50))
def test_events_come_by_time_then_priority_then_as_they_were_asked_for(asked: list[tuple[float, int]]) -> None:
    clock = Clock()
    came: list[tuple[float, int, int]] = []
    for number, (when, priority) in enumerate(asked):
        clock.at(when, lambda event: came.append(event), (when, priority, number), priority=priority)
    clock.run()
    assert came == sorted((when, priority, number) for number, (when, priority) in enumerate(asked))
    assert clock.events == len(asked)
    assert not len(clock)


def test_an_event_may_ask_for_more_at_the_same_time() -> None:
    clock = Clock()
    came: list[str] = []

    def first(_: object) -> None:
        came.append("first")
        clock.at(clock.now, lambda _: came.append("third"))

    clock.at(1.0, first)
    clock.at(1.0, lambda _: came.append("second"))
    clock.run()
    assert came == ["first", "second", "third"]
    assert clock.now == 1.0


@pytest.mark.parametrize("when", [0.5, float("nan")])
def test_there_is_no_way_back(when: float) -> None:
    clock = Clock()
    clock.run(until=1.0)
    assert clock.now == 1.0
    with pytest.raises(ValueError, match="already"):
        clock.at(when, print)


def test_it_stops_where_it_is_told_to() -> None:
    clock = Clock()
    came: list[float] = []
    for when in (1.0, 2.0, 3.0):
        clock.at(when, came.append, when)
    clock.run(until=2.0)
    assert (came, clock.now, len(clock)) == ([1.0, 2.0], 2.0, 1)
    clock.run()
    assert came == [1.0, 2.0, 3.0]


def test_an_alarm_rings_once_at_its_last_setting() -> None:
    clock = Clock()
    rang: list[float] = []
    alarm = Alarm(clock, lambda _: rang.append(clock.now))
    alarm.set(5.0)
    alarm.set(3.0)
    alarm.set(4.0)
    clock.run()
    assert rang == [4.0]
    alarm.set(6.0)
    alarm.set(None)
    clock.run()
    assert rang == [4.0]
    alarm.set(1.0)  # past: now
    clock.run()
    assert rang[1:] == [clock.now]


@given(st.lists(st.tuples(st.floats(0, 10), st.one_of(st.none(), st.floats(0, 10))), max_size=30))
def test_an_alarm_is_what_cancelled_timers_would_be(settings: list[tuple[float, float | None]]) -> None:
    clock = Clock()
    rang: list[float] = []
    alarm = Alarm(clock, lambda _: rang.append(clock.now))
    expected: list[float] = []
    due: float | None = None
    for at, delay in sorted(settings, key=lambda setting: setting[0]):
        if due is not None and due <= at:
            expected.append(due)
            due = None
        clock.run(until=at)
        due = None if delay is None else at + delay
        alarm.set(due)
    if due is not None:
        expected.append(due)
    clock.run()
    assert rang == expected


def test_an_alarm_that_moves_ahead_again_and_again_keeps_the_queue_short() -> None:
    clock = Clock()
    alarm = Alarm(clock, lambda _: None)
    for _ in range(10_000):
        clock.run(until=clock.now + 0.001)
        alarm.set(clock.now + 1.0)
    assert len(clock) <= 2
