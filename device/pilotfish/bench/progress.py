"""Where a long run is, on a terminal: one line of standard error, written over again and again."""

from __future__ import annotations

import contextlib
import shutil
import sys

from pilotfish.output import note


class Progress:
    """What is shown for a moment is not shown at all where standard error is no terminal; what is said stays."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """In place of what was shown before."""
        self._write(text[: max(1, shutil.get_terminal_size().columns - 1)])
        self._shown = True

    def say(self, text: str) -> None:
        """A line to keep."""
        self.clear()
        note(f"bench: {text}")

    def clear(self) -> None:
        """Nothing is shown any more, and a line may be written."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        if self._terminal:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"\r\x1b[2K{text}")
                sys.stderr.flush()
