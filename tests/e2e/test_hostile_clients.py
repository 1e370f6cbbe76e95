"""Peers that mean harm, beside good ones: what they send ends their own call only, and nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from tests.e2e import raw_http2
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.raw_calls import call, idle, opening, serves
from tests.e2e.raw_http2 import DATA, END_HEADERS, HEADERS, PREFACE, frame, header, message

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024
TYPED: Final = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target() -> AsyncIterator[Verifier]:
    """A verifier of its own: what is left in it is looked at."""
    async with serving(max_unacknowledged=8) as verifier:
        yield verifier


@contextlib.asynccontextmanager
async def unharmed(verifier: Verifier) -> AsyncIterator[None]:
    """Meanwhile an answer comes as it always does; afterwards nothing is left."""
    params: dict[str, Any] = {"max_tokens": 48, "temperature": 0.8, "seed": 11, "ignore_eos": True}
    async with connected(verifier) as client:
        expected = (await (await client.generate("import os\n", **params)).result()).token_ids
        stream = await client.generate("import os\n", **params)
        yield
        assert (await stream.result()).token_ids == expected
    await serves(verifier)
    service = verifier.server.service
    assert service is not None
    async with asyncio.timeout(30):
        while service.calls.pending:
            await asyncio.wait(list(service.calls.pending))
    verifier.engine.check_integrity()
    assert verifier.engine.stats().running == verifier.engine.stats().waiting == 0


def resident_kib() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


async def answered(port: int, data: bytes) -> bytes:
    """Send bytes, say that there are no more, and take what comes until the peer ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(30):
            received = await reader.read()
    writer.transport.abort()
    return received


# -- bytes ---------------------------------------------------------------------------------------------------------


def junk(random_bytes: random.Random) -> bytes:
    """Bytes that get a little further each time: none of HTTP/2, a preface, a call, a message."""
    noise = random_bytes.randbytes(random_bytes.randrange(1, 4000))
    head = b"".join(header(*field) for field in ((":method", "POST"), (":scheme", "http"), (":path", "/")))
    call_head = frame(HEADERS, END_HEADERS, 1, head.replace(b"\x01/", raw_http2._string(raw_http2.GENERATE)))
    settings_frame = frame(raw_http2.SETTINGS, 0, 0)
    return random_bytes.choice(
        [
            noise,
            PREFACE[: random_bytes.randrange(len(PREFACE))] + noise,
            PREFACE + noise,
            PREFACE + settings_frame + noise,
            PREFACE + settings_frame + frame(random_bytes.randrange(256), random_bytes.randrange(256), 1, noise),
            PREFACE + settings_frame + frame(HEADERS, END_HEADERS, 1, noise),
            PREFACE + settings_frame + call_head + frame(DATA, 0, 1, noise),
            PREFACE + settings_frame + call_head + frame(DATA, 0, 1, message(noise)),
            b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" + noise,
        ]
    )


async def test_random_bytes_on_either_port(target: Verifier) -> None:
    random_bytes = random.Random(4)
    async with unharmed(target):
        for _ in range(200):
            await answered(target.server.port, junk(random_bytes))
        for _ in range(50):
            await answered(target.server.http_port, junk(random_bytes))


async def test_random_messages(target: Verifier) -> None:
    """Calls whose headers are right and whose messages are not."""
    random_bytes = random.Random(5)
    async with unharmed(target), raw_http2.connection(target.server.port) as peer:
        numbers = {peer.call(random_bytes.randbytes(random_bytes.randrange(200))) for _ in range(200)}
        async with asyncio.timeout(60):
            async for kind, number, _ in peer.frames():
                if kind == raw_http2.HEADERS:  # the status alone: nothing was accepted
                    numbers.discard(number)
                if not numbers:
                    break


# -- messages ------------------------------------------------------------------------------------------------------

SMALL: Final = st.integers(0, 40)
WILD: Final = st.sampled_from([0, 1, 2, 5, 40, 2**20, 2**31 - 1, 2**31, 2**32 - 1])
TOKENS: Final = st.lists(SMALL | WILD, max_size=6)


