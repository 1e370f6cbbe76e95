"""The device while the link is away, and what is to become of what it showed once the link is back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pilotfish_core.committed_prefix import CommittedPrefix
from pilotfish_core.device_actions import Action, AskWhether, DraftCounts, Keep, ShowUnverified
from pilotfish_core.draft_tail import DraftTail
from pilotfish_core.drafts import Commit, Finish
from pilotfish_core.offline import OfflineConfig, OnReconnect, Unverified

if TYPE_CHECKING:
    from pilotfish_core.cloud_core import FinishRule


class Alone:
    """``away``: whether the device goes on alone at the moment. ``unverified``: what the app was shown meanwhile.

    Once the link is back what was shown is settled, or the app is asked: what the cloud commits until it answers is
    held here.
    """

    def __init__(
        self,
        config: OfflineConfig | None,
        prefix: CommittedPrefix,
        counts: DraftCounts,
        finish_rule: Callable[[], FinishRule] | None,
    ) -> None:
        self.away = False
        self.unverified = Unverified(finish_rule)
        self._config = config
        self._prefix = prefix
        self._counts = counts
        self._question = 0  # number of the last one asked
        self._settled = 0  # up to there it is settled that what was shown is verified
        self._held: list[Commit] = []

    @property
    def shown_to(self) -> int:
        """Position up to which the app was shown anything."""
        return self._prefix.length + len(self.unverified)

    @property
    def complete(self) -> bool:
        """Whether the device has nothing to add to what it wrote."""
        return self.away and self.unverified.finish is not None

    def begins_at(self, alive_at: float) -> float | None:
        """When the link will have been silent for so long that the device goes on alone."""
        return None if self._config is None or self.away else alive_at + self._config.after_s

    def begin(self) -> None:
        """The link is silent; the device goes on behind what was shown before."""
        self.away = True
        self.unverified.begin(self._prefix.output)

    def restore(self, tokens: Sequence[int]) -> list[Action]:
        """An app that is started anew is shown what it was shown the last time."""
        position = self.shown_to
        self.unverified.begin(self._prefix.output)
        fresh = self.unverified.show(tokens)
        self._counts.unverified += len(fresh)
        return [ShowUnverified(position, fresh)] if fresh else []

    def show(self, tail: DraftTail) -> list[Action]:
        """Show what is drafted and was not shown; what lies beyond the answer's end is dropped."""
        position = self.shown_to
        fresh = self.unverified.show(tail.tokens[len(self.unverified) :])
        self._counts.unverified += len(fresh)
        actions: list[Action] = [ShowUnverified(position, fresh)] if fresh else []
        if self.unverified.finish is not None:
            tail.cut(len(self.unverified))
            if self._config is not None and self._config.on_reconnect is OnReconnect.KEEP:
                actions.append(self.keep())
        return actions

    def back(self) -> OnReconnect | None:
        """The link is back. Returns what is to become of what was shown; None where that is nothing, or settled."""
        self.away = False
        if self._config is None or not self.unverified.tokens or self.shown_to <= self._settled:
            return None
        return self._config.on_reconnect

    def settle(self) -> None:
        """What was shown is to be verified, also after further cuts."""
        self._settled = self.shown_to

    def keep(self) -> Keep:
        """What was shown is to become output."""
        return Keep(tuple(self.unverified.tokens))

    def kept(self) -> tuple[tuple[int, ...], Finish | None]:
        """What was shown becomes output now: its tokens, and whether the answer ends with them."""
        tokens, finish = tuple(self.unverified.tokens), self.unverified.finish
        self.unverified.clear()
        self._counts.kept += len(tokens)
        self._held.clear()
        self._settled = self._prefix.length + len(tokens)
        return tokens, finish

    def ask(self) -> AskWhether:
        """The app says what is to become of it."""
        self._question += 1
        return AskWhether(self._question, tuple(self.unverified.tokens))

    def is_last(self, question: int) -> bool:
        """Whether that was the last one asked."""
        return question == self._question

    def hold(self, commit: Commit) -> None:
        """The cloud does not wait for the app's answer, but it pauses where nothing is acknowledged. Raises
        ProtocolViolation for more than can be output.
        """
        self._held.append(commit)
        if len(self._held) > self._prefix.max_tokens + 1:
            raise self._prefix.too_much()
        self._prefix.check_end(commit)

    @property
    def all_held(self) -> bool:
        """Whether what is held ends the answer."""
        return bool(self._held) and self._held[-1].finish is not None

    def release(self) -> list[Commit]:
        """What is held, which is then to be taken or lost."""
        held, self._held = self._held, []
        return held
