"""The RPC edge: what a call's metadata says, and the only place where an exception becomes a gRPC status."""

from __future__ import annotations

import logging
from typing import Any, Final, NoReturn

import grpc

from pilotfish_cloud.logs import REQUEST_ID_METADATA, name_request, request_id
from pilotfish_cloud.routing import ROUTE_METADATA
from pilotfish_core.errors import INTERNAL_STATUS, STATUS_BY_KIND, PilotfishError

log = logging.getLogger("pilotfish_cloud")

KIND_METADATA: Final = "pilotfish-error"
RETRY_METADATA: Final = "pilotfish-retry-after-ms"
AUTHORIZATION_METADATA: Final = "authorization"
MAX_MESSAGE: Final = 600  # characters; a status travels in headers, percent-encoded, and peers limit those to 8 KiB

Context = grpc.aio.ServicerContext[Any, Any]


def receive(context: Context) -> dict[str, str]:
    """A call's metadata; the first of each name. Names the request, and says that name at the call's end."""
    metadata: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            metadata.setdefault(name, value)
    context.set_trailing_metadata(((REQUEST_ID_METADATA, name_request(metadata.get(REQUEST_ID_METADATA))),))
    return metadata


async def abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the error's public message; the private one goes to the log."""
    error = public(error)
    status, _ = STATUS_BY_KIND.get(error.kind, INTERNAL_STATUS)
    metadata = [(KIND_METADATA, error.kind)]
    if request_id.get():
        metadata.append((REQUEST_ID_METADATA, request_id.get()))
    if error.retry_after_s is not None:
        metadata.append((RETRY_METADATA, str(int(error.retry_after_s * 1000))))
    if error.route is not None:
        metadata.append((ROUTE_METADATA, error.route))
    await context.abort(grpc.StatusCode[status], message_of(error), tuple(metadata))
    raise AssertionError("context.abort always raises")


def public(error: Exception) -> PilotfishError:
    """What a peer may be told of an error; the rest goes to the log.

    An exception that is not ours is a defect: the peer learns only that something failed.
    """
    if not isinstance(error, PilotfishError):
        log.error("unexpected %s in a call", type(error).__name__, exc_info=error)
        return PilotfishError("the verifier failed unexpectedly; its log has the reason")
    if error.private is not None:
        log.warning("%s: %s (%s)", error.kind, error.message, error.private)
    else:
        log.info("%s: %s", error.kind, error.message)
    return error


def message_of(error: PilotfishError) -> str:
    """The message, or its beginning."""
    return error.message if len(error.message) <= MAX_MESSAGE else f"{error.message[:MAX_MESSAGE]}..."
