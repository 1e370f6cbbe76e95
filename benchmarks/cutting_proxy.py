"""A TCP proxy that counts, and whose connections break: after so many bytes, in mid-frame or not, or while down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from pilotfish.addresses import parse_addresses

READ_BYTES: Final = 65536


class CuttingProxy:
    """Forwards connections to ``address``. ``bytes_until_cut`` is asked for each new one: after so many bytes, of both
    directions together, it is reset; None: never. While the link is down, connections are reset at once.
    ``bytes_up`` and ``bytes_down`` have passed, to the address and from it.
    """

    def __init__(self, address: str, bytes_until_cut: Callable[[], int | None] = lambda: None) -> None:
        (self._target,) = parse_addresses(address)
        self._bytes_until_cut = bytes_until_cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[_Link] = set()
        self._down = False
        self._left: int | None = None
        self.cuts = 0
        self.refused = 0
        self.bytes_up = self.bytes_down = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"grpc://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def go_down(self, *, for_connections: int | None = None) -> None:
        """Cut everything, and let nothing through; ``for_connections``: come up after so many were refused."""
        self._down, self._left = True, for_connections
        self.cut()

    def come_up(self) -> None:
        """Let new connections through."""
        self._down = False

    def cut(self) -> None:
        """Reset all connections."""
        for link in list(self._links):
            link.reset()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            self.refused += 1
            writer.transport.abort()
            if self._left is not None:
                self._left -= 1
                self._down = self._left > 0
            return
        there_reader, there_writer = await asyncio.open_connection(self._target.host, self._target.port)
        link = _Link((writer, there_writer), self._bytes_until_cut())
        self._links.add(link)
        if self._down:
            link.reset()
        pumps = [
            asyncio.create_task(self._pump(link, source, sink, upward))
            for source, sink, upward in ((reader, there_writer, True), (there_reader, writer, False))
        ]
        for task in pumps:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.wait(pumps)
        self._links.discard(link)

    async def _pump(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, upward: bool) -> None:
        try:
            while data := await source.read(READ_BYTES):
                let_through = link.allowed(len(data))
                if upward:
                    self.bytes_up += let_through
                else:
                    self.bytes_down += let_through
                sink.write(data[:let_through])
                await sink.drain()
                if let_through < len(data):
                    self.cuts += 1
                    link.reset()
                    return
        except ConnectionError:
            pass
        finally:
            link.close()


class _Link:
    """The two ends of one connection."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter], left: int | None) -> None:
        self._writers = writers
        self._left = left

    def allowed(self, count: int) -> int:
        """How many of ``count`` bytes still pass."""
        if self._left is None:
            return count
        passing = min(count, self._left)
        self._left -= passing
        return passing

    def reset(self) -> None:
        for writer in self._writers:
            if not writer.transport.is_closing():
                transport = writer.transport
                if transport.get_write_buffer_size():  # half a frame is to arrive before the end does
                    transport.close()
                else:
                    transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
