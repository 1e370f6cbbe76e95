"""The page's text is that of the Python device: every arm, any temperature, any distance."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pilotfish.bench.link_process import LinkOptions, LinkProcess
from pilotfish.client import AsyncClient
from pilotfish.demo.stage import VerifierProcess
from tests.browser.phone import Phone, Question

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


async def text_of_python(verifier: VerifierProcess, question: Question, draft: Path | None) -> str:
    """What the Python device gets; ``draft``: the same folder that the page loads."""
    arm = "cloud" if draft is None else "device-async"
    async with AsyncClient(verifier.address, draft=draft, arm=arm) as client:
        stream = await client.generate(
            question.prompt, max_tokens=question.max_tokens, temperature=question.temperature, seed=question.seed
        )
        return (await stream.result()).text


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("arm", ["auto", "cloud", "device-lockstep", "device-async"])
async def test_as_on_the_python_device(
    verifier: VerifierProcess, draft: Path, phone: Phone, arm: str, temperature: float
) -> None:
    question = Question(temperature=temperature, max_tokens=96)
    expected = await text_of_python(verifier, question, draft)
    await phone.open(verifier.http)
    assert await phone.answer(question, arm) == expected
    if arm == "device-lockstep":  # in which the cloud waits for drafts, however busy this machine is
        assert await phone.texts("accepted"), "no draft of the phone was ever accepted"
        assert await phone.figure("acceptance") > 0


@pytest.mark.parametrize("rtt_ms", [0, 60, 200])
async def test_over_an_emulated_link(verifier: VerifierProcess, phone: Phone, rtt_ms: int) -> None:
    question = Question()
    expected = await text_of_python(verifier, question, None)
    with LinkProcess(urlsplit(verifier.http).netloc, LinkOptions().flags(rtt_ms)) as link:
        await phone.open(f"http://{link.address}")
        assert await phone.answer(question) == expected
        assert await phone.figure("round-trip") >= rtt_ms * 0.95


async def test_the_dial_adds_distance_and_changes_nothing(verifier: VerifierProcess, phone: Phone) -> None:
    question = Question()
    expected = await text_of_python(verifier, question, None)
    await phone.open(verifier.http, delay=150)
    assert await phone.answer(question) == expected
    assert await phone.figure("round-trip") >= 150
    await phone.page.fill("#delay", "0")
    assert await phone.answer(question) == expected
    assert await phone.figure("round-trip") < 150


async def test_a_seed_that_is_given_again_gives_the_same_text(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    one = await phone.answer(Question(seed=11))
    other = await phone.answer(Question(seed=12))
    assert await phone.answer(Question(seed=11)) == one != other
