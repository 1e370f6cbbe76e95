"""Calls as a peer makes them that is not our client: frames and metadata by hand, and what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import grpc

from pilotfish_cloud.gateway import Gateway
from pilotfish_core.messages import Open
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.wire import DeviceFrameWriter
from tests.e2e.conftest import Verifier, connected

PROMPT = (5, 6, 7, 8)


def opening(
    verifier: Verifier,
    *,
    attempt: int = 1,
    name: int = 1,
    prompt: tuple[int, ...] = PROMPT,
    output: tuple[int, ...] = (),
    **params: Any,
) -> pb.DeviceFrame:
    """The first frame of a generation."""
    return DeviceFrameWriter().open(
        Open(
            model="",
            tokenizer_hash=verifier.engine.tokenizer.hash,
            generation_id=name.to_bytes(16),
            attempt=attempt,
            prompt=prompt,
            params=SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True} | params),
            output=output,
        )
    )


@dataclasses.dataclass(frozen=True)
class Said:
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    trailers: dict[str, str | bytes]
    frames: list[pb.CloudFrame]


async def call(
    verifier: Verifier,
    frames: Iterable[pb.DeviceFrame],
    *,
    stay: asyncio.Event | None = None,
    began: asyncio.Event | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout_s: float | None = None,
) -> Said:
    """Send these frames and read to the end. ``stay``: until when the call sends no end; ``began``: it was answered."""

    async def requests() -> AsyncIterator[pb.DeviceFrame]:
        for frame in frames:
            yield frame
        if stay is not None:
            await stay.wait()

    received: list[pb.CloudFrame] = []
    async with grpc.aio.insecure_channel(verifier.address.removeprefix("grpc://")) as channel:
        stub = cast("pb_grpc.VerifierAsyncStub", pb_grpc.VerifierStub(channel))
        ongoing: Any = stub.Generate(requests(), metadata=metadata, timeout=timeout_s)
        try:
            async for frame in ongoing:
                received.append(frame)
                if began is not None:
                    began.set()
        except grpc.aio.AioRpcError as error:
            return Said(error.code(), error.details() or "", _dict(error.trailing_metadata()), received)
        return Said(await ongoing.code(), "", _dict(await ongoing.trailing_metadata()), received)


def _dict(metadata: Any) -> dict[str, str | bytes]:
    return {str(name): value for name, value in metadata or ()}


async def idle(verifier: Verifier, *, patience_s: float = 30.0) -> Gateway:
    """Wait until no generation is in progress. Returns the gateway."""
    gateway = verifier.server.gateway
    assert gateway is not None
    async with asyncio.timeout(patience_s):
        await gateway._idle.wait()
    return gateway


async def serves(verifier: Verifier) -> None:
    """It still answers, and nothing is left of what was before."""
    async with connected(verifier) as client:
        stream = await client.generate("def f(", max_tokens=4, temperature=0, ignore_eos=True)
        assert len((await stream.result()).token_ids) == 4
    gateway = await idle(verifier)
    assert gateway.running == gateway.admission.generations == gateway.admission.tokens == 0
