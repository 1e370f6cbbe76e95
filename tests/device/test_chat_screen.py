"""Frames of a chat on a terminal that does what terminals do."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pilotfish.chat_screen import GREY, Screen, _width

COLUMNS, ROWS = 20, 6


class Paper:
    """A terminal of a few lines that keeps all that scrolled away. It wraps late, as all of today's do."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0
        self.deepest = 0

    def write(self, data: str) -> None:
        for part in re.findall(r"\x1b\[[0-9]*[A-Za-z]|.|\n", data, re.DOTALL):
            self._obey(part)
            self.deepest = max(self.deepest, self.row)
            assert self.row >= max(0, self.deepest - ROWS + 1), "the cursor cannot go above the screen"

    def _obey(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self._down()
        elif part == "\x1b[A":
            self.row -= 1
        elif part == "\x1b[J":
            self.lines[self.row][min(self.column, COLUMNS - 1) :] = []
            del self.lines[self.row + 1 :]
        elif part.endswith("C"):
            self.column = min(self.column + int(part[2:-1]), COLUMNS - 1)
        elif part.endswith("m"):
            pass
        else:
            assert not part.startswith("\x1b"), part
            self._put(part)

    def _put(self, character: str) -> None:
        width = _width(character)
        if self.column + width > COLUMNS:
            self.column = 0
            self._down()
        line = self.lines[self.row]
        line += [" "] * (self.column - len(line))
        if not width:
            line[-1:] = ["".join(line[-1:]) + character]
            return
        line[self.column : self.column + width] = [character] + [""] * (width - 1)
        self.column += width

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    @property
    def text(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]


def shown(text: str) -> list[str]:
    """The lines that a text takes."""
    lines, column = [""], 0
    for character in text:
        if character == "\n":
            lines.append("")
            column = 0
            continue
        if column + _width(character) > COLUMNS:
            lines.append("")
            column = 0
        lines[-1] += character
        column += _width(character)
    return [line.rstrip() for line in lines]


def without_empty_end(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


TEXT = st.text(alphabet="ab \n日é", max_size=30)


@given(frames=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=8))
def test_what_stays_is_the_text(frames: list[tuple[str, str, str]]) -> None:
    paper, screen = Paper(), Screen(COLUMNS)
    for text, draft, status in frames:
        paper.write(screen.frame(text, draft, status.replace("\n", "")))
    paper.write(screen.end())
    assert without_empty_end(paper.text) == without_empty_end(shown("".join(text for text, _, _ in frames)))


def test_the_draft_is_grey_behind_the_text_and_goes_away() -> None:
    paper, screen = Paper(), Screen(COLUMNS)
    first = screen.frame("def f(", "x, y):\n    return", "7.0 tokens/s")
    assert f"def f({GREY}x, y):" in first
    paper.write(first)
    assert paper.text == ["def f(x, y):", "7.0 tokens/s"]
    paper.write(screen.frame("self", "", "8.0 tokens/s"))
    assert paper.text == ["def f(self", "8.0 tokens/s"]
    paper.write(screen.end(")"))
    assert paper.text == ["def f(self)", ""]


def test_a_draft_stays_on_its_line() -> None:
    paper, screen = Paper(), Screen(COLUMNS)
    paper.write(screen.frame("a" * 15, "b" * 30, "s" * 50))
    assert paper.text == ["a" * 15 + "b" * 4, "s" * 19]


def test_text_cannot_steer_the_terminal() -> None:
    screen = Screen(COLUMNS)
    out = screen.frame("a\x1b]0;title\x07b\rc\x9b2J", "\x1b[31mred", "ok")
    for bad in ("\x1b]", "\x07", "\x9b", "\x1b[31m"):
        assert bad not in out
    assert "a]0;titlebc2J" in out


def test_without_colours_no_draft_is_shown() -> None:
    assert "draft" not in Screen(COLUMNS, coloured=False).frame("text", "draft", "figures")
