"""Standard output and standard error of the commands."""

from __future__ import annotations

import contextlib
import os
import sys

from pilotfish_core.errors import LocalError


def show(text: str) -> None:
    """To standard output, at once. Raises LocalError when that cannot be written, BrokenPipeError when nobody reads."""
    if sys.stdout is None:  # print would do nothing
        raise LocalError("cannot write to standard output: it is closed")
    try:
        print(text, end="", flush=True)  # noqa: T201
    except BrokenPipeError:
        raise
    except (OSError, UnicodeEncodeError) as error:
        reason = error.reason if isinstance(error, UnicodeEncodeError) else error.strerror
        raise LocalError(f"cannot write to standard output: {reason or error}") from None


def note(text: str) -> None:
    """A line to standard error. Where that is gone, as a closed terminal is, nothing is said."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def abandon() -> None:
    """What cannot be written is dropped: Python would try again at its exit, and complain."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
