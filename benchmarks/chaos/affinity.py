"""Generations that share long prompts, over three replicas: how much of the prompts a prefix cache has."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.deployment import Deployment
from pilotfish.bench.prompts import PROMPTS

DEVICES: Final = 8
PROMPT_COUNT: Final = 4
WAVES: Final = 5  # 40 generations
LENGTH: Final = 1200  # tokens


async def affinity(model: Path, folder: Path) -> dict[str, Any]:
    """With the routes that the verifiers name, and with replicas picked at random."""
    return {
        "devices": DEVICES,
        "prompts": PROMPT_COUNT,
        "prompt_tokens": LENGTH,
        "generations": DEVICES * WAVES,
        "with_routes": await _waves(model, folder / "routes", affinity=True),
        "at_random": await _waves(model, folder / "random", affinity=False),
    }


def good(found: dict[str, Any]) -> bool:
    """Whether it shows what it must."""
    return bool(found["with_routes"]["cached_share"] >= 0.9)


async def _waves(model: Path, folder: Path, *, affinity: bool) -> dict[str, Any]:
    """Two devices ask each prompt, wave after wave; a device that was told no route yet goes anywhere."""
    await asyncio.to_thread(folder.mkdir)
    deployment = Deployment(model, folder, rtts_ms=(20,), affinity=affinity)
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(deployment.client("tenant", 0)) for _ in range(DEVICES)]
        await asyncio.gather(*(client.prepare() for client in clients))
        shares = []
        for wave in range(WAVES):
            asked = cached = 0
            for number, client in enumerate(clients):
                text = f"# file {number % PROMPT_COUNT}\n" + "\n".join(PROMPTS) * 20
                prompt = client.tokenizer.encode(text)[:LENGTH]
                stream = await client.generate(prompt, max_tokens=4, temperature=0.8, seed=wave, ignore_eos=True)
                metrics = (await stream.result()).metrics
                asked += metrics.prompt_tokens
                cached += metrics.cached_tokens
            shares.append((cached, asked))
    return {
        "cached_share": round(sum(cached for cached, _ in shares[1:]) / sum(asked for _, asked in shares[1:]), 4),
        "cached_share_by_wave": [round(cached / asked, 4) for cached, asked in shares],
    }
