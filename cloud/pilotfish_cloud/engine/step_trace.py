"""``pilotfish-cloud serve --trace FILE``: when each step ran and how long, for ``pilotfish-sim calibrate``."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from pilotfish_core.errors import LocalError
from pilotfish_core.scheduling import CompletedStep, ScheduledStep, Sequence
from pilotfish_core.trace import OpenedRecord, StepRecord, TraceWriter

_log = logging.getLogger(__name__)


class StepTrace:
    """The worker thread's own. A trace that cannot be written any more is given up, and said once: nothing else
    suffers. Raises LocalError when it cannot be begun.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="ascii")
        except OSError as error:
            raise LocalError(f"--trace {path}: it cannot be written: {error.strerror or error}") from None
        self._on = True
        self._waiting: dict[str, tuple[float, int]] = {}  # opened, not yet committed: when, prompt tokens
        self._writer = TraceWriter(self._write, side="cloud", now=time.monotonic(), key=os.urandom(32))
        self._file.flush()

    def asked(self, sequence: Sequence, now: float) -> None:
        """A generation came."""
        self._waiting[sequence.key] = now, sequence.core.prompt_length

    def forgotten(self, key: str) -> None:
        """It is gone."""
        self._waiting.pop(key, None)

    def step(
        self,
        step: ScheduledStep,
        done: CompletedStep,
        *,
        padded: int,
        began: float,
        took_s: float,
        told: float,
        ended: float,
    ) -> None:
        """A step that computed ``padded`` rows, scheduled from ``began`` on, computed for ``took_s``, told of at
        ``told``, over at ``ended``.
        """
        writer = self._writer
        for sequence, _ in done.commits:
            opened = self._waiting.pop(sequence.key, None)
            if opened is not None:
                writer.add(
                    OpenedRecord(
                        at_us=writer.at(opened[0]),
                        first_us=round((told - opened[0]) * 1e6),
                        prompt_tokens=opened[1],
                        cached_tokens=sequence.cached_len,
                    )
                )
        writer.add(
            StepRecord(
                at_us=writer.at(began),
                took_us=round(took_s * 1e6),
                whole_us=round((ended - began) * 1e6),
                rows=step.num_rows,
                padded=padded,
                sequences=len(step.scheduled),
                context=step.load.context,
                drafts=sum(entry.yields - 1 for entry in step.scheduled if entry.yields),
                committed=sum(len(commit.tokens) for _, commit in done.commits),
            )
        )

    def close(self) -> None:
        """The trace is complete. May be called again."""
        if self._on:
            self._writer.end()
            self._on = False
        try:
            self._file.close()
        except OSError as error:
            _log.warning("the trace is not complete: %s", error)

    def _write(self, line: str) -> None:
        if not self._on:
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._on = False
            _log.warning("the trace ends here: %s", error)
