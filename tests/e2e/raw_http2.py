"""As much of an HTTP/2 client as is needed to be a bad one: frames by hand, a flow-control window of one's choice."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_HEADERS, ACK = 4, 1
INITIAL_WINDOW_SIZE: Final = 4
GENERATE: Final = "/pilotfish_core.proto.v1.Verifier/Generate"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal field without indexing and without Huffman coding (RFC 7541, section 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    size, prefix = len(data), b""
    if size < 127:
        prefix = bytes((size,))
    else:
        prefix, size = b"\x7f", size - 127
        while size >= 128:
            prefix, size = prefix + bytes((size % 128 + 128,)), size // 128
        prefix += bytes((size,))
    return prefix + data


def message(data: bytes) -> bytes:
    """With gRPC's prefix."""
    return b"\0" + struct.pack(">I", len(data)) + data


class Connection:
    """One connection. ``window``: bytes that the peer may send on each stream before it is granted more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int) -> None:
        self.reader, self.writer = reader, writer
        writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))
        self._next = 1

    def call(self, *messages: bytes, path: str = GENERATE, headers: tuple[tuple[str, str], ...] = ()) -> int:
        """Begin a call and send messages. Returns its stream's number."""
        number, self._next = self._next, self._next + 2
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "verifier"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        )
        self.writer.write(frame(HEADERS, END_HEADERS, number, b"".join(header(*field) for field in fields)))
        for data in messages:
            self.writer.write(frame(DATA, 0, number, message(data)))
        return number

    def grant(self, size: int, *streams: int) -> None:
        """Let the peer send so much more on these streams (0: the connection)."""
        for number in streams:
            self.writer.write(frame(WINDOW_UPDATE, 0, number, struct.pack(">I", size)))

    async def frames(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """Kind, stream and payload of what comes, settings and pings acknowledged, until the connection ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self.writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                yield kind, stream, payload


@contextlib.asynccontextmanager
async def connection(port: int, *, window: int = 65535) -> AsyncIterator[Connection]:
    """A connection, cut at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer, window)
    finally:
        writer.transport.abort()
