"""Usage by tenant and UTC day, gathered from the streams of all doors until the next report takes it."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Callable, Sequence

from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent
from pilotfish_cloud.observer import StreamObserver
from pilotfish_cloud.shared_state.interface import UsageKey
from pilotfish_cloud.shared_state.journal import UsageJournal
from pilotfish_cloud.stream import Stream


def _utc() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class UsageLedger(StreamObserver):
    """A generation counts where it begins or goes on, tokens when they are committed, before any of them is sent. What
    was drafted and verified is known of generations that finished on this replica.
    """

    def __init__(self, clock: Callable[[], datetime.datetime] = _utc) -> None:
        self.journal: UsageJournal | None = None  # where counts outlive the process
        self._clock = clock
        self._counts: collections.Counter[UsageKey] = collections.Counter()

    def opened(self, stream: Stream) -> None:
        """A resume is neither a new generation nor a new prompt."""
        if not stream.opening.output:
            fresh: collections.Counter[UsageKey] = collections.Counter()
            self._count(fresh, stream, generations=1, prompt_tokens=len(stream.opening.prompt))
            self._keep(fresh)

    def decided(self, events: Sequence[tuple[Stream, EngineEvent]]) -> None:
        """Commits, as they come."""
        fresh: collections.Counter[UsageKey] = collections.Counter()
        for stream, event in events:
            if not isinstance(event, CommitEvent):
                continue
            self._count(fresh, stream, committed_tokens=len(event.commit.tokens))
            counts = event.counts
            if counts is not None:
                drafted = counts.draft_tokens + counts.own_draft_tokens
                self._count(
                    fresh,
                    stream,
                    drafted_tokens=drafted,
                    accepted_tokens=counts.accepted_tokens + counts.own_accepted_tokens,
                    verified_rows=counts.steps + drafted,
                )
        if fresh:
            self._keep(fresh)

    def collect(self) -> dict[UsageKey, int]:
        """What was counted since the last time."""
        counts, self._counts = self._counts, collections.Counter()
        return dict(counts)

    def _count(self, fresh: collections.Counter[UsageKey], stream: Stream, **counts: int) -> None:
        day = self._clock().date().isoformat()
        for counter, count in counts.items():
            if count:
                fresh[UsageKey(day, stream.principal.tenant, counter)] += count

    def _keep(self, fresh: collections.Counter[UsageKey]) -> None:
        if self.journal is not None:
            self.journal.count(fresh)
        self._counts.update(fresh)
