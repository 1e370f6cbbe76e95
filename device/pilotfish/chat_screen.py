"""An answer on a terminal while it comes: verified text, the draft ahead of it in grey, figures on a line below."""

from __future__ import annotations

import unicodedata
from typing import Final

GREY: Final = "\x1b[90m"
RESET: Final = "\x1b[0m"
ERASE_BELOW: Final = "\x1b[J"  # from the cursor to the end of the screen


class Screen:
    """Knows where the cursor is, so that only relative moves are needed, which scrolling does not spoil.

    Between frames the cursor stands behind the verified text. Methods return what is to be written; nothing of the text
    can steer the terminal.
    """

    def __init__(self, columns: int, *, coloured: bool = True) -> None:
        """``columns`` of the terminal, whose cursor is at the beginning of a line. Without colours no draft is shown:
        it would pass for text.
        """
        self._columns = max(columns, 8)
        self._coloured = coloured
        self._column = 0
        self._wrapped = False  # the line was full: a line feed that comes next is already made

    def frame(self, text: str, draft: str, status: str) -> str:
        """More ``text``, what is drafted behind all of it, and the figures."""
        placed = self._placed(text)
        ahead = self._ahead(draft) if self._coloured else ""
        line = _fitting(status, self._columns - 1)
        back = "\x1b[A\r" + (f"\x1b[{self._column}C" if self._column else "")
        return f"{ERASE_BELOW}{placed}{self._styled(ahead)}\r\n{self._styled(line)}{back}"

    def end(self, text: str = "") -> str:
        """The last of the text, without draft and figures; the cursor goes to the beginning of a line."""
        placed = self._placed(text)
        return f"{ERASE_BELOW}{placed}" + ("\r\n" if self._column else "")

    def _placed(self, text: str) -> str:
        out = []
        for character in _harmless(text):
            if character == "\n":
                if not self._wrapped:
                    out.append("\r\n")
                self._column, self._wrapped = 0, False
                continue
            width = _width(character)
            if self._column + width > self._columns:
                out.append("\r\n")
                self._column = 0
            out.append(character)
            self._column += width
            self._wrapped = False
        if self._column >= self._columns:  # terminals differ in where the cursor is now
            out.append("\r\n")
            self._column, self._wrapped = 0, True
        return "".join(out)

    def _ahead(self, draft: str) -> str:
        """What of the draft fits on the line."""
        return _fitting(_harmless(draft).split("\n", 1)[0], self._columns - 1 - self._column)

    def _styled(self, text: str) -> str:
        return f"{GREY}{text}{RESET}" if text and self._coloured else text


def _harmless(text: str) -> str:
    """Without what a terminal would obey."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(character for character in text if character == "\n" or unicodedata.category(character)[0] != "C")


def _fitting(text: str, columns: int) -> str:
    """The beginning of a line that takes at most so many columns."""
    taken = 0
    for index, character in enumerate(text):
        taken += _width(character)
        if taken > columns:
            return text[:index]
    return text


def _width(character: str) -> int:
    """Columns that a terminal gives it."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
