"""The link goes away in mid-answer, or is not there at all; nothing verified changes, and what is not is marked so."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from benchmarks.cutting_proxy import CuttingProxy
from pilotfish.demo.stage import VerifierProcess
from tests.browser.phone import Phone, Question
from tests.browser.test_same_text import text_of_python

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
LONG = Question(max_tokens=256, seed=4)


def proxy_of(verifier: VerifierProcess) -> CuttingProxy:
    return CuttingProxy(verifier.http.replace("http://", "grpc://"))


def near(proxy: CuttingProxy) -> str:
    return proxy.address.replace("grpc://", "http://")


async def test_a_cut_in_mid_answer_resumes(verifier: VerifierProcess, phone: Phone) -> None:
    expected = await text_of_python(verifier, LONG, None)
    async with proxy_of(verifier) as proxy:
        await phone.open(near(proxy), delay=40)  # so that there is a middle
        await phone.ask(LONG)
        await phone.until_text(len(expected) // 4)
        before = await phone.text()
        proxy.cut()
        assert await phone.until("done", "failed") == "done"
        assert await phone.text() == expected
        assert expected.startswith(before)
        assert "reconnected" in await phone.status()


async def test_alone_while_the_link_is_away_and_verified_when_it_is_back(
    verifier: VerifierProcess, phone: Phone
) -> None:
    expected = await text_of_python(verifier, LONG, None)
    async with proxy_of(verifier) as proxy:
        await phone.open(near(proxy), delay=40)
        await phone.ask(LONG)
        await phone.until_text(len(expected) // 4)
        proxy.go_down()
        await phone.until("away")
        await phone.until_text(20, "#spans > .unverified")
        assert "not verified" in await phone.status()
        await expect(phone.page.locator("#link-words")).to_have_text("no link")
        verified = await phone.verified_text()
        assert expected.startswith(verified)
        assert len(verified) >= len(expected) // 4
        proxy.come_up()
        assert await phone.until("done", "failed") == "done"
        assert await phone.text() == expected
        assert await phone.texts("unverified") == []
        assert "confirmed" in await phone.status()
        await expect(phone.page.locator("#link-words")).to_contain_text("connected")


async def test_the_page_works_without_a_network(verifier: VerifierProcess, phone: Phone) -> None:
    async with proxy_of(verifier) as proxy:
        await phone.open(near(proxy))
        await phone.kept()
        proxy.go_down()
        await phone.page.reload()
        assert await phone.until("ready", "alone", "failed") == "alone"
        assert "without the cloud" in await phone.status()
        text = await phone.answer(Question(max_tokens=48), "device-only")
        assert "".join(await phone.texts("unverified")) == text != ""
        assert "nothing of it is verified" in await phone.status()
        assert await phone.page.evaluate("crossOriginIsolated")


async def test_begun_without_a_network_and_verified_later(verifier: VerifierProcess, phone: Phone) -> None:
    question = Question(max_tokens=256, seed=5)  # with which the draft model does not end at once
    expected = await text_of_python(verifier, question, None)
    async with proxy_of(verifier) as proxy:
        await phone.open(near(proxy))
        await phone.kept()
        proxy.go_down()
        await phone.page.reload()
        await phone.until("alone")
        await phone.ask(question, "auto")
        await phone.until_text(20, "#spans > .unverified")
        proxy.come_up()
        assert await phone.until("done", "failed") == "done"
        assert await phone.text() == expected
        assert await phone.texts("unverified") == []


async def test_what_cannot_be_is_said_in_words(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    await phone.ask(Question(prompt="x = 1\n" * 4000))
    await phone.until("failed")
    assert "longer than the model can take" in await phone.status()
    assert await phone.page.get_attribute("#status", "data-tone") == "error"
    await phone.answer(Question())  # and the next one works


async def test_stopping_keeps_what_is_there(verifier: VerifierProcess, phone: Phone) -> None:
    expected = await text_of_python(verifier, LONG, None)
    await phone.open(verifier.http, delay=100)
    await phone.ask(LONG)
    await phone.until_text(20)
    await phone.page.click("#stop")
    await phone.until("stopped")
    text = await phone.text()
    assert expected.startswith(text)
    assert 20 <= len(text) < len(expected)
    assert await phone.page.text_content("#ahead") == ""
