"""Who drafts never changes the text: every arm, hints in mid-answer, a draft model in the cloud, and no cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pilotfish.client import AsyncClient
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.export import export_model
from pilotfish.result import Result
from pilotfish_core.drafts import FinishReason, Origin
from pilotfish_core.errors import FingerprintMismatch, InvalidParameter, LocalError
from pilotfish_core.modes import Hint
from tests.e2e.conftest import ROOT, Verifier, connected, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

DRAFT = ROOT / "reference" / "draft"
PROMPT = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n"
PARAMS: dict[str, Any] = {"temperature": 0.8, "max_tokens": 64, "seed": 5, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def drafting_verifier() -> AsyncIterator[Verifier]:
    # Fixed: beside so small a target the draft model would rarely pay.
    async with serving(draft_model=DRAFT, speculation="fixed") as running:
        yield running


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(DRAFT, tmp_path_factory.mktemp("draft") / "int8", quant="int8", text=PROMPT * 4).folder


async def answer(verifier: Verifier, **options: Any) -> Result:
    async with connected(verifier, **options) as client:
        return await (await client.generate(PROMPT, **PARAMS)).result()


@pytest.mark.parametrize(
    "arm", ["cloud", "co-located", "co-located-ngram", "co-located-model", "device-lockstep", "device-async", "auto"]
)
async def test_no_arm_changes_the_text(drafting_verifier: Verifier, draft: Path, arm: str) -> None:
    expected = await answer(drafting_verifier)
    result = await answer(drafting_verifier, draft=draft, arm=arm)
    assert result.token_ids == expected.token_ids
    metrics = result.metrics
    if arm == "cloud":
        assert metrics.steps == 64
    if arm in ("co-located", "co-located-model"):
        assert metrics.steps < 50
        assert metrics.cloud_tokens == 64  # to the device they are all the cloud's
        assert metrics.sent_draft_tokens == 0
    if arm == "device-lockstep":
        assert metrics.steps < 50
        assert metrics.cloud_tokens <= 8  # the first, and where there was nothing to draft
    if arm != "auto":
        assert metrics.policy["arm"] == arm or (arm == "device-async" and metrics.policy["arm"] == "cloud")


async def test_without_a_draft_model_the_cloud_looks_up(verifier: Verifier) -> None:
    expected = await answer(verifier)
    result = await answer(verifier, arm="co-located")
    assert result.token_ids == expected.token_ids
    assert result.metrics.steps <= 64


async def test_a_drafter_that_has_nothing_does_not_hold_up_the_lockstep(verifier: Verifier) -> None:
    expected = await answer(verifier)
    async with asyncio.timeout(60):
        result = await answer(verifier, draft="ngram", arm="device-lockstep")
    assert result.token_ids == expected.token_ids


async def test_a_hint_in_mid_answer_stops_the_device(verifier: Verifier) -> None:
    expected = await answer(verifier)
    truth = [[*verifier.engine.tokenizer.encode(PROMPT), *expected.token_ids]]
    oracle = OracleDrafter(truth, vocab_size=verifier.engine.tokenizer.vocab_size, accuracy=0.8)
    async with connected(verifier, draft=oracle) as client:
        stream = await client.generate(PROMPT, **PARAMS)
        await anext(stream)
        client.hint = Hint(battery_low=True)
        result = await stream.result()
        assert result.token_ids == expected.token_ids
        assert (result.metrics.policy["reason"], result.metrics.policy["paused"]) == ("battery", True)
        second = await (await client.generate(PROMPT, **PARAMS)).result()
        assert (second.token_ids, second.metrics.sent_draft_tokens) == (expected.token_ids, 0)


async def test_what_was_learned_stays_with_the_client(verifier: Verifier, draft: Path) -> None:
    async with connected(verifier, draft=draft) as client:
        first = await (await client.generate(PROMPT, **PARAMS)).result()
        second = await (await client.generate(PROMPT, **PARAMS)).result()
    assert second.token_ids == first.token_ids
    assert second.metrics.policy["round_trip_ms"] is not None
    assert second.metrics.policy["draft_ms"] > 0


# -- no cloud ------------------------------------------------------------------------------------------------------


async def test_never_means_that_nothing_is_sent(draft: Path) -> None:
    """There is no server at all, and the text is the draft model's own: coupled sampling makes it repeatable."""
    async with AsyncClient(None, draft=draft, cloud="never") as client:
        stream = await client.generate(PROMPT, **PARAMS)
        pieces = [piece async for piece in stream]
        result = await stream.result()
        again = await (await client.generate(PROMPT, **PARAMS)).result()
    assert {piece.origin for piece in pieces} == {Origin.UNVERIFIED}
    assert "".join(piece.text for piece in pieces) == result.text
    assert len(result.token_ids) == 64
    assert (result.finish_reason, result.metrics.bytes_up, result.metrics.steps) == (FinishReason.LENGTH, 0, 0)
    assert result.metrics.policy["arm"] == "device-only"
    assert result.metrics.fingerprints == ("device-only:onnx-int8",)
    assert again.token_ids == result.token_ids


async def test_stops_and_cancels_hold_without_a_cloud(draft: Path) -> None:
    async with AsyncClient(None, draft=draft, cloud="never") as client:
        whole = await (await client.generate(PROMPT, **PARAMS)).result()
        stop = whole.text[20:24]
        stopped = await (await client.generate(PROMPT, stop=[stop], **PARAMS)).result()
        assert (stopped.finish_reason, stopped.stop) == (FinishReason.STOP, stop)
        assert stopped.text == whole.text[: whole.text.index(stop)]
        stream = await client.generate(PROMPT, **PARAMS | {"max_tokens": 1000})
        await anext(stream)
        stream.cancel()
        result = await stream.result()
    assert result.finish_reason is FinishReason.ABORT
    assert 0 < len(result.token_ids) < 1000


async def test_unverified_text_is_not_taken_for_the_targets(verifier: Verifier, draft: Path, tmp_path: Path) -> None:
    async with AsyncClient(None, draft=draft, cloud="never") as client:
        stream = await client.generate(PROMPT, **PARAMS | {"max_tokens": 1000})
        await anext(stream)
        await stream.aclose()
        stream.generation.save(tmp_path / "g.json")
    async with connected(verifier) as client:
        with pytest.raises(FingerprintMismatch, match="device-only"):
            await (await client.resume(tmp_path / "g.json")).result()


async def test_what_cannot_be_done_without_a_cloud() -> None:
    for draft in (None, "ngram", "auto"):
        with pytest.raises(InvalidParameter, match="draft model"):
            AsyncClient(None, draft=draft, cloud="never")
    with pytest.raises(InvalidParameter, match="'auto' or 'never'"):
        AsyncClient("localhost:1", cloud="perhaps")
    with pytest.raises(InvalidParameter, match="arm"):
        AsyncClient("localhost:1", arm="fastest")
    with pytest.raises(InvalidParameter, match="server"):
        AsyncClient(None, draft=None)


async def test_a_prompt_that_the_draft_model_cannot_hold(draft: Path) -> None:
    async with AsyncClient(None, draft=draft, cloud="never") as client:
        with pytest.raises(LocalError, match="context"):
            await (await client.generate([5] * 5000, max_tokens=8)).result()
