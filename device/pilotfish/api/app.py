"""The FastAPI application of ``pilotfish serve``, and who may talk to it without a key: programs of this machine."""

from __future__ import annotations

import re
import secrets
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pilotfish.api.door import ClientDoor
from pilotfish.credentials import is_loopback
from pilotfish_core.errors import PermissionDenied
from pilotfish_openai.door import add_error_handlers, openai_routes
from pilotfish_openai.exchange import Exchange

LOCAL_ORIGIN: Final = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"


class OwnPrograms:
    """ASGI middleware that turns web pages away, where no key does: a browser carries any page's requests to this
    machine. A page of elsewhere says so in Origin; one whose name was pointed here (DNS rebinding) in Host.

    Raises PermissionDenied.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            if not is_loopback(host):
                raise PermissionDenied("without a key only programs of this machine are answered, at localhost")
            origin = headers.get("origin")
            if origin is not None and not re.fullmatch(LOCAL_ORIGIN, origin):
                raise PermissionDenied("without a key no web pages of other machines are answered")
        await self._app(scope, receive, send)


def create_app(door: ClientDoor, *, guarded: bool) -> FastAPI:
    """``guarded``: answer only this machine's own programs."""
    app = FastAPI(title="Pilotfish on this device", docs_url=None, redoc_url=None, openapi_url=None)
    # The last one added comes first.
    app.add_middleware(
        CORSMiddleware, allow_origin_regex=LOCAL_ORIGIN, allow_methods=["GET", "POST"], allow_headers=["*"]
    )
    if guarded:
        app.add_middleware(OwnPrograms)
    app.add_middleware(
        Exchange,
        errors=door.errors,
        named=lambda _: secrets.token_hex(8),
        counted=lambda route, status: None,
    )
    add_error_handlers(app, door.errors)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    app.include_router(openai_routes(door))
    return app
