"""Shared state in a Redis server: two Lua scripts, so that each call is one atomic round trip by the server's clock.

Keys, all under ``pilotfish:`` (TENANT percent-encoded)::

    places:TENANT    sorted set, place -> until when     owners:TENANT   hash, place -> replica, attempt, ask
    bucket:TENANT    hash, level and at                  usage:DAY       hash, TENANT:counter -> count
    revoked          set of key ids                      heard:SOURCE    number of a process' last report
    beats, replicas  sorted set and hash of replicas     repaired        values that were begun anew

One server, or a primary with replicas behind one address; not Redis Cluster, whose nodes would each have some keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from pilotfish_cloud.shared_state.answers import level_of, levels_of, lines_of, object_of, whole_of
from pilotfish_cloud.shared_state.interface import (
    COUNTERS,
    LEASE_S,
    Held,
    Limits,
    Report,
    SharedState,
    StateTroubleError,
    Taken,
    View,
)
from pilotfish_cloud.shared_state.opening import where_of
from pilotfish_core.errors import InvalidParameter

PREFIX: Final = "pilotfish:"
REVOKED: Final = f"{PREFIX}revoked"
MAX_TAKES: Final = 16  # at a time; the others wait for their turn within their timeout
OTHERS: Final = 4  # connections for what is not a take, so that a report never waits for one
MAX_WAIT_S: Final = 3600.0  # that an answer may ask for


class RedisState(SharedState):
    """``timeout_s``: of a report; ``take_timeout_s``: of a take, for which a generation waits.

    Raises InvalidParameter.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        ca: Path | None = None,
        timeout_s: float = 1.0,
        take_timeout_s: float = 0.05,
    ) -> None:
        self.where = where_of(url)
        self._turns = asyncio.Semaphore(MAX_TAKES)
        options: dict[str, Any] = {} if password is None else {"password": password}
        if ca is not None:
            options["ssl_ca_certs"] = str(ca)
        try:
            self._redis = redis.asyncio.Redis.from_url(
                url,
                max_connections=MAX_TAKES + OTHERS,
                socket_connect_timeout=timeout_s,
                socket_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # who calls decides
                health_check_interval=0,
                **options,
            )
        except (ValueError, TypeError, OSError) as error:
            raise InvalidParameter(f"--redis-url for {self.where} cannot be used: {type(error).__name__}") from None
        self._timeout_s, self._take_timeout_s = timeout_s, take_timeout_s
        common = _script("common.lua")
        self._take = self._redis.register_script(common + _script("take.lua"))
        self._report = self._redis.register_script(common + _script("report.lua"))

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
        message: dict[str, Any] = {
            "limits": _limits(limits),
            "held": held._asdict(),
            "released": [free._asdict() for free in released],
            "lease_s": lease_s,
        } | _known("level", level)
        async with self._trouble(self._take_timeout_s), self._turns:
            answer = await self._take(keys=_keys(tenant), args=[json.dumps(message)])
        found = object_of(answer)
        refused = found.get("refused")
        if refused not in ("", "places", "rows"):
            raise StateTroubleError("the shared state answered a take with what it cannot mean")
        return Taken(
            refused=refused,
            places=whole_of(found.get("places")),
            level=None if limits.rows_per_s is None else level_of(found.get("level")),
            wait_s=min(max(level_of(found.get("wait")), 0.0), MAX_WAIT_S),
        )

    async def report(self, report: Report) -> View:
        """See ``SharedState.report``."""
        tenants: dict[str, dict[str, Any]] = {
            tenant: {
                "keys": _keys(tenant),
                "limits": _limits(told.limits),
                "charge": told.charge,
                "held": [held._asdict() for held in told.held],
                "released": [free._asdict() for free in told.released],
            }
            | _known("level", told.level)
            for tenant, told in report.tenants.items()
        }
        message = {
            "replica": report.replica,
            "number": report.number,
            "beat": report.beat,
            "tenants": tenants,
            "usage": [
                [f"{PREFIX}usage:{key.day}", f"{_plain(key.tenant)}:{key.counter}", count]
                for key, count in report.usage.items()
            ],
            "revoked": sorted(report.revoked),
            "lease_s": report.lease_s,
            "beat_s": report.beat_s,
        }
        keys = [f"{PREFIX}heard:{_plain(report.source)}", REVOKED, f"{PREFIX}beats", f"{PREFIX}replicas"]
        async with self._trouble(self._timeout_s):
            answer = await self._report(keys=keys, args=[json.dumps(message)])
        found = object_of(answer)
        revoked = found.get("revoked")
        return View(
            levels=levels_of(found.get("levels")),
            revoked=frozenset(key_id for key_id in revoked if isinstance(key_id, str))
            if isinstance(revoked, list)
            else frozenset(),
            beats=lines_of(found.get("beats")),
            repaired=whole_of(found.get("repaired")),
        )

    async def usage(self, day: str) -> dict[str, dict[str, int]]:
        """See ``SharedState.usage``. What is no count is left out."""
        async with self._trouble(self._timeout_s):
            stored: dict[Any, Any] = await self._redis.hgetall(f"{PREFIX}usage:{day}")
        found: dict[str, dict[str, int]] = {}
        for name, count in stored.items():
            tenant, _, counter = name.decode("utf-8", "replace").rpartition(":")
            if counter in COUNTERS:
                with contextlib.suppress(ValueError):
                    found.setdefault(unquote(tenant), {})[counter] = int(count)
        return found

    async def revoke(self, key_id: str) -> None:
        """See ``SharedState.revoke``."""
        async with self._trouble(self._timeout_s):
            await self._redis.sadd(REVOKED, key_id)

    async def ping(self) -> None:
        """See ``SharedState.ping``."""
        async with self._trouble(self._timeout_s):
            await self._redis.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _trouble(self, timeout_s: float) -> AsyncIterator[None]:
        """Every way in which a server can fail as one error; its own words may hold what was sent, and are private."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise StateTroubleError(f"{self.where} did not answer within {timeout_s:g} s") from None
        except (RedisError, OSError, ValueError) as error:
            text = f"{type(error).__name__}: {error}"[:300]
            raise StateTroubleError(f"{self.where} cannot be used ({type(error).__name__})", private=text) from None


def _script(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _plain(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


def _keys(tenant: str) -> list[str]:
    return [f"{PREFIX}{kind}:{_plain(tenant)}" for kind in ("places", "owners", "bucket")]


def _limits(limits: Limits) -> dict[str, Any]:
    known = _known("max_generations", limits.max_generations) | _known("rows_per_s", limits.rows_per_s)
    return known | {"capacity": limits.capacity}


def _known(name: str, value: float | None) -> dict[str, Any]:
    """Nothing for None: in Lua a JSON null is true."""
    return {} if value is None else {name: value}
