"""What the gateway tells of its streams, for whoever counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pilotfish_cloud.engine.interface import EngineEvent
from pilotfish_cloud.principal import Principal

if TYPE_CHECKING:
    from pilotfish_cloud.stream import Stream


class StreamObserver:
    """Hears what becomes of the streams of all doors, on the event loop; does nothing by itself. Must not raise."""

    def refused(self, door: str, principal: Principal, error: Exception) -> None:
        """A generation was not let in."""

    def opened(self, stream: Stream) -> None:
        """The engine was asked for a generation."""

    def decided(self, events: Sequence[tuple[Stream, EngineEvent]]) -> None:
        """The engine answered with all this at once; before any door has it, so nothing may take long here."""

    def event(self, stream: Stream, event: EngineEvent) -> None:
        """The engine answered; at about the time at which the door takes it."""

    def failed(self, stream: Stream, error: Exception) -> None:
        """Whoever iterates will get ``error``."""

    def closed(self, stream: Stream) -> None:
        """The door is done with it; where it had neither finished nor failed, the caller is gone."""


class Observers(StreamObserver):
    """Several of them, in order."""

    def __init__(self, *observers: StreamObserver) -> None:
        self._observers = observers

    def refused(self, door: str, principal: Principal, error: Exception) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.refused(door, principal, error)

    def opened(self, stream: Stream) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.opened(stream)

    def decided(self, events: Sequence[tuple[Stream, EngineEvent]]) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.decided(events)

    def event(self, stream: Stream, event: EngineEvent) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.event(stream, event)

    def failed(self, stream: Stream, error: Exception) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.failed(stream, error)

    def closed(self, stream: Stream) -> None:
        """See ``StreamObserver``."""
        for observer in self._observers:
            observer.closed(stream)
