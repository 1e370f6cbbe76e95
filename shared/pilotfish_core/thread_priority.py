"""Priorities of threads: what computes gives way to what answers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Final

BEHIND: Final = 5  # niceness on top of the process's own


def step_back() -> None:
    """Let the other threads of this process go first on a processor that the calling thread shares with them.

    Linux only, where a thread has a niceness of its own; elsewhere, and where it is forbidden, nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + BEHIND, 19))
