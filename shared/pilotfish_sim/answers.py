"""What is measured of an answer; times as ``pilotfish.Metrics`` has them."""

from __future__ import annotations

import dataclasses

from pilotfish_core.device_actions import DraftCounts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a run. Times in seconds of the run."""

    number: int
    device: int
    measured: bool
    began: float
    first_at: float
    last_at: float
    prompt_tokens: int
    tokens: int
    cached_tokens: int
    identical: bool
    error: str
    counts: DraftCounts
    bytes_up: int
    bytes_down: int
    drafting_s: float  # that the drafter computed
    arm: str
    reason: str

    @property
    def elapsed_s(self) -> float:
        """From the question to the last token."""
        return self.last_at - self.began

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return self.first_at - self.began

    @property
    def tpot_s(self) -> float:
        """Between tokens, on average, after the first."""
        return (self.last_at - self.first_at) / max(self.tokens - 1, 1)

    @property
    def tokens_per_s(self) -> float:
        """Of this answer."""
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0
