"""Runs draft tasks in a thread: the event loop never waits for a model."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import operator
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from pilotfish.generation import Generation
from pilotfish_core.device_actions import DraftTask
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.errors import LocalError

log = logging.getLogger("pilotfish")

CLOSE_TIMEOUT_S: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class DraftDone:
    """A task's tokens, or why it failed. ``took_s``: that it computed; ``asked_at``: on the event loop's clock;
    ``opened``: whether it began the drafter's context.
    """

    tokens: list[int]
    error: BaseException | None = None
    task: DraftTask | None = None
    took_s: float = 0.0
    asked_at: float = 0.0
    opened: bool = False


class DraftWorker:
    """One generation's drafter context. At most one task is in the executor at a time, as the core asks.

    ``done`` is called on the event loop with the result of each task. A token outside the vocabulary counts as a
    failure of the drafter: the verifier would end the whole answer over it. More tokens than asked for are dropped.
    """

    def __init__(
        self,
        drafter: Drafter,
        generation: Generation,
        vocab_size: int,
        executor: Executor,
        done: Callable[[DraftDone], None],
    ) -> None:
        self._drafter = drafter
        self._generation = generation
        self._vocab_size = vocab_size
        self._executor = executor
        self._done = done
        self._context: DraftContext | None = None
        self._future: asyncio.Future[DraftDone] | None = None

    def begin(self, task: DraftTask | None) -> None:
        """Start a task, if there is one."""
        if task is None:
            return
        loop = asyncio.get_running_loop()
        self._future = loop.run_in_executor(self._executor, self._try, task, loop.time())
        self._future.add_done_callback(self._finished)

    async def close(self) -> None:
        """Wait for the task that is out, but not for one that hangs, then free the context."""
        if self._future is not None:
            _, pending = await asyncio.wait([self._future], timeout=CLOSE_TIMEOUT_S)
            if pending:
                return  # its context is still in use
        if self._context is not None:
            try:
                self._context.close()
            except Exception as error:  # the answer is complete, and nothing will be asked of it any more
                log.warning("the drafter's context could not be closed: %s: %s", type(error).__name__, error)

    def _try(self, task: DraftTask, asked_at: float) -> DraftDone:
        """In the executor's thread. Never raises: some exceptions cannot be those of a future."""
        began, opened = time.monotonic(), self._context is None
        try:
            tokens = self._draft(task)
            return DraftDone(tokens, None, task, time.monotonic() - began, asked_at, opened)
        except BaseException as error:
            return DraftDone([], error)

    def _draft(self, task: DraftTask) -> list[int]:
        if self._context is None:
            self._context = self._drafter.open(self._generation.params, len(self._generation.prompt))
        if self._context.length != task.keep:
            self._context.rewind(task.keep)
        if task.extend:
            self._context.extend(task.extend)
        tokens = [operator.index(token) for token in self._context.draft(task.count)[: task.count]]
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise LocalError(f"it proposed token id {token}, outside the vocabulary of {self._vocab_size}")
        return tokens

    def _finished(self, future: asyncio.Future[DraftDone]) -> None:
        if not future.cancelled():
            self._done(future.result())
