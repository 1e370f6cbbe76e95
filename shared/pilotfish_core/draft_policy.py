"""The device's half of the policy: how far to draft ahead, when to send, when not to draft at all. No clock.

It knows what a commit told: whether the drafted tokens were the target's, and how long the cloud takes between
commits; what the drafter takes for a token; and the round trip. From these ``goodput.rate`` says how much faster the
answer comes with drafts than without.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, Final

from pilotfish_core.estimators import Acceptance, Average, RoundTrip
from pilotfish_core.goodput import Pipeline, rate

FIRST_WINDOW: Final = 2  # draft tokens ahead until the first comparisons are in
FIRST_COMPARISONS: Final = 4
WORTH: Final = 0.05  # a draft token that is the target's with less than this probability is not drafted
FLUSH_SHARE: Final = 0.1  # of the time between commits that a draft token may wait to be sent with others
FLUSH_S: Final = (0.001, 0.008)  # within these bounds
PAUSE_BELOW: Final = 0.02  # gain
RESUME_ABOVE: Final = 0.05
PROBE_EVERY: Final = (8, 64)  # committed tokens between probes while paused: at first, at most


class DraftReason(enum.StrEnum):
    """Why the device drafts as it does."""

    RAMP = "ramp"  # too little is known yet
    USEFUL = "useful"  # drafts are expected to pay
    USELESS = "useless"  # the target does not agree with them
    SLOW = "slow"  # they would come too late


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DraftPolicyConfig:
    """``window``: the most draft tokens ahead. ``adaptive``: False drafts that far always, for comparisons."""

    window: int = 16
    adaptive: bool = True
    flush_s: tuple[float, float] = FLUSH_S


class DraftPolicy:
    """One generation's choices. Feed it with what is observed; ask ``window``, ``paused`` and ``flush_s``."""

    def __init__(self, config: DraftPolicyConfig) -> None:
        self.config = config
        self.acceptance = Acceptance()
        self.round_trip = RoundTrip()
        self.draft_time = Average(0.1)  # seconds a token
        self.step_time = Average(0.1)  # seconds between commits
        self.reason = DraftReason.RAMP
        self.paused = False
        self.pauses = 0
        self._last_commit: float | None = None
        self._probe_every = PROBE_EVERY[0]
        self._since_probe = 0

    @property
    def window(self) -> int:
        """Draft tokens ahead of the last known commit; while paused those of a probe, which is not sent."""
        if not self.config.adaptive:
            return self.config.window
        if self.paused:
            return 1 if self._since_probe >= self._probe_every else 0
        if self.acceptance.compared < FIRST_COMPARISONS:
            return min(self.config.window, FIRST_WINDOW)
        return min(self.config.window, depth(self.acceptance.rate))

    @property
    def flush_s(self) -> float:
        """How long a draft token may wait for others to be sent with."""
        low, high = self.config.flush_s
        return min(high, max(low, FLUSH_SHARE * self.step_time.or_else(low)))

    @property
    def gain(self) -> float | None:
        """Expected speed with drafts over that without, minus 1; None while too little is known."""
        step, draft = self.step_time.value, self.draft_time.value
        if step is None or draft is None or self.acceptance.compared < FIRST_COMPARISONS:
            return None
        pipeline = Pipeline(
            acceptance=self.acceptance.rate,
            response=(self.round_trip.minimum or 0.0) + draft,
            gap=draft,
            window=min(self.config.window, depth(self.acceptance.rate)),
        )
        return rate(pipeline, lambda rows: step) * step - 1.0

    def drafted(self, tokens: int, seconds: float) -> None:
        """The drafter took ``seconds`` for ``tokens``."""
        if tokens:
            self.draft_time.observe(seconds / tokens)

    def committed(self, count: int, agreed: int, *, refuted: bool, now: float) -> None:
        """``count`` tokens were committed at ``now``; the first ``agreed`` were drafted so, the next was not if
        ``refuted``.
        """
        if self._last_commit is not None:
            self.step_time.observe(now - self._last_commit)
        self._last_commit = now
        self._since_probe += count
        if agreed or refuted:
            self.acceptance.observe(agreed, refuted=refuted)
            if self.paused:
                self._since_probe = 0
                self._probe_every = PROBE_EVERY[0] if agreed else min(2 * self._probe_every, PROBE_EVERY[1])
        self._decide()

    def reconnected(self) -> None:
        """A new stream: the time since the last commit says nothing about steps."""
        self._last_commit = None

    def _decide(self) -> None:
        gain = self.gain
        if not self.config.adaptive or gain is None:
            return
        if self.paused:
            if gain >= RESUME_ABOVE:
                self.paused, self.reason = False, DraftReason.USEFUL
        elif gain < PAUSE_BELOW:
            self.paused = True
            self.pauses += 1
            self.reason = DraftReason.USELESS if self.acceptance.rate < 0.3 else DraftReason.SLOW
            self._since_probe, self._probe_every = 0, PROBE_EVERY[0]
        else:
            self.reason = DraftReason.USEFUL

    def explain(self) -> dict[str, Any]:
        """The numbers behind the current choice."""
        return {
            "reason": self.reason.value,
            "paused": self.paused,
            "window": self.window,
            "flush_ms": round(self.flush_s * 1e3, 3),
            "acceptance": round(self.acceptance.rate, 3),
            "compared": self.acceptance.compared,
            "gain": None if self.gain is None else round(self.gain, 3),
            "round_trip_ms": _ms(self.round_trip.minimum),
            "jitter_ms": _ms(self.round_trip.deviation),
            "draft_ms": _ms(self.draft_time.value),
            "step_ms": _ms(self.step_time.value),
        }


def depth(acceptance: float) -> int:
    """How far ahead a draft token still is the target's with a probability of at least ``WORTH``."""
    if acceptance >= 0.99:
        return 300
    return max(1, math.floor(math.log(WORTH) / math.log(max(acceptance, 1e-6))))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
