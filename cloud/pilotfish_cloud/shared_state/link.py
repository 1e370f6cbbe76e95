"""One replica's way to the shared state: a report every half second, and what to do while there is no answer.

Lives on the gateway's event loop. ``in_touch`` falls with the first call that fails and comes back with the first
report that is answered; between, nobody waits for the store.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pilotfish_cloud.shared_state.admission import SharedAdmission
from pilotfish_cloud.shared_state.interface import (
    Held,
    Limits,
    Report,
    SharedState,
    StateTroubleError,
    Taken,
    View,
)
from pilotfish_cloud.shared_state.journal import UsageJournal
from pilotfish_cloud.shared_state.usage import UsageLedger
from pilotfish_core.errors import LocalError

_log = logging.getLogger(__name__)

TICK_S: Final = 0.5
MAX_BACKOFF_S: Final = 5.0
MAX_LINE: Final = 2048  # characters of a replica's line; what is longer is not ours
CLOSE_S: Final = 1.0  # for the last report


@dataclasses.dataclass(frozen=True, slots=True)
class ReplicaLine:
    """What a replica says of itself, for the operator's page."""

    name: str
    model: str
    fingerprint: str
    generations: int
    draining: bool
    started: float  # seconds since 1970

    @classmethod
    def parse(cls, name: str, text: str) -> ReplicaLine | None:
        """None for what no replica of ours says."""
        try:
            values = json.loads(text) if len(text) <= MAX_LINE else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict):
            return None
        kinds = {"model": str, "fingerprint": str, "generations": int, "draining": bool, "started": float}
        if any(type(values.get(key)) is not kind for key, kind in kinds.items()):
            return None
        started, generations = values["started"], values["generations"]
        if not (0 <= generations < 2**31 and math.isfinite(started)):
            return None
        return cls(
            name[:100], values["model"][:200], values["fingerprint"][:100], generations, values["draining"], started
        )


class StateLink:
    """``line``: what this replica says of itself; started and closed with the server. ``journal``: the file where usage
    waits for the next process if this one is killed.

    Raises LocalError for a journal that cannot be used.
    """

    def __init__(
        self,
        state: SharedState,
        replica: str,
        line: Callable[[], Mapping[str, Any]],
        *,
        journal: Path | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self.state = state
        self.replica = replica
        self._source = secrets.token_hex(8)
        self.ledger = UsageLedger()
        self._left: list[Report] = []  # of earlier processes
        if journal is not None:
            self.ledger.journal = UsageJournal(journal, self._source)
            self._left = [
                Report(replica=replica, source=source, number=number, beat="{}", usage=usage)
                for source, number, usage in self.ledger.journal.left
            ]
        self.admission: SharedAdmission | None = None  # where limits are shared
        self.revoked: frozenset[str] = frozenset()
        self.lines: tuple[ReplicaLine, ...] = ()
        self.in_touch = False
        self.failures: collections.Counter[str] = collections.Counter()
        self.reports = 0
        self.repaired = 0
        self._line = line
        self._tick_s = tick_s
        self._started = time.time()
        self._number = 0
        self._unheard: Report | None = None
        self._woken = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, *, required: bool = False) -> None:
        """Report once, and then again and again. Raises LocalError when that fails and is ``required``."""
        try:
            await self._report()
        except StateTroubleError as error:
            if required:
                await self._close()
                raise LocalError(
                    f"{error} (--redis-url), and --redis-required says not to serve without it", private=error.private
                ) from None
            self._failed("report", error, starting=True)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Tell what there is to tell, if that goes quickly."""
        if self._task is None:
            return
        self._closing = True
        self._woken.set()
        await self._task
        self._task = None
        await self._close()

    async def _close(self) -> None:
        if self.ledger.journal is not None:
            self.ledger.journal.close()
        await self.state.close()

    def wake(self) -> None:
        """See ``Asking.wake``."""
        self._woken.set()

    async def _run(self) -> None:
        pause = 0.0
        while not self._closing:
            if pause:  # a store in trouble is not asked more often because there is more to tell
                await self._rest(pause)
            else:
                await self._woken_within(self._tick_s)
            if self._closing:
                break
            if await self._try_report():
                pause = 0.0
            else:
                pause = min(max(pause * 2, self._tick_s), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
        if self.in_touch:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._try_report()

    async def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._closing and (left := end - time.monotonic()) > 0:
            await self._woken_within(left)

    async def _woken_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    # -- the store --------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> int:
        """How many there are, as far as is known; at least 1."""
        return max(len(self.lines), 1)

    async def take(
        self, tenant: str, limits: Limits, held: Held, *, level: float | None, released: tuple[Held, ...]
    ) -> Taken | None:
        """See ``Asking.take``."""
        if not self.in_touch:
            return None
        try:
            return await self.state.take(tenant, limits, held, level=level, released=released)
        except StateTroubleError as error:
            self._failed("take", error)
            return None

    async def _try_report(self) -> bool:
        try:
            await self._report()
        except StateTroubleError as error:
            self._failed("report", error)
            return False
        return True

    async def _report(self) -> None:
        """What was not heard goes first, as it was; then what has come since."""
        while self._left:
            left = dataclasses.replace(self._left[0], beat=self._beat())
            await self.state.report(left)
            self._heard(left)
            del self._left[0]
        if self._unheard is not None:
            self._learn(self._unheard, await self.state.report(self._unheard))
        self._number += 1
        if self.ledger.journal is not None:
            self.ledger.journal.reported(self._number)
        self._unheard = Report(
            replica=self.replica,
            source=self._source,
            number=self._number,
            beat=self._beat(),
            tenants={} if self.admission is None else self.admission.collect(),
            usage=self.ledger.collect(),
            revoked=self.revoked,
        )
        self._learn(self._unheard, await self.state.report(self._unheard))

    def _beat(self) -> str:
        return json.dumps({**self._line(), "started": self._started})

    def _heard(self, report: Report) -> None:
        if self.ledger.journal is not None:
            self.ledger.journal.heard(report.source, report.number)

    def _learn(self, report: Report, view: View) -> None:
        self._heard(report)
        self._unheard = None
        self.reports += 1
        self.repaired = view.repaired
        self.revoked |= view.revoked
        lines = (ReplicaLine.parse(name, text) for name, text in sorted(view.beats.items()))
        self.lines = tuple(line for line in lines if line is not None)
        if not self.in_touch:
            self.in_touch = True
            _log.info("the shared state is there: %s", self.state.where)
            if self.admission is not None:
                self.admission.find()
        if self.admission is not None:
            self.admission.learn(dict(view.levels))

    def _failed(self, operation: str, error: StateTroubleError, *, starting: bool = False) -> None:
        self.failures[operation] += 1
        if self.in_touch or starting:
            self.in_touch = False
            _log.warning(
                "%s; this replica goes on alone, with its share of each limit (1 / %d)%s",
                error,
                self.replicas,
                f" ({error.private})" if error.private else "",
            )
            if self.admission is not None:
                self.admission.lose()
