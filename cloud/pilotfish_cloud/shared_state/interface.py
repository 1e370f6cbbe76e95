"""The store that replicas share, and the messages to and from it.

Two calls reach it: ``take`` for a place before a generation begins, and ``report``, in the background, for everything
else in one go. A *place* is a generation's lease: its replica renews it with each report, and when the replica is gone
it expires. The place goes by the generation's name, a digest of its id, prompt and parameters, so a generation that
resumes on another replica takes its own place over instead of a second one, and no other one does.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Final, NamedTuple

from pilotfish_core.errors import PilotfishError

LEASE_S: Final = 10.0  # that a place outlives its replica's last report
BEAT_S: Final = 5.0  # that a replica is listed after its last report
COUNTERS: Final = (
    "generations",
    "prompt_tokens",
    "committed_tokens",
    "drafted_tokens",
    "accepted_tokens",
    "verified_rows",
)


class StateTroubleError(PilotfishError):
    """The shared state cannot be used now: down, too slow, or it says what it cannot mean."""

    kind = "shared_state_trouble"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A tenant's limits over all replicas. ``rows_per_s`` and ``capacity`` are of the bucket; None: no such limit."""

    max_generations: int | None
    rows_per_s: float | None
    capacity: float = 0.0  # rows


class Held(NamedTuple):
    """A place as its owner holds it. ``owner``: replica, attempt and ask; ``rows`` are charged if it is not known."""

    place: str
    owner: str
    rows: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The answer to ``take``. ``refused``: "", "places" or "rows"; then ``wait_s`` for rows."""

    refused: str
    places: int  # of the tenant, on all replicas, after this
    level: float | None  # of its bucket; None: it has none
    wait_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TenantReport:
    """What one replica has of one tenant since its last report. ``level``: what it takes the bucket's level for, which
    a store that has lost its own begins with.
    """

    limits: Limits
    charge: int = 0  # rows; negative: given back
    level: float | None = None
    held: tuple[Held, ...] = ()
    released: tuple[Held, ...] = ()


class UsageKey(NamedTuple):
    """What is counted: ``day`` as 2026-01-31 in UTC, ``counter`` one of COUNTERS."""

    day: str
    tenant: str
    counter: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replica tells, in one piece. ``number`` counts up from 1 in each process, which ``source`` names: charges
    and usage of a report that was heard before are not counted again, so an unanswered one may be repeated. ``beat`` is
    the replica's line on the operator's page, as JSON.
    """

    replica: str
    source: str
    number: int
    beat: str
    tenants: Mapping[str, TenantReport] = dataclasses.field(default_factory=dict)
    usage: Mapping[UsageKey, int] = dataclasses.field(default_factory=dict)
    revoked: frozenset[str] = frozenset()  # ids of keys that this replica knows to be revoked
    lease_s: float = LEASE_S
    beat_s: float = BEAT_S


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a replica learns. ``levels`` of the tenants it reported on; ``beats`` by replica, as JSON, none of them
    checked; ``repaired``: values that made no sense and were begun anew, in all.
    """

    levels: Mapping[str, float]
    revoked: frozenset[str]
    beats: Mapping[str, str]
    repaired: int = 0


class SharedState(abc.ABC):
    """Atomic, by one clock of its own. Every method raises StateTroubleError and nothing else."""

    where: str  # for messages; without secrets

    @abc.abstractmethod
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
        """A place and its rows, if both are there; for a place that the generation has already, both are not asked.

        ``released``: places of this replica that are free again, as far as no report said so yet. ``level``: as in
        TenantReport. Repeating it changes nothing.
        """

    @abc.abstractmethod
    async def report(self, report: Report) -> View:
        """Everything else; see Report and View."""

    @abc.abstractmethod
    async def usage(self, day: str) -> dict[str, dict[str, int]]:
        """What was counted on a day, by tenant and counter."""

    @abc.abstractmethod
    async def revoke(self, key_id: str) -> None:
        """Let all replicas refuse a key from their next report on."""

    @abc.abstractmethod
    async def ping(self) -> None:
        """Whether it can be used at all."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of what is held here; what is shared stays."""
