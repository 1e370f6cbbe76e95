"""Whether anybody is there: pings after a silence, what is concluded when nothing comes back, and the round trip."""

from __future__ import annotations

from pilotfish_core.device_actions import DeviceConfig, SendPing
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import Ping, Pong


class LinkWatch:
    """One device's ear on the stream in use. Whoever hears anything on it says so (``heard``).

    ``alive_at``: when the link was last known to be there, over all streams. ``measuring`` in calls: whether round
    trips are of use at the moment, so that it pings now and then without a silence.
    """

    def __init__(self, config: DeviceConfig) -> None:
        self.alive_at = 0.0
        self._heard_at = 0.0
        self._ping: tuple[Ping, float] | None = None
        self._measured_at = 0.0  # when the last ping was sent
        self._nonce = 0
        self._measure_every_s = config.measure_every_s
        self._ping_after_s, self._timeout_s = config.ping_after_s, config.ping_timeout_s
        if config.offline is not None:  # silence is to be told from a gone link by then
            self._ping_after_s = config.offline.after_s / 2
            self._timeout_s = min(self._timeout_s, config.offline.after_s)

    def connecting(self, now: float) -> None:
        """A stream is asked for. It may wait in the cloud's queue: only a missing pong says that nobody is there."""
        self._heard_at = now

    def opened(self, now: float) -> None:
        """A stream is there that is used: its round trip is measured soon."""
        self._heard_at = now
        self._measured_at = now - self._measure_every_s

    def heard(self, now: float) -> None:
        """Something came: a sign of life, whatever it is."""
        self._heard_at = self.alive_at = now

    def answered(self, pong: Pong, now: float) -> float | None:
        """A pong came; returns the round trip in seconds if it belongs to the ping that is out."""
        self.heard(now)
        if self._ping is None or self._ping[0].nonce != pong.nonce:
            return None
        round_trip = now - self._ping[1]
        self._ping = None
        return round_trip

    def left(self) -> None:
        """The stream is not used any more: nothing on it will be answered."""
        self._ping = None

    def deadline(self, *, measuring: bool) -> float:
        """When ``due`` is to be asked if nothing is heard before."""
        return self._ping_at(measuring) if self._ping is None else self._silent_at(self._ping[1])

    def due(self, now: float, *, measuring: bool) -> SendPing | Unavailable | None:
        """A ping to send, or that the stream is dead, or nothing."""
        if self._ping is not None:
            return self.silence(now, self._heard_at) if now >= self._silent_at(self._ping[1]) else None
        if now < self._ping_at(measuring):
            return None
        self._nonce += 1
        self._measured_at = now
        self._ping = (Ping(self._nonce), now)
        return SendPing(self._ping[0])

    @staticmethod
    def silence(now: float, since: float) -> Unavailable:
        """What to say of a link on which nothing came since then."""
        return Unavailable(f"nothing heard from the verifier for {now - since:.0f} s")

    def _silent_at(self, pinged_at: float) -> float:
        """Whatever is heard after a ping is a sign of life, be it the pong or not."""
        return max(pinged_at, self._heard_at) + self._timeout_s

    def _ping_at(self, measuring: bool) -> float:
        silent = self._heard_at + self._ping_after_s
        return min(silent, self._measured_at + self._measure_every_s) if measuring else silent
