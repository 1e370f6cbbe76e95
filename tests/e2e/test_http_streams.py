"""Streams as bytes; callers who go away, and who do not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message

from pilotfish_cloud.http.app import create_app
from pilotfish_openai import sse
from tests.e2e.conftest import Verifier, serving
from tests.e2e.http_doors import caller, gateway_of, watching

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
ASK: dict[str, Any] = {"prompt": "def f(", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
LONG = ASK | {"max_tokens": 1900}


async def idle(verifier: Verifier) -> None:
    """What was posted to the engine before is done; then nothing is left in it."""
    async with caller(verifier.http) as client:
        await client.completions.create(model="target", prompt="x", max_tokens=1)
    stats = verifier.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_held) == (0, 0, 0)
    assert gateway_of(verifier).running == 0


async def test_events_as_bytes(verifier: Verifier) -> None:
    fields = ASK | {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    async with httpx.AsyncClient(base_url=verifier.http, timeout=60) as raw:
        answer = await raw.post("/v1/completions", json=fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers
    *events, end, nothing = answer.text.split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *pieces, usage = chunks
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert {chunk["choices"][0]["index"] for chunk in pieces} == {0, 1}
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in pieces) == 2
    assert "metrics" not in pieces[-1]
    for chunk in chunks:
        assert chunk["id"] == usage["id"]
        assert chunk["object"] == "text_completion"
        assert chunk["model"] == "target"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_goes_away_frees_the_sequence(verifier: Verifier, stream: bool) -> None:
    with watching(verifier) as watcher:
        async with httpx.AsyncClient(base_url=verifier.http, timeout=60) as raw:
            request = raw.build_request("POST", "/v1/completions", json=LONG | {"stream": stream, "n": 2})
            sending = asyncio.create_task(raw.send(request, stream=True))
            await watcher.until(lambda: watcher.tokens > 4)
            if stream:
                await (await sending).aclose()
            else:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            await watcher.until(lambda: watcher.ended == 2)
        assert watcher.tokens < 2 * LONG["max_tokens"]
    await idle(verifier)


async def test_one_answer_that_fails_ends_the_others(verifier: Verifier) -> None:
    with watching(verifier) as watcher:
        async with httpx.AsyncClient(base_url=verifier.http, timeout=60) as raw:
            sending = asyncio.create_task(raw.post("/v1/completions", json=LONG | {"n": 3}))
            await watcher.until(lambda: watcher.tokens > 4)
            watcher.streams[1].fail(ValueError("a defect"))
            answer = await sending
        assert answer.status_code == 500
        assert watcher.ended == 3
    await idle(verifier)


class Reader:
    """A connection to the application whose reader takes ``limit`` events and then nothing until it is let."""

    def __init__(self, verifier: Verifier, body: dict[str, Any], limit: int) -> None:
        gateway = gateway_of(verifier)
        observer = gateway.observer
        self._app = create_app(gateway)
        gateway.observer = observer
        self._body = json.dumps(body).encode()
        self._limit = limit
        self._read = False
        self.go_on = asyncio.Event()
        self.leave = asyncio.Event()
        self.text = ""

    async def run(self) -> None:
        await self._app({
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"",
            "root_path": "", "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }, self._receive, self._send)  # fmt: skip

    async def _receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self._limit -= 1
            if self._limit < 0:
                await self.go_on.wait()
            self.text += message["body"].decode()


async def test_a_reader_who_stops_reading_pauses_its_own_answer() -> None:
    async with serving(max_unacknowledged=8) as verifier:
        with watching(verifier) as watcher:
            reader = Reader(verifier, LONG | {"stream": True, "max_tokens": 64}, limit=3)
            running = asyncio.create_task(reader.run())
            await watcher.until(lambda: watcher.tokens >= 8)
            # Others go on meanwhile, for more steps than the answer would have needed.
            async with caller(verifier.http) as client:
                other = await client.completions.create(
                    model="target", prompt="x", max_tokens=96, extra_body={"ignore_eos": True}
                )
            assert other.usage is not None
            assert watcher.tokens - other.usage.completion_tokens < 8 + 3 * 17 + 17
            assert not running.done()
            held = watcher.streams[0].backlog_bytes
            assert 0 < held < 4096
            reader.go_on.set()
            await running
        assert reader.text.endswith("data: [DONE]\n\n")


async def test_a_reader_who_never_reads_is_given_up(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "WRITE_S", 0.05)
    await Reader(verifier, LONG | {"stream": True}, limit=2).run()
    await idle(verifier)


async def test_a_quiet_stream_is_kept_alive(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "ALIVE_S", 0.01)
    async with httpx.AsyncClient(base_url=verifier.http, timeout=60) as raw:
        answer = await raw.post("/v1/completions", json=ASK | {"stream": True, "prompt": [9] * 1500})
    assert answer.text.startswith(": waiting\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")
    async with caller(verifier.http) as client:
        stream = await client.completions.create(model="target", prompt=[8] * 1500, max_tokens=3, stream=True)
        assert [chunk async for chunk in stream]


async def test_a_server_that_stops_hands_its_streams_back() -> None:
    async with serving() as verifier, caller(verifier.http) as client:
        stream = await client.completions.create(
            model="target", prompt="def f(", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        assert (await anext(stream)).choices[0].text
        stopping = asyncio.create_task(verifier.server.stop())
        with pytest.raises(openai.APIError, match="shutting down") as caught:
            [chunk async for chunk in stream]
        assert caught.value.code == "unavailable"
        await stopping
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
