"""The WebSocket door: one socket per generation, each binary message one frame. For devices in browsers.

A browser can set no headers, so API key and deadline come as sub-protocols, and a status goes back as a close code.
docs/protocol.md has it all under "Over WebSocket".
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
from starlette.websockets import WebSocket, WebSocketDisconnect

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.device_calls import CUT_AFTER_S, DeviceCalls, NotReadError, PeerGoneError
from pilotfish_cloud.edge import message_of, public
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.door import Authenticate
from pilotfish_cloud.logs import request_id
from pilotfish_cloud.origins import Origins
from pilotfish_core.errors import INTERNAL_STATUS, STATUS_BY_KIND, PermissionDenied, PilotfishError, ProtocolViolation
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_openai.errors import ErrorForms

DOOR: Final = "websocket"
PROTOCOL: Final = "pilotfish.v1"
KEY_PREFIX: Final = "pilotfish.key."
DEADLINE_PREFIX: Final = "pilotfish.deadline."
CLOSED: Final = 1000
ERROR_CODES: Final = 4000  # a gRPC status's number is added
MAX_REASON_BYTES: Final = 123  # of a close frame
TELL_WITHIN_S: Final = 60.0  # that a peer may take for the reason why its call has ended
_DEADLINE_MS: Final = re.compile("[0-9]{1,12}")
_BASE64URL: Final = re.compile("[0-9A-Za-z_-]{1,1024}")


class WebSocketDoor:
    """Connects sockets with the gateway. Lives on the gateway's event loop."""

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Catalogue,
        authenticate: Authenticate,
        *,
        origins: Origins | None = None,
        pad_frames: bool = False,
        cut_after_s: float = CUT_AFTER_S,
    ) -> None:
        """``authenticate``: who sent an Authorization header; a key among the sub-protocols is given as one."""
        self._gateway = gateway
        self._authenticate = authenticate
        self.origins = origins or Origins()
        self._errors = ErrorForms(public)
        self.calls = DeviceCalls(gateway, catalogue, door=DOOR, pad_frames=pad_frames, cut_after_s=cut_after_s)
        self._open: set[asyncio.Task[Any]] = set()

    async def serve(self, websocket: WebSocket) -> None:
        """One socket, from its upgrade to its end."""
        if (task := asyncio.current_task()) is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        try:
            self._check(websocket)
        except PilotfishError as error:
            await websocket.send_denial_response(self._errors.response(error))
            return
        offered: list[str] = websocket.scope["subprotocols"]
        socket = _Socket(websocket)
        try:
            await socket.accept(PROTOCOL if PROTOCOL in offered else None)
            await self._generate(websocket, socket, _Offer.of(offered))
            await socket.close(CLOSED, "")
        except PeerGoneError:
            return
        except NotReadError as cut:
            await socket.fail(public(cut.reason))
        except Exception as error:
            await socket.fail(public(error))

    async def settled(self, timeout_s: float) -> None:
        """Wait until those whose generations have ended are told so."""
        if self._open:
            await asyncio.wait(list(self._open), timeout=timeout_s)

    def _check(self, websocket: WebSocket) -> None:
        """What is refused at the upgrade: pages of others, and all that is new while draining, since what balances the
        load understands a 503 and asks another replica. Raises PermissionDenied, Unavailable.
        """
        headers = websocket.headers
        origin = headers.get("origin")
        if not self.origins.admits(origin, headers.get("host"), secure=websocket.scope["scheme"] == "wss"):
            raise PermissionDenied(f"pages of {origin!r:.100} are not admitted here (--allow-origin)")
        self._gateway.check_open()

    async def _generate(self, websocket: WebSocket, socket: _Socket, offer: _Offer) -> None:
        principal = self._authenticate(websocket.headers.get("authorization") or offer.authorization)
        deadline = None if offer.deadline_s is None else asyncio.get_running_loop().time() + offer.deadline_s
        await self.calls.hold(socket, principal, deadline=deadline, metadata=websocket.headers)


