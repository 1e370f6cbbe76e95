"""Ctrl-C, SIGTERM and SIGHUP: each ends a command in the same orderly way, by an exception in its main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

_NUMBERS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_held: list[int] | None = None  # what came while signals were held; None while they are not


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. ``exit_code`` is what shells report for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, a signal ends the process: an exception amid imports could get lost, and nothing has begun yet."""
    with _handled(_exit):
        yield


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within, a signal raises Stopped, so that whatever is open gets closed."""
    with _handled(_raise):
        yield


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within, signals wait: for what must not be left half done, such as a process started but not yet known."""
    global _held
    outer, _held = _held, []
    try:
        yield
    finally:
        came, _held = _held, outer
    for number in came:
        _raise(number)


def _exit(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


def _raise(number: int, _: object = None) -> None:
    if _held is None:
        raise Stopped(number)
    _held.append(number)


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        for number, old in before.items():
            if old not in (None, signal.SIG_IGN):  # nohup, or a shell's background job: it is meant to stay ignored
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            if old is not None:
                signal.signal(number, old)
