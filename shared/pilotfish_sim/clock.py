"""The virtual clock: events in the order of (time, priority, sequence). Nothing here knows real time.

A process is an object that asks to be called: ``clock.at(when, action, argument)``. What is called at one time may ask
for more at the same time; it comes after what was asked for before (after simpy's ordering). So a run is a function of
its scenario and seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

FIRST: Final = 0  # priority of what arrives
LAST: Final = 1  # of what ends: a step that ends when a frame arrives sees the frame

Action = Callable[[Any], object]


class Clock:
    """``now`` in seconds from the beginning; ``events`` counts what was called."""

    __slots__ = ("_number", "_queue", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, int, Action, Any]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._queue)

    def at(self, when: float, action: Action, argument: Any = None, *, priority: int = FIRST) -> None:
        """Call ``action(argument)`` at ``when``. There is no taking back: who changes its mind ignores the call.

        Raises ValueError for a time that is past, or no number.
        """
        if not when >= self.now:
            raise ValueError(f"an event at {when!r}, but it is {self.now!r} already")
        self._number += 1
        heapq.heappush(self._queue, (when, priority, self._number, action, argument))

    def run(self, until: float | None = None) -> None:
        """Go on until nothing is left to call, or to ``until`` at the latest."""
        queue, pop = self._queue, heapq.heappop
        events = 0
        try:
            while queue and (until is None or queue[0][0] <= until):
                self.now, _, _, action, argument = pop(queue)
                events += 1
                action(argument)
        finally:
            self.events += events
        if until is not None and self.now < until:
            self.now = until


class Alarm:
    """One time at which a process wants to be called, that moves often: re-armed without filling the clock's queue."""

    __slots__ = ("_action", "_asked", "_clock", "_when")

    def __init__(self, clock: Clock, action: Action) -> None:
        self._clock, self._action = clock, action
        self._when: float | None = None  # the alarm
        self._asked: float | None = None  # the earliest call that the clock holds for it

    def set(self, when: float | None) -> None:
        """Call at ``when`` and not before; None: not at all. A time that is past means now."""
        self._when = when
        if when is not None and (self._asked is None or when < self._asked):
            self._ask(max(when, self._clock.now))

    def _ask(self, when: float) -> None:
        self._asked = when
        self._clock.at(when, self._called, when)

    def _called(self, asked: float) -> None:
        if asked != self._asked:
            return  # an earlier one was asked for since, and has seen to it
        self._asked = None
        when = self._when
        if when is None:
            return
        if when > self._clock.now:
            self._ask(when)
            return
        self._when = None
        self._action(None)