@dataclasses.dataclass(frozen=True, slots=True)
class _Offer:
    """What the sub-protocols that a client offers say. ``authorization``: as the header has it."""

    authorization: str | None = dataclasses.field(default=None, repr=False)
    deadline_s: float | None = None

    @classmethod
    def of(cls, names: Sequence[str]) -> _Offer:
        """Raises ProtocolViolation, which never shows a key."""
        if PROTOCOL not in names:
            raise ProtocolViolation(f"the sub-protocol {PROTOCOL} is not among those that the client offers")
        key, deadline = _only(names, KEY_PREFIX), _only(names, DEADLINE_PREFIX)
        if deadline is not None and not _DEADLINE_MS.fullmatch(deadline):
            raise ProtocolViolation(f"the deadline is {deadline[:50]!r}; expected milliseconds in digits")
        return cls(
            None if key is None else f"Bearer {_key_of(key)}", None if deadline is None else int(deadline) / 1000
        )


def _only(names: Sequence[str], prefix: str) -> str | None:
    found = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if len(found) > 1:
        raise ProtocolViolation(f"the client offers {len(found)} sub-protocols {prefix}...")
    return found[0] if found else None


def _key_of(text: str) -> str:
    try:
        if not _BASE64URL.fullmatch(text):
            raise ValueError
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:  # of the decoders, too
        raise ProtocolViolation(f"what follows {KEY_PREFIX} is not base64url, without padding, of UTF-8") from None


class _Socket:
    """One socket as ``device_calls.Link``, and how it ends."""

    over: tuple[type[BaseException], ...] = (PeerGoneError,)

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def accept(self, protocol: str | None) -> None:
        """Raises PeerGoneError."""
        try:
            await self._websocket.accept(protocol)
        except (WebSocketDisconnect, RuntimeError, OSError):
            raise PeerGoneError from None

    async def frames(self) -> AsyncIterator[pb.DeviceFrame]:
        """Up to the peer's end, which is the call's. Raises PeerGoneError, ProtocolViolation, DecodeError."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise PeerGoneError
            data = message.get("bytes")
            if data is None:
                raise ProtocolViolation("a text message came; frames are binary messages")
            yield pb.DeviceFrame.FromString(data)

    async def begin(self) -> None:
        """See ``Link``; the upgrade has been answered long since."""

    async def write(self, frame: pb.CloudFrame) -> None:
        """Raises PeerGoneError."""
        try:
            await self._websocket.send_bytes(frame.SerializeToString())
        except (WebSocketDisconnect, RuntimeError):  # the latter where a close went out before
            raise PeerGoneError from None

    async def close(self, code: int, reason: str, text: str | None = None) -> None:
        """Say why, in a message before if there is more to say. A peer that takes none of it is left."""
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                if text is not None:
                    await self._websocket.send_text(text)
                await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            return

    async def fail(self, error: PilotfishError) -> None:
        """Close with the status of ``error``."""
        status, _ = STATUS_BY_KIND.get(error.kind, INTERNAL_STATUS)
        number: int = grpc.StatusCode[status].value[0]
        reason, whole = closing(error)
        await self.close(ERROR_CODES + number, reason, whole)


def closing(error: PilotfishError) -> tuple[str, str | None]:
    """The reason of a close frame, JSON whose message is cut to fit; and the text message that goes before it where
    that does not say all.
    """
    message = message_of(error)
    said: dict[str, Any] = {"code": error.kind, "message": message}
    if error.retry_after_s is not None:
        said["retry_after_s"] = round(error.retry_after_s, 3)
    reason = _json(said)
    cut = message.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    while len(reason.encode()) > MAX_REASON_BYTES:
        cut = cut[:-1]
        reason = _json(said | {"message": f"{cut}..."})
    more: dict[str, Any] = {} if error.route is None else {"routes": [error.route]}
    if not more and reason == _json(said):
        return reason, None
    if request_id.get():
        more["request_id"] = request_id.get()
    return reason, _json({"error": said | more})


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
