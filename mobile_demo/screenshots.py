"""Pictures of the page in its states, for the docs: ``python -m mobile_demo.screenshots [OUT]``. Needs Chromium."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.async_api import Browser, Playwright, async_playwright

from benchmarks.cutting_proxy import CuttingProxy
from mobile_demo.serve import DIST, ROOT, WORK
from pilotfish.demo.stage import VerifierProcess, exported_draft, find_reference, inflated_target
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.phone import Phone, Question, opened_phone

STACK: Final = Question(
    'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n', max_tokens=200, seed=5
)
AHEAD: Final = "() => document.getElementById('ahead').textContent.trim().length > 3"
SCALE: Final = 1.5
TALL: Final = {"width": 412, "height": 1180}
WIDE: Final = {"width": 1180, "height": 860}


async def taken(phone: Phone, file: Path) -> None:
    """As it is on the screen, in 128 colours."""
    data = await phone.page.screenshot(animations="allow")
    Image.open(io.BytesIO(data)).convert("RGB").quantize(128).save(file, optimize=True)


async def writing(phone: Phone, http: str, file: Path) -> None:
    """Drafts run ahead of what is verified."""
    await phone.open(http, delay=20)
    await phone.ask(STACK)
    await phone.until_text(140)
    await phone.page.evaluate("scrollTo(0, 0)")
    await phone.page.wait_for_function(AHEAD)
    await taken(phone, file)


async def without_link(phone: Phone, proxy: CuttingProxy, out: Path) -> None:
    """The link goes away in mid-answer, comes back, and is not there when the page is opened."""
    await phone.open(proxy.address.replace("grpc://", "http://"), delay=20)
    await phone.kept()
    await phone.ask(STACK)
    await phone.page.evaluate("scrollTo(0, 0)")
    await phone.until_text(120)
    proxy.go_down()
    await phone.until_text(40, "#spans > .unverified")
    await phone.until("away")
    await taken(phone, out / "away-light.png")
    proxy.come_up()
    await phone.until("done", "failed")
    await taken(phone, out / "verified-light.png")
    proxy.go_down()
    await phone.page.reload()
    await phone.until("alone", "failed")
    await taken(phone, out / "alone-light.png")


async def all_states(browser: Browser, playwright: Playwright, http: str, out: Path) -> None:
    """Each state on a phone of its own."""
    look: dict[str, Any] = {"viewport": TALL, "device_scale_factor": SCALE}
    for scheme in ("light", "dark"):
        async with opened_phone(browser, playwright, color_scheme=scheme, **look) as phone:
            await writing(phone, http, out / f"writing-{scheme}.png")
    async with opened_phone(browser, playwright, **look) as phone:
        await phone.open(http)
        await taken(phone, out / "ready-light.png")
        await phone.page.locator(".controls").scroll_into_view_if_needed()
        await phone.page.evaluate("document.querySelector('.controls').scrollIntoView()")
        await taken(phone, out / "controls-light.png")
        await phone.ask(Question(prompt="x = 1\n" * 4000))
        await phone.until("failed")
        await phone.page.evaluate("scrollTo(0, 0)")
        await taken(phone, out / "error-light.png")
    async with opened_phone(browser, playwright, **look | {"viewport": {"width": 320, "height": 900}}) as phone:
        await writing(phone, http, out / "narrow-light.png")
    wide = {"viewport": WIDE, "device_scale_factor": 1, "is_mobile": False, "has_touch": False, "color_scheme": "dark"}
    async with opened_phone(browser, playwright, **wide) as phone:
        await writing(phone, http, out / "wide-dark.png")
    async with opened_phone(browser, playwright, **look) as phone, CuttingProxy(http.replace("http", "grpc")) as proxy:
        await without_link(phone, proxy, out)


async def main() -> None:
    """Write them all."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "mobile"
    out.mkdir(parents=True, exist_ok=True)
    reference = find_reference(str(ROOT / "reference"))
    target = inflated_target(reference, ROOT / "build" / "demo")
    draft = exported_draft(reference, WORK, "int8", to="onnx-web")
    arguments = ("--dtype", "bfloat16", "--deterministic", "--demo", str(DIST), "--drafts", str(draft))
    with VerifierProcess(target, *arguments) as verifier:
        await asyncio.to_thread(verifier.wait_ready)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
            await all_states(browser, playwright, verifier.http, out)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
