"""Which draft tokens are the target's: models of acceptance.

Whether the drafter is right at a position of an answer is decided once for each position, as it is by a real draft
model: drafting it again after a rollback gives the same token.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.fields import Section, Wrong, checked, choice, number, numbers, text

_LINE: Final = re.compile("[01?]+")


class AcceptanceKind(enum.StrEnum):
    """How acceptance varies."""

    CONSTANT = "constant"  # the same everywhere
    POSITION = "position"  # by how far beyond the committed prefix a token was drafted
    BURSTS = "bursts"  # easy and hard stretches of text, in turn
    RECORDED = "recorded"  # as a calibration found it: lines of 1, 0 and ? (not known) by output position
    TRACE = "trace"  # as recorded: for each output position of each answer whether the draft was right


def _lines(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(line, str) and _LINE.fullmatch(line) for line in value
    ):
        raise Wrong('a list of lines such as "1101?1", of 1, 0 and ? only')
    return tuple(value)


def _filled(line: str, length: int, random: np.random.Generator) -> list[bool]:
    known = line.count("1") + line.count("0")
    rate = line.count("1") / known if known else 0.5
    chances = random.random(length) < rate
    return [bool(chances[place]) if (one := line[place % len(line)]) == "?" else one == "1" for place in range(length)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceptance(Section):
    """``rate`` for constant; ``rates`` by draft position (the last one goes on); ``rate`` in easy and ``hard_rate`` in
    hard stretches of ``stretch`` tokens on average, ``hard_share`` of the text being hard; ``file`` for a trace;
    ``lines`` for recorded: answer after answer takes the next one, from its begin again where the answer is longer,
    and what is not known is right as often as the rest of the line.
    """

    section: ClassVar[str] = "acceptance"

    kind: AcceptanceKind = choice(AcceptanceKind.CONSTANT, AcceptanceKind)
    rate: float = number(0.8, 0.0, 1.0)
    rates: tuple[float, ...] = numbers(0.0, 1.0)
    hard_rate: float = number(0.3, 0.0, 1.0)
    hard_share: float = number(0.3, 0.0, 1.0)
    stretch: float = number(12.0, 1.0, 1e6, "tokens")
    file: str = text("")
    lines: tuple[str, ...] = checked((), _lines)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind is AcceptanceKind.POSITION) != bool(self.rates):
            raise self.wrong("rates", list(self.rates), "shares by draft position with kind position, and only there")
        if (self.kind is AcceptanceKind.TRACE) != bool(self.file):
            raise self.wrong("file", self.file, "a file of matches with kind trace, and only there")

        if (self.kind is AcceptanceKind.RECORDED) != bool(self.lines):
            raise self.wrong("lines", list(self.lines), "lines with kind recorded, and only there")

    @classmethod
    def read(cls, given: Any) -> dict[str, Any]:
        """A bare number is a constant rate, a list is by draft position."""
        if isinstance(given, int | float) and not isinstance(given, bool):
            return {"rate": given}
        if isinstance(given, list):
            return {"kind": "position", "rates": given}
        return super().read(given)

    def matches(self, answer: int, length: int, random: np.random.Generator) -> Matches:
        """For one answer (its number, which chooses the line of a trace) of ``length`` output tokens.

        Raises InvalidParameter for a trace that ends early.
        """
        match self.kind:
            case AcceptanceKind.CONSTANT:
                return Matches(right=(random.random(length) < self.rate).tolist())
            case AcceptanceKind.POSITION:
                return Matches(chances=random.random(length).tolist(), rates=self.rates)
            case AcceptanceKind.BURSTS:
                rates = np.where(self._hard(length, random), self.hard_rate, self.rate)
                return Matches(right=(random.random(length) < rates).tolist())
            case AcceptanceKind.RECORDED:
                return Matches(right=_filled(self.lines[answer % len(self.lines)], length, random))
            case AcceptanceKind.TRACE:
                return Matches(right=self._recorded(answer, length))

    def _hard(self, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """A two-state chain with the stated share and mean stretch (of both states together)."""
        hard = np.zeros(length, dtype=np.bool_)
        share = self.hard_share
        state = bool(random.random() < share)
        begin = 0
        while begin < length:
            mean = max(1.0, 2.0 * self.stretch * (share if state else 1.0 - share))
            end = begin + int(random.geometric(1.0 / mean))
            hard[begin:end] = state
            begin, state = end, (not state if 0.0 < share < 1.0 else state)
        return hard

    def _recorded(self, answer: int, length: int) -> list[bool]:
        lines = load_matches(Path(self.file))
        line = lines[answer % len(lines)]
        if len(line) < length:
            raise self.wrong(
                "file",
                self.file,
                f"at least {length} positions in line {answer % len(lines) + 1}, which has {len(line)}",
            )
        return line[:length]


class Matches:
    """Whether the draft at an output position is right: known, or decided by how far ahead it was drafted."""

    __slots__ = ("_chances", "_rates", "_right")

    def __init__(
        self, *, right: Sequence[bool] = (), chances: Sequence[float] = (), rates: Sequence[float] = ()
    ) -> None:
        self._right, self._chances, self._rates = right, chances, rates

    def at(self, index: int, ahead: int) -> bool:
        """``ahead``: how many tokens beyond the committed prefix, from 0."""
        if self._rates:
            return self._chances[index] < self._rates[min(ahead, len(self._rates) - 1)]
        return self._right[index]


_traces: dict[tuple[str, int], list[list[bool]]] = {}


def load_matches(file: Path) -> list[list[bool]]:
    """One answer a line, as JSON: a list of 0 and 1 by output position. Raises InvalidParameter."""
    expected = "a file of lines such as [1,1,0,1]: for each output position whether the draft was right"
    try:
        key = (str(file), file.stat().st_mtime_ns)
        if key not in _traces:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if not rows or not all(isinstance(row, list) and row and set(row) <= {0, 1} for row in rows):
                raise InvalidParameter.of("acceptance.file", str(file), expected)
            _traces[key] = [[bool(value) for value in row] for row in rows]
        return _traces[key]
    except (OSError, ValueError, TypeError) as error:
        raise InvalidParameter.of("acceptance.file", str(file), f"{expected} ({error})") from None
