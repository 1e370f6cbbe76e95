"""One thread steps back, the others stay."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pilotfish_core.thread_priority import BEHIND, step_back


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 0


def stepped_back() -> tuple[int, int]:
    before = niceness()
    step_back()
    return before, niceness()


def test_only_the_calling_thread_steps_back() -> None:
    mine = niceness()
    with ThreadPoolExecutor(1) as threads:
        before, after = threads.submit(stepped_back).result()
    expected = min(before + BEHIND, 19) if sys.platform == "linux" else before
    assert (after, niceness()) == (expected, mine)


def test_where_it_cannot_be_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    step_back()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "setpriority")
    step_back()
