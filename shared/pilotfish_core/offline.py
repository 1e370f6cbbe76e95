"""What the device does alone while the link is away: its settings, and what the app was shown of a draft meanwhile."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pilotfish_core.drafts import Finish

if TYPE_CHECKING:
    from pilotfish_core.cloud_core import FinishRule


class OnReconnect(enum.StrEnum):
    """What becomes of unverified text once the link is back."""

    VERIFY = "verify"  # the target decides: what agrees stays, what differs is replaced
    KEEP = "keep"  # it stands as it is, and the target goes on behind it
    ASK = "ask"  # the app says which of the two, each time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OfflineConfig:
    """``after_s``: of silence, after which the link counts as gone and the device's own text is shown."""

    on_reconnect: OnReconnect = OnReconnect.VERIFY
    after_s: float = 2.0


class Unverified:
    """Draft tokens that the app was shown, at the positions from the committed length on.

    ``finish``: the device's own judgement that the answer is complete with them; nothing is drafted beyond.
    """

    def __init__(self, finish_rule: Callable[[], FinishRule] | None) -> None:
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self._finish_rule = finish_rule
        self._rule: FinishRule | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def begin(self, output: Sequence[int]) -> None:
        """The link went away with so much output committed; what was shown the last time is still shown."""
        self._rule, self.finish = (None if self._finish_rule is None else self._finish_rule()), None
        for token in output:
            if self.finish is not None:  # the cloud has not ended it there, whatever this device would say
                self._rule, self.finish = None, None
            self._push(token)
        for token in self.tokens:
            self._push(token)

    def show(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Show what is drafted beyond: returns those tokens that are within the answer."""
        fresh = list[int]()
        for token in tokens:
            if self.finish is not None:
                break
            fresh.append(token)
            self._push(token)
        self.tokens += fresh
        return tuple(fresh)

    def commit(self, fresh: Sequence[int], *, last: bool) -> tuple[int, int]:
        """``fresh`` tokens were committed; ``last``: the answer ended with them.

        Returns how many of them were shown so, and how many shown tokens do not stand: all from the first one that
        differs, or beyond the end.
        """
        agreed = 0
        while agreed < min(len(fresh), len(self.tokens)) and fresh[agreed] == self.tokens[agreed]:
            agreed += 1
        if agreed == len(fresh) and not last:
            del self.tokens[:agreed]
            return agreed, 0
        withdrawn = len(self.tokens) - agreed
        self.clear()
        return agreed, withdrawn

    def clear(self) -> None:
        """Nothing is shown any more."""
        self.tokens.clear()
        self.finish = self._rule = None

    def _push(self, token: int) -> None:
        if self._rule is not None and self.finish is None:
            self.finish = self._rule.push(token)
