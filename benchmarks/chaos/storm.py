"""24 generations in flight while replicas are killed, drained and restarted, Redis comes and goes, links are cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

from benchmarks.chaos.deployment import RTTS_MS, UNACKNOWLEDGED, Deployment
from benchmarks.chaos.devices import Answer, Case, ask, differences, from_event, spread
from benchmarks.chaos.disturbances import Disturbances
from benchmarks.chaos.usage import balance, today, told
from pilotfish.client import AsyncClient

DRAIN_S = 3.0
NAMES = ("north", "east", "south", "west")  # a tenant for each link


async def storm(
    model: Path, folder: Path, *, seconds: float = 60.0, in_flight: int = 24, max_tokens: int = 256, seed: int = 1
) -> dict[str, Any]:
    """The storm, and what it did to anybody. Half of the devices draft from their prompts."""
    deployment = Deployment(model, folder, names=NAMES, options=("--shutdown-timeout", str(DRAIN_S)))
    days = [today()]
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        clients: list[tuple[AsyncClient, str, int]] = []
        for number in range(in_flight):
            link = number % len(RTTS_MS)
            drafting = {"draft": "ngram", "arm": "device-async"} if number % 2 else {}
            client = await stack.enter_async_context(deployment.client(NAMES[link], link, **drafting))
            clients.append((client, NAMES[link], link))
        cases = [Case(number, max_tokens) for number in range(2 * in_flight)]
        answers: list[Answer] = []

        async def quiet(number: int) -> None:
            client, name, link = clients[number]
            answers.extend([await ask(client, case, name, link) for case in cases[number::in_flight]])

        await asyncio.gather(*(quiet(number) for number in range(in_flight)))
        truth = {answer.case.number: answer for answer in answers}
        undisturbed = [interval for answer in answers for interval in answer.intervals()]
        over = asyncio.Event()

        async def device(number: int) -> list[Answer]:
            client, name, link = clients[number]
            got = []
            for case in itertools.cycle(cases[number::in_flight]):
                got.append(await ask(client, case, name, link))
                if over.is_set():
                    break
            return got

        async with Disturbances(deployment, seed) as disturbances:
            running = [asyncio.create_task(device(number)) for number in range(in_flight)]
            began = asyncio.get_running_loop().time()
            await disturbances.run(seconds)
            over.set()
            disturbed = [answer for got in await asyncio.gather(*running) for answer in got]
            events = disturbances.events
        answers += disturbed
        kills, drains = ([getattr(replica, kind) for replica in deployment.replicas] for kind in ("kills", "drains"))
        await asyncio.gather(*(replica.drain() for replica in deployment.replicas))
        days.append(today())
        usage = balance(answers, await told(deployment.redis.url, days), UNACKNOWLEDGED)
    errors = [answer.error for answer in disturbed if answer.error]
    pauses = [end - begin for answer in disturbed for begin, end in answer.pauses()]
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
        "generations": len(disturbed),
        "ended": len(disturbed) - len(errors),
        "errors": errors,
        "tokens": sum(len(answer.token_ids) for answer in disturbed),
        "breaks": sum(answer.reconnects for answer in disturbed),
        **differences(disturbed, truth),
        "from_kill_to_next_token_s": spread(from_event(disturbed, events, "kill")),
        "from_cut_to_next_token_s": spread(from_event(disturbed, events, "cut")),
        "pause_of_any_break_s": spread(pauses),
        "between_pieces_quiet_s": spread(undisturbed),
        "between_pieces_storm_s": spread([interval for answer in disturbed for interval in answer.intervals()]),
        "usage": usage,
        "events": [[round(event.at - began, 2), event.kind, event.what] for event in events],
    }


def good(found: dict[str, Any]) -> bool:
    """Whether it shows what it must."""
    return (
        found["ended"] == found["generations"]
        and found["differing_tokens"] == found["changed_answers"] == found["answers_with_lost_or_doubled_tokens"] == 0
        and bool(found["usage"]["holds"])
    )
