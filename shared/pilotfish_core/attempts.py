"""The streams that one generation is tried on: their numbers, what each claims, and when the next one is tried."""

from __future__ import annotations

import random
from typing import Final

from pilotfish_core.committed_prefix import CommittedPrefix
from pilotfish_core.device_actions import Connect, SendAcknowledge
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import PilotfishError, ProtocolViolation, Unavailable
from pilotfish_core.messages import Opened, Ticket
from pilotfish_core.modes import Mode
from pilotfish_core.retry import RetryPolicy

MAX_REPEATED: Final = 64  # tokens to have decided again; a ticket that is older than that is of another time


class Attempts:
    """``number`` of the last one, ``claimed``: the committed length that the cloud was told at its begin, ``ticket``:
    the last proof, for all or nearly all of the output. ``retry_at``: when to try again, while that is waited for.
    """

    def __init__(self, retry: RetryPolicy, number: int, ticket: Ticket | None, jitter: random.Random) -> None:
        self.number = number
        self.ticket = ticket
        self.claimed = 0
        self.retry_at: float | None = None
        self._retry = retry
        self._jitter = jitter
        self._failures = 0  # since the last progress
        self._ever_opened = False

    def next(self, prefix: CommittedPrefix, mode: Mode) -> Connect:
        """The next one. A resume by a ticket claims what that covers, and drafts nothing until the cloud has caught up
        with what the device holds; other ones claim all of that, and go on in ``mode``.
        """
        self.retry_at = None
        self.number += 1
        self.claimed, ticket = prefix.length, self.ticket
        if ticket is None or not prefix.output or prefix.length - ticket.length > MAX_REPEATED:
            return Connect(self.number, self.claimed, mode)
        if ticket.length < prefix.length:
            self.claimed, mode = ticket.length, Mode()
        return Connect(self.number, self.claimed, mode, ticket.value)

    def opened(self) -> None:
        """The address is right."""
        self._ever_opened = True

    def progressed(self) -> None:
        """Tokens came: what failed before counts no more."""
        self._failures = 0

    def failed(self, error: PilotfishError, now: float, *, for_ever: bool) -> bool:
        """The last one failed in a way that may pass. Returns whether to try again, at ``retry_at``; ``for_ever``: in
        any case.
        """
        self._failures += 1
        # Who says when to come again is there: the address is right, and only a replica or two are not.
        invited = isinstance(error, Unavailable) and error.retry_after_s is not None
        delay = self._retry.delay(
            self._failures, self._jitter, hint_s=error.retry_after_s, first=not (self._ever_opened or invited)
        )
        if delay is None and for_ever:
            delay = self._jitter.uniform(0.0, self._retry.cap_s)  # the app has its text, and the link may return
        self.retry_at = None if delay is None else now + delay
        return delay is not None

    def proved(self, ticket: Ticket) -> None:
        """A ticket came; the newest one is kept."""
        if self.ticket is None or ticket.length > self.ticket.length:
            self.ticket = ticket


class Acknowledgements:
    """What the cloud has been told of the committed length that the device holds: it pauses for the lack of it."""

    def __init__(self, every: int) -> None:
        self._usual = self._every = every
        self._length = 0

    def begin(self, length: int, opened: Opened) -> None:
        """A stream begins: the cloud takes so much for acknowledged. The next one must come before it pauses."""
        self._length = length
        self._every = max(1, min(self._usual, opened.max_unacknowledged // 2))

    def repeat(self, length: int) -> None:
        """A stream begins behind what the device holds, which comes again."""
        self._length = length

    def repeated(self, commit: Commit, opened: Opened) -> list[SendAcknowledge]:
        """What is known came again, and not all of it yet. Raises ProtocolViolation where the cloud ends there."""
        if commit.finish is not None:
            raise ProtocolViolation("the verifier ended before tokens that it had committed")
        if commit.end - self._length < opened.max_unacknowledged // 2:
            return []
        self._length = commit.end
        return [SendAcknowledge(commit.end)]

    def due(self, length: int) -> list[SendAcknowledge]:
        """For the tokens that have come since the last one, where they are many."""
        if length - self._length < self._every:
            return []
        self._length = length
        return [SendAcknowledge(length)]

    def riding(self, length: int) -> int | None:
        """One that goes for free with something else; None where it would say nothing new."""
        if self._length >= length:
            return None
        self._length = length
        return length
