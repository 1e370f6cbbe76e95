"""The link emulator: a TCP proxy on this machine that delays what passes as a ``LinkSpec`` says.

Applications meet a link as TCP shows it: bytes come late, in order, or not at all. The proxy reads segments, asks the
model when they would have come out, and writes them then. Meant to run in a process of its own (``run``), whose timers
are punctual.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from pilotfish_core.errors import AddressInUse
from pilotfish_sim.link_lane import READ_BYTES, End, Lane
from pilotfish_sim.links import Change, Cut, Direction, LinkSpec
from pilotfish_sim.punctual import PunctualSelector

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
        self._connections: set[_Connection] = set()
        self._closed = False

    async def __aenter__(self) -> LinkProxy:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._up = Direction(self.spec, up=True, began=self._began)
        self._down = Direction(self.spec, up=False, began=self._began)
        host, port = self._listen
        try:
            # One address: a name with two, and port 0, would be two ports, of which only one could be told.
            place = (await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))[0]
            self._server = await self._loop.create_server(self._accept, *place[4][:2], family=place[0])
        except OSError as error:
            raise AddressInUse(f"cannot listen on {host}:{port} (--listen): {error.strerror or error}") from None
        self._cutter = asyncio.create_task(self._cut_connections())
        return self

    async def __aexit__(self, *__: object) -> None:
        self._closed = True
        self._server.close()
        self._cutter.cancel()
        self.cut()
        for _ in range(3):  # what the loop has accepted becomes a connection, is refused, and closes its socket
            await asyncio.sleep(0)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

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
        for connection in list(self._connections):
            connection.end(broken=True)

    async def _cut_connections(self) -> None:
        for cut in sorted((cut for cut in self.spec.cuts if cut.reset), key=lambda cut: cut.begin_s):
            await asyncio.sleep(max(0.0, cut.begin_s - self.age_s))
            self.cut()

    def _accept(self) -> End:
        return _Connection(self).near


class _Connection:
    """A connection that was accepted, and the one to the target that goes with it. Both end together."""

    def __init__(self, proxy: LinkProxy) -> None:
        self._proxy = proxy
        self._ways = 2  # that have not ended
        self._connecting: asyncio.Task[None] | None = None
        self._up = Lane(proxy._up, passed=self._passed_up, ended=lambda: self._ended(self.far))
        self._down = Lane(proxy._down, passed=self._passed_down, ended=lambda: self._ended(self.near))
        size = min(READ_BYTES, proxy.spec.queue_bytes)  # or one read would be more than may wait
        self.near = End(self._up, self._down, size=size, made=self._accepted, lost=self._lost)
        self.far = End(self._down, self._up, size=size, made=self._connected, lost=self._lost)
        self._over = False

    def end(self, *, broken: bool) -> None:
        """Close both ends at once. Does nothing the second time."""
        if self._over:
            return
        self._over = True
        self._proxy.counts.broken += broken
        self._proxy._connections.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        for lane in (self._up, self._down):
            lane.close()
        for side in (self.near, self.far):
            if side.transport is None:
                continue
            if broken:
                side.transport.abort()
            else:
                side.transport.close()

    def _accepted(self, near: End) -> None:
        proxy = self._proxy
        cut = proxy.spec.cut_at(proxy.age_s)
        if (cut is not None and cut.reset) or len(proxy._connections) >= MAX_CONNECTIONS or proxy._closed:
            proxy.counts.refused += 1
            self._over = True
            if near.transport is not None:
                near.transport.abort()
            return
        proxy._connections.add(self)
        proxy.counts.connections += 1
        # The handshake that the kernel has done already.
        self._up.began = self._down.began = proxy._loop.time() + proxy.spec.rtt_at(proxy.age_s)[0]
        # Until there is somewhere to send it. Early releases of Python 3.11 read on after a pause that comes this soon.
        self._up.block(True)
        if near.transport is not None:
            near.transport.pause_reading()
        self._connecting = proxy._loop.create_task(self._connect())

    async def _connect(self) -> None:
        host, port = self._proxy._target
        try:
            await self._proxy._loop.create_connection(lambda: self.far, host, port)
        except OSError:
            self.end(broken=True)

    def _connected(self, far: End) -> None:
        if self._over:
            if far.transport is not None:
                far.transport.abort()
        elif self.near.transport is not None:
            self._up.block(False)
            self.near.transport.resume_reading()

    def _ended(self, sink: End) -> None:
        """All that one side had to say has come out at the other."""
        self._ways -= 1
        if not self._ways:
            self.end(broken=False)
        elif sink.transport is not None:
            with contextlib.suppress(OSError):
                sink.transport.write_eof()

    def _lost(self) -> None:
        self.end(broken=True)

    def _passed_up(self, count: int) -> None:
        self._proxy.counts.bytes_up += count

    def _passed_down(self, count: int) -> None:
        self._proxy.counts.bytes_down += count


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """``main`` on a loop whose timers are exact to some tens of microseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PunctualSelector())) as runner:
        return runner.run(main())