@st.composite
def frames(draw: st.DrawFn) -> pb.DeviceFrame:
    """A frame that parses, with any of its fields set, to what is plausible or to what is not."""
    made = pb.DeviceFrame(tokens=draw(TOKENS))
    for name in ("branch", "start", "acknowledged", "token", "advance"):
        if draw(st.integers(0, 3)) == 0:
            setattr(made, name, draw(SMALL | WILD))
    match draw(st.integers(0, 9)):
        case 0:
            made.mode.pacing = draw(st.integers(0, 4))  # type: ignore[assignment]
            made.mode.cloud_draft = draw(st.integers(0, 4))  # type: ignore[assignment]
        case 1:
            made.hint.battery_low = draw(st.booleans())
        case 2:
            made.ping.nonce = draw(WILD)
        case 3:
            made.open.CopyFrom(draw(opens()))
    made.padding = bytes(draw(st.integers(0, 50)))
    return made


@st.composite
def opens(draw: st.DrawFn) -> pb.Open:
    """An open that is right in most ways and wrong in some."""
    made = pb.Open(
        protocol_version=draw(st.sampled_from([1, 1, 1, 1, 0, 7])),
        model=draw(st.sampled_from(["", "target", "x\n" * 300])),
        tokenizer_hash=TOKENIZER_HASH[0] if draw(st.integers(0, 5)) else b"no",
        generation_id=bytes(draw(st.sampled_from([16, 16, 16, 0, 17]))),
        attempt=draw(WILD),
        prompt=pb.Prompt(tokens=draw(st.lists(SMALL, max_size=8) | TOKENS)),
        output=draw(st.just([]) | TOKENS),
        fingerprint=draw(st.sampled_from(["", "pf-other"])),
    )
    made.params.temperature = draw(st.sampled_from([0.0, 0.8, -1.0, float("nan"), float("inf")]))
    made.params.top_p = draw(st.sampled_from([1.0, 0.5, 0.0, -1.0]))
    made.params.repetition_penalty = draw(st.sampled_from([1.0, 1.0, 0.0]))
    made.params.max_tokens = draw(st.sampled_from([1, 3, 8, 0, 2**32 - 1]))
    made.params.seed = draw(WILD)
    made.params.stop.extend(draw(st.lists(st.sampled_from(["", "a", "\n"]), max_size=2)))
    if draw(st.booleans()):
        made.params.logprobs = draw(SMALL | WILD)
    for token in draw(st.lists(WILD, max_size=3)):
        made.params.logit_bias[token] = draw(st.sampled_from([0.0, -100.0, 1e300, float("nan")]))
    return made


TOKENIZER_HASH: Final = [b""]  # of the verifier in use


async def test_valid_messages_in_any_order(target: Verifier) -> None:
    """Whatever frames come in whatever order: one typed status, within the deadline."""
    TOKENIZER_HASH[0] = bytes.fromhex(target.engine.tokenizer.hash)
    async with unharmed(target):
        await asyncio.to_thread(_converse, target)
    await idle(target)


def _converse(verifier: Verifier) -> None:
    @settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(
        first=st.sampled_from([True, True, True, False]),
        rest=st.lists(frames(), max_size=12),
        whole=opens(),
        end=st.booleans(),
    )
    def scenario(first: bool, rest: list[pb.DeviceFrame], whole: pb.Open, end: bool) -> None:
        over = threading.Event()

        def requests() -> Iterator[pb.DeviceFrame]:
            yield opening(verifier) if first else pb.DeviceFrame(open=whole)
            yield from rest
            if not end:
                over.wait(30)

        replies: Any = stub.Generate(requests(), timeout=20)
        with contextlib.suppress(grpc.RpcError):
            for _ in replies:
                pass
        over.set()
        assert replies.code() in TYPED, (replies.code(), replies.details())

    # The synchronous client: that of asyncio makes up statuses of its own for a call that ends while it writes.
    with grpc.insecure_channel(verifier.address.removeprefix("grpc://")) as channel:
        stub = pb_grpc.VerifierStub(channel)
        scenario()


