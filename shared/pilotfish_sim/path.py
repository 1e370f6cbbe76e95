"""Frames between a device and a replica: the real wire's bytes over a model of the link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pilotfish_core.errors import PilotfishError
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_sim.clock import Clock
from pilotfish_sim.links import SEGMENT, Direction, LinkSpec
from pilotfish_sim.world import Link

STATUS_BYTES: Final = 120  # of a call that ends with an error: status, message, metadata


class Path:
    """A device's way to the verifier and back; all of its streams share it."""

    def __init__(
        self, clock: Clock, link: Link, spec: LinkSpec, *, device_s: float, service_s: float, frame_s: float = 0.0
    ) -> None:
        """``device_s`` and ``service_s``: what each end adds to a frame, in each direction. ``frame_s``: that the
        device is busy with a frame that comes, one after the other.
        """
        self._frame_s, self._busy_until = frame_s, 0.0
        self._clock = clock
        self._up = Direction(spec, up=True)
        self._down = Direction(spec, up=False)
        self._overhead = link.overhead_bytes
        self._device_s, self._service_s = device_s, service_s
        self._wake_s, self._sleep_s = link.wake_ms / 1e3, link.sleep_s
        self._awake_until = 0.0
        self._ready_at = clock.now  # when the connection is there
        self._connect_round_trips = link.connect_round_trips
        self.bytes_up = self.bytes_down = 0  # with headers
        self.messages_up = self.messages_down = 0

    def connect(self) -> None:
        """A stream is to be opened: the first one waits for the connection."""
        if self._connect_round_trips:
            for _ in range(round(self._connect_round_trips)):
                there = self._up.arrival(max(self._ready_at, self._clock.now), self._overhead)
                self._ready_at = self._down.arrival(there, self._overhead)
            self._connect_round_trips = 0.0

    def disconnect(self, link: Link) -> None:
        """The connection broke: the next stream needs a new one."""
        self._connect_round_trips = link.connect_round_trips
        self._ready_at = self._clock.now

    def up(self, size: int) -> float:
        """When a message of ``size`` bytes that the device's core sends now is with the replica."""
        began = max(self._clock.now + self._device_s, self._ready_at)
        self.messages_up += 1
        self.bytes_up += size + self._overhead
        return self._travel(self._up, self._woken(began), size + self._overhead) + self._service_s

    def down(self, size: int) -> float:
        """When one that the replica sends now is with the device's core."""
        began = self._clock.now + self._service_s
        self.messages_down += 1
        self.bytes_down += size + self._overhead
        arrival = self._travel(self._down, self._woken(began), size + self._overhead) + self._device_s
        if self._frame_s:
            arrival = self._busy_until = max(arrival, self._busy_until) + self._frame_s
        return arrival

    def _woken(self, began: float) -> float:
        if not self._wake_s:
            return began
        if began > self._awake_until:
            began += self._wake_s
        self._awake_until = max(self._awake_until, began + self._sleep_s)
        return began

    @staticmethod
    def _travel(direction: Direction, began: float, size: int) -> float:
        while size > SEGMENT:
            direction.arrival(began, SEGMENT)
            size -= SEGMENT
        return direction.arrival(began, size)


class Stream:
    """One attempt's call. What is on its way when it is cut never arrives.

    ``bytes_up`` and ``bytes_down`` count payload: the serialised frames.
    """

    __slots__ = ("_clock", "_failed", "_from_cloud", "_from_device", "alive", "bytes_down", "bytes_up", "path")

    def __init__(self, clock: Clock, path: Path) -> None:
        self._clock = clock
        self.path = path
        self.alive = True
        self.bytes_up = self.bytes_down = 0
        self._from_device: Callable[[Any], object] = _nobody
        self._from_cloud: Callable[[Any], object] = _nobody
        self._failed: Callable[[Any], object] = _nobody
        path.connect()

    def device_end(
        self, received: Callable[[pb.CloudFrame], object], failed: Callable[[PilotfishError], object]
    ) -> None:
        """Who takes frames, or the error that ends the call, on the device."""
        self._from_cloud, self._failed = received, failed

    def cloud_end(self, received: Callable[[pb.DeviceFrame], object]) -> None:
        """Who takes frames in the cloud."""
        self._from_device = received

    def up(self, frame: pb.DeviceFrame) -> None:
        """The device sends."""
        size = frame.ByteSize()
        self.bytes_up += size
        self._clock.at(self.path.up(size), self._arrived_up, frame)

    def down(self, frame: pb.CloudFrame) -> None:
        """The cloud sends."""
        if not self.alive:
            return
        size = frame.ByteSize()
        self.bytes_down += size
        self._clock.at(self.path.down(size), self._arrived_down, frame)

    def fail(self, error: PilotfishError) -> None:
        """The cloud ends the call with an error."""
        if self.alive:
            self._clock.at(self.path.down(STATUS_BYTES), self._arrived_error, error)

    def cut(self) -> None:
        """It is over."""
        self.alive = False

    def _arrived_up(self, frame: pb.DeviceFrame) -> None:
        if self.alive:
            self._from_device(frame)

    def _arrived_down(self, frame: pb.CloudFrame) -> None:
        if self.alive:
            self._from_cloud(frame)

    def _arrived_error(self, error: PilotfishError) -> None:
        if self.alive:
            self._failed(error)


def _nobody(_: Any) -> None:
    """Frames for nobody are dropped."""
