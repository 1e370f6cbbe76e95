"""Locks between processes, on files that stay where they are: whoever waits must not be left with one that is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

POLL_S: Final = 0.1


def lock_of(file: Path, *, shared: bool = False) -> BinaryIO | None:
    """The lock, held until the file that is returned is closed; None where another has it. Where there are no such
    locks everyone gets it. Raises OSError.
    """
    opened = file.open("ab")
    try:
        import fcntl
    except ImportError:
        return opened
    try:
        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return None
    except BaseException:
        opened.close()
        raise
    return opened


@contextlib.contextmanager
def locked(file: Path, check: Callable[[], None]) -> Iterator[None]:
    """One process at a time. ``check`` is called while another has it, and may raise."""
    while (held := lock_of(file)) is None:
        time.sleep(POLL_S)
        check()
    with held:
        yield
