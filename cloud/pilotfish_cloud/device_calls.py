"""One generation of a device, whatever carries its frames: messages in, events out, between a link and the gateway.

A door for devices makes a ``Link`` of what it speaks (gRPC, WebSocket), knows who calls, and hands both over::

    await calls.hold(link, principal, deadline=deadline, metadata=metadata)

which returns when the answer is written, and raises what the peer is to be told; ``PeerGoneError`` when there is
nobody to be told.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.engine.interface import AdviceEvent, CommitEvent, OpenedEvent
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.stream import Stream
from pilotfish_core.drafts import DraftRun
from pilotfish_core.errors import Cancelled, DeadlineExceeded, ProtocolViolation
from pilotfish_core.messages import Acknowledged, Open, Ping
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import CloudFrameWriter, DeviceFrameReader, DeviceMessage

OPEN_TIMEOUT_S: Final = 20.0  # from the call's beginning to its open
CUT_AFTER_S: Final = 10.0  # that a peer gets to read what is there, once its generation has failed


class PeerGoneError(Exception):
    """The call is over: the peer has gone, or what carries it has ended it."""


class NotReadError(Exception):
    """The generation failed for ``reason``, and the peer does not read what there is before that."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class Link(Protocol):
    """What carries one call's frames. ``over``: what its methods raise once the call is over."""

    over: tuple[type[BaseException], ...]

    def frames(self) -> AsyncIterator[pb.DeviceFrame]:
        """What the peer sends. Ends when it has said all, though it may still read; also raises DecodeError, and
        ProtocolViolation for what is no frame.
        """

    async def begin(self) -> None:
        """The generation was let in, and nothing has been written yet."""

    async def write(self, frame: pb.CloudFrame) -> None:
        """Send a frame; returns when there is room for another. One at a time."""


@dataclasses.dataclass(slots=True)
class _Call:
    """What the reader of a call and its handler share; the reader settles ``opened`` and ``gone``, the handler
    ``admitted``.
    """

    link: Link
    principal: Principal
    opened: asyncio.Future[Open]
    admitted: asyncio.Future[Stream]
    gone: asyncio.Future[None]
    answered: bool = False  # whether a frame was written before the generation was admitted


class DeviceCalls:
    """The calls of one door. Lives on the gateway's event loop. ``door``: its name, for whoever counts."""

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Catalogue,
        *,
        door: str,
        pad_frames: bool = False,
        cut_after_s: float = CUT_AFTER_S,
    ) -> None:
        self._gateway = gateway
        self._catalogue = catalogue
        self._door = door
        self._pad_frames = pad_frames  # else those to devices that pad their own
        self.cut_after_s = cut_after_s
        # Reads and writes in flight are never cancelled: grpc.aio leaks what they hold (grpc#43360). They end with the
        # call by themselves, which may be later than the handler.
        self.pending: set[asyncio.Task[None]] = set()
        self.on_written: Callable[[float], None] | None = None  # told the seconds from a step's end to its bytes

    async def hold(
        self,
        link: Link,
        principal: Principal,
        *,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """One generation, from its open to its end. ``deadline``: on the event loop's clock; ``metadata``: of the call,
        for the caller's trace.

        Raises what the peer is to be told, PeerGoneError or one of ``link.over`` where there is none any more, and
        NotReadError for a peer that does not read; its place is free by then, and a write may still be in flight.
        """
        gateway = self._gateway
        loop = asyncio.get_running_loop()
        call = _Call(link, principal, loop.create_future(), loop.create_future(), loop.create_future())
        # One reader for the call's whole life, which ends with the call by itself: a read that is cancelled or timed
        # out in flight leaks in grpc.aio (grpc#43360).
        reader = DeviceFrameReader()
        self.in_background(self._read(reader, call))
        try:
            await asyncio.wait([call.opened], timeout=OPEN_TIMEOUT_S)
            if not call.opened.done():
                raise DeadlineExceeded(f"no open within {OPEN_TIMEOUT_S:.0f} s")
            if call.opened.cancelled():
                raise PeerGoneError
            opening = call.opened.result()
            claim = await gateway.ask(opening, principal, door=self._door)
            stream = gateway.open(
                opening, principal, claim=claim, deadline=deadline, metadata=metadata, door=self._door
            )
        except BaseException:
            call.opened.cancel()
            call.admitted.cancel()
            raise
        call.admitted.set_result(stream)
        failed: asyncio.Future[Exception] = loop.create_future()
        stream.on_failed = failed.set_result
        try:
            if not call.answered:
                await link.begin()
            writer = CloudFrameWriter(padded=self._pad_frames or reader.padded)
            writing = self.in_background(self._write(stream, writer, link))
            await _first_of(writing, failed, call.gone)
            if not (writing.done() or call.gone.done()):
                await _first_of(writing, call.gone, timeout_s=self.cut_after_s)
            if writing.done():
                writing.result()
            elif call.gone.done():
                raise PeerGoneError
            else:
                raise NotReadError(failed.result())
        finally:
            stream.on_failed = None
            gateway.close(stream)
            stream.fail(Cancelled("the call is over"))  # ends the writer where it waits for events

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that may end after its call; what it raises then concerns nobody."""
        task = asyncio.create_task(work)
        self.pending.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.pending.discard(task)
        if not task.cancelled():
            task.exception()  # the handler has it, or has gone, and then the call is over

    async def _read(self, reader: DeviceFrameReader, call: _Call) -> None:
        """Read to the end of the call. What goes wrong goes to ``opened``, once that is settled to the stream."""
        stream: Stream | None = None
        over: tuple[type[BaseException], ...] = (*call.link.over, asyncio.CancelledError)
        try:
            async for frame in call.link.frames():
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
                        await call.link.write(writer.prefix_unknown())  # nobody else writes yet
                        continue
                    call.opened.set_result(whole)
                    stream = await call.admitted
                for message in messages:
                    _take(message, stream)
            if stream is None:
                raise ProtocolViolation("the stream ended before open")
        except over:
            call.opened.cancel()  # the call is over, or was refused: grpc.aio fails the read that was waiting
            call.gone.set_result(None)
        except DecodeError:
            _refuse(ProtocolViolation("a frame cannot be parsed"), call.opened, stream)
        except Exception as error:
            _refuse(error, call.opened, stream)

    async def _write(self, stream: Stream, writer: CloudFrameWriter, link: Link) -> None:
        async for event in stream:
            match event:
                case CommitEvent(_, commit, step_ended):
                    ticket = None if stream.tickets is None else stream.tickets.commit(commit.tokens)
                    await link.write(writer.commit(commit, ticket))
                    if self.on_written is not None:
                        self.on_written(time.monotonic() - step_ended)
                case AdviceEvent(_, advice):
                    await link.write(writer.advice(advice))
                case Ping():
                    await link.write(writer.pong(event))
                case OpenedEvent(_, cached_tokens):
                    await link.write(writer.opened(self._catalogue.opened(stream, cached_tokens)))


async def _first_of(*ends: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _refuse(error: Exception, opened: asyncio.Future[Open], stream: Stream | None) -> None:
    if stream is not None:
        stream.fail(error)
    elif not opened.done():
        opened.set_exception(error)


def _take(message: DeviceMessage, stream: Stream) -> None:
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
