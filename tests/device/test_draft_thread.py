"""The thread of the models: results in order, and never in the way of the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from pilotfish.draft_thread import DraftThread

HANGING = """
import sys, threading
from pilotfish.client import Client
from pilotfish import client, drafting
from pilotfish_core.drafter import Drafter
from tests.device.verifiers import TOKENIZER, ListDrafter, ScriptedTransport
from tests.device.test_client import no_answer

client.CLOSE_TIMEOUT_S = drafting.CLOSE_TIMEOUT_S = 0.2
asked = threading.Event()

class Hanging(ListDrafter):
    def open(self, params, prompt_length):
        asked.set()
        threading.Event().wait()

with Client("scripted:1", draft=Hanging(), tokenizer=TOKENIZER) as one:
    one._client._transport = ScriptedTransport(no_answer)
    stream = one.generate("ab")
    asked.wait()
print("closed", flush=True)
"""


def test_a_drafter_that_hangs_does_not_keep_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


async def test_results_and_errors() -> None:
    executor = DraftThread()
    names = {executor.submit(lambda: threading.current_thread().name).result(10) for _ in range(3)}
    assert names == {"pilotfish-draft"}
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(10)
    assert executor.submit(divmod, 7, 2).result(10) == (3, 1)
    assert await executor.aclose(10)
    assert await executor.aclose(10)
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(print)


async def test_closing_waits_no_longer_than_told() -> None:
    executor, go_on = DraftThread(), threading.Event()
    busy, waiting = executor.submit(go_on.wait), executor.submit(divmod, 7, 2)
    waiting.cancel()
    async with asyncio.timeout(10):
        assert not await executor.aclose(0.05)
        go_on.set()
        assert await executor.aclose(10)
    assert busy.result() is True
    executor.shutdown()


def test_one_that_was_never_used_is_closed_at_once() -> None:
    DraftThread().shutdown()
