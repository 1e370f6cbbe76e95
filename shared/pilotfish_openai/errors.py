"""Errors at the HTTP edge, in OpenAI's shape: the only place where an exception becomes an HTTP response."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pilotfish_core.errors import INTERNAL_STATUS, STATUS_BY_KIND, InvalidRequest, PilotfishError
from pilotfish_openai.json_text import json_bytes

KIND_HEADER: Final = "x-pilotfish-error"  # our own name of the error, beside the code that OpenAI has for it
CLIENT_GONE: Final = 499  # nobody reads it
MAX_MESSAGE: Final = 600  # characters of a message
_CODES: Final = {
    "overloaded": "rate_limit_exceeded",
    "prompt_too_long": "context_length_exceeded",
    "unauthenticated": "invalid_api_key",
    "unknown_model": "model_not_found",
}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorForms:
    """How a door tells what went wrong. ``public``: what a caller may be told of an exception; it logs the rest."""

    def __init__(self, public: Callable[[Exception], PilotfishError]) -> None:
        self._public = public

    def response(self, error: Exception) -> Response:
        """Status, headers and body for ``error``. One that is not ours is logged, and told without its reason."""
        if isinstance(error, HTTPException):
            body = _body(error.status_code, str(error.detail), param=None, code=None)
            return json_response(body, error.status_code, dict(error.headers or {}))
        error = self._public(error)
        status = _status(error)
        headers = {KIND_HEADER: error.kind}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(error.retry_after_s))
            headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))  # which OpenAI's clients prefer
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        return json_response(_body_of(error), status, headers)

    def body(self, error: Exception) -> dict[str, Any]:
        """What goes into a stream that has begun."""
        return _body_of(self._public(error))

    async def on_error(self, request: Request, error: Exception) -> Response:
        """The application's handler of all exceptions."""
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            path = request.url.path if len(request.url.path) <= 100 else f"{request.url.path[:100]}..."
            what = "there is no" if error.status_code == 404 else "not allowed here:"
            error = HTTPException(error.status_code, f"{what} {request.method} {path}", error.headers)
        return self.response(error)


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response whose body is ``value`` as JSON."""
    return Response(json_bytes(value), status, headers, media_type="application/json")


def message_of(error: PilotfishError) -> str:
    """The message, or its beginning."""
    return error.message if len(error.message) <= MAX_MESSAGE else f"{error.message[:MAX_MESSAGE]}..."


def _body_of(error: PilotfishError) -> dict[str, Any]:
    param = error.parameter if isinstance(error, InvalidRequest) else None
    if error.kind == "unknown_model":
        param = "model"
    return _body(_status(error), message_of(error), param=param, code=_CODES.get(error.kind, error.kind))


def _status(error: PilotfishError) -> int:
    return STATUS_BY_KIND.get(error.kind, INTERNAL_STATUS)[1]


def _body(status: int, message: str, *, param: str | None, code: str | None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
