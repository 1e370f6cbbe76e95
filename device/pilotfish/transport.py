"""To the verifier: one stream per attempt, over gRPC (channels, statuses turned back into typed errors) or, in
``socket_transport``, over WebSocket.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from pilotfish.addresses import Address
from pilotfish.credentials import Credentials
from pilotfish.foreign_text import one_line
from pilotfish.routes import ROUTE_METADATA
from pilotfish_core.errors import (
    DeadlineExceeded,
    MissingExtra,
    PilotfishError,
    ProtocolViolation,
    Unauthenticated,
    Unavailable,
    error_of_kind,
)
from pilotfish_core.messages import PROTOCOL_VERSION, ROUTE_KEY
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.wire import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from pilotfish.socket_transport import SocketStream

MAX_TOKENIZER_BYTES: Final = 64 * 1024 * 1024  # tokenizer.json of today's largest vocabularies is about 20 MB
UNARY_TIMEOUT_S: Final = 10.0
FETCH_TIMEOUT_S: Final = 120.0  # of a whole tokenizer.json: 20 MB at 1.3 Mbit/s
_HINT_MS: Final = re.compile(r"[0-9]{1,9}")
_CERTIFICATE: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([a-z][a-z ()-]*)")  # what the TLS library says of it
_PROXY: Final = re.compile(r"Received http2 header with status: (50[234])")  # gRPC of an answer that has no status
PROXY_RETRY_S: Final = 0.5
_UNKNOWN_AUTHORITY: Final = ("unable to get", "self signed", "self-signed", "unable to verify")

CHANNEL_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),  # our own backoff decides when to try; the channel's must not add
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in truth how long TCP, TLS and HTTP/2's settings may take together
    ("grpc.enable_retries", 0),
    # A connection whose peer is gone (a phone that changed networks, a stopped process) must not swallow every new
    # attempt. The channel asks only while a call is open, and later than the core, whose ping after 5 s of silence is
    # data: a server that allows pings without data every 5 minutes (gRPC's default) has nothing to punish.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # newer gRPC waits that long for the answer, by default a minute
]


class DeviceStream:
    """One open call. ``send`` never waits; ``frames`` is read by one task only, for the call's whole life."""

    def __init__(
        self,
        stub: pb_grpc.VerifierAsyncStub,
        address: Address | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        timeout_s: float | None = None,
    ) -> None:
        self._outgoing: asyncio.Queue[pb.DeviceFrame | None] = asyncio.Queue()
        self._address = address
        self._call: Any = stub.Generate(self._requests(), metadata=metadata, timeout=timeout_s)
        self._cancelled = False
        self.bytes_up = 0
        self.bytes_down = 0

    def send(self, frame: pb.DeviceFrame) -> None:
        """Queue a frame."""
        self.bytes_up += frame.ByteSize()
        self._outgoing.put_nowait(frame)

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        """The cloud's frames. Raises a typed error when the call ends with one."""
        try:
            async for frame in self._call:
                self.bytes_down += frame.ByteSize()
                yield frame
        except grpc.aio.AioRpcError as error:
            raise translate(error, self._address) from None
        except asyncio.CancelledError:
            if not self._cancelled:  # grpc.aio says a call's own cancellation the same way as a task's
                raise

    def close(self) -> None:
        """Say that nothing more will be sent."""
        self._outgoing.put_nowait(None)

    def cancel(self) -> None:
        """End the call now."""
        self._cancelled = True
        self._outgoing.put_nowait(None)
        self._call.cancel()

    async def _requests(self) -> AsyncIterator[pb.DeviceFrame]:
        while (frame := await self._outgoing.get()) is not None:
            yield frame


