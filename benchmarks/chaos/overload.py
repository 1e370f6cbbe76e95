"""One tenant asks for ten times the rows that it may have, on three replicas; another one works beside it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.deployment import Deployment
from benchmarks.chaos.devices import Answer, Case, ask
from benchmarks.chaos.usage import today, told
from pilotfish.client import AsyncClient
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.errors import PilotfishError
from pilotfish_core.retry import RetryPolicy

ROWS_PER_S: Final = 100.0
OVERLOAD: Final = 10.0
MAX_TOKENS: Final = 12
SECONDS: Final = 45.0
WARM_S: Final = 8.0  # until the burst is used up
QUIET_S: Final = 15.0
TENANTS: Final = f"[tenants.greedy]\nrows_per_s = {ROWS_PER_S}\nburst_s = 1\n"


async def overload(model: Path, folder: Path) -> dict[str, Any]:
    """Rows that were taken, by Redis' own count, and the other tenant's times alone and beside that."""
    deployment = Deployment(model, folder, names=("greedy", "quiet"), rtts_ms=(20,), tenants=TENANTS)
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        quiet = await stack.enter_async_context(deployment.client("quiet", 0))
        impatient = DeviceConfig(retry=RetryPolicy(max_first_attempts=1))  # one refusal is one request
        greedy = [
            await stack.enter_async_context(deployment.client("greedy", None, config=impatient)) for _ in range(6)
        ]
        await asyncio.gather(*(client.prepare() for client in [quiet, *greedy]))
        alone = await _work(quiet, QUIET_S)
        crowd = _Greedy(greedy)
        asking = asyncio.create_task(crowd.run(WARM_S + SECONDS))
        await asyncio.sleep(WARM_S)
        loop = asyncio.get_running_loop()
        before, began = await _rows(deployment), loop.time()
        offered, begun = crowd.offered, crowd.begun
        beside = await _work(quiet, SECONDS - 2.0)
        after, ended = await _rows(deployment), loop.time()
        offered, begun = crowd.offered - offered, crowd.begun - begun
        await asking
    rate = (after - before) / (ended - began)
    latencies = [_latency(answers) for answers in (alone, beside)]
    return {
        "rows_per_s_allowed": ROWS_PER_S,
        "rows_per_s_taken": round(rate, 2),
        "ratio": round(rate / ROWS_PER_S, 4),
        "overload": round(offered / (ended - began) / ROWS_PER_S, 2),
        "seconds": round(ended - began, 1),
        "begun": begun,
        "refused": crowd.refused,
        "errors": crowd.errors,
        "other_tenant": {"alone": latencies[0], "beside": latencies[1]}
        | {"ratio": round(latencies[1]["median_s"] / latencies[0]["median_s"], 3)},
        "other_tenant_errors": [answer.error for answer in [*alone, *beside] if answer.error],
    }


def good(found: dict[str, Any]) -> bool:
    """Whether the limit holds; the other tenant's times are the machine's as well, and only reported."""
    return abs(found["ratio"] - 1) <= 0.05 and not found["errors"] and not found["other_tenant_errors"]


class _Greedy:
    """Requests at a fixed rate, whatever becomes of them."""

    def __init__(self, clients: list[AsyncClient]) -> None:
        self.offered = 0.0  # rows
        self.begun = self.refused = 0
        self.errors: list[str] = []
        self._clients = clients

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number, client in enumerate(itertools.cycle(self._clients)):
                prompt = client.tokenizer.encode(f"x{number} = ")  # less than a block: nothing of it is ever cached
                rows = len(prompt) + MAX_TOKENS
                due = began + self.offered / (OVERLOAD * ROWS_PER_S)
                if due > began + seconds:
                    return
                await asyncio.sleep(max(due - loop.time(), 0.0))
                self.offered += rows
                tasks.create_task(self._ask(client, prompt))

    async def _ask(self, client: AsyncClient, prompt: tuple[int, ...] | list[int]) -> None:
        try:
            stream = await client.generate(tuple(prompt), max_tokens=MAX_TOKENS, ignore_eos=True, temperature=0)
            await stream.result()
            self.begun += 1
        except PilotfishError as error:
            if error.kind == "overloaded":
                self.refused += 1
            else:
                self.errors.append(f"{error.kind}: {error.message}")


async def _work(client: AsyncClient, seconds: float) -> list[Answer]:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    answers: list[Answer] = []
    while loop.time() < end:
        answers.append(await ask(client, Case(len(answers), 48), "quiet", 0))
    return answers


def _latency(answers: list[Answer]) -> dict[str, Any]:
    times = [answer.ended - answer.began for answer in answers]
    return {"answers": len(times), "median_s": round(statistics.median(times), 3), "max_s": round(max(times), 3)}


async def _rows(deployment: Deployment) -> int:
    counts = (await told(deployment.redis.url, [today()])).get("greedy", {})
    return counts.get("prompt_tokens", 0) + counts.get("committed_tokens", 0)
