"""One connection through the link emulator: two ends, and a lane each way that gives out bytes when they are due.

All of it happens in the callbacks of an event loop. A task for each way, woken for every segment, would add its own
delay to each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from pilotfish_sim.links import SEGMENT, Direction

READ_BYTES: Final = 64 * 1024
MAX_FLIGHT_BYTES: Final = 16 * 1024 * 1024  # on their way in one direction of a connection


class Lane:
    """One direction of one connection. ``began``: what came before counts as come then, the handshake's end.

    Bytes are in ``source``'s order. It is stopped while more than the link's queue waits for the wire, or too much is
    on its way, and nothing is given out while ``sink`` takes nothing. ``ended`` is called once the end of the stream
    was given out.
    """

    def __init__(self, direction: Direction, *, passed: Callable[[int], None], ended: Callable[[], None]) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.began = 0.0
        self._loop = asyncio.get_running_loop()
        self._direction = direction
        self._passed, self._ended = passed, ended
        self._due: deque[tuple[float, bytes]] = deque()  # in order; empty bytes: the end of the stream
        self._flight = 0
        self._timer: asyncio.TimerHandle | None = None  # to give out
        self._resuming: asyncio.TimerHandle | None = None
        self._blocked = False

    def take(self, data: bytes) -> None:
        """Bytes came in; none: the end."""
        now = max(self._loop.time(), self.began)
        for begin in range(0, max(len(data), 1), SEGMENT):
            piece = data[begin : begin + SEGMENT]
            self._due.append((self._direction.arrival(now, len(piece)), piece))
        self._flight += len(data)
        room_at = self._direction.room_at(now)
        if self._flight > MAX_FLIGHT_BYTES or room_at > now:
            self._stop_source(room_at)
        self._arm()

    def block(self, blocked: bool) -> None:
        """Whether the sink takes nothing at present."""
        self._blocked = blocked
        if not blocked:
            self._give()

    def close(self) -> None:
        """Nothing is given out any more."""
        self._due.clear()
        for timer in (self._timer, self._resuming):
            if timer is not None:
                timer.cancel()
        self._timer = self._resuming = None

    def _stop_source(self, room_at: float) -> None:
        if self.source is None:
            return
        self.source.pause_reading()
        if self._resuming is not None:
            self._resuming.cancel()
        self._resuming = self._loop.call_at(room_at, self._resume_source)

    def _resume_source(self) -> None:
        self._resuming = None
        if self._flight <= MAX_FLIGHT_BYTES and self.source is not None:
            self.source.resume_reading()

    def _arm(self) -> None:
        if self._timer is None and self._due and not self._blocked:
            self._timer = self._loop.call_at(self._due[0][0], self._give)

    def _give(self) -> None:
        """Hand what is due to the sink."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces: list[bytes] = []
        ended = False
        now = self._loop.time()
        while self._due and self._due[0][0] <= now and not ended:
            piece = self._due.popleft()[1]
            pieces.append(piece)
            ended = not piece
        data = b"".join(pieces)
        crowded = self._flight > MAX_FLIGHT_BYTES
        self._flight -= len(data)
        if crowded and self._resuming is None:
            self._resume_source()
        if self.sink is not None and data:
            self._passed(len(data))
            self.sink.write(data)
        if ended:
            self._ended()
            return
        self._arm()


class End(asyncio.BufferedProtocol):
    """One end of a connection: bytes that come in go to ``outgoing``; those of ``incoming`` go out here.

    ``made`` is called when it is there, ``lost`` when it has gone. It reads at most ``size`` bytes at once.
    """

    def __init__(
        self, outgoing: Lane, incoming: Lane, *, size: int, made: Callable[[End], None], lost: Callable[[], None]
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self._outgoing, self._incoming = outgoing, incoming
        self._made, self._lost = made, lost
        self._buffer = bytearray(size)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"{transport!r} is not a stream")
        self.transport = self._outgoing.source = self._incoming.sink = transport
        self._made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._outgoing.take(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """The other side has closed its half; ours stays open."""
        self._outgoing.take(b"")
        return True

    def pause_writing(self) -> None:
        """What was given out waits here."""
        self._incoming.block(True)

    def resume_writing(self) -> None:
        """It has gone."""
        self._incoming.block(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._lost()
