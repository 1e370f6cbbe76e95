"""What the cloud itself proposes for a generation where the device has nothing, and how well that has done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pilotfish_core.estimators import Acceptance, Average
from pilotfish_core.modes import CloudDraft

PRIOR_WEIGHT: Final = 8.0  # comparisons that what other generations have shown stands for


class OwnDraft:
    """One source's record over one generation: ``acceptance`` of its tokens, ``presence`` of any proposal at all.

    ``tokens`` is the proposal at hand, the first at the committed length; a commit uses it up, whether it was verified
    or only compared.
    """

    def __init__(self, source: CloudDraft, record: OwnRecord) -> None:
        self.source = source
        self.tokens: tuple[int, ...] = ()
        self.acceptance = Acceptance(prior=record.acceptance.rate, weight=PRIOR_WEIGHT)
        self.presence = Average(0.05)
        if record.presence.value is not None:
            self.presence.observe(record.presence.value)
        self._record = record
        self._idle = 0

    @property
    def compared(self) -> int:
        """Tokens of the source that were compared, over all generations."""
        return self._record.acceptance.compared

    def idle(self) -> int:
        """It is asked for nothing, or only to see whether it has become better; returns for how many steps so far."""
        self._idle += 1
        return self._idle

    def propose(self, tokens: Sequence[int]) -> None:
        """What the source has for the next step; nothing counts too."""
        self.tokens = tuple(tokens)
        for presence in (self.presence, self._record.presence):
            presence.observe(float(bool(tokens)))

    def committed(self, tokens: Sequence[int]) -> None:
        """Compare the proposal with what was committed at its place, and forget it."""
        agreed = 0
        while agreed < min(len(tokens), len(self.tokens)) and tokens[agreed] == self.tokens[agreed]:
            agreed += 1
        refuted = agreed < min(len(tokens), len(self.tokens))
        for acceptance in (self.acceptance, self._record.acceptance):
            acceptance.observe(agreed, refuted=refuted)
        self.tokens = ()


class OwnRecord:
    """One source's record over all generations of an engine: what a new one may expect."""

    def __init__(self, *, prior: float = 0.5) -> None:
        self.acceptance = Acceptance(prior=prior, half_life=1024.0)
        self.presence = Average(0.01)
