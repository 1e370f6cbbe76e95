"""Which processor runs what: the verifier on the first one, the device and the links on the last."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pilotfish_core.errors import LocalError

TASKS: Final = Path("/proc/self/task")


@dataclasses.dataclass(frozen=True, slots=True)
class Pins:
    """The two processors. Processes and threads that the main thread starts inherit the device's."""

    verifier: int
    device: int

    @contextlib.contextmanager
    def starting_verifier(self) -> Iterator[None]:
        """Within, what this thread starts is on the verifier's processor from its first instruction on."""
        os.sched_setaffinity(0, {self.verifier})
        try:
            yield
        finally:
            os.sched_setaffinity(0, {self.device})


@contextlib.contextmanager
def pinned() -> Iterator[Pins]:
    """Within, this process is on one processor. To be entered by the main thread. Raises LocalError where it cannot."""
    if not hasattr(os, "sched_setaffinity"):
        raise LocalError("--pin: this system does not let a process choose its processors")
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        raise LocalError(f"--pin needs two processors, this process may use {len(before)}")
    pins = Pins(min(before), max(before))
    _move_threads({pins.device})
    try:
        yield pins
    finally:
        _move_threads(before)


def _move_threads(processors: set[int]) -> None:
    """All threads of this process: the system's call moves one of them."""
    threads = [int(entry.name) for entry in TASKS.iterdir()] if TASKS.is_dir() else [0]
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(thread, processors)
