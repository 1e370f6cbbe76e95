"""What ``AsyncClient`` hands out: one answer while it comes, and the deadline that it has."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from pilotfish.driver import GenerationDriver
from pilotfish.local_driver import LocalDriver
from pilotfish.result import Piece, Result
from pilotfish_core.errors import DeadlineExceeded, InvalidParameter, PilotfishError

WATCH_EVERY_S: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer must be complete: ``at`` on the clock of the event loop."""

    timeout_s: float
    at: float

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline | None:
        """That long from now; None for no deadline. Raises InvalidParameter for what is not a positive time."""
        if timeout_s is None:
            return None
        if not 0 < timeout_s < math.inf:  # NaN neither
            raise InvalidParameter.of("timeout", timeout_s, "a positive number of seconds")
        return cls(timeout_s, asyncio.get_running_loop().time() + timeout_s)

    def error(self) -> DeadlineExceeded:
        """What to say when it has passed."""
        return DeadlineExceeded(f"the answer was not complete after {self.timeout_s:g} s")


class AsyncStream:
    """One answer while it comes: iterate for pieces, then ask ``result``. Leaving the iteration does not cancel.

    Any number of tasks may iterate and wait for the result: each piece goes to one of those that iterate, the end to
    all.
    """

    def __init__(self, driver: GenerationDriver | LocalDriver, deadline: Deadline | None) -> None:
        self.generation = driver.generation
        self._driver = driver
        self._task = asyncio.create_task(driver.run())
        if deadline is not None:
            timer = asyncio.get_running_loop().call_at(deadline.at, driver.fail, deadline.error())
            driver.outcome.add_done_callback(lambda _: timer.cancel())

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        item = await self._driver.pieces.get()
        if isinstance(item, Piece):
            return item
        self._driver.pieces.put_nowait(item)  # the end stays there, for whoever else waits or asks again
        if isinstance(item, PilotfishError):
            raise item
        raise StopAsyncIteration

    @property
    def draft_text(self) -> str:
        """What is drafted beyond the text that has come: nobody has verified it, and it may never come."""
        return self._driver.draft_text

    @property
    def unverified_text(self) -> str:
        """What was shown behind the verified text while the link was away, and is not decided yet."""
        return self._driver.unverified_text

    @property
    def offline(self) -> bool:
        """Whether the device goes on alone at the moment (``offline="draft"``)."""
        return self._driver.away

    @property
    def policy(self) -> Mapping[str, Any]:
        """The numbers behind who drafts at the moment, such as ``round_trip_ms``; see docs/policy.md."""
        return self._driver.explain()

    async def watch(self, seen: Callable[[Piece | None], None], *, every_s: float = WATCH_EVERY_S) -> Result:
        """Call ``seen`` with each piece as it comes, and with None when none has come for ``every_s`` seconds, for who
        shows ``draft_text`` too. Returns the whole answer; whoever cancels this leaves the answer running.
        """
        while True:
            coming = asyncio.ensure_future(self._driver.pieces.get())
            try:
                while not (await asyncio.wait([coming], timeout=every_s))[0]:
                    seen(None)
            finally:
                coming.cancel()
            item = coming.result()
            if not isinstance(item, Piece):
                self._driver.pieces.put_nowait(item)  # the end stays there
                return await self.result()
            seen(item)

    @property
    def ended(self) -> bool:
        """Whether the outcome is known, so that ``result`` does not wait."""
        return self._driver.outcome.done()

    async def result(self) -> Result:
        """The whole answer; waits for it, and takes no pieces. Raises what ended it otherwise."""
        await asyncio.wait([self._driver.outcome])
        return self.known_result()

    def known_result(self) -> Result:
        """``result`` once it has ``ended``, from any thread."""
        outcome = self._driver.outcome.result()
        if isinstance(outcome, PilotfishError):
            raise outcome
        return outcome

    def cancel(self) -> None:
        """End the generation; the result then has finish_reason "abort" and what was committed."""
        self._driver.cancel()

    async def aclose(self) -> None:
        """Cancel if it is still running, and wait until everything is freed."""
        self._driver.cancel()
        await asyncio.wait([self._task])
