"""It can be installed: manifest, icons, service worker, isolation; nothing comes from anywhere else."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from pilotfish.demo.stage import VerifierProcess
from tests.browser.conftest import DIST
from tests.browser.phone import Phone, Question

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
LARGEST_PICTURE = 64_000  # bytes


async def test_chromium_finds_it_installable(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    await phone.kept()
    session = await phone.context.new_cdp_session(phone.page)
    manifest: dict[str, Any] = await session.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert manifest["url"].endswith("/demo/manifest.webmanifest")
    found: dict[str, Any] = await session.send("Page.getInstallabilityErrors")
    # A browser context of a test is like a private window, where nothing can be installed.
    assert [error for error in found["installabilityErrors"] if error["errorId"] != "in-incognito"] == []


async def test_the_manifest_and_its_icons(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    address = await phone.page.evaluate("document.querySelector('link[rel=manifest]').href")
    manifest: dict[str, Any] = await (await phone.context.request.get(address)).json()
    assert manifest["display"] == "standalone"
    assert manifest["name"]
    assert manifest["short_name"]
    assert urljoin(address, manifest["start_url"]) == f"{verifier.http}/demo/"
    sizes = set()
    for icon in manifest["icons"]:
        answer = await phone.context.request.get(urljoin(address, icon["src"]))
        assert answer.ok
        assert answer.headers["content-type"].startswith(icon["type"])
        if icon["type"] == "image/png":
            data = await answer.body()
            assert len(data) < LARGEST_PICTURE
            width, height = struct.unpack(">II", data[16:24])
            assert icon["sizes"] == f"{width}x{height}"
            sizes.add((width, icon.get("purpose", "any")))
    assert {(192, "any"), (512, "any"), (512, "maskable")} <= sizes


async def test_page_runtime_and_model_are_kept(verifier: VerifierProcess, draft: Path, phone: Phone) -> None:
    await phone.open(verifier.http)
    await phone.kept()
    await phone.page.reload()
    await phone.until("ready")
    assert await phone.page.evaluate("navigator.serviceWorker.controller.scriptURL") == f"{verifier.http}/demo/sw.js"
    assert await phone.page.evaluate("crossOriginIsolated")
    kept: list[str] = await phone.page.evaluate(
        "(async () => (await Promise.all((await caches.keys()).map(async name =>"
        " (await (await caches.open(name)).keys()).map(request => request.url)))).flat())()"
    )
    paths = {urlsplit(address).path for address in kept}
    pages = [f"/demo/{file.relative_to(DIST).as_posix()}" for file in DIST.rglob("*") if file.is_file()]
    assert {"/demo/", *pages} - paths == {"/demo/index.html", "/demo/sw.js"}
    files = json.loads((draft / "manifest.json").read_bytes())["files"]
    assert {f"/sha256/{entry['sha256']}" for entry in files.values()} <= paths  # the SDK keeps them by their contents
    assert any(path.startswith("/tokenizer/") for path in paths)


async def test_nothing_comes_from_anywhere_else(verifier: VerifierProcess, phone: Phone) -> None:
    asked: list[str] = []
    phone.context.on("request", lambda request: asked.append(request.url))
    phone.page.on("websocket", lambda socket: asked.append(socket.url))
    await phone.open(verifier.http)
    await phone.answer(Question(max_tokens=16))
    assert any(address.startswith("ws:") for address in asked)
    assert {urlsplit(address).netloc for address in asked if not address.startswith(("blob:", "data:"))} == {
        urlsplit(verifier.http).netloc
    }
