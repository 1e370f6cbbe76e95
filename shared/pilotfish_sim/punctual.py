"""Waiting that ends when it should: a selector whose timeouts are met to some tens of microseconds.

The system wakes a process late, the later the longer it has slept: its timers have slack, an idle processor takes time
to come back, and caches are cold. So the selector wakes up early by what it has seen of that, waits again for the short
rest, and looks again and again for the last part of it, which a short sleep would miss.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Any, Final

SHORTEST_S: Final = 0.0005  # the first class of sleeps goes up to here, each next one up to four times as far
CLASSES: Final = 6
FIRST_S: Final = 0.0001  # taken for the lateness until one was seen
BOUNDS_S: Final = (0.00002, 0.002)  # of what is taken for it; the lower one is looked through, busy
QUANTILE: Final = 0.9  # of wake-ups that come in time
STEP: Final = 0.1  # by which the estimate grows with one that does not


class Lateness:
    """How much too late a wake-up is, but for one in ten: a quantile that follows by steps, whatever the outliers."""

    def __init__(self) -> None:
        self.value = FIRST_S

    def observe(self, late_s: float) -> None:
        """A sleep ended so much later than asked."""
        step = 1.0 if late_s > self.value else -(1.0 - QUANTILE) / QUANTILE
        factor = (1.0 + STEP) ** step
        low, high = BOUNDS_S
        self.value = min(max(self.value * factor, low), high)


class PunctualSelector(selectors.SelectSelector):
    """select(2), whose timeout has microseconds where epoll's rounds up to the next millisecond, but not late.

    ``clock`` and ``sleeping`` (the system's part, which returns what is ready) are for tests.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleeping: Callable[[float | None], list[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.lateness = [Lateness() for _ in range(CLASSES)]
        self._clock = clock
        self._sleep = sleeping or super().select

    def select(self, timeout: float | None = None) -> list[Any]:
        """As the base class's."""
        if timeout is None or timeout <= 0:
            return self._sleep(timeout)
        due = self._clock() + timeout
        while True:
            rest = due - self._clock()
            if rest <= 0:
                return []
            lateness = self.lateness[class_of(rest)]
            asked = rest - lateness.value
            began = self._clock()
            ready = self._sleep(max(asked, 0.0))
            if ready:
                return ready
            if asked > 0:
                lateness.observe(self._clock() - began - asked)


def class_of(sleep_s: float) -> int:
    """Sleeps of about the same length are as late as each other."""
    place, end = 0, SHORTEST_S
    while sleep_s > end and place < CLASSES - 1:
        place, end = place + 1, 4 * end
    return place
