"""Limits that hold for all replicas together: places and rows of tenants in the shared state, the rest as ever.

A generation of a limited tenant asks the store once, before it begins; commits are charged in the background. Without
the store a replica goes on with its share of each limit: an N-th, by the number of replicas that it last saw.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Final, Protocol

from pilotfish_cloud.shared_state.interface import LEASE_S, Held, Limits, Taken, TenantReport
from pilotfish_core.admission import (
    Claim,
    MemoryAdmission,
    Reservation,
    ServerLimits,
    TenantSettings,
    TokenBucket,
)
from pilotfish_core.errors import Cancelled

MAX_RELEASED: Final = 1000  # places of a tenant that are told free; others expire by themselves


class Asking(Protocol):
    """The way to the store: None when it cannot be asked now."""

    @property
    def replicas(self) -> int:
        """How many there are, as far as is known; at least 1."""
        ...

    async def take(
        self, tenant: str, limits: Limits, held: Held, *, level: float | None, released: tuple[Held, ...]
    ) -> Taken | None:
        """See ``SharedState.take``."""
        ...

    def wake(self) -> None:
        """There is something to report that others wait for."""
        ...


class _Place(Claim):
    """A place of one tenant. ``granted``: the store said so, or has been told of it since."""

    __slots__ = ("attempt", "granted", "held", "tenant")

    def __init__(self, tenant: str, held: Held, attempt: int, *, granted: bool) -> None:
        self.tenant, self.held, self.attempt, self.granted = tenant, held, attempt, granted


@dataclasses.dataclass(slots=True)
class _Tenant:
    """What this replica has of one tenant; ``bucket`` follows the store's, and stands in for it."""

    limits: Limits
    bucket: TokenBucket | None = None
    places: dict[str, _Place] = dataclasses.field(default_factory=dict)
    asked: dict[str, int] = dataclasses.field(default_factory=dict)  # attempts that wait for an answer, by place
    released: dict[Held, float] = dataclasses.field(default_factory=dict)  # when
    charge: int = 0  # rows that were not reported


