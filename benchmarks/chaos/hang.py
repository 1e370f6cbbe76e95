"""A replica that hangs (SIGSTOP): when its devices leave it, and whether it does harm when it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.deployment import UNACKNOWLEDGED, Deployment
from benchmarks.chaos.devices import Crowd, spread, unharmed
from benchmarks.chaos.usage import balance, today, told
from pilotfish_core.device_actions import DeviceConfig

WARM_S: Final = 3.0
AFTER_S: Final = 5.0
IN_PROGRESS: Final = 'pilotfish_generations_in_progress{door="grpc"}'


async def hang(model: Path, folder: Path, *, in_flight: int = 12, max_tokens: int = 256) -> dict[str, Any]:
    """One of three is stopped for longer than anybody waits for it, and continued while the others have its work."""
    device = DeviceConfig()
    stated_s = device.ping_after_s + device.ping_timeout_s
    deployment = Deployment(model, folder, tenants=f"[tenants.tenant]\nmax_generations = {in_flight}\n")
    crowd = Crowd(in_flight, max_tokens)
    days = [today()]
    loop = asyncio.get_running_loop()
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        await crowd.measure(deployment, stack)
        crowd.begin()
        await asyncio.sleep(WARM_S)
        running = [
            (await replica.figures())['pilotfish_generations_in_progress{door="grpc"}']
            for replica in deployment.replicas
        ]
        hung = deployment.replicas[running.index(max(running))]
        hung.freeze()
        stopped = loop.time()
        await asyncio.sleep(5 * stated_s)
        hung.thaw()
        continued = loop.time()
        await asyncio.sleep(AFTER_S)
        answers = await crowd.end()
        open_there = (await hung.figures())[IN_PROGRESS]
        await asyncio.gather(*(replica.drain() for replica in deployment.replicas))
        days.append(today())
        everything = [*crowd.truth.values(), *answers]
        usage = balance(everything, await told(deployment.redis.url, days), UNACKNOWLEDGED)
    pauses = [pause for answer in answers for pause in answer.pauses()]
    return {
        "in_flight": in_flight,
        "on_the_one_that_hangs": max(running),
        "hung_s": round(continued - stopped, 1),
        "stated_s": stated_s,
        "from_stop_to_next_token_s": spread([end - stopped for begin, end in pauses if begin < stopped + 1 < end]),
        "left_open_on_it": open_there,
        **crowd.found(answers),
        "usage": usage,
    }


def good(found: dict[str, Any]) -> bool:
    """Whether it shows what it must. A third of those who leave meet the one that hangs again, and leave it again."""
    times = found["from_stop_to_next_token_s"]
    left = times["count"] > 0 and times["p50"] <= 2 * (found["stated_s"] + 1) and times["max"] <= found["hung_s"]
    return unharmed(found) and left and found["left_open_on_it"] == 0 and bool(found["usage"]["holds"])
