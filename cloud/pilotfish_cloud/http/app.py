"""The FastAPI application: OpenAI's interface, devices in browsers, the operator's page and metrics, health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http import status
from pilotfish_cloud.http.cross_origin import CrossOrigin
from pilotfish_cloud.http.demo import Demo, demo_routes
from pilotfish_cloud.http.device_routes import device_routes
from pilotfish_cloud.http.door import Authenticate, GatewayDoor
from pilotfish_cloud.http.drafts import draft_routes
from pilotfish_cloud.http.websocket import WebSocketDoor
from pilotfish_cloud.logs import name_request
from pilotfish_cloud.metrics import ServerMetrics
from pilotfish_cloud.principal import ANYONE, Principal
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_openai.body import MAX_BODY_BYTES
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.door import add_error_handlers, openai_routes
from pilotfish_openai.errors import json_response
from pilotfish_openai.exchange import Exchange


def anyone(authorization: str | None) -> Principal:
    """Asks for no key."""
    return ANYONE


def create_app(
    gateway: Gateway,
    *,
    chat_template: ChatTemplate | None = None,
    authenticate: Authenticate = anyone,
    metrics: ServerMetrics | None = None,
    link: StateLink | None = None,
    operator: str = "open",
    catalogue: Catalogue | None = None,
    sockets: WebSocketDoor | None = None,
    demo: Demo | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The application for one gateway on the same event loop.

    ``authenticate`` is given the Authorization header of each request under /v1 (None: there is none) and returns who
    calls, or raises Unauthenticated, PermissionDenied or Overloaded. ``metrics``: those of the gateway's server; made
    here if there are none yet. ``link``: to what replicas share. ``operator``: who may see the live page, its figures
    and the metrics, see ServerConfig. ``catalogue``: what devices ask for, with the draft models whose files they may
    fetch; ``sockets``: their door, with the origins whose pages are admitted; ``demo``: a page that is a device.
    """
    app = FastAPI(title="Pilotfish verifier", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = metrics or ServerMetrics(gateway)
    door = GatewayDoor(gateway, authenticate, chat_template)
    catalogue = catalogue or Catalogue(gateway, chat_template=chat_template)
    sockets = sockets or WebSocketDoor(gateway, catalogue, authenticate)
    if sockets.origins.allowed:
        app.add_middleware(CrossOrigin, origins=sockets.origins)
    app.add_middleware(Exchange, errors=door.errors, named=name_request, counted=metrics.count_http)
    add_error_handlers(app, door.errors)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str | int]:
        if gateway.draining:
            response.status_code = 503
        answer: dict[str, str | int] = {
            "status": "draining" if gateway.draining else "ready",
            "generations": gateway.running,
        }
        if link is not None and link.admission is not None:
            answer["shared_state"] = "in touch" if link.in_touch else "out of reach; limits are this replica's share"
        return answer

    if operator != "off":
        asked = [Depends(_asking(authenticate))] if operator == "key" else []
        app.include_router(_operator_routes(gateway, metrics, link), dependencies=asked)
    app.include_router(draft_routes(catalogue.offers, authenticate))
    app.include_router(device_routes(catalogue, authenticate, sockets))
    if demo is not None:
        app.include_router(demo_routes(demo))
    app.include_router(openai_routes(door, max_body_bytes))
    return app


def _asking(authenticate: Authenticate) -> Callable[[Request], Awaitable[None]]:
    async def asked(request: Request) -> None:
        authenticate(request.headers.get("authorization"))

    return asked


def _operator_routes(gateway: Gateway, metrics: ServerMetrics, link: StateLink | None) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics")
    async def exposition(request: Request) -> Response:
        text, content_type = await asyncio.to_thread(metrics.exposition, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    @routes.get("/")
    async def page() -> Response:
        return status.page()

    @routes.get("/status.json")
    async def figures() -> Response:
        return json_response(status.figures(gateway, metrics, link), headers={"cache-control": "no-store"})

    return routes
