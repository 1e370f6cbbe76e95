"""What a device in a browser asks of the HTTP port: what is served, its tokenizer and template, and the socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Final

from fastapi import APIRouter
from google.protobuf import json_format
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.http.conditional import headers_of, not_modified
from pilotfish_cloud.http.door import Authenticate
from pilotfish_cloud.http.websocket import WebSocketDoor
from pilotfish_openai.errors import json_response

CHUNK_BYTES: Final = 64 * 1024


def device_routes(catalogue: Catalogue, authenticate: Authenticate, sockets: WebSocketDoor) -> APIRouter:
    """The routes under /pilotfish/v1. ``?model=NAME`` asks for a model by name; without, it is the only one."""
    router = APIRouter(prefix="/pilotfish/v1")
    tokenizers: list[tuple[bytes, str]] = []  # its JSON and SHA-256, once somebody has asked

    @router.get("/describe")
    async def describe(request: Request) -> Response:
        authenticate(request.headers.get("authorization"))
        return json_response(json_format.MessageToDict(catalogue.describe()), headers={"cache-control": "no-store"})

    @router.get("/tokenizer")
    async def tokenizer(request: Request, model: str = "") -> Response:
        authenticate(request.headers.get("authorization"))
        data = catalogue.tokenizer(model)
        if not tokenizers:  # tens of MB for large vocabularies
            tokenizers.append(await asyncio.to_thread(_tokenizer, catalogue, data))
        body, digest = tokenizers[0]
        if not_modified(request, digest):
            return Response(status_code=304, headers=headers_of(digest))
        headers = headers_of(digest) | {"content-length": str(len(body))}
        return StreamingResponse(_chunks(body), headers=headers, media_type="application/json")

    @router.get("/chat-template")
    async def chat_template(request: Request, model: str = "") -> Response:
        authenticate(request.headers.get("authorization"))
        template = catalogue.chat_template(model)
        return json_response({"source": template.source, "specialTokens": dict(template.special_tokens)})

    @router.get("/generate")
    async def no_upgrade() -> Response:
        raise HTTPException(426, "generations are asked for over WebSocket here", headers={"upgrade": "websocket"})

    @router.websocket("/generate")
    async def generate(websocket: WebSocket) -> None:
        await sockets.serve(websocket)

    return router


def _tokenizer(catalogue: Catalogue, data: bytes) -> tuple[bytes, str]:
    """``data`` is JSON as it is."""
    known = {
        "endTokenIds": list(catalogue.end_token_ids),
        "tokenizerHash": base64.b64encode(catalogue.tokenizer_hash).decode(),
        "tokenizer": None,
    }
    head, _, tail = json.dumps(known).rpartition("null")
    body = b"".join((head.encode(), data, tail.encode()))
    return body, hashlib.sha256(body).hexdigest()


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    """As the caller takes them."""
    for begin in range(0, len(body), CHUNK_BYTES):
        yield body[begin : begin + CHUNK_BYTES]
