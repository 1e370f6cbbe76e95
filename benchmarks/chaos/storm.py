"""24 generations in flight while replicas are killed, drained and restarted, Redis comes and goes, links are cut."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.deployment import RTTS_MS, UNACKNOWLEDGED, Deployment
from benchmarks.chaos.devices import Crowd, from_event, spread, unharmed
from benchmarks.chaos.disturbances import Disturbances
from benchmarks.chaos.usage import balance, today, told

DRAIN_S: Final = 3.0
NAMES: Final = ("north", "east", "south", "west")  # a tenant for each link


async def storm(
    model: Path, folder: Path, *, seconds: float = 60.0, in_flight: int = 24, max_tokens: int = 256, seed: int = 1
) -> dict[str, Any]:
    """The storm, and what it did to anybody."""
    deployment = Deployment(model, folder, names=NAMES, options=("--shutdown-timeout", str(DRAIN_S)))
    crowd = Crowd(in_flight, max_tokens)
    days = [today()]
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        await crowd.measure(deployment, stack)
        async with Disturbances(deployment, seed) as disturbances:
            crowd.begin()
            began = asyncio.get_running_loop().time()
            await disturbances.run(seconds)
            disturbed = await crowd.end()
            events = disturbances.events
        kills, drains = ([getattr(replica, kind) for replica in deployment.replicas] for kind in ("kills", "drains"))
        await asyncio.gather(*(replica.drain() for replica in deployment.replicas))
        days.append(today())
        everything = [*crowd.truth.values(), *disturbed]
        usage = balance(everything, await told(deployment.redis.url, days), UNACKNOWLEDGED)
    return {
        "seconds": seconds,
        "seed": seed,
        "in_flight": in_flight,
        "round_trips_ms": list(RTTS_MS),
        "max_tokens": max_tokens,
        "kills": sum(kills),
        "drains": sum(drains),
        "cuts": sum(event.kind == "cut" for event in events),
        "redis_restarts": sum(event.kind == "redis" for event in events),
        **crowd.found(disturbed),
        "from_kill_to_next_token_s": spread(from_event(disturbed, events, "kill")),
        "from_cut_to_next_token_s": spread(from_event(disturbed, events, "cut")),
        "usage": usage,
        "events": [[round(event.at - began, 2), event.kind, event.what] for event in events],
    }


def good(found: dict[str, Any]) -> bool:
    """Whether it shows what it must."""
    return unharmed(found) and bool(found["usage"]["holds"])
