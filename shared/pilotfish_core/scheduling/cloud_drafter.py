"""What drafts in the cloud itself: the interface, and prompt lookup."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Protocol

from pilotfish_core.modes import CloudDraft
from pilotfish_core.ngram import NgramContext, NgramDrafter
from pilotfish_core.scheduling.sequence import Sequence


class CloudDrafter(Protocol):
    """Proposes tokens after the committed ones of sequences, for all at once, between steps."""

    @property
    def source(self) -> CloudDraft:
        """Which source it is."""

    @property
    def step_seconds(self) -> float | None:
        """What one more draft token costs, of however many sequences; None: not known yet."""

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> Mapping[str, tuple[int, ...]]:
        """Up to so many tokens for each sequence, by its key. Never raises for the sake of one of them."""

    def forget(self, sequence: Sequence) -> None:
        """It has ended: free what is held for it."""


class CloudNgram:
    """Prompt lookup in the cloud: a few microseconds a token, no model."""

    source = CloudDraft.NGRAM
    step_seconds = 0.0

    def __init__(self) -> None:
        self._drafter = NgramDrafter()
        self._contexts: dict[str, NgramContext] = {}

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> dict[str, tuple[int, ...]]:
        """What followed the last time these tokens stood there."""
        proposals = {}
        for sequence, count in wanted:
            context = self._contexts.get(sequence.key)
            if context is None:
                context = self._contexts[sequence.key] = self._drafter.open(sequence.params, sequence.prompt_len)
            length = context.length
            context.extend(sequence.tokens[length:])
            proposals[sequence.key] = tuple(context.draft(count))
            context.rewind(sequence.committed_len)
        return proposals

    def forget(self, sequence: Sequence) -> None:
        """Free its index."""
        self._contexts.pop(sequence.key, None)
