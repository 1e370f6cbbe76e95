"""A door: what answers OpenAI's requests, and the routes to it. What is behind it differs, what it says does not."""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pilotfish_core.errors import PilotfishError
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai import chat, completions
from pilotfish_openai.answering import Answering, CallerGoneError, Question, unless_gone
from pilotfish_openai.body import MAX_BODY_BYTES, read_body
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.choice import Choice, Delta
from pilotfish_openai.errors import CLIENT_GONE, ErrorForms, json_response
from pilotfish_openai.forms import Form
from pilotfish_openai.schema import ChatBody, CompletionBody, RequestBody, parse
from pilotfish_openai.sse import EventStream

LONG_BODY: Final = 16 * 1024  # bytes; from there on it is tokenised in a thread, beside the streams of others
Caller = TypeVar("Caller")
Result = TypeVar("Result")


class Door(abc.ABC, Generic[Caller]):
    """One model, and who answers for it. ``model``: the name it is served by."""

    errors: ErrorForms
    tokenizer: Tokenizer
    model: str
    max_model_len: int  # prompt + output, tokens

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Of the numerics that decide."""

    @abc.abstractmethod
    def authenticate(self, authorization: str | None) -> Caller:
        """Who sent this Authorization header (None: there is none). Raises Unauthenticated, PermissionDenied,
        Overloaded.
        """

    @abc.abstractmethod
    def check_model(self, name: str) -> None:
        """``name`` as a caller gave it; empty: the only one. Raises UnknownModel."""

    @abc.abstractmethod
    async def chat_template(self) -> ChatTemplate | None:
        """The model's; None where it has none."""

    @abc.abstractmethod
    def answering(self, caller: Caller, question: Question) -> Answering:
        """The answers to a question, not yet begun. Raises what refuses it."""


def add_error_handlers(app: FastAPI, errors: ErrorForms) -> None:
    """Everything that can go wrong, in OpenAI's shape."""
    for kind in (PilotfishError, HTTPException):
        app.add_exception_handler(kind, errors.on_error)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    for away in (CallerGoneError, ClientDisconnect):
        app.add_exception_handler(away, gone)


def openai_routes(door: Door[Any], max_body_bytes: int = MAX_BODY_BYTES) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1")
    started = int(time.time())

    @router.get("/models")
    async def list_models(request: Request) -> Response:
        _caller(door, request)
        return json_response({"object": "list", "data": [_model(door, started)]})

    @router.get("/models/{name:path}")
    async def get_model(request: Request, name: str) -> Response:
        _caller(door, request)
        door.check_model(name)
        return json_response(_model(door, started))

    @router.post("/completions")
    async def completion(request: Request) -> Response:
        caller = _caller(door, request)
        data = await read_body(request, max_body_bytes)
        body = parse(CompletionBody, data)
        door.check_model(body.model)
        question = await _computed(lambda: completions.question_of(body, door.tokenizer), len(data))
        answering = door.answering(caller, question)
        form = completions.CompletionForm(answering, door.tokenizer, model=door.model)
        form.echo(body)
        return await _answer(request, answering, form, body, door.errors)

    @router.post("/chat/completions")
    async def chat_completion(request: Request) -> Response:
        caller = _caller(door, request)
        data = await read_body(request, max_body_bytes)
        body = parse(ChatBody, data)
        door.check_model(body.model)
        template = await door.chat_template()
        question = await _computed(
            lambda: chat.question_of(body, door.tokenizer, template, door.max_model_len), len(data)
        )
        answering = door.answering(caller, question)
        form = chat.ChatForm(answering, door.tokenizer, model=door.model)
        return await _answer(request, answering, form, body, door.errors)

    return router


def _caller(door: Door[Caller], request: Request) -> Caller:
    return door.authenticate(request.headers.get("authorization"))


def _model(door: Door[Any], created: int) -> dict[str, Any]:
    """One entry; ``max_model_len`` as vLLM has it, ``system_fingerprint`` as responses carry it."""
    return {
        "id": door.model,
        "object": "model",
        "created": created,
        "owned_by": "pilotfish",
        "max_model_len": door.max_model_len,
        "system_fingerprint": door.fingerprint,
    }


async def _computed(work: Callable[[], Result], size: int) -> Result:
    return work() if size < LONG_BODY else await asyncio.to_thread(work)


async def _answer(
    request: Request, answering: Answering, form: Form, body: RequestBody, errors: ErrorForms
) -> Response:
    if body.stream:
        return EventStream(answering, form, errors, include_usage=body.include_usage, headers=body.ignored_header)
    parts: list[list[Delta]] = [[] for _ in answering.choices]

    async def opened(choice: Choice) -> None:
        pass

    async def keep(choice: Choice, delta: Delta) -> None:
        parts[choice.index].append(delta)

    await unless_gone(answering.run(opened, keep), request.receive)
    return json_response(form.whole(parts), headers=body.ignored_header)
