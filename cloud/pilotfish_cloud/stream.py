"""One generation in progress behind a door: the engine's events for it in order, and the way back to the engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from pilotfish_cloud.engine.interface import CommitEvent, Engine, EngineEvent, FailedEvent
from pilotfish_cloud.observer import StreamObserver
from pilotfish_cloud.principal import Principal
from pilotfish_core.admission import Reservation
from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import Open, Ping
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.tickets import TicketLine

if TYPE_CHECKING:
    from pilotfish_cloud.tracing import GenerationTrace

MAX_PINGS: Final = 4  # waiting for their pongs; more of them say nothing new
COMMIT_BYTES: Final = 32  # that a commit is taken for in a stream's backlog, beside its tokens
TOKEN_BYTES: Final = 4
LOGPROB_BYTES: Final = 8  # an id and a figure


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    """One generation in progress behind a door. Iterate over it: engine events and pings, in order, the last one a
    commit with a finish; what ended it otherwise is raised.
    """

    key: str
    opening: Open
    principal: Principal
    other_fingerprint: bool  # than the generation began with, as the device allowed
    engine: Engine
    max_backlog_bytes: int
    door: str
    observer: StreamObserver
    backlog_bytes: int = 0  # of commits that the door has not taken yet
    pings: int = 0
    on_failed: Callable[[Exception], object] | None = None  # for a door that may hang on a peer which does not read
    reservation: Reservation | None = None  # the gateway's
    _timer: asyncio.TimerHandle | None = None  # to its deadline
    trace: GenerationTrace | None = None
    tickets: TicketLine | None = None  # where they are asked for; the door sends them
    _error: Exception | None = None  # that ended it
    _outbox: asyncio.Queue[EngineEvent | Ping | Exception] = dataclasses.field(default_factory=asyncio.Queue)

    async def __aiter__(self) -> AsyncIterator[EngineEvent | Ping]:
        while True:
            event = await self._outbox.get()
            match event:
                case CommitEvent(_, commit):
                    self.backlog_bytes -= _bytes_of(commit)
                case Exception():
                    raise event
                case Ping():
                    self.pings -= 1
            yield event
            if isinstance(event, CommitEvent) and event.commit.finish is not None:
                return

    def push(self, run: DraftRun) -> None:
        """Draft tokens arrived."""
        self.engine.push(self.key, run)

    def acknowledge(self, length: int) -> None:
        """Whoever reads the answer holds the committed tokens up to ``length``."""
        self.engine.acknowledge(self.key, length)

    def steer(self, mode: Mode) -> None:
        """The device drafts otherwise from here on."""
        self.engine.steer(self.key, mode)

    def hint(self, hint: Hint) -> None:
        """What the app knows about the device has changed."""
        self.engine.hint(self.key, hint)

    def ping(self, ping: Ping) -> None:
        """To be answered in the order of the other events; one too many is dropped."""
        if self.pings < MAX_PINGS:
            self.pings += 1
            self._outbox.put_nowait(ping)

    def fail(self, error: Exception) -> None:
        """End it: whoever iterates gets ``error`` after what is there already, ``on_failed`` hears of it at once."""
        if self._error is not None:
            return
        self._error = error
        self.observer.failed(self, error)
        self._outbox.put_nowait(error)
        if self.on_failed is not None:
            self.on_failed(error)

    def take(self, event: EngineEvent) -> None:
        """An event of the engine. A reader that lets too much pile up is cut."""
        if self._error is not None:
            return
        if isinstance(event, FailedEvent):
            self.fail(event.error)
            return
        if isinstance(event, CommitEvent):
            self.backlog_bytes += _bytes_of(event.commit)
            if self.backlog_bytes > self.max_backlog_bytes:
                self.engine.abort(self.key)
                while not self._outbox.empty():  # what it does not read it gets by resuming
                    self._outbox.get_nowait()
                self.fail(Unavailable(f"more than {self.max_backlog_bytes} bytes wait to be read; resume to go on"))
                return
        self._outbox.put_nowait(event)


def _bytes_of(commit: Commit) -> int:
    size = COMMIT_BYTES + TOKEN_BYTES * len(commit.tokens)
    return size + sum(LOGPROB_BYTES * (1 + len(entry.top)) for entry in commit.logprobs or ())
