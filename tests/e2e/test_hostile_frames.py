"""A peer that speaks gRPC but not the protocol; the verifier answers with one typed status and serves on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from pilotfish_cloud import device_calls
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.e2e.conftest import Verifier
from tests.e2e.raw_calls import call, opening, serves

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def says(verifier: Verifier, frames: Iterable[pb.DeviceFrame], **options: Any) -> tuple[grpc.StatusCode, str]:
    """The status that these frames end with."""
    said = await call(verifier, frames, **options)
    return said.code, said.details


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "ended before open"),
        ([pb.DeviceFrame(tokens=[1], branch=0, start=0)], "first frame must carry open"),
        ([pb.DeviceFrame(ping=pb.Ping(nonce=1))], "first frame must carry open"),
        ([pb.DeviceFrame()], "first frame must carry open"),
    ],
)
async def test_a_call_without_open(verifier: Verifier, frames: list[pb.DeviceFrame], message: str) -> None:
    code, details = await says(verifier, frames)
    assert (code, message in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    await serves(verifier)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pb.DeviceFrame(token=2**32 - 1, branch=0, start=4), "outside the vocabulary"),
        (pb.DeviceFrame(tokens=range(5000), branch=0, start=4), "a run of 5000 draft tokens"),
        (pb.DeviceFrame(token=1, branch=0, start=2_000_000), "length 2000000 acknowledged"),
        (pb.DeviceFrame(token=1), "must name its branch"),
        (pb.DeviceFrame(acknowledged=1_000_000), "acknowledge"),
        (pb.DeviceFrame(open=pb.Open()), "second open"),
    ],
)
async def test_frames_that_break_the_protocol(verifier: Verifier, frame: pb.DeviceFrame, message: str) -> None:
    code, details = await says(verifier, [opening(verifier, max_tokens=1500), frame], stay=asyncio.Event())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    await serves(verifier)


async def test_a_call_that_never_opens_is_ended(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_calls, "OPEN_TIMEOUT_S", 0.05)
    code, details = await says(verifier, [], stay=asyncio.Event())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no open within" in details
    await serves(verifier)


@pytest.mark.parametrize("opened", [False, True])
async def test_bytes_that_are_no_frame(verifier: Verifier, opened: bool) -> None:
    stay = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        if opened:
            yield opening(verifier, max_tokens=1500).SerializeToString()
        yield b"\xff" * 50
        await stay.wait()

    async with grpc.aio.insecure_channel(verifier.address.removeprefix("grpc://")) as channel:
        method: Any = channel.stream_stream("/pilotfish_core.proto.v1.Verifier/Generate")
        call = method(requests(), timeout=15)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be parsed" in (caught.value.details() or "")
    await serves(verifier)


async def test_long_values_come_back_shortened(verifier: Verifier) -> None:
    frame = opening(verifier)
    frame.open.model = "m" * 20_000
    code, details = await says(verifier, [frame])
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(details) < 1000


async def test_a_flood_of_pings_is_answered_sparsely(verifier: Verifier) -> None:
    pings = [pb.DeviceFrame(ping=pb.Ping(nonce=number)) for number in range(2000)]
    code, _ = await says(verifier, [opening(verifier), *pings], stay=asyncio.Event())
    assert code is grpc.StatusCode.OK
    await serves(verifier)


async def test_a_newer_attempt_frees_the_older_ones_place(verifier: Verifier) -> None:
    began = asyncio.Event()
    frames = [opening(verifier, max_tokens=1500)]
    older = asyncio.create_task(says(verifier, frames, stay=asyncio.Event(), began=began))
    await began.wait()
    code, _ = await says(verifier, [opening(verifier, attempt=2)], stay=asyncio.Event())
    assert code is grpc.StatusCode.OK
    code, details = await older
    assert code is grpc.StatusCode.CANCELLED
    assert "superseded by attempt 2" in details
    await serves(verifier)
    assert verifier.engine.stats().running == 0
