"""Server-sent events: an answer as it grows.

Nothing is sent before there is something to say, so what refuses a request still has its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pilotfish_openai.answering import Answering, CallerGoneError, unless_gone
from pilotfish_openai.choice import Choice, Delta
from pilotfish_openai.errors import ErrorForms
from pilotfish_openai.forms import Form
from pilotfish_openai.json_text import json_bytes

ALIVE_S: Final = 15.0  # without anything to say: a comment, before a proxy takes the connection for dead
WRITE_S: Final = 60.0  # that a reader gets to take what was written; then the answer is given up
DONE: Final = b"[DONE]"

log = logging.getLogger(__name__)


class EventStream(Response):
    """The response of a streamed request. An error after the first event is an event, and then there is no ``DONE``."""

    media_type = "text/event-stream"

    def __init__(
        self,
        answering: Answering,
        form: Form,
        errors: ErrorForms,
        *,
        include_usage: bool,
        headers: dict[str, str] | None = None,
    ) -> None:
        more = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies pass events on at once
        super().__init__(status_code=200, headers=more | (headers or {}))
        del self.headers["content-length"]
        self._answering, self._form, self._errors = answering, form, errors
        self._include_usage = include_usage
        self._unfinished = len(answering.choices)
        self._usage = {"usage": None} if include_usage else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the whole answer; a caller who goes away ends it at once."""
        try:
            await unless_gone(self._write(scope, receive, send), receive)
        except CallerGoneError:
            return

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(send, self.raw_headers)
        alive = asyncio.create_task(writer.stay_alive())
        try:
            await self._answer(writer)
        except TimeoutError:
            log.warning("a reader took nothing for %.0f s; its answer is given up", WRITE_S)
            return  # uvicorn closes a connection whose response is not complete
        except Exception as error:
            if not writer.begun:
                await self._errors.response(error)(scope, receive, send)
                return
            with contextlib.suppress(TimeoutError):
                await writer.event(json_bytes(self._errors.body(error)))
                await writer.end()
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)

    async def _answer(self, writer: _Writer) -> None:
        await self._answering.run(
            lambda choice: self._opened(writer, choice), lambda choice, delta: self._deliver(writer, choice, delta)
        )
        if self._include_usage:
            await writer.event(json_bytes(self._form.chunk([], usage=self._answering.usage(), **self._metrics())))
        await writer.event(DONE)
        await writer.end()

    async def _opened(self, writer: _Writer, choice: Choice) -> None:
        first = self._form.first(choice)
        if first is not None:
            await writer.event(json_bytes(self._form.chunk([first], **self._usage)))

    async def _deliver(self, writer: _Writer, choice: Choice, delta: Delta) -> None:
        if delta.finish is not None:
            self._unfinished -= 1
        elif not delta.text and not delta.scored:
            return  # inside a character, or held back
        more = {} if self._unfinished or self._include_usage else self._metrics()
        await writer.event(json_bytes(self._form.chunk([self._form.next(choice, delta)], **self._usage, **more)))

    def _metrics(self) -> dict[str, Any]:
        return {"metrics": self._answering.metrics()}


class _Writer:
    """Writes events one at a time. Returns when the connection has taken them, or raises TimeoutError."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = False
        self._send, self._headers = send, headers
        self._turn = asyncio.Lock()
        self._last = asyncio.get_running_loop().time()

    async def event(self, data: bytes) -> None:
        await self._write(b"data: " + data + b"\n\n")

    async def end(self) -> None:
        await self._write(b"", more=False)

    async def stay_alive(self) -> None:
        """Until cancelled: a comment whenever nothing was written for a while."""
        clock = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(self._last + ALIVE_S - clock.time(), 0.01))
            if clock.time() >= self._last + ALIVE_S:
                await self._write(b": waiting\n\n")

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        async with self._turn, asyncio.timeout(WRITE_S):
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._last = asyncio.get_running_loop().time()
