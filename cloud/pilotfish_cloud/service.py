"""The gRPC door: one bidirectional call per generation, frames in and out; what all doors share is the gateway's."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from pilotfish_cloud.draft_offers import DraftOffers
from pilotfish_cloud.edge import AUTHORIZATION_METADATA, Context, abort, receive
from pilotfish_cloud.engine.interface import AdviceEvent, CommitEvent, OpenedEvent
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.principal import ANYONE, Principal
from pilotfish_cloud.stream import Stream
from pilotfish_core.drafts import DraftRun
from pilotfish_core.errors import Cancelled, DeadlineExceeded, PilotfishError, ProtocolViolation
from pilotfish_core.messages import PROTOCOL_VERSION, Acknowledged, Open, Opened, Ping
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.wire import CloudFrameWriter, DeviceFrameReader, DeviceMessage
from pilotfish_openai.chat_template import ChatTemplate

TOKENIZER_CHUNK_BYTES: Final = 64 * 1024
OPEN_TIMEOUT_S: Final = 20.0  # from the call's beginning to its open
CUT_AFTER_S: Final = 10.0  # that a peer gets to read what is there, once its generation has failed


class _NotReadError(Exception):
    """The generation failed for ``reason``, and the peer does not read what there is before that."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


@dataclasses.dataclass(slots=True)
class _Call:
    """What the reader of a call and its handler share; the reader settles ``opened``, the handler ``admitted``."""

    context: Context
    principal: Principal
    opened: asyncio.Future[Open]
    admitted: asyncio.Future[Stream]
    answered: bool = False  # whether a frame was written before the generation was admitted


