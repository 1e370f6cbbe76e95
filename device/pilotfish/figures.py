"""Measures one run of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.generation import Generation
from pilotfish.result import Metrics
from pilotfish.transport import DeviceStream
from pilotfish_core.device_actions import DraftCounts
from pilotfish_core.draft_policy import DraftPolicy
from pilotfish_core.trace import GenerationTrace


class Figures:
    """Times and bytes of one run. The driver sets the attributes as it learns them."""

    def __init__(self, generation: Generation, drafter_name: str) -> None:
        self.drafter_error: str | None = None
        self.cached_tokens = 0
        self._generation = generation
        self._drafter_name = drafter_name
        self._held_before = len(generation.output)
        self._delivered = 0
        self._started = self._first_at = self._last_at = 0.0
        self._bytes_up = self._bytes_down = 0

    def start(self, now: float) -> None:
        """The run begins."""
        self._started = self._first_at = self._last_at = now

    def delivered(self, count: int, now: float) -> None:
        """``count`` tokens were just put at the end of the output."""
        if self._delivered == 0:
            self._first_at = now
        self._delivered += count
        self._last_at = now

    def left(self, stream: DeviceStream) -> None:
        """A stream is not used any more."""
        self._bytes_up += stream.bytes_up
        self._bytes_down += stream.bytes_down

    def trace(
        self,
        trace: GenerationTrace,
        counts: DraftCounts,
        policy: DraftPolicy,
        stream: DeviceStream | None,
        *,
        error: str,
    ) -> None:
        """The answer's record, at its end."""
        trace.ended(
            began=self._started,
            first=self._first_at,
            last=self._last_at,
            cached_tokens=self.cached_tokens,
            tokens=len(self._generation.output) - self._held_before,
            bytes_up=self._bytes_up + (stream.bytes_up if stream else 0),
            bytes_down=self._bytes_down + (stream.bytes_down if stream else 0),
            sent=counts.sent,
            accepted=counts.accepted,
            reconnects=counts.reconnects,
            arm=str(policy.arm),
            reason=str(policy.reason),
            error=error,
        )

    def metrics(self, counts: DraftCounts, policy: Mapping[str, Any], stream: DeviceStream | None) -> Metrics:
        """All figures; ``policy`` explains the last choice, ``stream`` is the one in use."""
        tokens = len(self._generation.output) - self._held_before
        elapsed = self._last_at - self._started
        return Metrics(
            model=self._generation.model,
            drafter=self._drafter_name,
            drafter_error=self.drafter_error,
            policy=policy,
            seed=self._generation.params.seed,
            fingerprints=self._generation.fingerprints,
            prompt_tokens=len(self._generation.prompt),
            completion_tokens=len(self._generation.output),
            cached_tokens=self.cached_tokens,
            elapsed_s=elapsed,
            ttft_s=self._first_at - self._started,
            tpot_s=(self._last_at - self._first_at) / max(tokens - 1, 1),
            tokens_per_s=tokens / elapsed if elapsed > 0 else 0.0,
            steps=counts.commits,
            steps_per_token=counts.commits / max(tokens, 1),
            mean_acceptance_length=tokens / counts.commits if counts.commits else 0.0,
            draft_tokens=counts.drafted,
            sent_draft_tokens=counts.sent,
            accepted_draft_tokens=counts.accepted,
            recovered_tokens=counts.recovered,
            bonus_tokens=counts.bonus,
            cloud_tokens=counts.cloud,
            rollbacks=counts.rollbacks,
            unverified_tokens=counts.unverified,
            confirmed_tokens=counts.confirmed,
            withdrawn_tokens=counts.withdrawn,
            kept_tokens=counts.kept,
            reconnects=counts.reconnects,
            bytes_up=self._bytes_up + (stream.bytes_up if stream else 0),
            bytes_down=self._bytes_down + (stream.bytes_down if stream else 0),
        )
