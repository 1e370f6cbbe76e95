"""The emulator between real sockets on loopback. Times are checked from below only: a busy machine adds delay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pilotfish_core.errors import AddressInUse
from pilotfish_sim.cli import main
from pilotfish_sim.link_proxy import LinkProxy
from pilotfish_sim.links import Cut, LinkSpec


@contextlib.asynccontextmanager
async def echoing(spec: LinkSpec) -> AsyncIterator[LinkProxy]:
    """An echo server behind a link."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, LinkProxy(spec, listen=("127.0.0.1", 0), target=server.sockets[0].getsockname()) as proxy:
        yield proxy


async def test_bytes_arrive_whole_and_in_order() -> None:
    sent = bytes(range(256)) * 4000
    async with echoing(LinkSpec(rtt_s=0.004, jitter_s=0.004, rate_up=8e8, loss=0.01)) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()
        await writer.wait_closed()
    assert proxy.counts.connections == 1
    assert proxy.counts.bytes_up == proxy.counts.bytes_down == len(sent)


async def test_a_round_trip_takes_its_time_and_can_change() -> None:
    async with echoing(LinkSpec(rtt_s=0.03)) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)

        async def round_trip() -> float:
            began = time.monotonic()
            writer.write(b"?")
            await reader.readexactly(1)
            return time.monotonic() - began

        assert await round_trip() >= 0.06  # the first bytes come after the handshake
        assert await round_trip() >= 0.03
        proxy.change(0.1)
        assert await round_trip() >= 0.1
        writer.close()
        await writer.wait_closed()


async def test_a_slow_wire_stops_the_sender() -> None:
    async with echoing(LinkSpec(rate_up=8e5, queue_bytes=4096)) as proxy:  # 100,000 bytes a second
        reader, writer = await asyncio.open_connection(*proxy.address)
        began = time.monotonic()
        writer.write(bytes(20_000))
        assert len(await reader.readexactly(20_000)) == 20_000
        assert time.monotonic() - began >= 0.2
        writer.close()
        await writer.wait_closed()


async def test_a_reset_breaks_connections_and_refuses_new_ones() -> None:
    async with echoing(LinkSpec(cuts=(Cut(0.05, 60.0, reset=True),))) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert proxy.counts.refused == 1


async def test_nobody_behind_the_link() -> None:
    spare = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    target = spare.sockets[0].getsockname()
    spare.close()
    await spare.wait_closed()
    async with LinkProxy(LinkSpec(), listen=("127.0.0.1", 0), target=target) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_a_port_in_use_is_named() -> None:
    async with echoing(LinkSpec()) as proxy:
        with pytest.raises(AddressInUse, match="--listen"):
            async with LinkProxy(LinkSpec(), listen=proxy.address, target=proxy.address):
                pass


@pytest.fixture
def command() -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "pilotfish_sim", "link", "--to", "127.0.0.1:1", "--rtt", "5ms"]
    process = subprocess.Popen(
        [*arguments, "--control", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def test_the_command_obeys(command: subprocess.Popen[str]) -> None:
    def heard() -> dict[str, Any]:
        line: dict[str, Any] = json.loads(command.stdout.readline() if command.stdout else "")
        return line

    def say(line: str) -> dict[str, Any]:
        if command.stdin:
            command.stdin.write(line + "\n")
            command.stdin.flush()
        return heard()

    listening = heard()
    assert listening["event"] == "listening"
    assert listening["address"].startswith("127.0.0.1:")
    assert say("rtt 200ms jitter 5ms")["event"] == "changed"
    assert say("stall 100ms")["event"] == "changed"
    assert say("cut")["event"] == "changed"
    refused = say("rtt soon")
    assert refused["event"] == "refused"
    assert "soon" in refused["reason"]
    if command.stdin:
        command.stdin.close()
    assert heard()["event"] == "passed"
    assert command.wait(20) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "nowhere"], "--to is 'nowhere'"),
        (["--to", "a:0"], "--to is 'a:0'"),
        (["--to", "a:1", "--rtt", "quick"], "--rtt is 'quick'"),
        (["--to", "a:1", "--rate", "0mbit"], "--rate-up is '0mbit'"),
        (["--to", "a:1", "--cut", "5s"], "--cut is '5s'"),
        (["--to", "a:1", "--at", "5s"], "--at is '5s'"),
        (["--to", "a:1", "--loss", "0.9"], "loss is 0.9"),
        (["--to", "a:1", "--trace-up", "/nowhere"], "Mahimahi"),
        (["--to", "a:1", "--listen", "127.0.0.1:99999"], "--listen is"),
    ],
)
def test_bad_flags_are_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
