"""The gRPC door: one bidirectional call per generation. Who calls, statuses, and what only grpc.aio asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.device_calls import CUT_AFTER_S, DeviceCalls, NotReadError, PeerGoneError
from pilotfish_cloud.edge import AUTHORIZATION_METADATA, Context, abort, receive
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.principal import ANYONE, Principal
from pilotfish_core.errors import PilotfishError
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc

DOOR: Final = "grpc"
TOKENIZER_CHUNK_BYTES: Final = 64 * 1024


class _CallLink:
    """One call as ``device_calls.Link``."""

    over: tuple[type[BaseException], ...] = (grpc.aio.BaseError,)

    def __init__(self, frames: AsyncIterator[pb.DeviceFrame], context: Context) -> None:
        self._frames = frames
        self._context = context

    def frames(self) -> AsyncIterator[pb.DeviceFrame]:
        """See ``Link``."""
        return self._frames

    async def begin(self) -> None:
        """A status could not be sent before the first frame is out otherwise."""
        await self._context.send_initial_metadata(())

    async def write(self, frame: pb.CloudFrame) -> None:
        """See ``Link``."""
        await self._context.write(frame)


class VerifierService(pb_grpc.VerifierServicer):
    """Connects calls with the gateway. Lives on the gateway's event loop."""

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Catalogue,
        authenticate: Callable[[str | None], Principal] = lambda _: ANYONE,
        *,
        pad_frames: bool = False,
        cut_after_s: float = CUT_AFTER_S,
    ) -> None:
        """``authenticate``: who sent an Authorization header, None for a call without one; raises Unauthenticated."""
        self._gateway = gateway
        self._catalogue = catalogue
        self._authenticate = authenticate
        self.calls = DeviceCalls(gateway, catalogue, door=DOOR, pad_frames=pad_frames, cut_after_s=cut_after_s)

    async def Generate(  # type: ignore[override]  # grpc.aio takes a coroutine that writes as well as a generator
        self, request_iterator: AsyncIterator[pb.DeviceFrame], context: Context
    ) -> None:
        """One generation."""
        try:
            metadata = receive(context)
            principal = self._authenticate(metadata.get(AUTHORIZATION_METADATA))
            self._gateway.check_open()
            remaining = context.time_remaining()
            deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
            link = _CallLink(request_iterator, context)
            await self.calls.hold(link, principal, deadline=deadline, metadata=metadata)
        except grpc.aio.BaseError:
            raise  # the call is over
        except PeerGoneError:
            raise asyncio.CancelledError from None  # what grpc.aio itself does to the handler, now or in a moment
        except NotReadError as cut:
            # The status queues behind what the peer does not read; the handler does not wait for that.
            self.calls.in_background(abort(context, cut.reason))
            await asyncio.sleep(0)
        except Exception as error:
            await abort(context, error)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """What is served here."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
        except PilotfishError as error:
            await abort(context, error)
        return self._catalogue.describe()

    async def FetchTokenizer(
        self, request: pb.FetchTokenizerRequest, context: Context
    ) -> AsyncIterator[pb.TokenizerChunk]:
        """tokenizer.json, in chunks."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
            data = self._catalogue.tokenizer(request.model)
        except PilotfishError as error:
            await abort(context, error)
        yield pb.TokenizerChunk(
            total_size=len(data),
            tokenizer_hash=self._catalogue.tokenizer_hash,
            end_token_ids=self._catalogue.end_token_ids,
        )
        for begin in range(0, len(data), TOKENIZER_CHUNK_BYTES):
            yield pb.TokenizerChunk(data=data[begin : begin + TOKENIZER_CHUNK_BYTES])

    async def FetchChatTemplate(self, request: pb.FetchChatTemplateRequest, context: Context) -> pb.ChatTemplate:
        """The template that this verifier's own HTTP door uses."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
            return self._catalogue.chat_template(request.model)
        except PilotfishError as error:
            await abort(context, error)
