"""``make mobile-demo`` as a phone meets it: the printed address, with its key, over plain http from this network."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.browser.phone import Phone, Question
from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


async def test_the_printed_address_works_on_a_phone_and_ctrl_c_ends_all(phone: Phone) -> None:
    command = [sys.executable, "-m", "mobile_demo.serve", "--small", "--http-port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        address = ""
        async for line in process.stdout:
            if b"On a phone:" in line:
                address = line.decode().split("phone:")[1].strip()
                break
        assert "/demo/#key=pf_" in address
        await phone.page.goto(address)
        assert await phone.until("ready", "alone", "failed") == "ready", await phone.status()
        assert "key" not in phone.page.url  # not to be shared by chance
        assert await phone.answer(Question(), "device-lockstep")
        assert await phone.texts("accepted")
        await phone.page.reload()  # the key is kept
        await phone.until("ready")
        stranger = await phone.context.request.get(address.split("/demo/")[0] + "/pilotfish/v1/describe")
        assert stranger.status == 401
        assert all("Cross-Origin-Opener-Policy header has been ignored" in said for said in phone.complaints)
        phone.complaints.clear()  # over plain http no page is isolated: docs/mobile.md
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode in (0, 130)
