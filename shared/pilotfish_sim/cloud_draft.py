"""The co-located draft model in virtual time: what it proposes, and the seconds that it takes for it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from pilotfish_core.modes import CloudDraft
from pilotfish_core.scheduling import Sequence
from pilotfish_sim.text import Text


class DraftModelCost:
    """A CloudDrafter. ``texts`` by sequence key; ``step_seconds`` for a forward of all sequences at once."""

    source = CloudDraft.MODEL

    def __init__(self, step_seconds: float, texts: Mapping[str, Text]) -> None:
        self.step_seconds: float | None = step_seconds
        self._texts = texts
        self._spent = 0.0

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> dict[str, tuple[int, ...]]:
        """A forward for each token, of all sequences at once."""
        self._spent += max(count for _, count in wanted) * (self.step_seconds or 0.0)
        return {
            sequence.key: self._texts[sequence.key].drafted_in_cloud(len(sequence.core.output), count)
            for sequence, count in wanted
        }

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""

    def take_seconds(self) -> float:
        """What was spent since the last call."""
        spent, self._spent = self._spent, 0.0
        return spent
