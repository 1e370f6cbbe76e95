"""What a client does while the link is away, as the app chooses it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.offline import OfflineConfig, OnReconnect

AFTER_S: Final = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """What an app is asked about: unverified ``text`` that it was shown, its tokens, and the first one's ``position``
    in prompt and output.
    """

    text: str
    token_ids: tuple[int, ...]
    position: int


Ask = Callable[[Unconfirmed], str | Awaitable[str]]
WhenBack = str | Ask


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OfflineChoice:
    """``drafts``: whether anything is shown while the link is away, and then how; ``ask`` for OnReconnect.ASK."""

    drafts: bool = False
    how: OfflineConfig = dataclasses.field(default_factory=lambda: OfflineConfig(after_s=AFTER_S))
    ask: Ask | None = None

    @property
    def config(self) -> OfflineConfig | None:
        """For the core."""
        return self.how if self.drafts else None

    def changed(
        self, offline: str | None, on_reconnect: WhenBack | None, after_s: float | None = None
    ) -> OfflineChoice:
        """With what is named instead of its own. Raises InvalidParameter."""
        if offline not in (None, "wait", "draft"):
            raise InvalidParameter.of("offline", offline, "'wait' or 'draft'")
        if after_s is not None and not 0 < after_s < math.inf:
            raise InvalidParameter.of("offline_after_s", after_s, "a positive number of seconds")
        on, ask = self.how.on_reconnect, self.ask
        if callable(on_reconnect):
            on, ask = OnReconnect.ASK, on_reconnect
        elif on_reconnect is not None:
            on, ask = plain_choice(on_reconnect), None
        drafts = self.drafts if offline is None else offline == "draft"
        how = OfflineConfig(on_reconnect=on, after_s=self.how.after_s if after_s is None else after_s)
        return OfflineChoice(drafts=drafts, how=how, ask=ask)

    def check(self, draft: str | Path | Drafter | None) -> None:
        """Raises InvalidParameter where there is nothing that could write."""
        if self.config is not None and not isinstance(draft, Drafter) and draft in (None, "none", "ngram"):
            raise InvalidParameter.of(
                "draft", draft, "a draft model: it writes while the link is away (offline='draft')"
            )


def plain_choice(value: object) -> OnReconnect:
    """Raises InvalidParameter for what is neither "verify" nor "keep"."""
    if value not in (OnReconnect.VERIFY, OnReconnect.KEEP):
        raise InvalidParameter.of("on_reconnect", value, "'verify', 'keep', or a callable that answers one of them")
    return OnReconnect(str(value))
