"""CORS for what a device in a browser reads before it opens a generation; the rest of HTTP is for no other's pages."""

from __future__ import annotations

from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pilotfish_cloud.origins import Origins

PATHS: Final = ("/pilotfish/v1/", "/v1/drafts")
ASKS: Final = ("authorization", "range", "if-range", "if-none-match", "x-request-id")
TELLS: Final = (
    "accept-ranges",
    "content-range",
    "etag",
    "retry-after",
    "retry-after-ms",
    "x-pilotfish-error",
    "x-request-id",
)


class CrossOrigin:
    """ASGI middleware: answers preflights and marks responses for the origins that are allowed."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._marked = CORSMiddleware(
            app,
            allow_origins=origins.allowed,
            allow_headers=ASKS,
            expose_headers=TELLS,
            allow_private_network=True,  # they are named by the operator, wherever they are served from
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        ours = scope["type"] == "http" and scope["path"].startswith(PATHS)
        await (self._marked if ours else self._app)(scope, receive, send)
