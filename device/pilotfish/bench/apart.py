"""Runs a coroutine in a thread of its own, so that a signal never lands in the middle of an event loop's work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from pilotfish.signals import held

T = TypeVar("T")
# The system may give a signal to any thread, and Python then tells the main one, but does not wake it from a wait.
WAKE_S: Final = 0.2


def run_apart(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end and return its result, or raise what it raised.

    An exception in the caller's thread, which is what signals become, cancels ``main`` and is raised once that has
    closed what it held; a second one does not wait for it.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(main)
    over: Future[None] = Future()

    def work() -> None:
        try:
            with contextlib.closing(loop):
                loop.run_until_complete(asyncio.wait([task]))
                loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            over.set_result(None)

    thread = threading.Thread(target=work, name="pilotfish-bench", daemon=True)
    try:
        with held():  # a signal comes when there is a thread to end
            thread.start()
        _wait(over)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it is over, and its loop closed
            loop.call_soon_threadsafe(task.cancel)
        _wait(over)
        if not task.cancelled():
            task.exception()  # seen, or it is logged as lost
        raise
    return task.result()


def _wait(over: Future[None]) -> None:
    while not over.done():
        with contextlib.suppress(TimeoutError):
            over.result(WAKE_S)
