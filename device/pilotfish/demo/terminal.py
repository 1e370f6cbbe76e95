"""The demo on a terminal: text coloured by origin, and two answers replayed side by side at their measured pace."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Final

from pilotfish.demo.answers import Answer
from pilotfish.output import show
from pilotfish.result import Piece
from pilotfish_core.drafts import Origin

COLOURS: Final = {
    Origin.ACCEPTED: "\x1b[32m",
    Origin.BONUS: "\x1b[36m",
    Origin.RECOVERED: "\x1b[33m",
    Origin.CLOUD: "\x1b[35m",
    Origin.UNVERIFIED: "\x1b[90m",
}
BOLD: Final = "\x1b[1m"
DIM: Final = "\x1b[2m"
RESET: Final = "\x1b[0m"
REPLAY_LINES: Final = 12
LEGEND: Final = (Origin.ACCEPTED, Origin.RECOVERED, Origin.BONUS, Origin.CLOUD)


class Terminal:
    """Writes to standard output; colours and the replay only where it is a terminal (NO_COLOR is honoured)."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self.interactive = not silent and sys.stdout is not None and sys.stdout.isatty()
        self._coloured = self.interactive and "NO_COLOR" not in os.environ

    def say(self, text: str = "", style: str = "") -> None:
        """A line."""
        self._write(self._styled(text, style) + "\n")

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        self.say()
        self.say(text, BOLD)

    def legend(self) -> None:
        """Which colour means what."""
        self._write(" ".join(self._styled(origin.value, COLOURS[origin]) for origin in LEGEND) + "\n")

    def prompt(self, text: str) -> None:
        """The prompt, dimmed, without a new line."""
        self._write(self._styled(text, DIM))

    def piece(self, piece: Piece) -> None:
        """A piece of an answer."""
        self._write(self._styled(piece.text, COLOURS[piece.origin]))

    def replay(self, left: Answer, right: Answer) -> None:
        """Both answers at the pace at which they really came. Nothing where there is no terminal."""
        if not self.interactive:
            return
        width = (min(shutil.get_terminal_size().columns, 160) - 3) // 2
        if width < 20:
            return
        times = sorted({piece.at_s for piece in itertools.chain(left.pieces, right.pieces)})
        self._write("\n" * REPLAY_LINES)
        started = time.monotonic()
        for at_s in times:
            time.sleep(max(0.0, started + at_s - time.monotonic()))
            columns = [_column(answer, at_s, width) for answer in (left, right)]
            self._write(f"\x1b[{REPLAY_LINES}A")
            for one, other in zip(*columns, strict=True):
                self._write(f"\x1b[2K{one} {DIM}|{RESET} {other}\n")

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{RESET}" if self._coloured and style and text else text

    def _write(self, text: str) -> None:
        if not self._silent:
            show(text)


def _column(answer: Answer, at_s: float, width: int) -> list[str]:
    """The last lines of an answer as it stood at ``at_s``, each padded to ``width`` visible characters."""
    cells: list[list[tuple[str, str]]] = [[]]
    for character, style in _characters(answer, at_s):
        if character == "\n" or len(cells[-1]) >= width:
            cells.append([])
        if character != "\n":
            cells[-1].append((character, style))
    lines = cells[-REPLAY_LINES:]
    lines += [[] for _ in range(REPLAY_LINES - len(lines))]
    return ["".join(f"{style}{text}" for text, style in line) + RESET + " " * (width - len(line)) for line in lines]


def _characters(answer: Answer, at_s: float) -> Sequence[tuple[str, str]]:
    pieces = [(answer.prompt, DIM)]
    pieces += [(piece.text, RESET + COLOURS[piece.origin]) for piece in answer.pieces if piece.at_s <= at_s]
    return [(character, style) for text, style in pieces for character in text.expandtabs(4)]
