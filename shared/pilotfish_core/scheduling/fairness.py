"""Fair shares between tenants: virtual token counters, in rows.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Each tenant has a counter that grows by the
rows that were computed for it (prefill, decode and draft rows alike, so bad drafts pay for themselves), divided by its
weight. Where there is not enough for all, the tenant with the lowest counter comes first.

**Fair share.** A step's rows are dealt out by weight until each tenant has all that it can use or none are left
(max-min fairness); what one cannot use goes to the others. What a tenant can use is bounded by its generations: one
that decodes takes 1 + k rows a step, k being its draft tokens that are buffered and worth a row to the policy; one that
prefills takes the rest of its prompt. So the fair share of a tenant with a single generation is usually those 1 + k
rows and no more, however many rows the others take, and half the step when it prefills beside one other tenant. Seats
and blocks are dealt the same way: see ``Seats``.

**No credit.** A counter only means something among tenants that want more than they get. So one that has all it wants,
or comes back after it was away, is lifted to the least counter of those who do not (idle time cannot be saved up), and
when everybody has all that they want, all are level: what nobody else wanted is no debt. A debt, on the other hand,
outlives leaving and coming back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping


class TenantCounters:
    """The counters of the tenants that have unfinished generations, and of those who left with a debt."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._present: dict[str, int] = {}  # unfinished generations
        self._floor = 0.0  # where one that comes back begins

    def __len__(self) -> int:
        """Tenants with unfinished generations."""
        return len(self._present)

    def counter(self, tenant: str) -> float:
        """Rows computed for it over its weight, since it was last lifted."""
        return self._counters.get(tenant, self._floor)

    def weight(self, tenant: str) -> float:
        """Its weight, 1 unless given otherwise."""
        return self._weights.get(tenant, 1.0)

    def join(self, tenant: str, weight: float = 1.0) -> None:
        """One more generation of ``tenant``; the last weight given counts. Raises ValueError unless it is positive."""
        if not (weight > 0.0 and math.isfinite(weight)):
            raise ValueError(f"the weight of tenant {tenant!r} is {weight}; expected a positive number")
        self._weights[tenant] = weight
        if tenant not in self._present:
            self._counters[tenant] = max(self._counters.get(tenant, self._floor), self._floor)
        self._present[tenant] = self._present.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """One generation less."""
        left = self._present[tenant] - 1
        if left:
            self._present[tenant] = left
            return
        del self._present[tenant], self._weights[tenant]
        if self._counters[tenant] <= self._floor:
            del self._counters[tenant]

    def charge(self, tenant: str, rows: int) -> None:
        """``rows`` were computed for it."""
        self._counters[tenant] = self.counter(tenant) + rows / self.weight(tenant)

    def settle(self, wanting: Collection[str]) -> None:
        """After a step: ``wanting`` are the tenants that got less than they wanted, a seat or rows."""
        backlogged = [self._counters[tenant] for tenant in wanting if tenant in self._present]
        if backlogged:
            self._floor = max(self._floor, min(backlogged))
        else:
            self._floor = max(self._counters.values(), default=self._floor)
        for tenant, counter in list(self._counters.items()):
            if counter > self._floor:
                continue
            if tenant not in self._present:
                del self._counters[tenant]
            elif tenant not in wanting:
                self._counters[tenant] = self._floor

    def divide(self, wanted: Mapping[str, int], budget: int, taken: Mapping[str, int] | None = None) -> dict[str, int]:
        """Deal ``budget`` rows to tenants that want so many, always to the one with the lowest counter.

        ``taken``: rows of the same step that they have already. Returns rows for each tenant of ``wanted``, together as
        many as are wanted or there are.
        """
        shares = dict(wanted)
        if sum(wanted.values()) <= budget:
            return shares
        starts = {name: self.counter(name) + (taken or {}).get(name, 0) / self.weight(name) for name in wanted}
        level = self._level(starts, wanted, budget)
        for name, want in wanted.items():
            shares[name] = min(want, max(0, math.floor((level - starts[name]) * self.weight(name) + 1e-9)))
        left = budget - sum(shares.values())

        def reached(name: str) -> float:
            return starts[name] + shares[name] / self.weight(name)

        while left > 0:  # of fractions: fewer than there are tenants
            name = min((name for name in wanted if shares[name] < wanted[name]), key=reached)
            shares[name] += 1
            left -= 1
        while left < 0:  # the rounding was on the wrong side
            name = max((name for name in wanted if shares[name] > 0), key=reached)
            shares[name] -= 1
            left += 1
        return shares

    def _level(self, starts: Mapping[str, float], wanted: Mapping[str, int], budget: int) -> float:
        """The counter up to which ``budget`` rows raise those who begin lower, each until it has what it wants."""
        events: list[tuple[float, float]] = []  # (counter, change of the weight that rises)
        for name, start in starts.items():
            weight = self.weight(name)
            events.append((start, weight))
            events.append((start + wanted[name] / weight, -weight))
        events.sort()
        level, rising, left = events[0][0], 0.0, float(budget)
        for at, change in events:
            if rising > 0.0:
                if (at - level) * rising >= left:
                    return level + left / rising
                left -= (at - level) * rising
            level = at
            rising += change
        return level
