"""Frames on a real stream, padded: their sizes are those of classes, and the text is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotfish.transport import DeviceStream
from pilotfish_core.padding import SMALLEST_CLASS
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.e2e.conftest import Verifier, connected, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")
CLASSES = {SMALLEST_CLASS << power for power in range(16)}
PARAMS: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 4, "ignore_eos": True}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], set[int]]:
    """Of frames up and down."""
    up, down = set[int](), set[int]()
    send, frames = DeviceStream.send, DeviceStream.frames

    def sent(stream: DeviceStream, frame: pb.DeviceFrame) -> None:
        up.add(len(frame.SerializeToString()))
        send(stream, frame)

    async def received(stream: DeviceStream) -> AsyncIterator[pb.CloudFrame]:
        async for frame in frames(stream):
            down.add(len(frame.SerializeToString()))
            yield frame

    monkeypatch.setattr(DeviceStream, "send", sent)
    monkeypatch.setattr(DeviceStream, "frames", received)
    return up, down


async def answer(verifier: Verifier, **options: Any) -> Any:
    async with connected(verifier, draft="ngram", arm="device-async", **options) as client:
        return await (await client.generate("def f(x):\n    return f(x)\n\ndef g(x):\n", **PARAMS)).result()


async def test_a_device_that_pads_is_answered_padded(verifier: Verifier, sizes: tuple[set[int], set[int]]) -> None:
    plain = await answer(verifier)
    assert not sizes[0] <= CLASSES
    assert not sizes[1] <= CLASSES
    for kind in sizes:
        kind.clear()
    padded = await answer(verifier, pad=True)
    assert padded.token_ids == plain.token_ids
    assert sizes[0] <= CLASSES
    assert sizes[1] <= CLASSES
    assert padded.metrics.bytes_down > plain.metrics.bytes_down


async def test_an_operator_may_pad_for_all(sizes: tuple[set[int], set[int]]) -> None:
    async with serving(pad_frames=True) as verifier:
        await answer(verifier)
    assert sizes[1] <= CLASSES
    assert not sizes[0] <= CLASSES
