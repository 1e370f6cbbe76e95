"""The HTTP door with settings of a test's own, and callers of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import uvicorn

from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.app import create_app
from pilotfish_cloud.observer import StreamObserver
from pilotfish_cloud.stream import Stream
from pilotfish_openai.chat_template import TEMPLATE_FILE
from tests.e2e.conftest import TARGET, Verifier

PATIENCE_S = 60.0
TEMPLATE = """{% for message in messages %}# {{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}def {% endif %}"""


def gateway_of(verifier: Verifier) -> Gateway:
    assert verifier.server.gateway is not None
    return verifier.server.gateway


def with_template(folder: Path, template: str = TEMPLATE) -> Path:
    """The reference target and a chat template, in a folder of links."""
    for file in TARGET.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / TEMPLATE_FILE).write_text(template)
    return folder


@contextlib.asynccontextmanager
async def door(verifier: Verifier, **options: Any) -> AsyncIterator[str]:
    """Another HTTP server in front of the same engine; yields its address."""
    gateway = gateway_of(verifier)
    observer = gateway.observer
    app = create_app(gateway, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server._serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        gateway.observer = observer


@contextlib.asynccontextmanager
async def caller(address: str, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client."""
    settings: dict[str, Any] = {"api_key": "unused", "max_retries": 0, "timeout": PATIENCE_S}
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", **settings | options) as client:
        yield client


class Watcher(StreamObserver):
    """Keeps the streams of a gateway, and lets a test wait for what becomes of them."""

    def __init__(self, on_opened: Callable[[Stream], None] = lambda stream: None) -> None:
        self.streams: list[Stream] = []
        self.tokens = 0
        self.ended = 0
        self._on_opened = on_opened
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, stream: Stream) -> None:
        self.streams.append(stream)
        self._on_opened(stream)
        self._tell()

    def event(self, stream: Stream, event: Any) -> None:
        commit = getattr(event, "commit", None)
        self.tokens += 0 if commit is None else len(commit.tokens)
        self._tell()

    def closed(self, stream: Stream) -> None:
        self.ended += 1
        self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(condition)

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.contextmanager
def watching(verifier: Verifier, on_opened: Callable[[Stream], None] = lambda stream: None) -> Iterator[Watcher]:
    """A Watcher in place of the gateway's observer."""
    gateway = gateway_of(verifier)
    before, watcher = gateway.observer, Watcher(on_opened)
    gateway.observer = watcher
    try:
        yield watcher
    finally:
        gateway.observer = before
