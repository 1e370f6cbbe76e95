"""Where a long run is, on a terminal: one line of standard error, written over again and again."""

from __future__ import annotations

import sys
from typing import Final, TextIO

WIDTH: Final = 40  # characters of the bar


class ProgressBar:
    """A bar; silent where nobody looks. A context manager: it is gone afterwards."""

    def __init__(self, total: int, what: str, *, stream: TextIO | None = None) -> None:
        self._total, self._what = total, what
        self._stream = sys.stderr if stream is None else stream
        self._on = self._stream.isatty()
        self._shown = -1

    def __enter__(self) -> ProgressBar:
        self.show(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def share(self, done: float) -> None:
        """Such a share of all is done."""
        self.show(int(done * self._total))

    def show(self, done: int) -> None:
        """So many of all are done."""
        filled = WIDTH * done // self._total if self._total else WIDTH
        if not self._on or (filled == self._shown and done != self._total):
            return
        self._shown = filled
        self._stream.write(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {done} of {self._total} {self._what}\x1b[K")
        self._stream.flush()
