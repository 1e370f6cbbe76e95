"""Processes that a command started and must not leave behind."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Final

END_TIMEOUT_S: Final = 10.0


def end_process(process: subprocess.Popen[str]) -> None:
    """End a process properly; for good when that takes long, or when a second signal says to hurry."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.communicate(timeout=END_TIMEOUT_S)
    except BaseException as error:
        process.kill()
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
