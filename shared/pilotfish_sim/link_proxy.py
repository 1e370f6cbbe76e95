"""The link emulator: a TCP proxy on this machine that delays what passes as a ``LinkSpec`` says.

Applications meet a link as TCP shows it: bytes come late, in order, or not at all. The proxy reads segments, asks the
model when they would have come out, and writes them then. Meant to run in a process of its own (``run``): its loop
waits with select(2), whose timeout has microseconds where epoll rounds up to the next millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from pilotfish_core.errors import AddressInUse
from pilotfish_sim.links import SEGMENT, Change, Cut, Direction, LinkSpec

READ_BYTES: Final = 64 * 1024
MAX_FLIGHT_BYTES: Final = 16 * 1024 * 1024  # on their way in one direction of a connection
MAX_CONNECTIONS: Final = 400  # at a time: select(2) takes no file descriptor from 1024 on


@dataclasses.dataclass(slots=True)
class LinkCounts:
    """What has passed."""

    connections: int = 0
    refused: int = 0
    broken: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class LinkProxy:
    """Listens on one address and connects each connection to ``target`` (host, port). An async context manager.

    All connections share the link's two wires. Raises AddressInUse on entry.
    """

    def __init__(self, spec: LinkSpec, *, listen: tuple[str, int], target: tuple[str, int]) -> None:
        self.spec = spec
        self.counts = LinkCounts()
        self._listen, self._target = listen, target
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LinkProxy:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._up = Direction(self.spec, up=True, began=self._began)
        self._down = Direction(self.spec, up=False, began=self._began)
        host, port = self._listen
        try:
            self._server = await asyncio.start_server(self._accepted, host, port, limit=READ_BYTES)
        except OSError as error:
            raise AddressInUse(f"cannot listen on {host}:{port} (--listen): {error.strerror or error}") from None
        self._cutter = asyncio.create_task(self._cut_connections())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await _end({self._cutter, *self._connections})

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return self._loop.time() - self._began

    def change(self, rtt_s: float, jitter_s: float | None = None) -> None:
        """Another round trip from now on. Raises InvalidParameter."""
        change = Change(self.age_s, rtt_s, jitter_s)
        kept = tuple(known for known in self.spec.changes if known.at_s < change.at_s)
        self.spec = dataclasses.replace(self.spec, changes=(*kept, change))
        self._up.change(self.spec)
        self._down.change(self.spec)

    def stall(self, length_s: float) -> None:
        """Let nothing pass from now on for so long; connections stay. Raises InvalidParameter."""
        self.spec = dataclasses.replace(self.spec, cuts=(*self.spec.cuts, Cut(self.age_s, length_s)))
        self._up.change(self.spec)
        self._down.change(self.spec)

    def cut(self) -> None:
        """Break all connections now."""
        for connection in self._connections:
            connection.cancel()

    async def _cut_connections(self) -> None:
        for cut in sorted((cut for cut in self.spec.cuts if cut.reset), key=lambda cut: cut.begin_s):
            await asyncio.sleep(max(0.0, cut.begin_s - self.age_s))
            self.cut()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self.spec.cut_at(self.age_s)
        if (cut is not None and cut.reset) or len(self._connections) >= MAX_CONNECTIONS:
            self.counts.refused += 1
            writer.transport.abort()
            return
        connection = asyncio.current_task()
        if connection is None:
            raise RuntimeError("a connection is served by a task")
        self._connections.add(connection)
        self.counts.connections += 1
        began = self._loop.time() + self.spec.rtt_at(self.age_s)[0]  # the handshake that the kernel has done already
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection(*self._target, limit=READ_BYTES)
            up = _Pump(self._up, reader, far, began)
            down = _Pump(self._down, far_reader, writer, began)
            await _together(up.read(), up.write(), down.read(), down.write())
        except (OSError, asyncio.IncompleteReadError):
            self.counts.broken += 1
        except asyncio.CancelledError:
            self.counts.broken += 1  # a cut, or the end of the proxy: the task is not awaited by anyone else
        finally:
            if far is not None:
                self.counts.bytes_up += up.passed
                self.counts.bytes_down += down.passed
                far.transport.abort()
            writer.transport.abort()
            self._connections.discard(connection)


class _Pump:
    """One direction of one connection: a reader that asks when, a writer that waits until then."""

    def __init__(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        began: float,
    ) -> None:
        self.passed = 0
        self._direction, self._reader, self._writer = direction, reader, writer
        self._began = began
        self._due: deque[tuple[float, bytes]] = deque()  # in order; empty bytes: the end of the stream
        self._flight = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()

    async def read(self) -> None:
        """Take in segments until the sender closes."""
        loop = asyncio.get_running_loop()
        while data := await self._reader.read(READ_BYTES):
            now = max(loop.time(), self._began)
            for begin in range(0, len(data), SEGMENT):
                piece = data[begin : begin + SEGMENT]
                self._put(self._direction.arrival(now, len(piece)), piece)
            while self._flight > MAX_FLIGHT_BYTES:
                self._room.clear()
                await self._room.wait()
            if (room_at := self._direction.room_at(now)) > now:
                await asyncio.sleep(room_at - now)
        self._put(self._direction.arrival(max(loop.time(), self._began), 0), b"")

    async def write(self) -> None:
        """Give out what is due until the stream's end is."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._due:
                self._more.clear()
                await self._more.wait()
            wait = self._due[0][0] - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            pieces: list[bytes] = []
            ended = False
            while self._due and self._due[0][0] <= loop.time() and not ended:
                piece = self._due.popleft()[1]
                pieces.append(piece)
                ended = not piece
            data = b"".join(pieces)
            self._flight -= len(data)
            self.passed += len(data)
            self._room.set()
            if data:
                self._writer.write(data)
                await self._writer.drain()
            if ended:
                with contextlib.suppress(OSError):
                    self._writer.write_eof()
                return

    def _put(self, due: float, piece: bytes) -> None:
        self._due.append((due, piece))
        self._flight += len(piece)
        self._more.set()


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run until all are done; the first failure ends the others."""
    tasks = {asyncio.create_task(part) for part in parts}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """``main`` on a loop whose timers are exact to some tens of microseconds."""

    def precise_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main())
