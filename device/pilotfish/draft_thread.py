"""The thread that models are loaded and run in. It is never in the way of the program's end."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from pilotfish_core.thread_priority import step_back

T = TypeVar("T")
_Task = tuple[Future[Any], Callable[[], Any]]


class DraftThread(Executor):
    """One daemon thread: drafts of several generations take turns, a small model gains nothing from sharing a core.

    The standard library's pool would be joined at the program's end, however long a model takes that hangs.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ended: Future[None] = Future()

    def submit(self, call: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Run it after what was submitted before. Raises RuntimeError once closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the drafting thread is closed")
            self._tasks.put((future, lambda: call(*arguments, **options)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pilotfish-draft", daemon=True)
                self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; ``wait`` until the thread has ended."""
        self._close()
        if wait:
            self._ended.result()

    async def aclose(self, timeout_s: float) -> bool:
        """Take nothing more and wait for the thread, but no longer than that. Returns whether it has ended."""
        self._close()
        return bool((await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=timeout_s))[0])

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._tasks.put(None)
            if self._thread is None:
                self._ended.set_result(None)

    def _run(self) -> None:
        step_back()  # where both share a processor, a commit must not wait for a draft to be computed
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # as the standard library's: whoever waits gets it
                future.set_exception(error)
            del task, future, call  # or the last one's model lives as long as nothing else is asked
        self._ended.set_result(None)
