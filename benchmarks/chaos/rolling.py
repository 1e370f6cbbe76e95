"""Every replica restarted in turn under load, as an upgrade does it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.deployment import UNACKNOWLEDGED, Deployment
from benchmarks.chaos.devices import Crowd, unharmed
from benchmarks.chaos.usage import balance, today, told

DRAIN_S: Final = 5.0
BETWEEN_S: Final = 3.0  # nginx tries one that refused a connection again after 1 s


async def rolling(model: Path, folder: Path, *, in_flight: int = 24, max_tokens: int = 256) -> dict[str, Any]:
    """SIGTERM, wait for its end, start it again, wait until it serves; then the next one."""
    deployment = Deployment(model, folder, options=("--shutdown-timeout", str(DRAIN_S)))
    crowd = Crowd(in_flight, max_tokens)
    days = [today()]
    loop = asyncio.get_running_loop()
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        await crowd.measure(deployment, stack)
        crowd.begin()
        began = loop.time()
        for replica in deployment.replicas:
            await asyncio.sleep(BETWEEN_S)
            await replica.drain()
            await replica.start()
        took_s = loop.time() - began
        answers = await crowd.end()
        await asyncio.gather(*(replica.drain() for replica in deployment.replicas))
        days.append(today())
        everything = [*crowd.truth.values(), *answers]
        usage = balance(everything, await told(deployment.redis.url, days), UNACKNOWLEDGED)
    return {"in_flight": in_flight, "restarted": 3, "seconds": round(took_s, 1), **crowd.found(answers), "usage": usage}


def good(found: dict[str, Any]) -> bool:
    """Whether it shows what it must."""
    return unharmed(found) and bool(found["usage"]["holds"])
