"""Opens the endpoint on its socket, and closes it in order: a first signal drains, a second one ends what runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from pilotfish.api.app import create_app
from pilotfish.api.door import ClientDoor
from pilotfish.client import AsyncClient
from pilotfish_core.errors import LocalError
from pilotfish_openai.listener import HttpServer

TOLD_S: Final = 5.0  # that callers get to read how their answers ended


class Endpoint:
    """One endpoint. ``run`` it, or ``start`` and ``stop`` where signals are somebody else's."""

    def __init__(self, client: AsyncClient, listener: socket.socket, *, key: str | None, guarded: bool) -> None:
        """Takes over the listener, not the client. ``guarded``: answer only this machine's own programs."""
        self.model = ""
        self._client, self._listener = client, listener
        self._key, self._guarded = key, guarded
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what is needed and begin. Raises what the verifier says, ModelLoadError."""
        try:
            await self._client.prepare()
            served = await self._client.describe()
        except BaseException:
            self._listener.close()
            raise
        self.model = served.name
        app = create_app(ClientDoor(self._client, served, self._key), guarded=self._guarded)
        self._http = HttpServer(uvicorn.Config(app, log_config=None, log_level="warning", lifespan="off"))
        self._serving = asyncio.create_task(self._http.serve(sockets=[self._listener]))

    async def run(self, started: Callable[[Endpoint], None], draining: Callable[[], None]) -> None:
        """Serve until SIGINT or SIGTERM; ``draining`` is called when the first has come."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.interrupt)
        try:
            await self.start()
            if self._serving is None:
                raise LocalError("the endpoint did not start")
            started(self)
            ended = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([ended, self._serving], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if self._http.server_state.tasks:
                draining()
            await self.stop()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def interrupt(self) -> None:
        """What a signal does: the first one drains, the next one hurries."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def stop(self, *, at_once: bool = False) -> None:
        """Take no more requests and finish what runs; ``at_once``, or once hurried, end that too, with an error."""
        if self._serving is None:
            return
        if at_once:
            self._hurry.set()
        self._http.should_exit = True
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([hurried, self._serving], return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not self._serving.done():
            await self._client.aclose()  # answers end as aborted, and their callers are told
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOLD_S):
                    await asyncio.shield(self._serving)
            self._http.force_exit = True
        await self._serving