class Transport:
    """Channels to one or several addresses, opened when first used. Belongs to one event loop."""

    def __init__(self, addresses: tuple[Address, ...], credentials: Credentials | None = None) -> None:
        self.addresses = addresses
        self._credentials = credentials or Credentials()
        self._channels: dict[Address, grpc.aio.Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of WebSockets

    def open(self, number: int, timeout_s: float | None = None, route: str = "") -> DeviceStream:
        """A new stream; successive numbers go round the addresses. ``timeout_s``: told to the verifier, too; ``route``:
        to what balances the load before it.
        """
        address = self.addresses[number % len(self.addresses)]
        if address.websocket:
            stream: SocketStream = _sockets().SocketStream(address, self._credentials, timeout_s, route)
            self._tasks.add(stream.task)
            stream.task.add_done_callback(self._tasks.discard)
            return stream
        metadata = self._credentials.metadata
        if route:
            metadata = (*metadata, (ROUTE_METADATA, route))
        return DeviceStream(self._stub(address), address, metadata, timeout_s)

    async def describe(self) -> pb.DescribeResponse:
        """What the first address that answers serves, if it speaks our protocol.

        Raises Unavailable, ProtocolViolation and whatever the verifier says.
        """
        return (await self.describe_at())[1]

    async def describe_at(self) -> tuple[Address, pb.DescribeResponse]:
        """The same, and which address answered."""
        failure: PilotfishError = Unavailable("no address given")
        for address in self.addresses:
            try:
                response = await self._describe(address)
                check_version(response.protocol_version)
                return address, response
            except grpc.aio.AioRpcError as error:
                failure = translate(error, address)
            except PilotfishError as error:
                failure = error
        raise failure

    async def _describe(self, address: Address) -> pb.DescribeResponse:
        if address.websocket:
            response: pb.DescribeResponse = await _sockets().describe(address, self._credentials)
            return response
        return await self._stub(address).Describe(
            pb.DescribeRequest(), timeout=UNARY_TIMEOUT_S, metadata=self._credentials.metadata
        )

    async def fetch_tokenizer(self, model: str) -> tuple[bytes, tuple[int, ...]]:
        """tokenizer.json and end-token ids of a served model."""
        failure: PilotfishError = Unavailable("no address given")
        for address in self.addresses:
            try:
                return await self._fetch_tokenizer(address, model)
            except grpc.aio.AioRpcError as error:
                failure = translate(error, address)
            except Unavailable as error:
                failure = error
        raise failure

    async def fetch_end_tokens(self, model: str) -> tuple[str, tuple[int, ...]]:
        """Ids that end an answer of a served model, and the hash (hex) of the tokenizer whose ids they are."""
        failure: PilotfishError = Unavailable("no address given")
        for address in self.addresses:
            try:
                call = self._stub(address).FetchTokenizer(
                    pb.FetchTokenizerRequest(model=model), timeout=UNARY_TIMEOUT_S, metadata=self._credentials.metadata
                )
                async for chunk in call:  # the first one has them
                    call.cancel()
                    return chunk.tokenizer_hash.hex(), tuple(chunk.end_token_ids)
                failure = ProtocolViolation("the verifier sent no tokenizer")
            except grpc.aio.AioRpcError as error:
                failure = translate(error, address)
        raise failure

    async def fetch_chat_template(self, model: str) -> pb.ChatTemplate:
        """The chat template of a served model; its source is empty where it has none, or an older verifier none yet."""
        failure: PilotfishError = Unavailable("no address given")
        for address in self.addresses:
            try:
                return await self._fetch_chat_template(address, model)
            except Unavailable as error:
                failure = error
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return pb.ChatTemplate()
                failure = translate(error, address)
        raise failure

    async def _fetch_chat_template(self, address: Address, model: str) -> pb.ChatTemplate:
        if address.websocket:
            template: pb.ChatTemplate = await _sockets().fetch_chat_template(address, self._credentials, model)
            return template
        request = pb.FetchChatTemplateRequest(model=model)
        metadata = self._credentials.metadata
        return await self._stub(address).FetchChatTemplate(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)

    async def _fetch_tokenizer(self, address: Address, model: str) -> tuple[bytes, tuple[int, ...]]:
        if address.websocket:
            fetched: tuple[bytes, tuple[int, ...]] = await _sockets().fetch_tokenizer(address, self._credentials, model)
            return fetched
        data, end_token_ids = bytearray(), tuple[int, ...]()
        request = pb.FetchTokenizerRequest(model=model)
        metadata = self._credentials.metadata
        async for chunk in self._stub(address).FetchTokenizer(request, timeout=FETCH_TIMEOUT_S, metadata=metadata):
            end_token_ids = end_token_ids or tuple(chunk.end_token_ids)
            data += chunk.data
            if len(data) > MAX_TOKENIZER_BYTES:
                raise ProtocolViolation(f"the verifier's tokenizer.json is over {MAX_TOKENIZER_BYTES} bytes")
        return bytes(data), end_token_ids

    async def close(self) -> None:
        """Close all channels; open streams end."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stub(self, address: Address) -> pb_grpc.VerifierAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            if address.secure:
                known = self._credentials
                credentials = grpc.ssl_channel_credentials(known.ca, known.key, known.cert)
                channel = grpc.aio.secure_channel(str(address), credentials, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.insecure_channel(str(address), options=CHANNEL_OPTIONS)
            self._channels[address] = channel
        return cast("pb_grpc.VerifierAsyncStub", pb_grpc.VerifierStub(channel))


def _sockets() -> ModuleType:
    """What speaks WebSocket, once it is asked for. Raises MissingExtra."""
    try:
        from pilotfish import socket_transport
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "websockets", "websocket", "an address ws:// or wss://") from None
    return socket_transport


def check_version(version: int) -> None:
    """Raises ProtocolViolation for a verifier of another protocol version."""
    if version != PROTOCOL_VERSION:
        raise ProtocolViolation(f"the verifier speaks protocol version {version}, this device {PROTOCOL_VERSION}")


def translate(error: grpc.aio.AioRpcError, address: Address | None = None) -> PilotfishError:
    """The typed error behind a status: the verifier's own where its metadata names one.

    ``address``: who was called, where a failed connection is to be explained.
    """
    metadata = {str(key): value for key, value in (error.trailing_metadata() or ())}
    kind, hint = metadata.get("pilotfish-error"), metadata.get("pilotfish-retry-after-ms")
    message = one_line(error.details() or "") or error.code().name
    if isinstance(kind, str):
        retry_after_s = int(hint) / 1000 if isinstance(hint, str) and _HINT_MS.fullmatch(hint) else None
        typed = error_of_kind(kind, message, retry_after_s=retry_after_s)
        route = metadata.get(ROUTE_METADATA)
        typed.route = route if isinstance(route, str) and ROUTE_KEY.fullmatch(route) else None
        return typed
    if (proxy := _PROXY.search(error.details() or "")) is not None:
        return Unavailable(
            f"what stands before the verifier has none to ask at the moment (HTTP {proxy[1]})",
            retry_after_s=PROXY_RETRY_S,
        )
    if address is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
        explained = _connection_error(error.details() or "", address)
        if explained is not None:
            return explained
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.UNKNOWN:
            return Unavailable(f"the connection to the verifier failed: {message}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ProtocolViolation(f"what listens there is not a Pilotfish verifier: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the verifier did not answer in time: {message}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in message:
            return ProtocolViolation(f"the verifier sent a frame of more than {MAX_FRAME_BYTES} bytes")
        case grpc.StatusCode.INTERNAL:
            return Unavailable(f"the stream broke: {message}")
        case _:
            return PilotfishError(f"{error.code().name}: {message}")


def _connection_error(details: str, address: Address) -> PilotfishError | None:
    """What a handshake that failed comes down to. Certificates do not get better by trying again."""
    if "Hostname Verification Check failed" in details:
        return Unauthenticated(f"the verifier's certificate is not for {address.host}, but for another host")
    refused = _CERTIFICATE.search(details)
    if refused is not None:
        reason = refused[1].strip()
        if reason.startswith(_UNKNOWN_AUTHORITY):
            return Unauthenticated(
                f"the certificate of {address} is not from an authority that this device trusts (--ca): {reason}"
            )
        return Unauthenticated(f"the certificate of {address} is not accepted: {reason}")
    if "WRONG_VERSION_NUMBER" in details:
        return Unauthenticated(f"{address} does not speak TLS; say grpc://{address} if that is meant")
    if "failed to connect" in details and "Socket closed" in details:
        hint = "does it ask for a client certificate (--cert, --key)?" if address.secure else "does it speak TLS?"
        return Unavailable(f"{address} closes the connection at once; {hint}")
    return None
