"""Debian's Chromium as a phone, in front of a real verifier in a process of its own that serves page and draft."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Playwright, async_playwright

from pilotfish.demo.stage import VerifierProcess
from pilotfish.export import export_model
from tests.browser.phone import Phone, opened_phone
from tests.e2e.conftest import ROOT, TARGET

DIST: Final = ROOT / "mobile_demo" / "dist"
CHROMIUM: Final = "/usr/bin/chromium"
# As root, and in containers whose /dev/shm is small; nothing is fetched from anywhere by the browser itself.
ARGUMENTS: Final = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking")
CHECKED_ON: Final = "def quicksort(items):\n    return items\n" * 30


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference draft for browsers."""
    folder = tmp_path_factory.mktemp("drafts") / "reference-int8"
    return export_model(ROOT / "reference" / "draft", folder, to="onnx-web", quant="int8", text=CHECKED_ON).folder


@pytest.fixture(scope="session")
def verifier(draft: Path) -> Iterator[VerifierProcess]:
    """In deterministic mode: what it says must be the same whoever drafts."""
    if not (DIST / "index.html").is_file():
        pytest.fail(f"{DIST} is not built: make mobile")
    arguments = ("--served-model-name", "target", "--deterministic", "--demo", str(DIST), "--drafts", str(draft))
    with VerifierProcess(TARGET, *arguments) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="session")
def chromium() -> str:
    if not Path(CHROMIUM).is_file():
        pytest.fail(f"{CHROMIUM} is not there: make browser")
    return CHROMIUM


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def playwright() -> AsyncIterator[Playwright]:
    async with async_playwright() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(playwright: Playwright, chromium: str) -> AsyncIterator[Browser]:
    running = await playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="session")
async def phone(browser: Browser, playwright: Playwright) -> AsyncIterator[Phone]:
    """A phone that nobody has used before. Whatever the page complains about on its console fails the test."""
    async with opened_phone(browser, playwright) as one:
        yield one
