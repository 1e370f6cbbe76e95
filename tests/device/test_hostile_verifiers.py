"""Verifiers that send what none should: a typed error in bounded time and memory. Real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from pilotfish.async_client import AsyncClient
from pilotfish.result import Result
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.drafts import Commit, Finish, FinishReason
from pilotfish_core.errors import ProtocolViolation, Unavailable
from pilotfish_core.messages import Opened
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.wire import MAX_FRAME_BYTES, CloudFrameWriter
from tests.device.verifiers import PROMPT, TOKENIZER, ids, opened

AT = len(PROMPT)
MAX_TOKENS = 64
Frames = Callable[[], AsyncIterator[pb.CloudFrame]]


class Hostile(pb_grpc.VerifierServicer):
    """Sends the same frames on every stream."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.streams = 0

    async def Generate(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.CloudFrame]:
        self.streams += 1
        await request_iterator.__anext__()
        async for frame in self._frames():
            yield frame


@contextlib.asynccontextmanager
async def hostile(frames: Frames) -> AsyncIterator[tuple[str, Hostile]]:
    service = Hostile(frames)  # type: ignore[abstract]
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    pb_grpc.add_VerifierServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        await server.stop(0)


async def ask(address: str, **options: Any) -> Result:
    retry = RetryPolicy(max_attempts=4, max_first_attempts=4, base_s=0.001, cap_s=0.001)
    config = DeviceConfig(retry=retry)
    async with AsyncClient(address, draft="ngram", tokenizer=TOKENIZER, config=config, **options) as client:
        async with asyncio.timeout(60):
            return await (await client.generate(PROMPT, max_tokens=MAX_TOKENS, seed=1)).result()


def says(*messages: Opened | Commit | pb.CloudFrame) -> Frames:
    async def frames() -> AsyncIterator[pb.CloudFrame]:
        writer = CloudFrameWriter()
        for message in messages:
            if isinstance(message, pb.CloudFrame):
                yield message
            else:
                yield writer.opened(message) if isinstance(message, Opened) else writer.commit(message)

    return frames


FIRST = Commit(AT, ids("abcd"))


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (says(opened(), Commit(AT, (999_999,))), "999999, outside the vocabulary"),
        (says(opened(), Commit(AT, (2**32 - 1,))), "outside the vocabulary"),
        (says(opened(), FIRST, Commit(AT + 1, ids("XY"))), "changed tokens that it had committed"),
        (says(opened(), FIRST, Commit(0, ids("abcdef"))), "changed tokens that it had committed"),
        (says(opened(), Commit(AT, ids("a" * (MAX_TOKENS + 1)))), f"more than the {MAX_TOKENS} tokens"),
        (says(opened(), opened()), "opened the stream twice"),
        (says(FIRST), "before it opened"),
        (says(opened(), pb.CloudFrame(tokens=[1])), "first commit must name its position"),
        (says(opened(), pb.CloudFrame(tokens=[1, 2], token=3, position=AT)), "token or tokens"),
        (says(opened(), pb.CloudFrame(tokens=[1, 2], accepted=7, position=AT)), "7 of 2 tokens accepted"),
        (says(opened(), pb.CloudFrame(ticket=b"x")), "ticket for nothing"),
    ],
)
async def test_nonsense_is_a_protocol_violation_and_is_not_tried_again(frames: Frames, complaint: str) -> None:
    async with hostile(frames) as (address, service):
        with pytest.raises(ProtocolViolation, match=complaint):
            await ask(address)
    assert service.streams == 1


async def test_a_frame_that_is_too_large_ends_the_answer() -> None:
    """grpc.aio tells of it as "Internal error from Core" now and then, which is tried again, a few times."""
    async with hostile(says(opened(), pb.CloudFrame(padding=bytes(MAX_FRAME_BYTES + 1)))) as (address, service):
        with pytest.raises((ProtocolViolation, Unavailable), match=r"frame of more than|Internal error from Core"):
            await ask(address)
    assert 1 <= service.streams <= 4


