"""A phone with the demo's page open, as a person uses it: what is typed, pressed and read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright

DEVICE: Final = "Pixel 7"
# What Chromium says of each; the second while the news of a cut is still held by the simulated distance.
OF_LOST_LINKS: Final = ("net::ERR_", "WebSocket is already in CLOSING or CLOSED state")
PATIENCE_MS: Final = 120_000  # of a machine that is busy with something else
PROMPT: Final = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the page, and of Python for comparison."""

    prompt: str = PROMPT
    max_tokens: int = 64
    temperature: float = 0.8
    seed: int = 5


class Phone:
    """One browser context. ``complaints``: what its pages said on the console, but for lost connections."""

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    async def open(self, http: str, *, ready: bool = True, **address: object) -> None:
        """Open the page of a verifier; ``address`` is what stands behind the question mark."""
        await self.page.goto(f"{http}/demo/?{urlencode(address)}")
        if ready:
            await self.until("ready", "alone")

    async def until(self, *states: str) -> str:
        """Wait for one of these states of the page (``data-state``); returns it."""
        await self.page.wait_for_function(
            "states => states.includes(document.body.dataset.state)", arg=list(states), timeout=PATIENCE_MS
        )
        return str(await self.page.evaluate("document.body.dataset.state"))

    async def ask(self, question: Question, arm: str = "device-async") -> None:
        """Set the form and press the button; does not wait for the end."""
        await self.choose(arm)
        await self.page.fill("#prompt", question.prompt)
        await self.page.fill("#temperature", str(question.temperature))
        await self.page.fill("#seed", str(question.seed))
        await self.page.fill("#max-tokens", str(question.max_tokens))
        await self.page.click("#write")

    async def choose(self, arm: str) -> None:
        await self.page.check(f'input[name="arm"][value="{arm}"]', force=True)

    async def answer(self, question: Question, arm: str = "device-async") -> str:
        """Ask, wait for the end, and read."""
        await self.ask(question, arm)
        assert await self.until("done", "failed") == "done", await self.status()
        return await self.text()

    async def text(self) -> str:
        """The text behind the prompt, without what is drafted beyond it."""
        return str(await self.page.evaluate("document.getElementById('spans').textContent"))

    async def verified_text(self) -> str:
        """What of it is decided."""
        return "".join(
            await self.page.eval_on_selector_all(
                "#spans > :not(.unverified)", "spans => spans.map(span => span.textContent)"
            )
        )

    async def texts(self, origin: str) -> Sequence[str]:
        """The runs of one origin."""
        found: list[str] = await self.page.eval_on_selector_all(
            f"#spans > .{origin}", "spans => spans.map(span => span.textContent)"
        )
        return found

    async def until_text(self, length: int, selector: str = "#spans") -> None:
        """Wait until so many characters stand there."""
        await self.page.wait_for_function(
            "([selector, length]) => [...document.querySelectorAll(selector)].map(e => e.textContent).join('').length"
            " >= length",
            arg=[selector, length],
            timeout=PATIENCE_MS,
        )

    async def status(self) -> str:
        return str(await self.page.text_content("#status"))

    async def figure(self, name: str) -> float:
        """One of the live figures; fails where it is not known."""
        shown = str(await self.page.text_content(f"#{name}"))
        return float(shown.rstrip("%k"))

    async def kept(self) -> None:
        """Wait until the page says that it would work without a network."""
        await self.page.wait_for_function("() => document.body.dataset.kept === 'yes'", timeout=PATIENCE_MS)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in OF_LOST_LINKS):
            self.complaints.append(f"{message.type}: {message.text}")


@contextlib.asynccontextmanager
async def opened_phone(browser: Browser, playwright: Playwright, **options: Any) -> AsyncIterator[Phone]:
    """``options``: of the browser's context, over those of the device."""
    context = await browser.new_context(**playwright.devices[DEVICE] | options)
    try:
        one = Phone(context, await context.new_page())
        yield one
        assert one.complaints == [], one.complaints
    finally:
        await context.close()
