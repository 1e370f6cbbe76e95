"""Limits of the whole server and deadlines, through real calls; what was reserved is always given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from pilotfish_core.errors import DeadlineExceeded
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.raw_calls import call, idle, opening, serves

pytestmark = pytest.mark.asyncio(loop_scope="session")
LONG = 1500  # tokens; paused after 512 that nobody acknowledges, and then there until its call ends


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow() -> AsyncIterator[Verifier]:
    """A verifier that takes two generations, of 3200 tokens in all, and runs one at a time."""
    async with serving(max_generations=2, max_total_tokens=3200, max_num_seqs=1) as verifier:
        yield verifier


async def held(verifier: Verifier, count: int, max_tokens: int = LONG) -> list[asyncio.Task[Any]]:
    """So many generations in progress; cancel the tasks to end them."""
    tasks = []
    for number in range(count):
        answered = asyncio.Event()  # by a pong: one that waits for its turn is not opened yet
        frames = [opening(verifier, name=1000 + number, max_tokens=max_tokens), pb.DeviceFrame(ping=pb.Ping(nonce=1))]
        tasks.append(asyncio.create_task(call(verifier, frames, stay=asyncio.Event(), began=answered)))
        async with asyncio.timeout(30):
            await answered.wait()
    return tasks


async def ended(verifier: Verifier, tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await idle(verifier)


async def test_more_generations_than_are_taken(narrow: Verifier) -> None:
    tasks = await held(narrow, 2)
    said = await call(narrow, [opening(narrow)], stay=asyncio.Event())
    assert (said.code, "2 generations run or wait" in said.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert 0 < int(said.trailers["pilotfish-retry-after-ms"]) <= 60_000
    waiting = asyncio.create_task(serves_late(narrow))
    await ended(narrow, tasks)
    await waiting
    await serves(narrow)


async def serves_late(verifier: Verifier) -> None:
    """A device that obeys the hint gets its answer in the end."""
    async with connected(verifier) as client:
        stream = await client.generate("def f(", max_tokens=4, temperature=0, ignore_eos=True, timeout_s=60)
        assert len((await stream.result()).token_ids) == 4


async def test_more_tokens_than_are_taken(narrow: Verifier) -> None:
    tasks = await held(narrow, 1, 2000)
    said = await call(narrow, [opening(narrow, max_tokens=2000)], stay=asyncio.Event())
    assert (said.code, "tokens run or wait" in said.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert (await call(narrow, [opening(narrow, max_tokens=8)], stay=asyncio.Event(), timeout_s=0.2)).code in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    await ended(narrow, tasks)
    await serves(narrow)


async def test_a_deadline_ends_a_generation_and_frees_the_engine(narrow: Verifier) -> None:
    said = await call(narrow, [opening(narrow, max_tokens=LONG)], stay=asyncio.Event(), timeout_s=0.5)
    assert said.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert said.frames
    await serves(narrow)
    assert narrow.engine.stats().running == narrow.engine.stats().waiting == 0


async def test_a_generation_that_could_not_begin_in_time_is_refused(narrow: Verifier) -> None:
    tasks = await held(narrow, 1)
    gateway = narrow.server.gateway
    assert gateway is not None
    began, running = asyncio.get_running_loop().time(), gateway.running
    # The last generations took long, and one place is there: the next one waits for it, longer than this one can.
    gateway.admission._duration = 1000.0  # type: ignore[attr-defined]
    said = await call(narrow, [opening(narrow)], stay=asyncio.Event(), timeout_s=30)
    assert (said.code, "before its deadline" in said.details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    assert asyncio.get_running_loop().time() - began < 25
    assert gateway.running == running
    await ended(narrow, tasks)
    await serves(narrow)


async def test_rows_are_charged_as_computed(tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text("[default]\nrows_per_s = 0.5\nburst_s = 400\n", encoding="utf-8")
    async with serving(tenants_file=tenants) as verifier:
        stay, prompt = asyncio.Event(), tuple(range(10, 110))
        first = await call(verifier, [opening(verifier, prompt=prompt, max_tokens=60)], stay=stay)
        assert first.code is grpc.StatusCode.OK
        # Of 200 rows 100 went to the prompt and 60 to the answer; the same prompt again would have to have 100.
        said = await call(verifier, [opening(verifier, prompt=prompt, name=2)], stay=stay)
        assert (said.code, "0.5 a second" in said.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert 90_000 < int(said.trailers["pilotfish-retry-after-ms"]) <= 120_000
        # What is cached of it is given back: 20 of the 40 rows that are left, less what was cached.
        cached = await call(verifier, [opening(verifier, prompt=prompt[:20], name=3, max_tokens=1)], stay=stay)
        assert cached.frames[0].opened.cached_tokens == 16
        after = await call(verifier, [opening(verifier, prompt=tuple(range(200, 235)), name=4)], stay=stay)
        assert after.code is grpc.StatusCode.OK


async def test_the_verifier_hears_of_a_clients_deadline(narrow: Verifier) -> None:
    """So that it refuses at once what could not begin in time, and says more than that the time is over."""
    tasks = await held(narrow, 1)
    gateway = narrow.server.gateway
    assert gateway is not None
    gateway.admission._duration = 1000.0  # type: ignore[attr-defined]
    async with asyncio.timeout(20), connected(narrow) as client:
        stream = await client.generate("def f(", max_tokens=4, timeout_s=60)
        with pytest.raises(DeadlineExceeded, match="could not begin before its deadline"):
            await stream.result()
    await ended(narrow, tasks)
    await serves(narrow)