async def test_positions_that_go_back_over_the_same_tokens_are_dropped() -> None:
    again = [Commit(AT, ids("abcd")), Commit(AT + 2, ids("cd")), Commit(AT + 3, ids("de"), finish=None)]
    end = Commit(AT + 5, ids("f"), finish=Finish(FinishReason.LENGTH))
    async with hostile(says(opened(), FIRST, *again, end)) as (address, _):
        result = await ask(address)
    assert result.text == "abcdef"


async def test_commits_that_are_missing_are_asked_for_so_many_times_and_no_more() -> None:
    async with hostile(says(opened(), Commit(AT + 7, ids("x")))) as (address, service):
        with pytest.raises(Unavailable, match="commits are missing"):
            await ask(address)
    assert service.streams == 4


async def endless_commits() -> AsyncIterator[pb.CloudFrame]:
    writer = CloudFrameWriter()
    yield writer.opened(opened())
    position = AT
    while True:
        yield writer.commit(Commit(position, ids("a")))
        position += 1


async def endless_repeats(count: int) -> AsyncIterator[pb.CloudFrame]:
    """So many frames that change nothing, large ones, and then the end."""
    writer = CloudFrameWriter()
    yield writer.opened(opened())
    yield writer.commit(FIRST)
    for number in range(count):
        yield pb.CloudFrame(pong=pb.Pong(nonce=number), padding=bytes(200_000))
        yield writer.commit(Commit(AT, ids("abcd")))
    yield writer.commit(Commit(AT + 4, ids("e"), finish=Finish(FinishReason.LENGTH)))


async def test_a_stream_without_an_end_ends_at_max_tokens() -> None:
    async with hostile(endless_commits) as (address, service):
        with pytest.raises(ProtocolViolation, match=f"more than the {MAX_TOKENS} tokens"):
            await ask(address)
    assert service.streams == 1


async def test_what_changes_nothing_is_not_kept() -> None:
    async with hostile(lambda: endless_repeats(300)) as (address, _):
        tracemalloc.start()
        try:
            result = await ask(address)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert result.text == "abcde"
    assert peak < 20e6  # 60 MB were sent


async def test_a_frame_that_announces_a_gibibyte_costs_nothing() -> None:
    """A server by hand: HTTP/2 settings, then a message whose prefix says 1 GiB, and bytes of it without an end."""
    received = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
            return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload

        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(frame(4, 0, 0, b""))
            await reader.readexactly(24)
            while True:
                head = await reader.readexactly(9)
                size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:])
                await reader.readexactly(size)
                if kind == 4 and not flags & 1:
                    writer.write(frame(4, 1, 0, b""))
                if kind == 1:  # the call's headers: :status 200, content-type, and the message begins
                    fields = b"\x88\x00\x0ccontent-type\x10application/grpc"
                    writer.write(frame(1, 4, stream, fields))
                    writer.write(frame(0, 0, stream, b"\0" + struct.pack(">I", 2**30) + bytes(16_000)))
                    received.set()
                await writer.drain()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = await asyncio.start_server(serve, sock=listener)
        with pytest.raises(ProtocolViolation, match="frame of more than"):
            await ask(f"127.0.0.1:{listener.getsockname()[1]}")
        assert received.is_set()
        server.close()


@pytest.mark.parametrize("field", ["max_draft_tokens", "max_unacknowledged", "max_model_len"])
@pytest.mark.parametrize("value", [0, 2**32 - 1])
async def test_limits_that_make_no_sense_do_no_harm(field: str, value: int) -> None:
    """Nothing is drafted where nothing is granted; the answer is the verifier's either way."""
    end = Commit(AT + 4, ids("e"), finish=Finish(FinishReason.LENGTH))
    limits: dict[str, Any] = {field: value}
    async with hostile(says(opened(**limits), FIRST, end)) as (address, _):
        assert (await ask(address)).text == "abcde"
