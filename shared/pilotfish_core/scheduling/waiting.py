"""Generations that wait for a seat: a line for each tenant."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator

from pilotfish_core.scheduling.sequence import Sequence


def _place(sequence: Sequence) -> tuple[int, int]:
    """Those who had a seat before come first, in the order in which they got it; then by arrival."""
    return (0, sequence.seniority) if sequence.seniority >= 0 else (1, sequence.arrival)


class WaitingList:
    """Iterates over all; ``tokens`` and ``len`` are kept, so that a door may look at them at any time, from any thread.

    ``tokens`` counts prompts and what was committed: what has to be computed before all of them decode, but for what
    the prefix cache has.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._count = 0
        self._lines: dict[str, list[Sequence]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those of whom anything waits."""
        return tuple(self._lines)

    def add(self, sequence: Sequence) -> None:
        """A new one, or one that was preempted."""
        bisect.insort(self._lines.setdefault(sequence.tenant, []), sequence, key=_place)
        self._count += 1
        self.tokens += sequence.committed_len

    def remove(self, sequence: Sequence) -> None:
        """It got a seat, or was given up. Raises ValueError when it does not wait."""
        line = self._lines.get(sequence.tenant, [])
        line.remove(sequence)
        if not line:
            del self._lines[sequence.tenant]
        self._count -= 1
        self.tokens -= sequence.committed_len

    def first(self, tenant: str, now: float, besides: Collection[Sequence] = ()) -> Sequence | None:
        """The first of a tenant's that could run, ``besides`` some."""
        return next(
            (one for one in self._lines.get(tenant, ()) if one.runnable(now) and one not in besides),
            None,
        )

    def runnable(self, now: float) -> bool:
        """Whether any could run if it had a seat."""
        return any(self.first(tenant, now) is not None for tenant in self._lines)
