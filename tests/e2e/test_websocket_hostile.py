"""Sockets that break the protocol, mean harm or read nothing: each is closed by itself, those beside it go on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from pilotfish_cloud.http.socket_protocol import MAX_UNREAD_BYTES
from pilotfish_cloud.http.websocket import WebSocketDoor
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.cloud.shared_state.contract import until
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.http_doors import gateway_of, watching
from tests.e2e.raw_calls import idle, opening, serves
from tests.e2e.socket_calls import PATH, PROTOCOL, ask, rest, socket
from tests.e2e.test_hostile_clients import TOKENIZER_HASH, frames, opens

pytestmark = pytest.mark.asyncio(loop_scope="session")
BACKLOG: Final = 4 * 1024
CUT_AFTER_S: Final = 0.2
SEND_BUFFER: Final = 8 * 1024  # of the kernel, so that little is written that nobody reads
TYPED: Final = {1000, 4001, 4003, 4004, 4005, 4008, 4009}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target() -> AsyncIterator[Verifier]:
    """A verifier of its own: what is left in it is looked at."""
    async with serving(max_unacknowledged=4096) as verifier:

        async def listens() -> bool:
            return verifier.server._http.started

        await until(listens)
        for server in verifier.server._http.servers:
            for listener in server.sockets:
                listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
        yield verifier


def door_of(verifier: Verifier) -> WebSocketDoor:
    assert verifier.server.sockets is not None
    return verifier.server.sockets


async def settled(verifier: Verifier) -> None:
    """Wait until no task of a socket is left."""
    door = door_of(verifier)
    async with asyncio.timeout(60):
        while tasks := [*door.calls.pending, *door._open]:
            await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def unharmed(verifier: Verifier) -> AsyncIterator[None]:
    """Meanwhile answers come as they always do, through both doors; afterwards nothing is left."""
    params: dict[str, Any] = {"max_tokens": 48, "temperature": 0.8, "seed": 11, "ignore_eos": True}
    first = opening(verifier, name=900, **params)
    expected = (await ask(verifier, [first])).tokens
    async with connected(verifier) as client:
        stream = await client.generate(list(first.open.prompt.tokens), **params)
        beside = asyncio.create_task(ask(verifier, [opening(verifier, name=901, **params)]))
        yield
        assert (await stream.result()).token_ids == expected
        assert (await beside).tokens == expected
    await serves(verifier)
    await settled(verifier)
    verifier.engine.check_integrity()
    assert verifier.engine.stats().running == verifier.engine.stats().waiting == 0


NO_OPEN: Final = "first frame must carry open"


@pytest.mark.parametrize(
    ("opened", "message", "part"),
    [
        (False, "hello", "text message"),
        (False, b"\xff" * 50, "cannot be parsed"),
        (False, b"", NO_OPEN),
        (False, pb.DeviceFrame(token=1, branch=0, start=0), NO_OPEN),
        (False, pb.DeviceFrame(ping=pb.Ping(nonce=1)), NO_OPEN),
        (False, pb.DeviceFrame(open=pb.Open(protocol_version=1, generation_id=b"short")), "generation_id"),
        (True, "hello", "text message"),
        (True, b"\xff" * 50, "cannot be parsed"),
        (True, pb.DeviceFrame(token=2**32 - 1, branch=0, start=4), "outside the vocabulary"),
        (True, pb.DeviceFrame(tokens=range(5000), branch=0, start=4), "a run of 5000 draft tokens"),
        (True, pb.DeviceFrame(token=1), "must name its branch"),
        (True, pb.DeviceFrame(acknowledged=1_000_000), "acknowledge"),
        (True, pb.DeviceFrame(open=pb.Open()), "second open"),
    ],
)
async def test_messages_that_break_the_protocol(
    target: Verifier, opened: bool, message: pb.DeviceFrame | bytes | str, part: str
) -> None:
    before = [opening(target, max_tokens=1500)] if opened else []
    said = await ask(target, [*before, message])
    assert said.code == 4003
    assert said.error["code"] in ("protocol_violation", "invalid_parameter")
    whole = said.error if said.told is None else said.told["error"]
    assert part in whole["message"]
    await idle(target)


async def test_good_generations_beside_bad_ones(target: Verifier) -> None:
    noise = random.Random(4)
    async with unharmed(target):
        for number in range(60):
            bad: list[pb.DeviceFrame | bytes | str] = [noise.randbytes(noise.randrange(200))]
            if number % 2:
                bad.insert(0, opening(target, name=number, max_tokens=1500))
            said = await ask(target, bad)
            assert said.code in TYPED, said
            if number % 2 == 0:
                assert said.code == 4003


async def test_what_a_message_says_is_shortened(target: Verifier) -> None:
    frame = opening(target)
    frame.open.model = "\N{SNOWMAN}" * 20_000
    said = await ask(target, [frame])
    assert (said.code, said.error["code"]) == (4005, "unknown_model")
    assert len(said.reason.encode()) <= 123
    assert said.told is not None
    assert len(said.error["message"]) < len(said.told["error"]["message"]) < 1000


@pytest.mark.parametrize("opened", [False, True])
async def test_messages_that_are_too_large(target: Verifier, opened: bool) -> None:
    """What is no WebSocket, or too much of one, is closed by the codes that RFC 6455 has for it."""
    before = [opening(target, max_tokens=1500)] if opened else []
    said = await ask(target, [*before, bytes((1 << 20) + 1)])
    assert said.code == 1009
    await idle(target)
    largest = pb.DeviceFrame(padding=bytes((1 << 20) - 8))
    assert 1 << 20 > largest.ByteSize() > (1 << 20) - 10
    assert (await ask(target, [largest])).code == 4003  # it was read, and is no open


async def test_bytes_that_are_no_websocket(target: Verifier) -> None:
    noise = random.Random(5)

    async def broken(number: int) -> int:
        async with socket(target.http) as peer:
            if number % 2:
                await peer.send(opening(target, name=number, max_tokens=1500).SerializeToString())
                await peer.recv()
            peer.transport.write(b"\xff" + noise.randbytes(noise.randrange(1, 300)))  # reserved bits
            return (await rest(peer)).code

    async with unharmed(target):
        assert set(await asyncio.gather(*map(broken, range(40)))) == {1002}


async def test_text_that_is_none(target: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    async with socket(target.http) as peer:
        await peer.send(b"\xff\xfe", text=True)
        said = await rest(peer)
    assert (said.code, "text message" in said.error["message"]) == (4003, True)
    assert "UTF-8" not in caplog.text
    await idle(target)


async def test_valid_messages_in_any_order(target: Verifier) -> None:
    TOKENIZER_HASH[0] = bytes.fromhex(target.engine.tokenizer.hash)
    async with unharmed(target):
        await asyncio.to_thread(_converse, target)
    await idle(target)


def _converse(verifier: Verifier) -> None:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(
        first=st.sampled_from([True, True, True, False]),
        rest=st.lists(frames(), max_size=12),
        whole=opens(),
        leaves=st.booleans(),
    )
    def scenario(first: bool, rest: list[pb.DeviceFrame], whole: pb.Open, leaves: bool) -> None:
        address = verifier.http.replace("http", "ws", 1) + PATH
        offers = [Subprotocol(PROTOCOL), Subprotocol("pilotfish.deadline.20000")]
        with connect(address, subprotocols=offers, compression=None, proxy=None, close_timeout=5) as peer:
            with contextlib.suppress(ConnectionClosed):
                peer.send((opening(verifier) if first else pb.DeviceFrame(open=whole)).SerializeToString())
                for frame in rest:
                    peer.send(frame.SerializeToString())
            if leaves:
                return
            with contextlib.suppress(ConnectionClosed):
                while True:
                    peer.recv(timeout=30)
            assert peer.close_code in TYPED, (peer.close_code, peer.close_reason)

    scenario()


async def test_many_that_are_cut(target: Verifier) -> None:
    async with unharmed(target):
        for _ in range(4):
            async with contextlib.AsyncExitStack() as stack:
                for name in range(25):
                    peer = await stack.enter_async_context(socket(target.http))
                    await peer.send(opening(target, name=name + 1, max_tokens=500).SerializeToString())
                    stack.callback(peer.transport.abort)
            await idle(target)


# -- who does not read ---------------------------------------------------------------------------------------------


class Silent:
    """A socket by hand that reads nothing until it is told to."""

    def __init__(self, verifier: Verifier) -> None:
        self._peer = sockets.socket()
        self._peer.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        self._peer.settimeout(60)
        self._peer.connect(("127.0.0.1", verifier.server.http_port))
        self._peer.sendall(
            f"GET {PATH} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-version: 13\r\nsec-websocket-key: {'A' * 22}==\r\n"
            f"sec-websocket-protocol: {PROTOCOL}\r\n\r\n".encode()
        )
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += self._peer.recv(1)
        assert received.startswith(b"HTTP/1.1 101 ")

    def send(self, data: bytes, *, opcode: int = 2) -> None:
        """A message; masked by zeros."""
        length = len(data)
        size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2)
        self._peer.sendall(bytes([0x80 | opcode]) + size + bytes(4) + data)

    def rest(self) -> bytes:
        """All that comes."""
        received = b""
        while data := self._peer.recv(1 << 16):
            received += data
        return received

    def close(self) -> None:
        self._peer.close()


@contextlib.asynccontextmanager
async def silent(verifier: Verifier) -> AsyncIterator[Silent]:
    peer = await asyncio.to_thread(Silent, verifier)
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def short(target: Verifier) -> Iterator[None]:
    """Little patience with who does not read."""
    gateway, door = gateway_of(target), door_of(target)
    before = gateway._max_backlog_bytes, door.calls.cut_after_s
    gateway._max_backlog_bytes, door.calls.cut_after_s = BACKLOG, CUT_AFTER_S
    yield
    gateway._max_backlog_bytes, door.calls.cut_after_s = before


@pytest.mark.usefixtures("short")
async def test_who_does_not_read_is_cut_and_told_later(target: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    async with silent(target) as peer:
        with watching(target) as watcher:
            peer.send(opening(target, max_tokens=1500, logprobs=20).SerializeToString())
            await watcher.until(lambda: bool(watcher.streams))
        await idle(target)  # its place is free, though nothing was read
        assert target.engine.stats().running == gateway_of(target).admission.generations == 0
        assert 0 < _waiting(target) < 128 * 1024
        async with connected(target) as client:  # beside it
            stream = await client.generate("def f(", max_tokens=8, temperature=0, ignore_eos=True)
            assert len((await stream.result()).token_ids) == 8
        said = await asyncio.to_thread(peer.rest)
    assert b"resume to go on" in said
    assert said.count(b'"code":"unavailable"') >= 1
    assert b"\x0f\xae" in said  # 4014
    await settled(target)
    assert "Traceback" not in caplog.text
    await serves(target)


@pytest.mark.usefixtures("short")
async def test_who_never_reads_costs_no_more_than_its_connection(
    target: Verifier, caplog: pytest.LogCaptureFixture
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with watching(target) as watcher:
            for name in range(8):
                peer = await stack.enter_async_context(silent(target))
                peer.send(opening(target, name=100 + name, max_tokens=600, logprobs=20).SerializeToString())
            await watcher.until(lambda: len(watcher.streams) == 8)
        await idle(target, patience_s=120)
    await settled(target)
    assert "Traceback" not in caplog.text
    await serves(target)


async def test_a_flood_of_pings_from_who_does_not_read(target: Verifier) -> None:
    """Neither the socket's own pings nor the protocol's pile up."""
    async with silent(target) as peer:
        peer.send(opening(target, name=7, max_tokens=1500).SerializeToString())
        for _ in range(60):
            await asyncio.to_thread(_flood, peer)
            assert _waiting(target) < MAX_UNREAD_BYTES + (1 << 20)
    await idle(target)
    await serves(target)


def _flood(peer: Silent) -> None:
    with contextlib.suppress(OSError):
        for _ in range(1000):
            peer.send(b"p" * 125, opcode=9)


def _waiting(verifier: Verifier) -> int:
    """The most bytes that the server holds for a connection, beside what the kernel does."""
    connections: list[Any] = list(verifier.server._http.server_state.connections)
    return max((connection.transport.get_write_buffer_size() for connection in connections), default=0)
