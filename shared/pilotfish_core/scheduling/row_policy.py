"""What the cloud does with drafts: how many of whose are verified in a step, and when a step waits for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from typing import Final, Protocol

from pilotfish_core.estimators import Load
from pilotfish_core.modes import Advice
from pilotfish_core.own_draft import OwnDraft
from pilotfish_core.scheduling.sequence import Sequence

ADVISE_EVERY: Final = 16  # committed tokens between pieces of advice, at least


@dataclasses.dataclass(frozen=True, slots=True)
class Hold:
    """Wait for ``tokens`` draft tokens, at most ``seconds``."""

    seconds: float
    tokens: int


class SpeculationPolicy(Protocol):
    """Chooses the rows of drafts, and holds."""

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Rows for each candidate, at most ``available`` of it (buffered drafts that fit), ``budget`` in all."""

    def holds(self, sequences: Seq[Sequence], others: int, busy: bool, now: float) -> list[Hold | None]:
        """Which of ``sequences``, which have just committed, should wait for a draft. Beside each run ``others``; with
        ``busy`` some of them go on at once, so that who waits misses a whole step.
        """

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """How many tokens the cloud should draft itself, at ``draft_seconds`` each, beside ``others``."""

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
        """What the device should know; ``own``: the cloud's best source."""

    def observe(self, rows: int, seconds: float, load: Load | None = None) -> None:
        """A step of ``rows`` decode and verify rows took ``seconds``."""


@dataclasses.dataclass(frozen=True, slots=True)
class FixedRows:
    """Everyone gets up to ``cap`` rows; when the budget is short, the longest drafts lose their tails first."""

    cap: int

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Water-filling: raise all shares evenly until the budget or the drafts are used up."""
        return fair_shares([min(count, self.cap) for count in available], budget)

    def holds(self, sequences: Seq[Sequence], others: int, busy: bool, now: float) -> list[Hold | None]:
        """What ``hold`` says of each."""
        return [self.hold(sequence, others, now) for sequence in sequences]

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        """Never."""
        return None

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """Always all."""
        return self.cap

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
        """Never."""
        return None

    def observe(self, rows: int, seconds: float, load: Load | None = None) -> None:
        """Times do not matter here."""


def advice_due(sequence: Sequence) -> bool:
    """Whether it is time to think about advice again."""
    return sequence.core.advised is None or sequence.committed_len - sequence.core.advised[1] >= ADVISE_EVERY


def worth_saying(advice: Advice, sequence: Sequence) -> bool:
    """Whether it differs enough from what the device was last told."""
    if sequence.core.advised is None:
        return True
    last, _ = sequence.core.advised
    return (
        abs(advice.step_s - last.step_s) > 0.25 * last.step_s
        or abs(advice.cloud_gain - last.cloud_gain) > 0.1 * (1.0 + last.cloud_gain)
        or advice.cloud_draft is not last.cloud_draft
        or (advice.max_draft_tokens == 0) != (last.max_draft_tokens == 0)
    )


def fair_shares(wanted: Seq[int], budget: int) -> list[int]:
    """Divide ``budget`` as evenly as the demands allow; what does not divide goes to the earlier ones."""
    shares = [0] * len(wanted)
    left, open_count = budget, sum(count > 0 for count in wanted)
    for index in sorted(range(len(wanted)), key=lambda index: (wanted[index], -index)):
        if wanted[index] == 0:
            continue
        shares[index] = min(wanted[index], left // open_count)
        left -= shares[index]
        open_count -= 1
    for index, count in enumerate(wanted):
        extra = min(count - shares[index], left)
        shares[index] += extra
        left -= extra
    return shares
