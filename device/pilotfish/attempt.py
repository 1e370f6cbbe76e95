"""One attempt at a generation: a stream, and the state that its frames leave out."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from pilotfish.transport import DeviceStream, Transport
from pilotfish_core.errors import InvalidRequest, PilotfishError, PromptTooLong, ProtocolViolation, Unavailable
from pilotfish_core.messages import Open
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import MAX_FRAME_BYTES, CloudFrameReader, DeviceFrameWriter


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """A frame came."""

    attempt: Attempt
    frame: pb.CloudFrame


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """The stream ended without a finish, or after it."""

    attempt: Attempt
    error: PilotfishError


class Attempt:
    """An open stream. ``post`` is called with what comes, Lost last. ``fingerprint`` is the replica's, once opened.

    Raises InvalidRequest, before anything is opened, for a generation that the wire cannot carry, and PromptTooLong
    for one that does not fit a frame.
    """

    def __init__(
        self,
        transport: Transport,
        number: int,
        message: Open,
        post: Callable[[Received | Lost], None],
        *,
        padded: bool = False,
        timeout_s: float | None = None,
        route: str = "",
    ) -> None:
        self.writer = DeviceFrameWriter(padded=padded)
        self.reader = CloudFrameReader()
        self.fingerprint = ""
        self.opening = message
        frame = self._frame(message)
        self.stream: DeviceStream = transport.open(number, timeout_s, route)
        self.stream.send(frame)
        self.task = asyncio.get_running_loop().create_task(self._listen(post))

    def reopen(self, message: Open) -> None:
        """Send the open again, with all ids of the prompt. Raises ProtocolViolation when it had them already."""
        if self.opening.prefix is None:
            raise ProtocolViolation("the verifier asked for a prompt prefix that was sent as ids")
        self.opening = message
        self.stream.send(self._frame(message))

    def _frame(self, message: Open) -> pb.DeviceFrame:
        try:
            frame = self.writer.open(message)
        except (ValueError, TypeError) as error:  # a number too large for its field, text that is not Unicode
            raise InvalidRequest(f"the generation cannot be sent: {error}") from None
        size = frame.ByteSize()
        if size > MAX_FRAME_BYTES:
            raise PromptTooLong(
                f"a prompt of {len(message.prompt)} tokens and an output of {len(message.output)} take {size} bytes to "
                f"send; at most {MAX_FRAME_BYTES} can be sent"
            )
        return frame

    async def _listen(self, post: Callable[[Received | Lost], None]) -> None:
        try:
            async for frame in self.stream.frames():
                post(Received(self, frame))
        except PilotfishError as error:
            post(Lost(self, error))
        else:
            post(Lost(self, Unavailable("the verifier ended the stream without a finish")))
