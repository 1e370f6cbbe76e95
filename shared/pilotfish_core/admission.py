"""Who may begin a generation: limits of the server and of each tenant. No I/O, no clock.

A generation reserves its place and its tokens before any work is done for it, and gives them back once, whatever ends
it. Rows (what a step computes) are charged to a token bucket: the prompt when it is admitted, what the prefix cache
spared is given back, committed tokens are charged as they come. A bucket may fall below zero, and then admits nothing
until it is refilled; what runs is never slowed down by it.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from typing import Final

from pilotfish_core.errors import DeadlineExceeded, InvalidParameter, Overloaded, PromptTooLong
from pilotfish_core.parameters import SamplingParams

MIN_HINT_S: Final = 0.1
MAX_HINT_S: Final = 60.0
FIRST_HINT_S: Final = 1.0  # while nothing has ended yet
DURATION_WEIGHT: Final = 0.2  # of the newest generation in the mean duration


class ResumePolicy(enum.StrEnum):
    """Whether a device may go on with committed tokens that it claims to hold."""

    TRUST = "trust"
    TICKET = "ticket"  # with the verifier's own proof of them
    REFUSE = "refuse"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What one tenant may do; None: no limit of its own. Raises InvalidParameter.

    ``rows_per_s`` is the long-run rate at which new work is admitted, ``burst_s`` seconds of it may come at once.
    ``weight`` is its share against others when rows are scarce. ``resume`` None: what the server says.
    """

    max_generations: int | None = None
    rows_per_s: float | None = None
    burst_s: float = 10.0
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    weight: float = 1.0
    resume: ResumePolicy | None = None

    def __post_init__(self) -> None:
        for name in ("max_generations", "max_prompt_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value < 2**31):
                raise InvalidParameter.of(name, value, "a positive integer")
        for name in ("rows_per_s", "burst_s", "weight"):
            value = getattr(self, name)
            if value is None and name == "rows_per_s":
                continue
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InvalidParameter.of(name, value, "a positive number")

    def check(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Raises PromptTooLong, InvalidParameter for what this tenant may not ask for at all."""
        if self.max_prompt_tokens is not None and prompt_tokens > self.max_prompt_tokens:
            raise PromptTooLong(f"the prompt has {prompt_tokens} tokens; at most {self.max_prompt_tokens} are allowed")
        if self.max_tokens is not None and params.max_tokens > self.max_tokens:
            raise InvalidParameter.of("max_tokens", params.max_tokens, f"at most {self.max_tokens}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What waits or runs in all. ``slots`` of the generations run at a time, the others wait."""

    max_generations: int = 256
    max_tokens: int = 2**22  # prompts and the longest outputs that were asked for
    slots: int = 64


class TokenBucket:
    """Level between debt and ``capacity``, refilled at ``rate`` a second."""

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken now; negative: what was taken too much."""
        if now > self._at:
            self._level = min(self.capacity, self._level + self.rate * (now - self._at))
            self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Whether it is there or not; a negative amount is given back."""
        self._level = min(self.capacity, self.level(now) - amount)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken; one larger than the capacity waits for a full bucket."""
        return max(min(amount, self.capacity) - self.level(now), 0.0) / self.rate

    def resize(self, rate: float, capacity: float, now: float) -> None:
        """New settings from here on."""
        level = self.level(now)
        self.rate, self.capacity, self._level = rate, capacity, min(level, capacity)


@dataclasses.dataclass(slots=True, eq=False)
class Reservation:
    """A generation's place. The admission's own; ``released`` once it was given back."""

    tenant: str
    tokens: int
    began: float
    released: bool = False
    claim: Claim | None = None


class Claim:
    """What ``Admission.ask`` got for one generation. The admission's own; used once, by ``reserve`` or ``withdraw``."""

    __slots__ = ()


class Admission(abc.ABC):
    """The seam behind which limits may be shared by several replicas.

    Methods are called on the event loop, for every generation. Only ``ask`` may wait, and only shortly: an
    implementation with a store elsewhere works with what it knows and talks to the store in the background.
    """

    async def ask(
        self, tenant: str, settings: TenantSettings, *, generation: bytes, attempt: int, rows: int
    ) -> Claim | None:
        """Ask whoever keeps the limits of all replicas, before anything else is done for a generation. ``generation``:
        a name that only its own later attempts have, since these go on in its place.

        None where there is nobody to ask; then ``reserve`` decides alone. Raises Overloaded, and Cancelled for an
        attempt that is not newer than another one that is being asked for.
        """
        return None

    def withdraw(self, claim: Claim | None) -> None:  # noqa: B027  # nothing to do is right for those who ask nobody
        """A claim that no reservation was made with."""

    @abc.abstractmethod
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
        """A place for a generation that has ``rows`` to prefill and may commit ``output`` tokens.

        Raises Overloaded with a hint when to try again, DeadlineExceeded for one that could not even begin in time;
        ``claim`` is the caller's to withdraw then.
        """

    @abc.abstractmethod
    def charge(self, reservation: Reservation, rows: int, now: float) -> None:
        """``rows`` more were computed than was estimated; a negative number: fewer."""

    @abc.abstractmethod
    def release(self, reservation: Reservation, now: float) -> None:
        """Give the place back; the second time does nothing."""

    @property
    @abc.abstractmethod
    def generations(self) -> int:
        """Places reserved."""

    @property
    @abc.abstractmethod
    def tokens(self) -> int:
        """Tokens reserved."""


@dataclasses.dataclass(slots=True)
class _Tenant:
    generations: int = 0
    bucket: TokenBucket | None = None


class MemoryAdmission(Admission):
    """Limits of one process. What it holds grows with the number of tenants only, which the operator names."""

    def __init__(self, limits: ServerLimits | None = None) -> None:
        self.limits = limits or ServerLimits()
        self._tenants: dict[str, _Tenant] = {}
        self._generations = 0
        self._tokens = 0
        self._duration: float | None = None

    @property
    def generations(self) -> int:
        """Places reserved."""
        return self._generations

    @property
    def tokens(self) -> int:
        """Tokens reserved."""
        return self._tokens

    def generations_of(self, tenant: str) -> int:
        """Places that one tenant holds."""
        known = self._tenants.get(tenant)
        return 0 if known is None else known.generations

    @property
    def known_tenants(self) -> int:
        """Of how many something is held."""
        return len(self._tenants)

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
        """See ``Admission.reserve``. A generation larger than all tokens allowed takes all of them."""
        limits = self.limits
        tokens = min(rows + output, limits.max_tokens)
        known = self._tenants.get(tenant) or _Tenant()
        if settings.max_generations is not None and known.generations >= settings.max_generations:
            raise self.too_many(known.generations, settings)
        self._resize(known, settings, now)
        wait = 0.0 if known.bucket is None else known.bucket.wait(rows, now)
        if wait > 0:
            raise self.too_fast(wait, settings)
        if self._generations >= limits.max_generations:
            raise Overloaded(
                f"{self._generations} generations run or wait, no more are taken",
                retry_after_s=self._hint(self._generations),
            )
        missing = self._tokens + tokens - limits.max_tokens
        if missing > 0:
            raise Overloaded(
                f"{self._tokens} tokens run or wait; {tokens} more are too many",
                retry_after_s=self._hint(self._tokens / missing),
            )
        if deadline is not None and now + self._wait() >= deadline:
            raise DeadlineExceeded(f"it could not begin before its deadline: there is a wait of {self._wait():.1f} s")
        self._tenants[tenant] = known
        known.generations += 1
        if known.bucket is not None:
            known.bucket.take(rows, now)
        self._generations += 1
        self._tokens += tokens
        return Reservation(tenant, tokens, now, claim=claim)

    def charge(self, reservation: Reservation, rows: int, now: float) -> None:
        """See ``Admission.charge``."""
        known = self._tenants.get(reservation.tenant)
        if known is not None and known.bucket is not None:
            known.bucket.take(rows, now)

    def release(self, reservation: Reservation, now: float) -> None:
        """See ``Admission.release``."""
        if reservation.released:
            return
        reservation.released = True
        self._generations -= 1
        self._tokens -= reservation.tokens
        known = self._tenants[reservation.tenant]
        known.generations -= 1
        seconds = max(now - reservation.began, 0.0)
        if self._duration is None:
            self._duration = seconds
        else:
            self._duration += DURATION_WEIGHT * (seconds - self._duration)
        if _forgettable(known, now):
            del self._tenants[reservation.tenant]

    def too_many(self, generations: int, settings: TenantSettings) -> Overloaded:
        """The refusal of a tenant that has so many generations already."""
        return Overloaded(
            f"{generations} generations of this key's owner run or wait; at most {settings.max_generations} may",
            retry_after_s=self._hint(generations),
        )

    def too_fast(self, wait_s: float, settings: TenantSettings) -> Overloaded:
        """The refusal of a tenant whose rows are used up."""
        return Overloaded(
            f"more rows were asked for than the {settings.rows_per_s:g} a second that are allowed",
            retry_after_s=max(wait_s, MIN_HINT_S),
        )

    def _hint(self, places: float) -> float:
        """When one of so many may be free again, if they end at even distances."""
        duration = FIRST_HINT_S if self._duration is None else self._duration
        return min(max(duration / max(places, 1.0), MIN_HINT_S), MAX_HINT_S)

    def _wait(self) -> float:
        """How long the next generation waits before it runs, by the duration of the last ones; 0 if there is room."""
        ahead = self._generations - self.limits.slots + 1
        return max(ahead, 0) / self.limits.slots * (self._duration or 0.0)

    def _resize(self, known: _Tenant, settings: TenantSettings, now: float) -> None:
        if settings.rows_per_s is None:
            known.bucket = None
            return
        capacity = settings.rows_per_s * settings.burst_s
        if known.bucket is None:
            known.bucket = TokenBucket(settings.rows_per_s, capacity, now)
        elif (known.bucket.rate, known.bucket.capacity) != (settings.rows_per_s, capacity):
            known.bucket.resize(settings.rows_per_s, capacity, now)


def _forgettable(tenant: _Tenant, now: float) -> bool:
    full = tenant.bucket is None or tenant.bucket.level(now) >= tenant.bucket.capacity
    return full and tenant.generations == 0
