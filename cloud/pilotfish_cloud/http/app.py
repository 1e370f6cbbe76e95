"""The FastAPI application: OpenAI's interface, the operator's page and metrics, whether the process lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http import chat, completions, models, status
from pilotfish_cloud.http.answering import Answering, CallerGoneError, unless_gone
from pilotfish_cloud.http.body import MAX_BODY_BYTES, read_body
from pilotfish_cloud.http.chat_template import ChatTemplate
from pilotfish_cloud.http.choice import Choice, Delta
from pilotfish_cloud.http.errors import CLIENT_GONE, json_response, on_error
from pilotfish_cloud.http.exchange import Exchange
from pilotfish_cloud.http.forms import Form
from pilotfish_cloud.http.schema import ChatBody, CompletionBody, RequestBody, parse
from pilotfish_cloud.http.sse import EventStream
from pilotfish_cloud.metrics import ServerMetrics
from pilotfish_cloud.principal import ANYONE, Principal
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_core.errors import PilotfishError

LONG_BODY: Final = 16 * 1024  # bytes; from there on it is tokenised in a thread, beside the streams of others
Authenticate = Callable[[str | None], Principal]
Result = TypeVar("Result")


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
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The application for one gateway on the same event loop.

    ``authenticate`` is given the Authorization header of each request under /v1 (None: there is none) and returns who
    calls, or raises Unauthenticated, PermissionDenied or Overloaded. ``metrics``: those of the gateway's server; made
    here if there are none yet. ``link``: to what replicas share. ``operator``: who may see the live page, its figures
    and the metrics, see ServerConfig.
    """
    app = FastAPI(title="Pilotfish verifier", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = metrics or ServerMetrics(gateway)
    started = int(time.time())
    app.add_middleware(Exchange, counted=metrics.count_http)
    for kind in (PilotfishError, HTTPException):
        app.add_exception_handler(kind, on_error)

    @app.exception_handler(CallerGoneError)
    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

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

    @app.get("/v1/models")
    async def list_models(request: Request) -> Response:
        authenticate(request.headers.get("authorization"))
        return json_response(models.model_list(gateway, started))

    @app.get("/v1/models/{name:path}")
    async def get_model(request: Request, name: str) -> Response:
        authenticate(request.headers.get("authorization"))
        gateway.check_model(name)
        return json_response(models.model(gateway, started))

    @app.post("/v1/completions")
    async def completion(request: Request) -> Response:
        principal = authenticate(request.headers.get("authorization"))
        data = await read_body(request, max_body_bytes)
        body = parse(CompletionBody, data)
        gateway.check_model(body.model)
        question = await _computed(lambda: completions.question_of(body, gateway.tokenizer), len(data))
        form = completions.CompletionForm(gateway)
        form.echo(body)
        return await _answer(request, Answering(gateway, principal, question), form, body)

    @app.post("/v1/chat/completions")
    async def chat_completion(request: Request) -> Response:
        principal = authenticate(request.headers.get("authorization"))
        data = await read_body(request, max_body_bytes)
        body = parse(ChatBody, data)
        gateway.check_model(body.model)
        length = gateway.engine.info.max_model_len
        question = await _computed(lambda: chat.question_of(body, gateway.tokenizer, chat_template, length), len(data))
        return await _answer(request, Answering(gateway, principal, question), chat.ChatForm(gateway), body)

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


async def _computed(work: Callable[[], Result], size: int) -> Result:
    return work() if size < LONG_BODY else await asyncio.to_thread(work)


async def _answer(request: Request, answering: Answering, form: Form, body: RequestBody) -> Response:
    if body.stream:
        return EventStream(answering, form, include_usage=body.include_usage, headers=body.ignored_header)
    parts: list[list[Delta]] = [[] for _ in answering.choices]

    async def opened(choice: Choice) -> None:
        pass

    async def keep(choice: Choice, delta: Delta) -> None:
        parts[choice.index].append(delta)

    await unless_gone(answering.run(opened, keep), request.receive)
    return json_response(form.whole(answering, parts), headers=body.ignored_header)
