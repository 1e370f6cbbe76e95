from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from pilotfish.addresses import Address, parse_addresses
from pilotfish.transport import CHANNEL_OPTIONS, PROXY_RETRY_S, Transport, translate
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.errors import (
    DeadlineExceeded,
    InvalidParameter,
    InvalidRequest,
    MissingExtra,
    ProtocolViolation,
    Unavailable,
)
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5000", Address("127.0.0.1", 5000)),
        ("grpc://host:1", Address("host", 1)),
        ("grpcs://host:443/", Address("host", 443, secure=True)),
        ("host", Address("host", 50051)),
        ("ws://host:8000", Address("host", 8000, websocket=True)),
        ("ws://host", Address("host", 80, websocket=True)),
        ("wss://host/", Address("host", 443, secure=True, websocket=True)),
        ("wss://[::1]:7", Address("[::1]", 7, secure=True, websocket=True)),
        ("grpc://[::1]:7", Address("[::1]", 7)),
        ("[::1]", Address("[::1]", 50051)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "http://x:1",
        "host:",
        "host:0",
        "host:70000",
        "host:x",
        ":5",
        "",
        "host:١",
        "\udcff:1",
        "a\nb:1",
        "h:" + "9" * 5000,
    ],
)
def test_a_bad_address_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_addresses(text)


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    for name in [name for name in sys.modules if name.startswith(("websockets.", "pilotfish.socket_transport"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("pilotfish.socket_transport", raising=False)
    transport = Transport(parse_addresses("ws://127.0.0.1:1"))
    for ask in (transport.describe, lambda: transport.fetch_tokenizer(""), lambda: transport.fetch_chat_template("")):
        with pytest.raises(MissingExtra, match=r"pilotfish\[websocket\]"):
            await ask()
    with pytest.raises(MissingExtra, match=r"pilotfish\[websocket\]"):
        transport.open(0)


def test_a_list_of_addresses() -> None:
    assert parse_addresses("a:1,b:2") == parse_addresses(["a:1", "b:2"]) == (Address("a", 1), Address("b", 2))


def test_what_a_verifier_says_is_made_fit_for_a_terminal() -> None:
    said = "no\x1b[2J\r\n\tway\u202e\x00 " + "x" * 5000
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("pilotfish-error", "invalid_request"), ("pilotfish-retry-after-ms", "9" * 5000)),
        details=said,
    )
    translated = translate(error)
    assert isinstance(translated, InvalidRequest)
    assert translated.retry_after_s is None
    message = str(translated)
    assert message.startswith("no [2J way xxx")
    assert message.isprintable()
    assert len(message) < 350
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS):
        message = str(translate(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=said)))
        assert message.isprintable()
        assert len(message) < 400


class StallingVerifier(pb_grpc.VerifierServicer):
    """Begins to send its tokenizer, and stops."""

    protocol_version = 1

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        return pb.DescribeResponse(protocol_version=self.protocol_version)

    async def Generate(self, request_iterator: AsyncIterator[pb.DeviceFrame], context: Any) -> None:  # type: ignore[override]
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    async def FetchChatTemplate(self, request: pb.FetchChatTemplateRequest, context: Any) -> pb.ChatTemplate:
        return pb.ChatTemplate(source="x" * 600_000)

    async def FetchTokenizer(self, request: pb.FetchTokenizerRequest, context: Any) -> AsyncIterator[pb.TokenizerChunk]:
        yield pb.TokenizerChunk(total_size=10, data=b"x")
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def stalling(delay_s: float = 0.0) -> AsyncIterator[Transport]:
    """A transport to one, over a link whose every packet takes ``delay_s``."""
    server = grpc.aio.server()
    pb_grpc.add_VerifierServicer_to_server(StallingVerifier(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for source, sink in ((reader, back), (there, writer)):
            tasks.add(asyncio.create_task(_carry(source, sink, delay_s)))

    link = await asyncio.start_server(connection, "127.0.0.1", 0)
    transport = Transport(parse_addresses(f"127.0.0.1:{link.sockets[0].getsockname()[1]}"))
    try:
        yield transport
    finally:
        await transport.close()
        await server.stop(None)
        link.close()
        await asyncio.gather(*tasks)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            await asyncio.sleep(delay_s)
            sink.write(data)
    sink.close()


def test_a_proxy_that_has_nobody_to_ask_is_asked_again() -> None:
    said = "Received http2 header with status: 502"
    code = grpc.StatusCode.UNAVAILABLE
    found = translate(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=said))
    assert isinstance(found, Unavailable)
    assert "HTTP 502" in found.message
    assert found.retry_after_s == PROXY_RETRY_S


async def test_a_tokenizer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.transport.FETCH_TIMEOUT_S", 0.3)
    async with asyncio.timeout(60), stalling() as transport:
        with pytest.raises(DeadlineExceeded):
            await transport.fetch_tokenizer("")


async def test_a_slow_link_has_time_to_connect() -> None:
    async with asyncio.timeout(60), stalling(delay_s=0.4) as transport:
        assert (await transport.describe()).protocol_version == 1


async def test_a_verifier_of_another_protocol_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StallingVerifier, "protocol_version", 7)
    async with asyncio.timeout(60), stalling() as transport:
        with pytest.raises(ProtocolViolation, match="protocol version 7, this device 1"):
            await transport.describe()


def test_keepalive_stays_behind_the_cores_own_ping() -> None:
    """Servers punish pings without data; with a stream open the core's ping makes data before the channel asks."""
    options: dict[str, Any] = dict(CHANNEL_OPTIONS)
    assert options["grpc.keepalive_time_ms"] > 1000 * DeviceConfig().ping_after_s
    assert "grpc.keepalive_permit_without_calls" not in options
