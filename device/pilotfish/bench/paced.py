"""A drafter as slow as another machine: it waits where that one would compute."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.parameters import SamplingParams


class PacedDrafter(Drafter):
    """Another drafter's tokens, each after at least ``pace_s`` seconds. Closing it closes the other one.

    The wait is a real one in the thread that drafts: other generations of the device wait with it, and the processor
    is free for the verifier, as when the device is a machine of its own.
    """

    def __init__(self, inner: Drafter, pace_s: float) -> None:
        if not pace_s >= 0:
            raise ValueError(f"pace of {pace_s} s")
        self.inner = inner
        self.pace_s = pace_s
        self.name = f"{inner.name}-{pace_s * 1e3:g}ms"
        self.tokenizer_hash = inner.tokenizer_hash
        self.max_length = inner.max_length

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        """A fresh context of the other drafter, paced."""
        return PacedContext(self.inner.open(params, prompt_length), self.pace_s)

    def close(self) -> None:
        """Free the other drafter."""
        self.inner.close()


class PacedContext(DraftContext):
    """One generation's context of the other drafter."""

    def __init__(self, inner: DraftContext, pace_s: float) -> None:
        self._inner = inner
        self._pace_s = pace_s

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self._inner.length

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on."""
        self._inner.rewind(length)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens."""
        self._inner.extend(tokens)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` tokens, not before their time has passed. What they took to compute counts towards it."""
        began = time.monotonic()
        tokens = self._inner.draft(count)
        rest = began + len(tokens) * self._pace_s - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        return tokens

    def close(self) -> None:
        """Free the other context."""
        self._inner.close()
