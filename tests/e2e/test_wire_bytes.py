"""Bytes on real traffic, through a counting proxy: the payload's bars, and a prompt that is sent once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.cutting_proxy import CuttingProxy
from benchmarks.spread_model import LARGE_VOCABULARY, spread_model
from benchmarks.wire import BARS, answer, over_bar
from benchmarks.wire_tally import Tally, tallied_client
from pilotfish.demo.stage import VerifierProcess
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish_core.drafter import Drafter
from tests.e2e.conftest import TARGET

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PARAMS = {"max_tokens": 32, "temperature": 0.8, "seed": 7, "ignore_eos": True}
GRPC_OVERHEAD = 64  # bytes of HTTP/2 and gRPC framing around a message, at most: headers, pings, window updates


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread") / "target"
    spread_model(TARGET, folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(target: Path) -> AsyncIterator[CuttingProxy]:
    with VerifierProcess(target, "--dtype", "bfloat16", "--deterministic") as verifier:
        await asyncio.to_thread(verifier.wait_ready, 250.0)
        async with CuttingProxy(verifier.address) as proxy:
            yield proxy


async def measured(
    proxy: CuttingProxy, target: Path, prompt: list[int], draft: str | Drafter | None, window: int = 8
) -> tuple[Tally, list[int]]:
    client, transport = tallied_client(proxy, draft=draft, tokenizer=target, window=window)
    async with client:
        await client.prepare()
        await transport.describe()  # opens the connection
        stream = await answer(client, prompt, **PARAMS)
    transport.tally.answers = 1
    return transport.tally, stream.generation.output


async def test_payload_stays_under_the_bars_at_a_large_vocabulary(proxy: CuttingProxy, target: Path) -> None:
    source = random.Random(0)
    prompt = [source.randrange(4096) * 37 + 23 for _ in range(24)]
    alone, output = await measured(proxy, target, prompt, None)
    assert alone.draft_bytes == 0
    assert alone.committed_tokens == 32
    assert all(token % 37 == 23 for token in output)  # no filler id
    cells: list[dict[str, Any]] = [{"vocabulary": LARGE_VOCABULARY, "drafter": "none", "window": 0, **alone.figures()}]
    for window in (4, 8):
        oracle = OracleDrafter([[*prompt, *output]], vocab_size=LARGE_VOCABULARY, accuracy=0.8)
        tally, again = await measured(proxy, target, prompt, oracle, window)
        assert again == output
        assert tally.draft_tokens > 10
        assert tally.socket_up >= tally.payload_up
        assert tally.socket_down >= tally.payload_down
        assert tally.opening_up >= tally.open_bytes
        cells.append({"vocabulary": LARGE_VOCABULARY, "drafter": "oracle", "window": window, **tally.figures()})
    assert [missed for missed in over_bar(cells) if "per_draft_token" in missed] == [], BARS
    for cell in cells:  # an oracle's commits are long: beyond the bar they take what their ids take, and three bytes
        assert cell["bytes_per_commit"] <= max(BARS["bytes per commit"], 3 * cell["tokens_per_commit"] + 3), cell


async def test_a_prompt_crosses_once(proxy: CuttingProxy, target: Path) -> None:
    source = random.Random(1)
    prompt = [source.randrange(500, 4096) * 37 + 23 for _ in range(800)]  # three bytes each
    tally, _ = await measured(proxy, target, prompt, "ngram")
    assert 3 * len(prompt) <= tally.open_bytes <= 3 * len(prompt) + 300
    frames = 1 + tally.draft_frames + tally.commits
    up = tally.opening_up + tally.socket_up
    assert (
        tally.open_bytes + tally.payload_up <= up <= tally.open_bytes + tally.payload_up + 1000 + GRPC_OVERHEAD * frames
    )
    assert up < 2 * 3 * len(prompt)
