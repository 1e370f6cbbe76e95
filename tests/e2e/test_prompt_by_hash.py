"""A long prompt crosses the link once: then its hash does, and a verifier that does not know it asks for the ids."""

from __future__ import annotations

import itertools

import pytest

from pilotfish.client import AsyncClient
from tests.e2e.conftest import Verifier, connected

pytestmark = pytest.mark.asyncio(loop_scope="session")

MAX_OPEN_BYTES = 200
FRESH = itertools.count()


def prompt(client: AsyncClient, length: int) -> list[int]:
    """One that no test has used."""
    text = "def add(first, second):\n    return first + second\n\n\n" * 200
    return client.tokenizer.encode(f"# {next(FRESH)}\n{text}")[:length]


async def bytes_up(client: AsyncClient, tokens: list[int]) -> tuple[tuple[int, ...], int]:
    result = await (await client.generate(tokens, max_tokens=1, temperature=0.8, seed=1)).result()
    return result.token_ids, result.metrics.bytes_up


async def test_a_shared_prompt_is_sent_once(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        await client.prepare()
        long = prompt(client, 1500)
        _, first = await bytes_up(client, [*long, 5])
        answer, second = await bytes_up(client, [*long, *client.tokenizer.encode("class Queue:")])
    assert first > 1500
    assert second < MAX_OPEN_BYTES
    async with connected(verifier) as stranger:  # which cannot know what the verifier knows
        await stranger.prepare()
        same, third = await bytes_up(stranger, [*long, *stranger.tokenizer.encode("class Queue:")])
    assert third > 1500
    assert same == answer


async def test_a_verifier_that_does_not_know_it_gets_the_ids(verifier: Verifier) -> None:
    gateway = verifier.server.gateway
    assert gateway is not None
    async with connected(verifier) as client:
        await client.prepare()
        long = prompt(client, 600)
        answer, first = await bytes_up(client, long)
        gateway.prompts = type(gateway.prompts)()  # as after a restart, or on another replica
        again, second = await bytes_up(client, long)
        once_more, third = await bytes_up(client, long)
    assert answer == again == once_more
    assert first < second < first + MAX_OPEN_BYTES  # it was tried by hash, then sent
    assert third < MAX_OPEN_BYTES


async def test_short_prompts_are_simply_sent(verifier: Verifier) -> None:
    gateway = verifier.server.gateway
    assert gateway is not None
    before = gateway.prompts.hits + gateway.prompts.misses
    async with connected(verifier) as client:
        for _ in range(2):
            await bytes_up(client, [5, 6, 7])
    assert gateway.prompts.hits + gateway.prompts.misses == before
