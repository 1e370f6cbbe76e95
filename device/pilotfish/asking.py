"""Asks the app what is to become of unverified text, once the link is back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from pilotfish.daemon import in_daemon_thread
from pilotfish.offline import Ask, Unconfirmed, plain_choice
from pilotfish_core.errors import InvalidParameter, LocalError, PilotfishError
from pilotfish_core.offline import OnReconnect


class Asking:
    """One generation's questions. An app that is thinking about the same text already is not asked twice: its answer is
    to the last question. ``answered`` is called on the event loop with that one's number.
    """

    def __init__(self, ask: Ask | None, answered: Callable[[int, OnReconnect | PilotfishError], None]) -> None:
        self._ask, self._answered = ask, answered
        self._number = 0
        self._about: Unconfirmed | None = None
        self._task: asyncio.Task[OnReconnect] | None = None

    def put(self, number: int, about: Unconfirmed) -> None:
        """Ask. Raises LocalError where there is nobody to ask."""
        if self._ask is None:
            raise LocalError("there is nobody to ask what is to become of the unverified text")
        self._number = number
        if self._task is not None and about == self._about:
            if self._task.done():  # the answer came while there was no stream to use it on
                asyncio.get_running_loop().call_soon(self._done, self._task)
            return
        self.cancel()
        self._about = about
        self._task = asyncio.get_running_loop().create_task(asked(self._ask, about))
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[OnReconnect]) -> None:
        if task.cancelled() or task is not self._task:
            return
        error = task.exception()
        if error is None:
            self._answered(self._number, task.result())
        elif isinstance(error, PilotfishError):
            self._answered(self._number, error)


async def asked(ask: Ask, about: Unconfirmed) -> OnReconnect:
    """The app's answer. A callable that is no coroutine function runs in a thread: it may take its time.

    Raises LocalError when it fails, or answers something else than "verify" or "keep".
    """
    try:
        if inspect.iscoroutinefunction(ask):
            answer = await ask(about)
        else:
            answer = await in_daemon_thread(lambda: ask(about), "pilotfish-asking")
            if inspect.isawaitable(answer):
                answer = await answer
        return plain_choice(answer)
    except InvalidParameter as error:
        raise LocalError(f"on_reconnect answered something else than 'verify' or 'keep': {error}") from None
    except Exception as error:
        raise LocalError(f"on_reconnect failed: {type(error).__name__}: {error}") from error
