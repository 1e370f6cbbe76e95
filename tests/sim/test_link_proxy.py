"""The emulator between real sockets on loopback. Times are checked from below only: a busy machine adds delay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish_core.errors import AddressInUse
from pilotfish_sim import link_proxy
from pilotfish_sim.cli import main
from pilotfish_sim.link_proxy import LinkProxy
from pilotfish_sim.links import Cut, LinkSpec


@contextlib.asynccontextmanager
async def echoing(spec: LinkSpec) -> AsyncIterator[LinkProxy]:
    """An echo server behind a link. It is waited for until every connection to it is closed."""
    handling: set[asyncio.Task[None] | None] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        async with LinkProxy(spec, listen=("127.0.0.1", 0), target=server.sockets[0].getsockname()) as proxy:
            yield proxy
        await asyncio.gather(*(task for task in handling if task is not None))


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
    async with echoing(LinkSpec()) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        proxy.spec = LinkSpec(cuts=(Cut(proxy.age_s, 3600.0, reset=True),))
        proxy.cut()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert proxy.counts.refused == 1


async def test_a_reset_comes_at_its_time() -> None:
    async with echoing(LinkSpec(cuts=(Cut(0.01, 3600.0, reset=True),))) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert proxy.age_s >= 0.01
        assert proxy.counts.broken + proxy.counts.refused == 1


async def test_more_connections_than_it_can_wait_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_proxy, "MAX_CONNECTIONS", 1)
    async with echoing(LinkSpec()) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        other, closing = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await other.read() == b""
        closing.close()
        assert proxy.counts.refused == 1
        writer.write(b"!")
        assert await reader.readexactly(1) == b"!"
        writer.close()


@pytest.mark.parametrize(
    "spec", [LinkSpec(cuts=(Cut(0.0, 1e300),)), LinkSpec(rate_up=1e-300), LinkSpec(trace_up=(10**9,))]
)
async def test_a_link_that_lets_nothing_through_can_be_ended(spec: LinkSpec) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        gone.set()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with asyncio.timeout(60), server:
        async with LinkProxy(spec, listen=("127.0.0.1", 0), target=server.sockets[0].getsockname()) as proxy:
            _, writer = await asyncio.open_connection(*proxy.address)
            writer.write(bytes(100_000))
            writer.close()
            await came.wait()
        await gone.wait()
    assert proxy.counts.bytes_up == 0


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


async def test_a_name_with_two_addresses_is_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[object, ...]] = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
    ]

    async def both(*_: object, **__: object) -> list[tuple[object, ...]]:
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", both)
    async with LinkProxy(LinkSpec(), listen=("two.test", 0), target=("127.0.0.1", 9)) as proxy:
        assert len(proxy._server.sockets) == 1
        assert proxy.address[0] == "127.0.0.1"


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
    for line, reason in {
        "rtt soon": "soon",
        "rtt 2min jitter 3min": "at most the round trip (120 s)",
        "rtt 1e200s": "rtt_s is 1e+200",
        "stall 0s": "length above 0",
        "x" * 100_000: "control line is 'xxx",
        "go": "control line is 'go'",
    }.items():
        refused = say(line)
        assert refused["event"] == "refused"
        assert reason in refused["reason"]
    assert say("\n\nrtt 7ms") == {"event": "changed", "line": "rtt 7ms"}  # an empty line is not the end
    if command.stdin:
        command.stdin.close()
    assert heard()["event"] == "passed"
    assert command.wait(20) == 0


def ended(*arguments: str, **streams: Any) -> tuple[int, str]:
    """Exit code and standard error of a link that ends by itself."""
    command = [sys.executable, "-m", "pilotfish_sim", "link", "--to", "127.0.0.1:1", *arguments]
    fixed = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **fixed)
    return done.returncode, done.stderr


@pytest.mark.parametrize("closed", [False, True])
def test_commands_cannot_be_read_from_a_file(closed: bool, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("rtt 5ms\n")
    with (tmp_path / "lines").open() as file:
        streams: dict[str, Any] = {"preexec_fn": lambda: os.close(0)} if closed else {"stdin": file}
        code, error = ended("--control", **streams)
    assert code == 1
    assert error == ("pilotfish-sim: --control: standard input is a file, or closed; expected a pipe or a terminal\n")


def test_where_it_cannot_write_it_says_so() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        assert ended(stdout=gone) == (1, "")
    code, error = ended(preexec_fn=lambda: os.close(1))
    assert (code, error) == (1, "pilotfish-sim: cannot write to standard output: it is closed\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        code, error = ended(stdout=full)
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("pilotfish-sim: ")


@pytest.mark.parametrize("module", ["argparse", "asyncio", "pilotfish_sim.links"])
def test_ctrl_c_while_the_command_is_loading(module: str) -> None:
    code = f"""
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupting())
from pilotfish_sim import cli
sys.exit(cli.main(["link", "--to", "127.0.0.1:1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_signal_ends_it_with_its_figures(command: subprocess.Popen[str]) -> None:
    assert command.stdout is not None
    command.stdout.readline()
    command.send_signal(signal.SIGTERM)
    assert json.loads(command.stdout.readline())["event"] == "passed"
    assert command.wait(60) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "a:1", "--rtt", "-5ms"], "--rtt is '-5ms'"),
        (["--to", "a:1", "--rtt", "10ms", "--jitter", "5ms", "--at", "5s:1ms"], "jitter_s is 0.005"),
        (["--to", "a:1", "--at", "5s:1e9s"], "rtt_s is 1000000000.0"),
        (["--to", "a:1", "--trace-up", "/dev/zero"], "a regular file"),
        (["--to", "a:1", "--trace-up", "any", "--rate", "5mbit"], "no --rate for the same direction"),
        (["--to", "a" * 300 + ":1"], "--to is 'aaa"),
        (["--to", "a:1", "--listen", "\udcff:0"], "--listen is"),
        (["--to", "a:1", "--listen", "a:" + "9" * 5000], "--listen is"),
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
