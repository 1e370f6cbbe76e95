"""Online estimates that the policy decides by. No clock: every observation carries its time or its duration, seconds.

All forget: a link, a device or a text changes. What has not been observed is None or a stated prior, never zero.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final

from pilotfish_core.averages import Average
from pilotfish_core.step_time import Load, StepTime

__all__ = ["Acceptance", "Average", "Load", "Response", "RoundTrip", "StepTime"]

RTT_GAIN: Final = 1 / 8  # RFC 6298: of the smoothed round trip
RTT_SPREAD_GAIN: Final = 1 / 4  # RFC 6298: of its mean deviation
RTT_MINIMUM_WINDOW_S: Final = 10.0  # as BBR's, so that a changed path shows
RTT_RECENT: Final = 3  # round trips, of at most so many seconds: what it is now, one outlier more or less
RTT_RECENT_S: Final = 3.0
WEAK: Final = 2.0  # comparisons that a prior stands for of which nobody knows
REMEMBERED_COMMITS: Final = 64  # that a branch still on its way may answer


class RoundTrip:
    """Round-trip time: what it is now, its minimum (the path), its average and its mean deviation (the jitter)."""

    def __init__(self) -> None:
        self.smoothed: float | None = None
        self.deviation = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=RTT_RECENT)
        self._lowest: deque[tuple[float, float]] = deque()  # (time, rtt), both ascending: candidates for the minimum

    def observe(self, rtt: float, now: float) -> None:
        """A round trip of ``rtt`` ended at ``now``."""
        if self.smoothed is None:
            self.smoothed, self.deviation = rtt, rtt / 2
        else:
            self.deviation += RTT_SPREAD_GAIN * (abs(rtt - self.smoothed) - self.deviation)
            self.smoothed += RTT_GAIN * (rtt - self.smoothed)
        self._recent.append((now, rtt))
        while now - self._recent[0][0] > RTT_RECENT_S:
            self._recent.popleft()
        while self._lowest and self._lowest[-1][1] >= rtt:
            self._lowest.pop()
        self._lowest.append((now, rtt))
        while now - self._lowest[0][0] > RTT_MINIMUM_WINDOW_S and len(self._lowest) > 1:
            self._lowest.popleft()

    @property
    def now(self) -> float | None:
        """The median of the last few: follows a link that changed with the second round trip that is measured, and is
        not misled by a single one.
        """
        return statistics.median(rtt for _, rtt in self._recent) if self._recent else None

    @property
    def minimum(self) -> float | None:
        """The least of the last ten seconds, or the last one."""
        return self._lowest[0][1] if self._lowest else None


class Acceptance:
    """How likely the next draft token is the target's, given that those before it were.

    Counts of compared tokens, halved every ``half_life`` of them, on top of a weak prior. A comparison is a draft token
    that the target's choice met: accepted ones, and the first that differed.

    One rate for all positions: a curve by position was tried (``benchmarks/acceptance_by_position.py``). On text that
    is easy and hard by turns, as real text is, rows chosen by it yield 0.95 to 1.00 of the tokens a second, because it
    notices later than one rate where the text has become hard; it gains (up to 9%) only where the position itself
    matters, which it does not when the context of each draft token is the target's own.
    """

    def __init__(self, *, prior: float = 0.5, weight: float = WEAK, half_life: float = 64.0) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._prior, self._weight = prior, weight
        self._accepted = self._compared = 0.0
        self.compared = 0  # in all

    def observe(self, accepted: int, *, refuted: bool) -> None:
        """``accepted`` tokens in a row were the target's; ``refuted``: the one after them was not."""
        keep, matches, compared = self._keep, self._accepted, self._compared
        for _ in range(accepted):
            matches = matches * keep + 1.0
            compared = compared * keep + 1.0
        if refuted:
            matches *= keep
            compared = compared * keep + 1.0
        self._accepted, self._compared = matches, compared
        self.compared += accepted + refuted

    @property
    def rate(self) -> float:
        """The estimate, within (0, 1)."""
        return (self._accepted + self._prior * self._weight) / (self._compared + self._weight)

    @property
    def believed(self) -> bool:
        """Whether it rests on more than the weak prior: a match that was seen, or what somebody vouched for."""
        return self._accepted >= 0.5 or self._weight > WEAK

    @property
    def upper(self) -> float:
        """An upper bound at about 95%, Wilson's: what the rate could still be."""
        return self.bounds[1]

    @property
    def lower(self) -> float:
        """The lower bound to it."""
        return self.bounds[0]

    @property
    def bounds(self) -> tuple[float, float]:
        """``lower`` and ``upper``."""
        n, z = self._compared, 1.645
        if n <= 0.0:
            return 0.0, 1.0
        p = self._accepted / n
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        size = 1 + z * z / n
        return max(0.0, (middle - spread) / size), min(1.0, (middle + spread) / size)


class Response:
    """The cloud's view of a device: how soon after a commit the new branch arrives that answers it, and how fast draft
    tokens follow each other. A branch begins at the end of the commit that it answers, which tells the two together.
    """

    def __init__(self, *, gain: float = 0.2) -> None:
        self.delay = Average(gain)  # from the commit to the first token of the new branch
        self.spread = Average(gain)  # mean deviation of the delay
        self.gap = Average(gain)  # between draft tokens
        self._commits: deque[tuple[int, float]] = deque(maxlen=REMEMBERED_COMMITS)  # (end, when)
        # From a new branch to the next commit the device drafts without pause: when that began, and tokens since.
        self._burst: tuple[float, int] | None = None

    def committed(self, end: int, now: float) -> None:
        """A commit went out that ends at position ``end``."""
        self._commits.append((end, now))
        self._burst = None  # a window that was full may have stopped the device until now

    def opened(self, start: int, tokens: int, now: float) -> None:
        """The first ``tokens`` of a branch arrived, which answers the commit that ends at ``start``."""
        asked_at = next((at for end, at in self._commits if end == start), None)
        self._burst = (now, 0)
        if asked_at is None or not tokens:
            return
        delay = now - asked_at
        self.spread.observe(abs(delay - self.delay.or_else(delay)))
        self.delay.observe(delay)

    def continued(self, tokens: int, now: float) -> None:
        """``tokens`` more of a branch arrived."""
        if self._burst is None or not tokens:  # a run may be empty, and a peer may repeat it
            return
        began, count = self._burst
        self._burst = (began, count + tokens)
        self.gap.observe((now - began) / (count + tokens))
