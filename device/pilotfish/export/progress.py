"""Where an export is: a bar on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from typing import Final

from pilotfish.output import note

Progress = Callable[[str, float], None]  # the stage, and how much of it is done, from 0 to 1

_BAR: Final = 24


class ProgressBar:
    """Called with each step of the work. To standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._stage = ""
        self._shown = ""

    def __call__(self, stage: str, done: float) -> None:
        """Show that ``done`` (0 to 1) of ``stage`` is done."""
        if not self._terminal:
            if stage != self._stage:
                note(f"export: {stage}")
            self._stage = stage
            return
        filled = round(min(max(done, 0.0), 1.0) * _BAR)
        line = f"export: [{'#' * filled}{'.' * (_BAR - filled)}] {done:4.0%}  {stage}"
        self._write(line[: max(1, shutil.get_terminal_size().columns - 1)])

    def clear(self) -> None:
        """Nothing is shown any more, and a line may be written."""
        if self._shown:
            self._write("")

    def _write(self, line: str) -> None:
        if line != self._shown:
            self._shown = line
            with contextlib.suppress(OSError):
                sys.stderr.write(f"\r\x1b[2K{line}")
                sys.stderr.flush()