class SharedAdmission(MemoryAdmission):
    """``replica``: this one's name. ``clock``: the event loop's, as in ``now``."""

    def __init__(self, limits: ServerLimits, store: Asking, *, replica: str, clock: Callable[[], float]) -> None:
        super().__init__(limits)
        self._store = store
        self._replica = replica
        self._clock = clock
        self._shared: dict[str, _Tenant] = {}
        self._asks = itertools.count(1)
        self._share = 1  # of each bucket's rate this replica has one part in so many

    async def ask(
        self, tenant: str, settings: TenantSettings, *, generation: bytes, attempt: int, rows: int
    ) -> Claim | None:
        """See ``Admission.ask``. None for a tenant without limits of its own.

        Each ask is an owner of its own: what is given back for one that led to nothing was taken for that one.
        """
        if settings.max_generations is None and settings.rows_per_s is None:
            return None
        known = self._known(tenant, settings)
        held = Held(generation.hex(), f"{self._replica}/{attempt}/{next(self._asks)}", rows)
        running = known.places.get(held.place)
        if running is not None and running.attempt >= attempt:
            return None  # which the gateway refuses: nothing is taken, nothing given back
        if (other := known.asked.get(held.place)) is not None and other >= attempt:
            raise Cancelled(f"attempt {attempt} is not newer than attempt {other}, which is about to begin")
        released, level = tuple(known.released), self._level(known)
        known.asked[held.place] = attempt
        try:
            taken = await self._store.take(tenant, known.limits, held, level=level, released=released)
        except BaseException:  # the caller is gone, the store may have heard
            self._free(known, held)
            raise
        finally:
            if known.asked.get(held.place) == attempt:
                del known.asked[held.place]
        if taken is None:
            return _Place(tenant, held, attempt, granted=False)
        for free in released:
            known.released.pop(free, None)
        if known.bucket is not None and taken.level is not None:
            self._follow(known.bucket, taken.level - _untold(known))
        if taken.refused == "places":
            raise self.too_many(taken.places, settings)
        if taken.refused:
            raise self.too_fast(taken.wait_s, settings)
        return _Place(tenant, held, attempt, granted=True)

    def withdraw(self, claim: Claim | None) -> None:
        """See ``Admission.withdraw``. The place is free at once; its rows come back with the next report."""
        if isinstance(claim, _Place):
            known = self._shared[claim.tenant]
            if claim.granted and known.bucket is not None:
                known.bucket.take(-claim.held.rows, self._clock())
                known.charge -= claim.held.rows
            self._free(known, claim.held)

    def reserve(
        self,
        tenant: str,
        settings: TenantSettings,
        *,
        rows: int,
        output: int,
        now: float,
        deadline: float | None = None,
        claim: Claim | None = None,
    ) -> Reservation:
        """See ``Admission.reserve``."""
        place = claim if isinstance(claim, _Place) else None
        limited = settings.max_generations is not None or settings.rows_per_s is not None
        known = self._known(tenant, settings) if limited else None
        if known is not None and (place is None or not place.granted):
            self._check_alone(known, tenant, settings, rows, now)
        free = dataclasses.replace(settings, max_generations=None, rows_per_s=None)
        reservation = super().reserve(tenant, free, rows=rows, output=output, now=now, deadline=deadline, claim=claim)
        if known is not None and (place is None or not place.granted):
            if known.bucket is not None:
                known.bucket.take(rows, now)
            if place is None:
                known.charge += rows  # there is no place whose rows the store would learn
        if known is not None and place is not None:
            known.places[place.held.place] = place
        return reservation

    def charge(self, reservation: Reservation, rows: int, now: float) -> None:
        """See ``Admission.charge``."""
        known = self._shared.get(reservation.tenant)
        if known is not None and known.bucket is not None:
            known.bucket.take(rows, now)
            known.charge += rows

    def release(self, reservation: Reservation, now: float) -> None:
        """See ``Admission.release``."""
        if not reservation.released and isinstance(reservation.claim, _Place):
            place = reservation.claim
            known = self._shared[place.tenant]
            if known.places.get(place.held.place) is place:
                del known.places[place.held.place]
                self._free(known, place.held)
        super().release(reservation, now)

    # -- reports ----------------------------------------------------------------------------------------------------

    def collect(self) -> dict[str, TenantReport]:
        """What there is to tell, which counts as told from here on: a report is repeated until it is heard."""
        found = {}
        for tenant, known in self._shared.items():
            if not (known.places or known.released or known.charge):
                continue
            found[tenant] = TenantReport(
                limits=known.limits,
                charge=known.charge,
                level=self._level(known),
                held=tuple(place.held for place in known.places.values()),
                released=tuple(known.released),
            )
            known.charge = 0
            known.released = {}
            for place in known.places.values():
                place.granted, place.held = True, place.held._replace(rows=0)
        return found

    def learn(self, levels: dict[str, float]) -> None:
        """Follow the store's buckets."""
        for tenant, level in levels.items():
            known = self._shared.get(tenant)
            if known is not None and known.bucket is not None:
                self._follow(known.bucket, level - _untold(known))

    # -- without the store ------------------------------------------------------------------------------------------

    def _check_alone(self, known: _Tenant, tenant: str, settings: TenantSettings, rows: int, now: float) -> None:
        """Raises Overloaded for more than this replica's share."""
        mine = self.generations_of(tenant)
        places = settings.max_generations
        if places is not None and mine >= math.ceil(places / self._store.replicas):
            raise self.too_many(mine, settings)
        if known.bucket is not None and (wait := known.bucket.wait(rows, now)) > 0:
            raise self.too_fast(wait, settings)

    def lose(self) -> None:
        """The store is out of reach: buckets fill by this replica's share from here on."""
        self._refill(self._store.replicas)

    def find(self) -> None:
        """It is there again."""
        self._refill(1)

    def _refill(self, share: int) -> None:
        self._share = share
        for known in self._shared.values():
            if known.bucket is not None and known.limits.rows_per_s is not None:
                known.bucket.resize(known.limits.rows_per_s / share, known.limits.capacity, self._clock())

    # -- state ------------------------------------------------------------------------------------------------------

    def _known(self, tenant: str, settings: TenantSettings) -> _Tenant:
        capacity = 0.0 if settings.rows_per_s is None else settings.rows_per_s * settings.burst_s
        limits = Limits(max_generations=settings.max_generations, rows_per_s=settings.rows_per_s, capacity=capacity)
        known = self._shared.get(tenant)
        if known is None:
            known = self._shared[tenant] = _Tenant(limits)
        if settings.rows_per_s is None:
            known.bucket = None
        elif known.bucket is None:
            known.bucket = TokenBucket(settings.rows_per_s / self._share, capacity, self._clock())
            known.bucket.take(capacity - capacity / self._share, self._clock())
        elif known.limits != limits:
            known.bucket.resize(settings.rows_per_s / self._share, capacity, self._clock())
        known.limits = limits
        return known

    def _level(self, known: _Tenant) -> float | None:
        """What the store would say."""
        return None if known.bucket is None else known.bucket.level(self._clock()) + _untold(known)

    def _follow(self, bucket: TokenBucket, level: float) -> None:
        now = self._clock()
        bucket.take(bucket.level(now) - level, now)

    def _free(self, known: _Tenant, held: Held) -> None:
        """To be told; while nobody hears, no longer than the store would keep the place anyhow."""
        now, released = self._clock(), known.released
        released.pop(held, None)
        released[held] = now
        while len(released) > MAX_RELEASED or released[next(iter(released))] < now - LEASE_S:
            del released[next(iter(released))]
        self._store.wake()


def _untold(known: _Tenant) -> int:
    """Rows of which the store has not heard."""
    return known.charge + sum(place.held.rows for place in known.places.values() if not place.granted)
