"""What the device has drafted beyond the committed prefix, and what of it the cloud has been sent on which branch."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish_core.drafts import DraftRun


class DraftTail:
    """Tokens at positions [length, length + len(tail)), of which those below ``sent`` went up on the current branch.

    ``length`` is the committed length. ``synced`` counts the drafter's first tokens that equal prompt + output + tail.
    A tail that is dropped bumps ``epoch``, so that the result of a task begun before is seen to be stale.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.tokens: list[int] = []
        self.synced = 0
        self.epoch = 0
        self._sent = 0
        self._branch = -1
        self._open = False  # whether the current branch has been sent on this stream

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unsent(self) -> int:
        """How many of the tokens have not been sent on the current branch."""
        end = self.length + len(self.tokens)
        return end - (max(self._sent, self.length) if self._open else self.length)

    @property
    def in_flight(self) -> int:
        """How many were sent and not decided yet."""
        return max(self._sent - self.length, 0)

    def new_stream(self) -> None:
        """Branches count anew, and nothing of the tail has been sent."""
        self._branch, self._open, self._sent = -1, False, 0

    def cut(self, limit: int) -> None:
        """Drop what is beyond ``limit`` tokens, but for what was sent."""
        limit = max(limit, self.in_flight)
        if len(self.tokens) > limit:
            del self.tokens[limit:]
            self.synced = min(self.synced, self.length + limit)
            self.epoch += 1

    def refill(self, tokens: Sequence[int]) -> None:
        """Put tokens behind the tail that were drafted before and cut off; what is being drafted is then stale."""
        self.tokens.extend(tokens)
        self.epoch += 1

    def commit(self, fresh: Sequence[int]) -> tuple[int, bool]:
        """``fresh`` tokens were committed: keep the tail where it agrees, drop it where the target went elsewhere.

        Returns how many of them were drafted so, and whether the next one was drafted otherwise.
        """
        agreed = 0
        while agreed < min(len(fresh), len(self.tokens)) and self.tokens[agreed] == fresh[agreed]:
            agreed += 1
        refuted = agreed < min(len(fresh), len(self.tokens))
        if agreed == len(fresh):
            del self.tokens[:agreed]
            if self.length + agreed > self._sent:
                self._open = False  # the cloud went past what was sent: a continuation would be taken for stale
        else:
            self.synced = min(self.synced, self.length + agreed)
            self.forget()
        self.length += len(fresh)
        return agreed, refuted

    def forget(self) -> None:
        """Drop it all; what comes next is a new branch."""
        self.tokens.clear()
        self._open = False
        self.epoch += 1

    def next_run(self) -> tuple[DraftRun, bool]:
        """A run of what has not been sent, which then counts as sent, and whether it opens a branch.

        Without any tail it is the empty run that opens a branch at the committed length.
        """
        count = self.unsent
        opens = not self._open or not count
        if opens:
            self._branch += 1
            self._open = True
        start = self.length + len(self.tokens) - count
        self._sent = start + count
        return DraftRun(self._branch, start, tuple(self.tokens[len(self.tokens) - count :])), opens
