"""When to try again: exponential backoff with full jitter, the server's hint first, bounded in tries and time."""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Delay before try n (from 1) is uniform in [0, min(cap, base * 2^(n-1))], but at least the server's hint.

    The first try after progress comes at once plus jitter of ``base``: a cut link is the common case. See
    "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
    """

    max_attempts: int = 10  # without progress in between
    max_first_attempts: int = 4  # before any stream was ever opened: an address that is wrong should say so soon
    base_s: float = 0.1
    cap_s: float = 5.0
    hint_cap_s: float = 120.0

    def delay(
        self, failures: int, source: random.Random, *, hint_s: float | None = None, first: bool = False
    ) -> float | None:
        """Seconds to wait after ``failures`` consecutive failures (at least 1); None to give up."""
        if failures >= (self.max_first_attempts if first else self.max_attempts):
            return None
        delay = source.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (failures - 1)))
        if hint_s is not None:
            delay += min(hint_s, self.hint_cap_s)
        return delay
