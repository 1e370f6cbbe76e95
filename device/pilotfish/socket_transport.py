"""WebSocket to the verifier's HTTP port, for networks that carry nothing else: one socket per attempt, GETs beside it.

docs/protocol.md has the rules under "Over WebSocket". Needs the extra ``websocket``.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from pilotfish.addresses import Address
from pilotfish.credentials import Credentials
from pilotfish.foreign_text import one_line
from pilotfish.transport import FETCH_TIMEOUT_S, MAX_TOKENIZER_BYTES, PROXY_RETRY_S, UNARY_TIMEOUT_S, DeviceStream
from pilotfish_core.errors import (
    PilotfishError,
    ProtocolViolation,
    Unauthenticated,
    Unavailable,
    error_of_kind,
)
from pilotfish_core.messages import ROUTE_KEY
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import MAX_FRAME_BYTES

PATH: Final = "/pilotfish/v1"
PROTOCOL: Final = "pilotfish.v1"
OPEN_TIMEOUT_S: Final = 5.0  # as the gRPC channel's, for TCP, TLS and the upgrade
CLOSE_TIMEOUT_S: Final = 1.0
PING_INTERVAL_S: Final = 10.0  # as the gRPC channel's: a peer that is gone must not swallow a generation
PING_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024  # of what is no tokenizer
_NORMAL: Final = 1000
_TOO_BIG: Final = 1009


class SocketStream(DeviceStream):
    """One socket with the methods of a gRPC stream. ``task`` connects, sends and receives."""

    def __init__(
        self, address: Address, credentials: Credentials, timeout_s: float | None = None, route: str = ""
    ) -> None:
        self._outgoing: asyncio.Queue[pb.DeviceFrame | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[pb.CloudFrame | PilotfishError | None] = asyncio.Queue()
        self._address = address
        self.bytes_up = 0
        self.bytes_down = 0
        self.task = asyncio.get_running_loop().create_task(self._run(address, credentials, timeout_s, route))

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        """The cloud's frames. Raises a typed error when the socket ends with one."""
        while (item := await self._incoming.get()) is not None:
            if isinstance(item, PilotfishError):
                raise item
            self.bytes_down += item.ByteSize()
            yield item

    def cancel(self) -> None:
        """End the call now."""
        self._incoming.put_nowait(None)
        self.task.cancel()

    async def _run(self, address: Address, credentials: Credentials, timeout_s: float | None, route: str) -> None:
        end: PilotfishError | None = Unavailable("the stream broke")
        try:
            async with _connect(address, credentials, timeout_s, route) as socket:
                sending = asyncio.create_task(self._send(socket))
                try:
                    end = await self._receive(socket)
                finally:
                    sending.cancel()
        except PilotfishError as error:
            end = error
        except InvalidStatus as error:
            answer = error.response
            end = _refusal(answer.status_code, answer.headers.get("x-pilotfish-error"), bytes(answer.body or b""))
        except ssl.SSLCertVerificationError as error:
            end = _untrusted(address, error)
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            end = Unavailable(f"the connection to the verifier failed: {one_line(str(error)) or type(error).__name__}")
        finally:
            self._incoming.put_nowait(end)

    async def _send(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (frame := await self._outgoing.get()) is not None:
                await socket.send(frame.SerializeToString())

    async def _receive(self, socket: ClientConnection) -> PilotfishError | None:
        """To the end; what it ended with, None where all was said."""
        told = ""
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                if isinstance(message, str):
                    told = message
                    continue
                try:
                    self._incoming.put_nowait(pb.CloudFrame.FromString(message))
                except DecodeError:
                    raise ProtocolViolation("the verifier sent a frame that cannot be parsed") from None
        return _ended(socket.close_code, socket.close_reason or "", told)


def _connect(address: Address, credentials: Credentials, timeout_s: float | None, route: str) -> connect:
    offers = [PROTOCOL]
    if timeout_s is not None:
        offers.append(f"pilotfish.deadline.{max(round(timeout_s * 1000), 0)}")
    return connect(
        f"{'wss' if address.secure else 'ws'}://{address}{PATH}/generate" + (f"?route={quote(route)}" if route else ""),
        ssl=credentials.tls_context() if address.secure else None,
        subprotocols=[Subprotocol(name) for name in offers],
        additional_headers=credentials.metadata,
        proxy=None,  # which the GETs beside it would not go through
        compression=None,
        max_size=MAX_FRAME_BYTES,
        open_timeout=OPEN_TIMEOUT_S,
        close_timeout=CLOSE_TIMEOUT_S,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_TIMEOUT_S,
    )


def _ended(code: int | None, reason: str, told: str) -> PilotfishError | None:
    """The typed error behind a close: the verifier's own where it names one."""
    if code == _NORMAL:
        return None
    said = _object(told).get("error")
    said = said if isinstance(said, dict) else _object(reason)
    if isinstance(said.get("code"), str):
        return _typed(said["code"], said)
    if code == _TOO_BIG:
        return ProtocolViolation(f"a message of more than {MAX_FRAME_BYTES} bytes")
    return Unavailable(f"the connection to the verifier broke (WebSocket code {code})")


def _typed(kind: str, said: Mapping[str, Any]) -> PilotfishError:
    message, after = said.get("message"), said.get("retry_after_s")
    typed = error_of_kind(
        kind,
        one_line(message) if isinstance(message, str) and message else kind,
        retry_after_s=float(after) if isinstance(after, int | float) and 0 <= after < 1e6 else None,
    )
    routes = said.get("routes")
    if isinstance(routes, list) and routes and isinstance(routes[0], str) and ROUTE_KEY.fullmatch(routes[0]):
        typed.route = routes[0]
    return typed


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refusal(status: int, kind: str | None, body: bytes) -> PilotfishError:
    """Of an answer that is not the one asked for."""
    if kind is not None:
        said = _object(body).get("error")
        return _typed(kind, said if isinstance(said, dict) else {})
    if status in (502, 503, 504):
        return Unavailable(
            f"what stands before the verifier has none to ask at the moment (HTTP {status})",
            retry_after_s=PROXY_RETRY_S,
        )
    return ProtocolViolation(f"what listens there is not a Pilotfish verifier, or an older one: HTTP {status}")


def _untrusted(address: Address, error: ssl.SSLCertVerificationError) -> Unauthenticated:
    return Unauthenticated(f"the certificate of {address} is not accepted (--ca): {one_line(error.verify_message)}")


# -- beside the socket ---------------------------------------------------------------------------------------------


async def describe(address: Address, credentials: Credentials) -> pb.DescribeResponse:
    """What is served there. Raises Unavailable, ProtocolViolation and whatever the verifier says."""
    body = await _get(address, credentials, "describe")
    try:
        return json_format.Parse(body, pb.DescribeResponse(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise ProtocolViolation("what listens there is not a Pilotfish verifier") from None


async def fetch_tokenizer(address: Address, credentials: Credentials, model: str) -> tuple[bytes, tuple[int, ...]]:
    """tokenizer.json and end-token ids of a served model."""
    body = await _get(
        address, credentials, _named("tokenizer", model), limit=MAX_TOKENIZER_BYTES, timeout_s=FETCH_TIMEOUT_S
    )
    value = _object(body)
    tokenizer, end_token_ids = value.get("tokenizer"), value.get("endTokenIds")
    if not isinstance(tokenizer, dict) or not isinstance(end_token_ids, list):
        raise ProtocolViolation("the verifier sent no tokenizer")
    if not all(type(token) is int and 0 <= token < 2**31 for token in end_token_ids):
        raise ProtocolViolation("the verifier names end tokens that are no ids")
    return json.dumps(tokenizer, ensure_ascii=False).encode("utf-8", "replace"), tuple(end_token_ids)


async def fetch_chat_template(address: Address, credentials: Credentials, model: str) -> pb.ChatTemplate:
    """The chat template of a served model; its source is empty where it has none."""
    body = await _get(address, credentials, _named("chat-template", model))
    try:
        return json_format.Parse(body, pb.ChatTemplate(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise ProtocolViolation("the verifier sent no chat template") from None


def _named(path: str, model: str) -> str:
    return f"{path}?model={quote(model, safe='')}" if model else path


async def _get(
    address: Address,
    credentials: Credentials,
    path: str,
    *,
    limit: int = MAX_ANSWER_BYTES,
    timeout_s: float = UNARY_TIMEOUT_S,
) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.to_thread(_read, address, credentials, path, limit)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(address, error) from None
    except (OSError, TimeoutError, http.client.HTTPException) as error:
        raise Unavailable(
            f"the connection to {address} failed: {one_line(str(error)) or type(error).__name__}"
        ) from None


def _read(address: Address, credentials: Credentials, path: str, limit: int) -> bytes:
    host = address.host.strip("[]")
    if address.secure:
        context = credentials.tls_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, address.port, timeout=UNARY_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=UNARY_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", f"{PATH}/{path}", headers=dict(credentials.metadata))
        response = connection.getresponse()
        body = response.read(limit + 1)
        if response.status != 200:
            raise _refusal(response.status, response.getheader("x-pilotfish-error"), body)
    if len(body) > limit:
        raise ProtocolViolation(f"the verifier's answer is over {limit} bytes")
    return body
