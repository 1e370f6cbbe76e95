"""For everybody: names, contrast in both lights, the keyboard, the narrowest screens, less motion."""

from __future__ import annotations

from typing import Any, Final

import pytest
from playwright.async_api import Browser, Page, Playwright, expect

from pilotfish.demo.stage import VerifierProcess
from tests.browser.phone import Phone, Question, opened_phone

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

NARROW: Final = {"width": 320, "height": 568}
OPERABLE: Final = ("button", "textbox", "slider", "spinbutton", "radio", "checkbox", "link", "combobox")
# WCAG 2.2: text from 24 px on, or 18.66 px if bold, is large; targets are at least 24 px in each direction.
CONTRASTS: Final = """
() => {
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const channel = value => linear(value / 255);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const groundOf = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(element.tagName)) continue;
    if (element.checkVisibility && !element.checkVisibility({visibilityProperty: true})) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || element.matches(':disabled')) continue;
    const style = getComputedStyle(element);
    const one = luminance(parse(style.color)), other = luminance(groundOf(element));
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push({text: node.textContent.trim().slice(0, 40), ratio, least: large ? 3 : 4.5});
  }
  return found;
}
"""
OUTSIDE: Final = """
() => [...document.querySelectorAll('body *')].filter(element => {
  if (!element.checkVisibility() || element.closest('.hidden, .skip')) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && (box.left < -0.5 || box.right > innerWidth + 0.5);
}).map(element => element.outerHTML.slice(0, 80))
"""
SMALL_TARGETS: Final = """
() => [...document.querySelectorAll('button, input, textarea, label.choice, label.check')].filter(element => {
  if (!element.checkVisibility()) return false;
  const box = element.getBoundingClientRect();
  return (box.width < 24 || box.height < 24) && !element.closest('label.check');
}).map(element => element.outerHTML.slice(0, 80))
"""


async def named_nodes(page: Page) -> list[tuple[str, str]]:
    """Role and name of all that can be operated, from the tree that screen readers are given."""
    session = await page.context.new_cdp_session(page)
    tree: dict[str, Any] = await session.send("Accessibility.getFullAXTree")
    await session.detach()
    nodes = [node for node in tree["nodes"] if not node.get("ignored")]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if node["role"]["value"] in OPERABLE
    ]


async def test_everything_that_can_be_operated_has_a_name(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    nodes = await named_nodes(phone.page)
    assert [node for node in nodes if not node[1].strip()] == []
    assert {"textbox", "slider", "radio", "checkbox", "button", "spinbutton"} <= {role for role, _ in nodes}
    names = [name for _, name in nodes]
    for name in ("Begin some Python", "Farther from the cloud", "Temperature", "Seed", "Write on", "Auto"):
        assert any(known.startswith(name) for known in names), name
    assert await phone.page.evaluate("document.documentElement.lang") == "en"
    assert await phone.page.locator("h1").count() == 1
    assert await phone.page.locator("[role=status]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_contrast(verifier: VerifierProcess, browser: Browser, playwright: Playwright, scheme: str) -> None:
    async with opened_phone(browser, playwright, color_scheme=scheme, reduced_motion="reduce") as phone:
        await phone.open(verifier.http, delay=100)
        await phone.ask(Question(max_tokens=256), "device-lockstep")
        await phone.page.wait_for_selector("#spans > .recovered")
        await phone.page.wait_for_function("() => document.getElementById('ahead').textContent.trim() !== ''")
        measured: list[dict[str, Any]] = await phone.page.evaluate(CONTRASTS)
        await phone.until("done")
        await phone.answer(Question(max_tokens=24), "device-only")  # unverified text
        measured += await phone.page.evaluate(CONTRASTS)
        assert len(measured) > 60
        assert [one for one in measured if one["ratio"] < one["least"]] == []


async def test_the_narrowest_screen(verifier: VerifierProcess, browser: Browser, playwright: Playwright) -> None:
    async with opened_phone(browser, playwright, viewport=NARROW) as phone:
        await phone.open(verifier.http)
        await phone.answer(Question(prompt="x" * 300 + " = {}\n", max_tokens=48))
        assert await phone.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        assert await phone.page.evaluate(OUTSIDE) == []
        assert await phone.page.evaluate(SMALL_TARGETS) == []


async def test_with_the_keyboard_alone(verifier: VerifierProcess, browser: Browser, playwright: Playwright) -> None:
    async with opened_phone(browser, playwright, is_mobile=False, has_touch=False) as phone:
        await phone.open(verifier.http)
        page = phone.page
        reached = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.append(
                await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
            )
            ring = await page.evaluate(
                "getComputedStyle(document.activeElement.closest('.choice') ?? document.activeElement).outlineStyle"
            )
            assert ring != "none" or reached[-1] == "", reached[-1]
            if reached[-1] == "max-tokens":
                break
        for name in ("Skip to the prompt", "sheet", "prompt", "class Stack", "write", "delay", "temperature", "seed"):
            assert name in reached, (name, reached)
        assert reached.index("prompt") < reached.index("write") < reached.index("delay")
        await page.focus('input[name="arm"]:checked')
        await page.keyboard.press("ArrowDown")
        assert await page.get_attribute('input[name="arm"]:checked', "value") == "cloud"
        await page.focus("#delay")
        await page.keyboard.press("ArrowRight")
        assert await page.text_content("#delay-shown") == "+10 ms"
        await page.fill("#max-tokens", "16")
        await page.fill("#prompt", "def add(a, b):\n")
        await page.focus("#prompt")
        await page.keyboard.press("Control+Enter")
        assert await phone.until("done", "failed") == "done"
        await expect(page.locator("#echo")).to_have_text("def add(a, b):\n")
        assert await phone.text()


async def test_less_motion(verifier: VerifierProcess, browser: Browser, playwright: Playwright) -> None:
    async with opened_phone(browser, playwright, reduced_motion="reduce") as phone:
        await phone.open(verifier.http)
        await phone.answer(Question())
        names: list[str] = await phone.page.evaluate(
            "[...document.querySelectorAll('*')].map(element => getComputedStyle(element).animationName)"
        )
        assert set(names) == {"none"}


async def test_origins_differ_by_more_than_colour(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)

    async def style(selector: str, name: str) -> str:
        return str(await phone.page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}"))

    assert await style(".legend .ahead", "fontStyle") == "italic"
    assert await style(".legend .recovered", "borderBottomStyle") == "solid"
    assert "dotted" in await style(".legend .unverified", "textDecorationStyle")
    assert await style(".legend .sample:not(.ahead, .recovered, .unverified)", "fontStyle") == "normal"