class VerifierService(pb_grpc.VerifierServicer):
    """Connects calls with the gateway. Lives on the gateway's event loop."""

    def __init__(
        self,
        gateway: Gateway,
        authenticate: Callable[[str | None], Principal] = lambda _: ANYONE,
        *,
        pad_frames: bool = False,
        cut_after_s: float = CUT_AFTER_S,
        chat_template: ChatTemplate | None = None,
        offers: DraftOffers | None = None,
    ) -> None:
        """``authenticate``: who sent an Authorization header, None for a call without one; raises Unauthenticated."""
        self._gateway = gateway
        self._authenticate = authenticate
        self._pad_frames = pad_frames  # else those to devices that pad their own
        self.cut_after_s = cut_after_s
        self._chat_template = chat_template
        self._offers = offers or DraftOffers()
        self.http_url, self.http_port = "", 0  # where their files are
        # Reads and writes in flight are never cancelled: grpc.aio leaks what they hold (grpc#43360). They end with the
        # call by themselves, which may be later than the handler.
        self._pending: set[asyncio.Task[None]] = set()
        self.on_written: Callable[[float], None] | None = None  # told the seconds from a step's end to its bytes

    async def Generate(  # type: ignore[override]  # grpc.aio takes a coroutine that writes as well as a generator
        self, request_iterator: AsyncIterator[pb.DeviceFrame], context: Context
    ) -> None:
        """One generation."""
        try:
            await self._generate(request_iterator, context)
        except grpc.aio.BaseError:
            raise  # the call is over
        except _NotReadError as cut:
            # The status queues behind what the peer does not read; the handler does not wait for that.
            self._in_background(abort(context, cut.reason))
            await asyncio.sleep(0)
        except Exception as error:
            await abort(context, error)

    async def _generate(self, frames: AsyncIterator[pb.DeviceFrame], context: Context) -> None:
        metadata = receive(context)
        principal = self._authenticate(metadata.get(AUTHORIZATION_METADATA))
        gateway = self._gateway
        gateway.check_open()
        loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        deadline = None if remaining is None else loop.time() + remaining
        call = _Call(context, principal, loop.create_future(), loop.create_future())
        # One reader for the call's whole life, which ends with the call by itself: a read that is cancelled or timed
        # out in flight leaks in grpc.aio (grpc#43360).
        reader = DeviceFrameReader()
        self._in_background(self._read(frames, reader, call))
        try:
            await asyncio.wait([call.opened], timeout=OPEN_TIMEOUT_S)
            if not call.opened.done():
                raise DeadlineExceeded(f"no open within {OPEN_TIMEOUT_S:.0f} s")
            opening = call.opened.result()
            claim = await gateway.ask(opening, principal)
            stream = gateway.open(opening, principal, claim=claim, deadline=deadline, metadata=metadata)
        except BaseException:
            call.opened.cancel()
            call.admitted.cancel()
            raise
        call.admitted.set_result(stream)
        failed: asyncio.Future[Any] = loop.create_future()
        stream.on_failed = failed.set_result
        try:
            if not call.answered:  # or else a status could not be sent before the first frame is out
                await context.send_initial_metadata(())
            writer = CloudFrameWriter(padded=self._pad_frames or reader.padded)
            writing = self._in_background(self._write(stream, writer, context))
            ends: list[asyncio.Future[Any]] = [writing, failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                await asyncio.wait([writing], timeout=self.cut_after_s)
            if not writing.done():
                raise _NotReadError(failed.result())
            writing.result()
        finally:
            stream.on_failed = None
            gateway.close(stream)
            stream.fail(Cancelled("the call is over"))  # ends the writer where it waits for events

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        if not task.cancelled():
            task.exception()  # the handler has it, or has gone, and then the call is over

    async def _read(self, frames: AsyncIterator[pb.DeviceFrame], reader: DeviceFrameReader, call: _Call) -> None:
        """Read to the end of the call. What goes wrong goes to ``opened``, once that is settled to the stream."""
        stream: Stream | None = None
        try:
            async for frame in frames:
                messages = reader.read(frame)
                if stream is None:
                    first = messages.pop(0)
                    if not isinstance(first, Open):
                        raise ProtocolViolation("the first frame must carry open")
                    if call.opened.done():
                        return  # too late
                    whole = self._gateway.recall(first, call.principal)
                    if whole is None:
                        call.answered = True
                        writer = CloudFrameWriter(padded=self._pad_frames or reader.padded)
                        await call.context.write(writer.prefix_unknown())  # nobody else writes yet
                        continue
                    call.opened.set_result(whole)
                    stream = await call.admitted
                for message in messages:
                    self._take(message, stream)
            if stream is None:
                raise ProtocolViolation("the stream ended before open")
        except (grpc.aio.BaseError, asyncio.CancelledError):
            call.opened.cancel()  # the call is over, or was refused: grpc.aio fails the read that was waiting
        except DecodeError:
            self._refuse(ProtocolViolation("a frame cannot be parsed"), call.opened, stream)
        except Exception as error:
            self._refuse(error, call.opened, stream)

    def _refuse(self, error: Exception, opened: asyncio.Future[Open], stream: Stream | None) -> None:
        if stream is not None:
            stream.fail(error)
        elif not opened.done():
            opened.set_exception(error)

    def _take(self, message: DeviceMessage, stream: Stream) -> None:
        match message:
            case DraftRun():
                stream.push(message)
            case Acknowledged(length):
                stream.acknowledge(length)
            case Mode():
                stream.steer(message)
            case Hint():
                stream.hint(message)
            case Ping():
                stream.ping(message)

    async def _write(self, stream: Stream, writer: CloudFrameWriter, context: Context) -> None:
        async for event in stream:
            match event:
                case CommitEvent(_, commit, step_ended):
                    ticket = None if stream.tickets is None else stream.tickets.commit(commit.tokens)
                    await context.write(writer.commit(commit, ticket))
                    if self.on_written is not None:
                        self.on_written(time.monotonic() - step_ended)
                case AdviceEvent(_, advice):
                    await context.write(writer.advice(advice))
                case Ping():
                    await context.write(writer.pong(event))
                case OpenedEvent(_, cached_tokens):
                    await context.write(writer.opened(self._opened(cached_tokens, stream)))

    def _opened(self, cached_tokens: int, stream: Stream) -> Opened:
        info = self._gateway.engine.info
        return Opened(
            model=self._gateway.served_model_name,
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            max_draft_tokens=info.max_draft_tokens,
            max_unacknowledged=self._gateway.max_unacknowledged,
            cached_tokens=cached_tokens,
            other_fingerprint=stream.other_fingerprint,
            cloud_draft=info.cloud_draft,
            drafts=self._offers.names,
            routes=self._gateway.routes(stream.opening, stream.principal),
        )

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """What is served here."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
        except PilotfishError as error:
            await abort(context, error)
        info = self._gateway.engine.info
        model = pb.Model(
            name=self._gateway.served_model_name,
            tokenizer_hash=bytes.fromhex(info.tokenizer_hash),
            vocabulary_size=info.vocabulary_size,
            max_model_len=info.max_model_len,
            fingerprint=info.fingerprint,
            deterministic=info.deterministic,
            dtype=info.dtype,
            drafts=self._offers.names,
            draft_offers=[draft.message() for draft in self._offers.drafts],
        )
        return pb.DescribeResponse(
            protocol_version=PROTOCOL_VERSION, models=[model], http_url=self.http_url, http_port=self.http_port
        )

    async def FetchTokenizer(
        self, request: pb.FetchTokenizerRequest, context: Context
    ) -> AsyncIterator[pb.TokenizerChunk]:
        """tokenizer.json, in chunks."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
            self._gateway.check_model(request.model)
        except PilotfishError as error:
            await abort(context, error)
        data = self._gateway.tokenizer.to_json()
        first = pb.TokenizerChunk(
            total_size=len(data),
            tokenizer_hash=bytes.fromhex(self._gateway.engine.info.tokenizer_hash),
            end_token_ids=self._gateway.tokenizer.eos_token_ids,
        )
        yield first
        for begin in range(0, len(data), TOKENIZER_CHUNK_BYTES):
            yield pb.TokenizerChunk(data=data[begin : begin + TOKENIZER_CHUNK_BYTES])

    async def FetchChatTemplate(self, request: pb.FetchChatTemplateRequest, context: Context) -> pb.ChatTemplate:
        """The template that this verifier's own HTTP door uses."""
        try:
            self._authenticate(receive(context).get(AUTHORIZATION_METADATA))
            self._gateway.check_model(request.model)
        except PilotfishError as error:
            await abort(context, error)
        if self._chat_template is None:
            return pb.ChatTemplate()
        return pb.ChatTemplate(source=self._chat_template.source, special_tokens=self._chat_template.special_tokens)
