"""Around every request: an id (the caller's own if there is one), its count by route and status, a net for defects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pilotfish_openai.errors import ErrorForms

REQUEST_ID: Final = "x-request-id"
OTHER: Final = "other"  # paths that are none of ours are not told apart: callers choose them


class Exchange:
    """ASGI middleware. ``named`` gives a request its id, from the one that the caller sent; ``counted`` hears of each
    response: route and status.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        errors: ErrorForms,
        named: Callable[[str | None], str],
        counted: Callable[[str, int], None],
    ) -> None:
        self._app, self._errors, self._named, self._counted = app, errors, named, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; one that asks for a WebSocket is answered by its upgrade, or as any other."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        name = self._named(Headers(scope=scope).get(REQUEST_ID)).encode()
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            status = _status_of(message)
            if status is not None and not begun:
                begun = True
                message["headers"] = [*message.get("headers", []), (REQUEST_ID.encode(), name)]
                self._counted(getattr(scope.get("route"), "path", OTHER), status)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:  # a defect; once the response has begun only the connection's end can tell
            response = self._errors.response(error)
            if not begun:
                await response(scope, receive, sent)


def _status_of(message: Message) -> int | None:
    """Of a message that answers a request."""
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return int(message["status"])
        case "websocket.accept":
            return 101
        case "websocket.close":  # as the first one
            return 403
        case _:
            return None
