"""What the device drafts with in a benchmark: models, and drafters whose quality and speed are chosen."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Final

from pilotfish.bench.paced import PacedDrafter
from pilotfish.bench.values import number
from pilotfish.drafters import load_drafter
from pilotfish.drafters.junk import JunkDrafter
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import InvalidParameter

MAX_PACE_MS: Final = 60_000.0
EXPECTED: Final = "a folder, 'ngram', 'junk', 'none', 'slow:MS', 'slow:MS,DIR' or 'oracle:ACCURACY,MS'"


class DraftKind(enum.Enum):
    """What proposes the tokens."""

    NONE = "none"
    NGRAM = "ngram"
    JUNK = "junk"  # random tokens
    ORACLE = "oracle"  # the true continuation, some of it made wrong
    MODEL = "model"  # an exported folder


@dataclasses.dataclass(frozen=True, slots=True)
class DraftChoice:
    """What ``--draft`` asks for. ``folder`` None: the exported draft of the reference pair.

    ``accuracy``: the share of tokens that an oracle proposes rightly; ``pace_s``: the least seconds for a token.
    """

    kind: DraftKind
    folder: str | None = None
    accuracy: float = 1.0
    pace_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DraftChoice:
        """Raises InvalidParameter."""
        word, colon, rest = text.partition(":")
        match word:
            case "none" | "ngram" | "junk" if not colon:
                return cls(DraftKind(word))
            case "oracle" if colon:
                accuracy, comma, pace = rest.partition(",")
                if not comma:
                    raise InvalidParameter.of("--draft", text, "oracle:ACCURACY,MS, such as oracle:0.8,10")
                return cls(
                    DraftKind.ORACLE, accuracy=number("ACCURACY of --draft", accuracy, 0, 1), pace_s=_pace_s(pace)
                )
            case "slow" if colon:
                pace, comma, folder = rest.partition(",")
                if comma and not folder:
                    raise InvalidParameter.of("--draft", text, "slow:MS or slow:MS,DIR")
                return cls(DraftKind.MODEL, folder=folder or None, pace_s=_pace_s(pace))
            case "":
                raise InvalidParameter.of("--draft", text, EXPECTED)
        return cls(DraftKind.MODEL, folder=text)

    def load(self) -> Drafter | None:
        """What needs nothing but this machine; None for no drafting, and for what ``make`` makes.

        Raises ModelLoadError.
        """
        if self.kind not in (DraftKind.MODEL, DraftKind.NGRAM):
            return None
        drafter = load_drafter(self.folder if self.kind is DraftKind.MODEL else "ngram")
        return None if drafter is None else self._paced(drafter)

    def make(self, vocab_size: int, truth: Sequence[Sequence[int]], seed: int) -> Drafter | None:
        """What needs to know the target: its vocabulary, or whole sequences (prompt + output) that it wrote."""
        match self.kind:
            case DraftKind.JUNK:
                return self._paced(JunkDrafter(vocab_size, seed=seed))
            case DraftKind.ORACLE:
                return self._paced(OracleDrafter(truth, vocab_size=vocab_size, accuracy=self.accuracy, seed=seed))
            case _:
                return None

    def _paced(self, drafter: Drafter) -> Drafter:
        return PacedDrafter(drafter, self.pace_s) if self.pace_s else drafter


def _pace_s(text: str) -> float:
    return number("MS of --draft", text, 0, MAX_PACE_MS, "milliseconds") / 1e3
