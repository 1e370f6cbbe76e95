"""Calls over WebSocket as a browser makes them: frames by hand, sub-protocols, and how the socket was closed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from pilotfish_core.drafts import Commit
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import CloudFrameReader
from tests.e2e.conftest import Verifier

PATH = "/pilotfish/v1/generate"
PROTOCOL = "pilotfish.v1"
PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True)
class Said:
    """How a socket ended; ``told``: the text message before that."""

    code: int
    reason: str
    told: dict[str, Any] | None
    frames: list[pb.CloudFrame]
    headers: dict[str, str]

    @property
    def error(self) -> dict[str, Any]:
        """What the close frame's reason says."""
        said: dict[str, Any] = json.loads(self.reason)
        return said

    @property
    def commits(self) -> list[Commit]:
        reader = CloudFrameReader()
        return [message for frame in self.frames for message in reader.read(frame) if isinstance(message, Commit)]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for commit in self.commits for token in commit.tokens)


def key_protocol(key: str) -> str:
    return "pilotfish.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


@contextlib.asynccontextmanager
async def socket(
    address: str, *, offers: Iterable[str] = (PROTOCOL,), origin: str | None = None, path: str = PATH, **options: Any
) -> AsyncIterator[ClientConnection]:
    """A socket to ``address``, an http or https URL. Raises InvalidStatus for one that is refused at the upgrade."""
    settings: dict[str, Any] = {"compression": None, "proxy": None, "ping_interval": None, "close_timeout": 5}
    async with connect(
        address.replace("http", "ws", 1) + path,
        subprotocols=[Subprotocol(name) for name in offers] or None,
        origin=None if origin is None else Origin(origin),
        **settings | options,
    ) as open_socket:
        yield open_socket


async def ask(
    verifier: Verifier | str,
    messages: Iterable[pb.DeviceFrame | bytes | str],
    *,
    began: asyncio.Event | None = None,
    **options: Any,
) -> Said:
    """Send these messages, and read to the end."""
    address = verifier if isinstance(verifier, str) else verifier.http
    async with socket(address, **options) as peer:
        with contextlib.suppress(ConnectionClosed):  # that it was closed before all was sent shows in how
            for message in messages:
                await peer.send(message.SerializeToString() if isinstance(message, pb.DeviceFrame) else message)
        return await rest(peer, began)


async def rest(peer: ClientConnection, began: asyncio.Event | None = None) -> Said:
    """What comes until the end."""
    frames: list[pb.CloudFrame] = []
    told: dict[str, Any] | None = None
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionClosed):
            async for message in peer:
                if isinstance(message, str):
                    assert told is None
                    told = json.loads(message)
                else:
                    assert told is None
                    frames.append(pb.CloudFrame.FromString(message))
                if began is not None:
                    began.set()
        await peer.wait_closed()
    assert peer.close_code is not None
    headers = {} if peer.response is None else {name.lower(): value for name, value in peer.response.headers.items()}
    return Said(peer.close_code, peer.close_reason or "", told, frames, headers)
