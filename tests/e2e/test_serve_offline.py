"""``pilotfish serve`` while the verifier cannot be reached: unverified text is held, or sent to who asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.cutting_proxy import CuttingProxy
from pilotfish.export import export_model
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.retry import RetryPolicy
from tests.e2e.conftest import ROOT, Verifier, connected
from tests.e2e.endpoints import endpoint
from tests.e2e.http_doors import caller

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
PROMPT = "def quicksort(items):\n"
ASK: dict[str, Any] = {"model": "target", "prompt": PROMPT, "max_tokens": 160, "temperature": 0.8, "seed": 4}
OFFLINE: dict[str, Any] = {
    "offline": "draft",
    "offline_after_s": 0.2,
    "config": DeviceConfig(retry=RetryPolicy(base_s=0.02, cap_s=0.1)),
}


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft") / "int8"
    return export_model(ROOT / "reference" / "draft", folder, quant="int8", text=PROMPT * 40).folder


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


async def undisturbed(verifier: Verifier) -> str:
    async with connected(verifier) as alone:
        params = {key: value for key, value in ASK.items() if key not in ("model", "prompt")}
        return (await (await alone.generate(PROMPT, **params)).result()).text


@pytest.mark.parametrize("stream", [False, True])
async def test_unverified_text_is_held_until_it_is_the_targets(verifier: Verifier, draft: Path, stream: bool) -> None:
    expected = await undisturbed(verifier)
    async with (
        CuttingProxy(verifier.address) as proxy,
        endpoint(proxy.address, draft=draft, **OFFLINE) as address,
        caller(address) as client,
    ):
        proxy.go_down(for_connections=3)  # the gRPC channel tries again after 0.1 s and more each time
        if not stream:
            answer: Any = await client.completions.create(**ASK)
            assert answer.choices[0].text == expected
            metrics = answer.metrics
        else:
            chunks: list[Any] = [chunk async for chunk in await client.completions.create(**ASK, stream=True)]
            assert text_of(chunks) == expected
            assert all(getattr(chunk.choices[0], "verified", True) for chunk in chunks if chunk.choices)
            metrics = chunks[-1].metrics
    assert metrics["unverified_tokens"] > 0
    assert metrics["confirmed_tokens"] + metrics["withdrawn_tokens"] == metrics["unverified_tokens"]


async def test_a_request_can_ask_for_unverified_text(verifier: Verifier, draft: Path) -> None:
    expected = await undisturbed(verifier)
    chunks: list[Any] = []
    async with (
        CuttingProxy(verifier.address) as proxy,
        endpoint(proxy.address, draft=draft, **OFFLINE | {"offline": "wait"}) as address,
        caller(address) as client,
    ):
        async for chunk in await client.completions.create(**ASK, stream=True, extra_body={"offline": "draft"}):
            chunks.append(chunk)
            if len(chunks) == 5:
                proxy.go_down()
            if sum(is_marked(chunk) for chunk in chunks) == 20:
                proxy.come_up()
    marked = [chunk for chunk in chunks if is_marked(chunk)]
    first = chunks.index(marked[0])
    assert expected.startswith(text_of(chunks[:first]))  # verified up to there
    assert chunks[-1].metrics["kept_tokens"] == chunks[-1].metrics["unverified_tokens"] >= 20
    assert chunks[-1].choices[0].finish_reason == "length"
    assert is_marked(chunks[-1])  # the whole of it is not the target's


async def test_who_asks_wrongly_is_told(verifier: Verifier) -> None:
    async with endpoint(verifier.address) as address, caller(address) as client:
        with pytest.raises(openai.BadRequestError, match="offline"):
            await client.completions.create(**ASK, extra_body={"offline": "perhaps"})
        with pytest.raises(openai.BadRequestError, match="draft model"):  # prompt lookup does not write
            await client.completions.create(**ASK, extra_body={"offline": "draft"})


def is_marked(chunk: Any) -> bool:
    return bool(chunk.choices) and getattr(chunk.choices[0], "verified", True) is False
