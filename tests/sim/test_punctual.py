"""Timeouts that are met, on a machine of the test's own whose wake-ups are late."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from pilotfish_sim.punctual import BOUNDS_S, CLASSES, Lateness, PunctualSelector, class_of

LOOK_S = 0.000003  # that a look without waiting takes


class Machine:
    """A clock, and sleeps that end late; ``arriving``: when something becomes ready."""

    def __init__(self, late: Callable[[float], float], arriving: float | None = None) -> None:
        self.now = 100.0
        self.looks = 0
        self._late = late
        self._arriving = arriving

    def clock(self) -> float:
        return self.now

    def sleep(self, timeout: float | None) -> list[Any]:
        assert timeout is not None
        end = self.now + (timeout + self._late(timeout) if timeout > 0 else LOOK_S)
        self.looks += timeout == 0
        if self._arriving is not None and self._arriving <= end:
            self.now = max(self.now, self._arriving)
            return ["ready"]
        self.now = end
        return []


def errors(late: Callable[[float], float], timeouts: list[float]) -> tuple[list[float], Machine, PunctualSelector]:
    """How late each timeout was met, once a hundred were."""
    machine = Machine(late)
    with PunctualSelector(machine.clock, machine.sleep) as selector:
        met = []
        for timeout in timeouts:
            due = machine.now + timeout
            assert selector.select(timeout) == []
            assert machine.now >= due, "too early"
            met.append(machine.now - due)
    return met[100:], machine, selector


def test_a_lateness_that_grows_with_the_sleep_is_taken_off() -> None:
    generator = random.Random(1)

    def late(timeout: float) -> float:
        return 0.00005 + 0.02 * min(timeout, 0.05) * generator.uniform(0.5, 1.5)

    met, _, _ = errors(late, [0.005, 0.025, 0.1] * 150)
    assert statistics.median(met) < 0.00002
    assert statistics.quantiles(met, n=10)[-1] < 0.0001


def test_it_looks_but_for_a_moment() -> None:
    """The rest of a long sleep is slept, too; only the least lateness is waited for with open eyes."""
    met, machine, _ = errors(lambda timeout: 0.00004 if timeout < 0.003 else 0.001, [0.05] * 400)
    assert statistics.median(met) < 0.00002
    assert machine.looks * LOOK_S / 400 < 0.0001


def test_what_is_ready_is_returned_at_once() -> None:
    for arriving in (100.0001, 100.0149, 100.01499):
        machine = Machine(lambda _: 0.0005, arriving)
        with PunctualSelector(machine.clock, machine.sleep) as selector:
            assert selector.select(0.015) == ["ready"]
            assert machine.now == pytest.approx(arriving, abs=LOOK_S)


def test_a_busy_machine_does_not_make_it_look_for_long() -> None:
    lateness = Lateness()
    for _ in range(1000):
        lateness.observe(0.5)
    assert lateness.value == BOUNDS_S[1]
    for _ in range(1000):
        lateness.observe(0.0)
    assert lateness.value == BOUNDS_S[0]


def test_one_in_ten_is_later() -> None:
    generator, lateness = random.Random(2), Lateness()
    seen = [generator.uniform(0.0001, 0.0011) for _ in range(4000)]
    later = 0
    for index, late in enumerate(seen):
        later += index >= 200 and late > lateness.value
        lateness.observe(late)
    assert later / 3800 == pytest.approx(0.1, abs=0.02)


def test_classes_of_sleeps() -> None:
    assert [class_of(sleep) for sleep in (0.0, 0.0005, 0.0006, 0.004, 0.02, 0.1, 0.3, 1e9)] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert class_of(1e9) == CLASSES - 1


def test_without_a_timeout_it_waits_as_ever() -> None:
    asked: list[float | None] = []

    def sleep(timeout: float | None) -> list[Any]:
        asked.append(timeout)
        return []

    with PunctualSelector(lambda: 0.0, sleep) as selector:
        for timeout in (None, 0, -1.0):
            assert selector.select(timeout) == []
    assert asked == [None, 0, -1.0]
