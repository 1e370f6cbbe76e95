"""How many draft rows each sequence gets in a step: the seam where the latency-aware policy will choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from typing import Protocol

from pilotfish_core.scheduling.sequence import Sequence


class DraftRowPolicy(Protocol):
    """Chooses how many draft tokens each decoding sequence may verify in a step."""

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Rows for each candidate, at most ``available`` of it (buffered drafts that fit), ``budget`` in all."""


@dataclasses.dataclass(frozen=True, slots=True)
class FixedDraftRows:
    """Everyone gets up to ``cap`` rows; when the budget is short, the longest drafts lose their tails first."""

    cap: int

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Water-filling: raise all shares evenly until the budget or the drafts are used up."""
        return fair_shares([min(count, self.cap) for count in available], budget)


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
