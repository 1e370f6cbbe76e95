"""Around every request: an id that the caller can name, and its count by route and status."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER: Final = b"x-request-id"
OTHER: Final = "other"  # paths that are none of ours are not told apart: callers choose them


class Exchange:
    """ASGI middleware. ``counted`` hears of each response: route and status."""

    def __init__(self, app: ASGIApp, *, counted: Callable[[str, int], None]) -> None:
        self._app, self._counted = app, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = f"req-{secrets.token_hex(12)}".encode()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (REQUEST_ID_HEADER, name)]
                self._counted(getattr(scope.get("route"), "path", OTHER), message["status"])
            await send(message)

        await self._app(scope, receive, sent)
