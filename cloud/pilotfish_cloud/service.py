"""The gRPC service: one bidirectional call per generation, frames in and out, everything else is the engine's."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from pilotfish_cloud.edge import abort
from pilotfish_cloud.engine.interface import (
    AdviceEvent,
    CommitEvent,
    Engine,
    EngineEvent,
    FailedEvent,
    OpenedEvent,
    OpenRequest,
)
from pilotfish_core.drafts import DraftRun
from pilotfish_core.errors import (
    Cancelled,
    DeadlineExceeded,
    FingerprintMismatch,
    ProtocolViolation,
    TokenizerMismatch,
    Unavailable,
    UnknownModel,
)
from pilotfish_core.messages import PROTOCOL_VERSION, Acknowledged, Open, Opened, Ping
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.wire import CloudFrameWriter, DeviceFrameReader, DeviceMessage

log = logging.getLogger("pilotfish_cloud")

TOKENIZER_CHUNK_BYTES: Final = 64 * 1024
OPEN_TIMEOUT_S: Final = 20.0  # from the call's beginning to its open
MAX_PINGS: Final = 4  # waiting for their pongs; more of them say nothing new

Context = grpc.aio.ServicerContext[Any, Any]


@dataclasses.dataclass(slots=True)
class _Stream:
    """One call in progress. ``outbox`` holds engine events and pings in order; the call's handler writes them.

    Commits in it are bounded by what a device may leave unacknowledged, pings by MAX_PINGS.
    """

    key: str
    attempt: int
    outbox: asyncio.Queue[EngineEvent | Ping | Exception]
    pings: int = 0


class VerifierService(pb_grpc.VerifierServicer):
    """Connects calls with an engine. Lives on one event loop; only ``dispatch`` is called from elsewhere."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, *, served_model_name: str, max_unacknowledged: int
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = served_model_name
        self._max_unacknowledged = max_unacknowledged
        self._loop = asyncio.get_running_loop()
        self._keys = (str(number) for number in itertools.count(1))
        self._streams: dict[str, _Stream] = {}
        self._generations: dict[bytes, _Stream] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self.on_written: Callable[[float], None] | None = None  # told the seconds from a step's end to its bytes
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    # -- engine events ----------------------------------------------------------------------------------------------

    def listen(self, events: Sequence[EngineEvent]) -> None:
        """The engine's listener; called from its thread."""
        self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            stream = self._streams.get(event.key)
            if stream is not None:
                stream.outbox.put_nowait(event)

    # -- life cycle -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Generations in progress."""
        return len(self._streams)

    @property
    def draining(self) -> bool:
        """Whether new generations are refused."""
        return self._draining

    async def drain(self, timeout_s: float) -> None:
        """Refuse new generations, let running ones finish, hand back the rest with a hint to resume elsewhere."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for stream in self._streams.values():
                stream.outbox.put_nowait(Unavailable("this replica is shutting down; resume elsewhere"))

    # -- calls ------------------------------------------------------------------------------------------------------

    async def Generate(  # type: ignore[override]  # grpc.aio takes a coroutine that writes as well as a generator
        self, request_iterator: AsyncIterator[pb.DeviceFrame], context: Context
    ) -> None:
        """One generation."""
        try:
            await self._generate(request_iterator, context)
        except grpc.aio.BaseError:
            raise  # the call is over
        except Exception as error:
            await abort(context, error)

    async def _generate(self, frames: AsyncIterator[pb.DeviceFrame], context: Context) -> None:
        if self._draining:
            raise Unavailable("this replica is shutting down", retry_after_s=0.0)
        opened: asyncio.Future[Open] = self._loop.create_future()
        admitted: asyncio.Future[_Stream] = self._loop.create_future()
        # One reader for the call's whole life, which ends with the call by itself: a read that is cancelled or timed
        # out in flight leaks in grpc.aio (grpc#43360).
        reading = asyncio.create_task(self._read(frames, opened, admitted))
        self._readers.add(reading)
        reading.add_done_callback(self._readers.discard)
        try:
            await asyncio.wait([opened], timeout=OPEN_TIMEOUT_S)
            if not opened.done():
                raise DeadlineExceeded(f"no open within {OPEN_TIMEOUT_S:.0f} s")
            opening = opened.result()
            other_fingerprint = self._check(opening)
            stream = self._admit(opening)
        except BaseException:
            opened.cancel()
            admitted.cancel()
            raise
        admitted.set_result(stream)
        writer = CloudFrameWriter()
        try:
            self._engine.open(
                OpenRequest(
                    key=stream.key,
                    prompt=opening.prompt,
                    params=opening.params,
                    output=opening.output,
                    mode=opening.mode,
                    hint=opening.hint,
                    pace=opening.pace,
                )
            )
            await self._write(stream, writer, context, other_fingerprint)
        finally:
            self._engine.abort(stream.key)
            self._release(opening, stream)

    def _check(self, opening: Open) -> bool:
        """Whether model, tokenizer and fingerprint fit. Returns whether the fingerprint is another, as allowed."""
        info = self._engine.info
        if opening.model not in ("", self._name):
            raise UnknownModel(f"this verifier does not serve model {opening.model!r}; it serves {self._name!r}")
        if opening.tokenizer_hash != info.tokenizer_hash:
            raise TokenizerMismatch(
                f"the device's tokenizer {opening.tokenizer_hash[:12] or '(none)'} differs from that of "
                f"{self._name!r}, {info.tokenizer_hash[:12]}: a draft model must share its target's vocabulary"
            )
        differs = bool(opening.fingerprint) and opening.fingerprint != info.fingerprint
        if differs and opening.output and not opening.allow_other_fingerprint:
            raise FingerprintMismatch(
                f"the generation began under {opening.fingerprint}, this replica computes as {info.fingerprint}; "
                "its tokens might differ, and the device did not allow that"
            )
        return differs

    def _admit(self, opening: Open) -> _Stream:
        older = self._generations.get(opening.generation_id)
        if older is not None:
            if older.attempt >= opening.attempt:
                raise Cancelled(f"attempt {opening.attempt} is not newer than attempt {older.attempt}")
            older.outbox.put_nowait(Cancelled(f"superseded by attempt {opening.attempt}"))
            self._engine.abort(older.key)  # at once: its writer may hang on a peer that is gone
        stream = _Stream(next(self._keys), opening.attempt, asyncio.Queue())
        self._streams[stream.key] = stream
        self._generations[opening.generation_id] = stream
        self._idle.clear()
        return stream

    def _release(self, opening: Open, stream: _Stream) -> None:
        del self._streams[stream.key]
        if self._generations.get(opening.generation_id) is stream:
            del self._generations[opening.generation_id]
        if not self._streams:
            self._idle.set()

    async def _read(
        self, frames: AsyncIterator[pb.DeviceFrame], opened: asyncio.Future[Open], admitted: asyncio.Future[_Stream]
    ) -> None:
        """Read to the end of the call. What goes wrong goes to ``opened``, once that is settled to the stream."""
        reader = DeviceFrameReader()
        stream: _Stream | None = None
        try:
            async for frame in frames:
                messages = reader.read(frame)
                if stream is None:
                    first = messages.pop(0)
                    if not isinstance(first, Open):
                        raise ProtocolViolation("the first frame must carry open")
                    if opened.done():
                        return  # too late
                    opened.set_result(first)
                    stream = await admitted
                for message in messages:
                    self._take(message, stream)
            if stream is None:
                raise ProtocolViolation("the stream ended before open")
        except (grpc.aio.BaseError, asyncio.CancelledError):
            opened.cancel()  # the call is over, or was refused: grpc.aio fails the read that was waiting
        except DecodeError:
            self._refuse(ProtocolViolation("a frame cannot be parsed"), opened, stream)
        except Exception as error:
            self._refuse(error, opened, stream)

    def _refuse(self, error: Exception, opened: asyncio.Future[Open], stream: _Stream | None) -> None:
        if stream is not None:
            stream.outbox.put_nowait(error)
        elif not opened.done():
            opened.set_exception(error)

    def _take(self, message: DeviceMessage, stream: _Stream) -> None:
        match message:
            case DraftRun():
                self._engine.push(stream.key, message)
            case Acknowledged(length):
                self._engine.acknowledge(stream.key, length)
            case Mode():
                self._engine.steer(stream.key, message)
            case Hint():
                self._engine.hint(stream.key, message)
            case Ping() if stream.pings < MAX_PINGS:
                stream.pings += 1
                stream.outbox.put_nowait(message)

    async def _write(
        self, stream: _Stream, writer: CloudFrameWriter, context: Context, other_fingerprint: bool
    ) -> None:
        while True:
            event = await stream.outbox.get()
            match event:
                case OpenedEvent(_, cached_tokens):
                    await context.write(writer.opened(self._opened(cached_tokens, other_fingerprint)))
                case CommitEvent(_, commit, step_ended):
                    await context.write(writer.commit(commit))
                    if self.on_written is not None:
                        self.on_written(time.monotonic() - step_ended)
                    if commit.finish is not None:
                        return
                case AdviceEvent(_, advice):
                    await context.write(writer.advice(advice))
                case Ping():
                    await context.write(writer.pong(event))
                    stream.pings -= 1
                case FailedEvent(_, error):
                    raise error
                case Exception():
                    raise event

    def _opened(self, cached_tokens: int, other_fingerprint: bool) -> Opened:
        info = self._engine.info
        return Opened(
            model=self._name,
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            max_draft_tokens=info.max_draft_tokens,
            max_unacknowledged=self._max_unacknowledged,
            cached_tokens=cached_tokens,
            other_fingerprint=other_fingerprint,
            cloud_draft=info.cloud_draft,
        )

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """What is served here."""
        info = self._engine.info
        model = pb.Model(
            name=self._name,
            tokenizer_hash=bytes.fromhex(info.tokenizer_hash),
            vocabulary_size=info.vocabulary_size,
            max_model_len=info.max_model_len,
            fingerprint=info.fingerprint,
            deterministic=info.deterministic,
            dtype=info.dtype,
        )
        return pb.DescribeResponse(protocol_version=PROTOCOL_VERSION, models=[model])

    async def FetchTokenizer(
        self, request: pb.FetchTokenizerRequest, context: Context
    ) -> AsyncIterator[pb.TokenizerChunk]:
        """tokenizer.json, in chunks."""
        if request.model not in ("", self._name):
            await abort(context, UnknownModel(f"this verifier does not serve model {request.model!r}"))
        data = self._tokenizer.to_json()
        first = pb.TokenizerChunk(
            total_size=len(data),
            tokenizer_hash=bytes.fromhex(self._engine.info.tokenizer_hash),
            end_token_ids=self._tokenizer.eos_token_ids,
        )
        yield first
        for begin in range(0, len(data), TOKENIZER_CHUNK_BYTES):
            yield pb.TokenizerChunk(data=data[begin : begin + TOKENIZER_CHUNK_BYTES])
