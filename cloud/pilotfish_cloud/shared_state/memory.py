"""Shared state within one process: the default, and what the other implementation is held against."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable

from pilotfish_cloud.shared_state.interface import (
    LEASE_S,
    Held,
    Limits,
    Report,
    SharedState,
    Taken,
    UsageKey,
    View,
)
from pilotfish_core.admission import TokenBucket


@dataclasses.dataclass(slots=True)
class _Lease:
    owner: str
    until: float


class MemoryState(SharedState):
    """``clock``: seconds that only go forward."""

    where = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: dict[str, dict[str, _Lease]] = collections.defaultdict(dict)
        self._buckets: dict[str, TokenBucket] = {}
        self._usage: collections.Counter[UsageKey] = collections.Counter()
        self._revoked: set[str] = set()
        self._beats: dict[str, tuple[str, float]] = {}
        self._heard: dict[str, int] = {}

    async def take(
        self,
        tenant: str,
        limits: Limits,
        held: Held,
        *,
        level: float | None = None,
        released: tuple[Held, ...] = (),
        lease_s: float = LEASE_S,
    ) -> Taken:
        """See ``SharedState.take``."""
        now = self._clock()
        self._release(tenant, released)
        places = self._leases(tenant, now)
        bucket = self._bucket(tenant, limits, level, now)
        known = places.get(held.place)
        if known is None:
            if limits.max_generations is not None and len(places) >= limits.max_generations:
                return Taken(refused="places", places=len(places), level=_level(bucket, now))
            wait = 0.0 if bucket is None else bucket.wait(held.rows, now)
            if wait > 0:
                return Taken(refused="rows", places=len(places), level=_level(bucket, now), wait_s=wait)
        if bucket is not None and (known is None or known.owner != held.owner):
            bucket.take(held.rows, now)
        places[held.place] = _Lease(held.owner, now + lease_s)
        return Taken(refused="", places=len(places), level=_level(bucket, now))

    async def report(self, report: Report) -> View:
        """See ``SharedState.report``."""
        now = self._clock()
        first = report.number > self._heard.get(report.source, 0)
        self._heard[report.source] = max(report.number, self._heard.get(report.source, 0))
        levels = {}
        for tenant, told in report.tenants.items():
            self._release(tenant, told.released)
            places = self._leases(tenant, now)
            bucket = self._bucket(tenant, told.limits, told.level, now)
            for held in told.held:
                known = places.get(held.place)
                if known is None or known.owner == held.owner:
                    places[held.place] = _Lease(held.owner, now + report.lease_s)
                    if known is None and bucket is not None:
                        bucket.take(held.rows, now)
            if bucket is not None:
                if first:
                    bucket.take(told.charge, now)
                levels[tenant] = bucket.level(now)
        if first:
            self._usage.update(report.usage)
        self._revoked |= report.revoked
        self._beats[report.replica] = (report.beat, now + report.beat_s)
        self._beats = {name: beat for name, beat in self._beats.items() if beat[1] > now}
        beats = {name: beat for name, (beat, _) in self._beats.items()}
        return View(levels=levels, revoked=frozenset(self._revoked), beats=beats)

    async def usage(self, day: str) -> dict[str, dict[str, int]]:
        """See ``SharedState.usage``."""
        found: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for key, count in self._usage.items():
            if key.day == day:
                found[key.tenant][key.counter] = count
        return dict(found)

    async def revoke(self, key_id: str) -> None:
        """See ``SharedState.revoke``."""
        self._revoked.add(key_id)

    async def ping(self) -> None:
        """It is always there."""

    async def close(self) -> None:
        """Nothing is held elsewhere."""

    def _leases(self, tenant: str, now: float) -> dict[str, _Lease]:
        places = self._places[tenant]
        for place in [place for place, lease in places.items() if lease.until <= now]:
            del places[place]
        return places

    def _release(self, tenant: str, released: tuple[Held, ...]) -> None:
        places = self._places[tenant]
        for held in released:
            known = places.get(held.place)
            if known is not None and known.owner == held.owner:
                del places[held.place]

    def _bucket(self, tenant: str, limits: Limits, level: float | None, now: float) -> TokenBucket | None:
        if limits.rows_per_s is None:
            self._buckets.pop(tenant, None)
            return None
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(limits.rows_per_s, limits.capacity, now)
            if level is not None:
                bucket.take(limits.capacity - level, now)
        elif (bucket.rate, bucket.capacity) != (limits.rows_per_s, limits.capacity):
            bucket.resize(limits.rows_per_s, limits.capacity, now)
        return bucket


def _level(bucket: TokenBucket | None, now: float) -> float | None:
    return None if bucket is None else bucket.level(now)