async def test_frames_and_headers_that_are_too_large(target: Verifier) -> None:
    async with unharmed(target):
        large = pb.DeviceFrame(padding=bytes(2 << 20))
        for sent in ([large], [opening(target), large]):
            said = await call(target, sent, stay=asyncio.Event())
            assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        for metadata in (
            tuple((f"x-{number}", "v" * 100) for number in range(2000)),
            (("x-large", "v" * 200_000),),
            (("authorization", "Bearer " + "x" * 30_000),),
        ):
            said = await call(target, [opening(target)], metadata=metadata, timeout_s=10)
            assert said.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


async def test_headers_without_end(target: Verifier) -> None:
    """Continuations that never end are cut by the server."""
    async with unharmed(target):
        field = header("x-more", "v" * 1000) * 15
        endless = frame(HEADERS, 0, 1, field) + b"".join(frame(9, 0, 1, field) for _ in range(400))
        await answered(target.server.port, PREFACE + frame(raw_http2.SETTINGS, 0, 0) + endless)


async def test_a_flood_of_settings_pings_and_resets(target: Verifier) -> None:
    async with unharmed(target):
        start = PREFACE + frame(raw_http2.SETTINGS, 0, 0)
        await answered(target.server.port, start + frame(raw_http2.SETTINGS, 0, 0) * 5000)
        await answered(target.server.port, start + frame(raw_http2.PING, 0, 0, bytes(8)) * 5000)
        reset = struct.pack(">I", 8)
        async with raw_http2.connection(target.server.port) as peer:  # opened and reset at once ("rapid reset")
            for name in range(500):
                number = peer.call(opening(target, name=name).SerializeToString())
                peer.writer.write(frame(raw_http2.RST_STREAM, 0, number, reset))
            with contextlib.suppress(ConnectionError):
                await peer.writer.drain()


# -- many ----------------------------------------------------------------------------------------------------------


async def cut_after_open(target: Verifier, count: int) -> None:
    """So many generations opened over some connections, which are then cut."""
    for _ in range(count // 50):
        async with raw_http2.connection(target.server.port) as peer:
            for name in range(50):
                number = peer.call(opening(target, name=name + 1, max_tokens=500).SerializeToString())
            async with asyncio.timeout(60):
                async for kind, stream, _ in peer.frames():
                    if kind == raw_http2.HEADERS and stream == number:
                        break


async def silent(target: Verifier, count: int) -> None:
    """Connections that open a call, or half of one, and say nothing more; then they are gone. Their generations pause
    for want of acknowledgements; as long as they leave a place others go on beside them.
    """
    async with contextlib.AsyncExitStack() as stack:
        for name in range(count):
            peer = await stack.enter_async_context(raw_http2.connection(target.server.port))
            if name % 2:
                peer.call()
            else:
                peer.call(opening(target, name=name + 1, max_tokens=500).SerializeToString())
        await serves_now(target)


async def serves_now(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate("def f(", max_tokens=4, temperature=0, ignore_eos=True, timeout_s=60)
        assert len((await stream.result()).token_ids) == 4


@pytest.mark.parametrize("attack", [cut_after_open, silent])
async def test_many_calls_that_are_cut(target: Verifier, attack: Callable[[Verifier, int], Any]) -> None:
    """Memory is flat: something that stays of each would add to it in every round."""
    growth, before = list[int](), resident_kib()
    while len(growth) < 4 and (len(growth) < 2 or min(growth) > 2 * 1024):
        async with unharmed(target):
            await attack(target, 500 if attack is cut_after_open else 100)
            await idle(target, patience_s=120)
        growth.append(resident_kib() - before)
        before += growth[-1]
    assert min(growth) <= 2 * 1024, f"KiB more after each round: {growth}"
