"""Models of a link: when bytes that enter one end come out at the other. No I/O, no clock.

A link has two directions, each a ``Direction``: a FIFO, as TCP shows it to its user. A segment (at most ``SEGMENT``
bytes) that enters at ``now`` first waits for its turn on the wire (rate or trace), then travels for half the round trip
plus its jitter, longer when it is lost or meets a cut, and never overtakes the one before. The simulator and the link
emulator (``link_proxy``) use the same models.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import random
import stat
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from pilotfish_core.errors import InvalidParameter

SEGMENT: Final = 1448  # bytes of payload in a TCP segment over Ethernet with timestamps
TRACE_PACKET: Final = 1504  # bytes that one line of a Mahimahi trace lets through
MAX_TRACE_BYTES: Final = 64 * 1024 * 1024  # a day of a packet every millisecond is larger, but nobody's
MAX_TRACE_MS: Final = 10**9  # its last time, 11 days
MAX_ROUND_TRIP_S: Final = 3600.0
MIN_PROBE_S: Final = 0.010  # RFC 8985, 7.2: a tail loss probe is sent after 2 x SRTT, at least this


class Jitter(enum.StrEnum):
    """How the delay of one direction spreads around its mean; ``jitter`` of a link is that of the round trip."""

    UNIFORM = "uniform"  # evenly within +- jitter / 2
    NORMAL = "normal"  # standard deviation jitter / 2, cut at 0 and at 4 deviations
    EXPONENTIAL = "exponential"  # a floor and a tail: the fastest possible plus an exponential of mean jitter / 2


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """Nothing passes from ``begin_s`` (of the link's age) for ``length_s``.

    ``reset``: connections break, too, as when the network changes; else they stall and what was sent is retransmitted.
    """

    begin_s: float
    length_s: float
    reset: bool = False

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.begin_s + self.length_s


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """From ``at_s`` (of the link's age) on, another round trip and, where given, jitter."""

    at_s: float
    rtt_s: float
    jitter_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A link. Raises InvalidParameter.

    ``rate_up`` and ``rate_down`` in bits/s; ``queue_bytes`` may wait before the slow wire, beyond that the sender is
    stopped (a TCP sender sees a full buffer, not a loss). ``loss`` is the share of segments lost, which TCP delivers
    late.
    ``trace_up`` and ``trace_down``: milliseconds at which one packet of 1,504 bytes may pass (Mahimahi), repeated.
    """

    rtt_s: float = 0.0
    jitter_s: float = 0.0
    jitter: Jitter = Jitter.UNIFORM
    rate_up: float | None = None
    rate_down: float | None = None
    queue_bytes: int = 256 * 1024
    loss: float = 0.0
    cuts: tuple[Cut, ...] = ()
    changes: tuple[Change, ...] = ()
    trace_up: tuple[int, ...] = ()
    trace_down: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_round_trip(self.rtt_s, self.jitter_s)
        if not 0 <= self.loss < 0.5:
            raise InvalidParameter.of("loss", self.loss, "a share in [0, 0.5)")
        if self.queue_bytes < SEGMENT:
            raise InvalidParameter.of("queue_bytes", self.queue_bytes, f"at least {SEGMENT}")
        for rate in (self.rate_up, self.rate_down):
            if rate is not None and not rate > 0:
                raise InvalidParameter.of("rate", rate, "bits a second, above 0")
        for cut in self.cuts:
            if not (cut.begin_s >= 0 and cut.length_s > 0):
                raise InvalidParameter.of("cut", cut, "a beginning from 0 on and a length above 0")
        if list(self.changes) != sorted(self.changes, key=lambda change: change.at_s):
            raise InvalidParameter.of("changes", self.changes, "changes in the order of their times")
        for change in self.changes:
            self._check_round_trip(*self.rtt_at(change.at_s))

    def rtt_at(self, age_s: float) -> tuple[float, float]:
        """Round trip and jitter at an age of the link, seconds."""
        rtt, jitter = self.rtt_s, self.jitter_s
        for change in self.changes:
            if change.at_s <= age_s:
                rtt = change.rtt_s
                jitter = jitter if change.jitter_s is None else change.jitter_s
        return rtt, jitter

    def cut_at(self, age_s: float) -> Cut | None:
        """The cut that holds at an age of the link."""
        return next((cut for cut in self.cuts if cut.begin_s <= age_s < cut.end_s), None)

    def _check_round_trip(self, rtt_s: float, jitter_s: float) -> None:
        for name, value in (("rtt_s", rtt_s), ("jitter_s", jitter_s)):
            if not 0 <= value <= MAX_ROUND_TRIP_S:
                raise InvalidParameter.of(name, value, "seconds, from 0 to an hour")
        if jitter_s > rtt_s and self.jitter is Jitter.UNIFORM:
            raise InvalidParameter.of("jitter_s", jitter_s, f"at most the round trip ({rtt_s:g} s)")


class Direction:
    """One direction of a link, used by one connection after the other or by several that share its wire.

    ``began`` is the time at which the link's age is 0. Times are seconds of the caller's clock and never go back.
    """

    def __init__(self, spec: LinkSpec, *, up: bool, began: float = 0.0) -> None:
        self._spec = spec
        self._began = began
        self._random = random.Random(f"{spec.seed} {'up' if up else 'down'}")
        rate = spec.rate_up if up else spec.rate_down
        trace = spec.trace_up if up else spec.trace_down
        self._wire: _Wire = _Trace(trace) if trace else _Rate(rate)
        self._last = -math.inf

    def arrival(self, now: float, size: int) -> float:
        """When a segment of ``size`` bytes that enters at ``now`` has wholly come out."""
        age = now - self._began
        sent = self._wire.sent(age, size)
        rtt, jitter = self._spec.rtt_at(sent)
        arrival = sent + self._one_way(rtt, jitter) + self._recovery(rtt)
        cut = self._spec.cut_at(arrival)
        while cut is not None:
            arrival = cut.end_s + rtt / 2  # the retransmission that comes after the cut
            cut = self._spec.cut_at(arrival)
        self._last = max(self._last, arrival)
        return self._began + self._last

    def room_at(self, now: float) -> float:
        """When no more than the queue's bytes wait for the wire; ``now`` if that is so."""
        return max(now, self._began + self._wire.passed(self._spec.queue_bytes))

    def change(self, spec: LinkSpec) -> None:
        """Go on under another ``spec``; its rates and traces are not taken over."""
        self._spec = spec

    def _one_way(self, rtt: float, jitter: float) -> float:
        mean, spread = rtt / 2, jitter / 2
        if not spread:
            return mean
        match self._spec.jitter:
            case Jitter.UNIFORM:
                return mean + self._random.uniform(-spread, spread)
            case Jitter.NORMAL:
                return max(0.0, mean + spread * max(-4.0, min(4.0, self._random.gauss())))
            case Jitter.EXPONENTIAL:
                return max(0.0, mean - spread) + self._random.expovariate(1 / spread)

    def _recovery(self, rtt: float) -> float:
        """How much later a lost segment comes: its tail loss probe, doubled with each further loss."""
        delay, probe = 0.0, max(2 * rtt, MIN_PROBE_S)
        while self._spec.loss and self._random.random() < self._spec.loss:
            delay += probe
            probe *= 2
        return delay


class _Wire(Protocol):
    """When a segment has left the sender. Ages of the link, seconds."""

    def sent(self, age: float, size: int) -> float:
        """When ``size`` bytes that are ready at ``age`` have left."""

    def passed(self, behind: int) -> float:
        """When all that was sent but the last ``behind`` bytes has left."""


class _Rate:
    """A wire of constant rate (None: no limit), one segment after the other."""

    def __init__(self, bits_per_s: float | None) -> None:
        self._bytes_per_s = None if bits_per_s is None else bits_per_s / 8
        self._free = -math.inf

    def sent(self, age: float, size: int) -> float:
        if self._bytes_per_s is None:
            return age
        self._free = max(self._free, age) + size / self._bytes_per_s
        return self._free

    def passed(self, behind: int) -> float:
        return -math.inf if self._bytes_per_s is None else self._free - behind / self._bytes_per_s


class _Trace:
    """Mahimahi's wire: at each time in the trace a packet's worth of bytes may pass; what is not used is lost."""

    def __init__(self, times_ms: Sequence[int]) -> None:
        self._times = [time / 1e3 for time in times_ms]
        self._period = self._times[-1]
        self._next = 0  # number of the next opportunity not wholly used
        self._left = float(TRACE_PACKET)  # bytes of it

    def sent(self, age: float, size: int) -> float:
        first = self._first_from(age)
        if first > self._next:
            self._next, self._left = first, float(TRACE_PACKET)
        while size > self._left:
            size -= int(self._left)
            self._next, self._left = self._next + 1, float(TRACE_PACKET)
        self._left -= size
        return max(age, self._time_of(self._next))

    def passed(self, behind: int) -> float:
        return self._time_of(self._next - behind // TRACE_PACKET)

    def _time_of(self, number: int) -> float:
        turns, place = divmod(number, len(self._times))
        return turns * self._period + self._times[place]

    def _first_from(self, age: float) -> int:
        turns = max(0, math.ceil(age / self._period) - 1)
        rest = age - turns * self._period
        return turns * len(self._times) + bisect_left(self._times, rest)


def load_trace(file: Path) -> tuple[int, ...]:
    """A Mahimahi trace: one time in milliseconds a line, ascending. Raises InvalidParameter."""
    expected = f"a Mahimahi trace: one ascending number of milliseconds a line, the last in [1, {MAX_TRACE_MS}]"
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_TRACE_BYTES:  # a pipe or a device may never end
            raise InvalidParameter.of("trace", str(file), f"a regular file of at most {MAX_TRACE_BYTES} bytes")
        times = tuple(int(line) for line in file.read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        raise InvalidParameter.of("trace", str(file), f"{expected} ({error})") from None
    if (
        not times
        or not 0 < times[-1] <= MAX_TRACE_MS
        or times[0] < 0
        or any(a > b for a, b in itertools.pairwise(times))
    ):
        raise InvalidParameter.of("trace", str(file), expected)
    return times
