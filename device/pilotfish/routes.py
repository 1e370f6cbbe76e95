"""Which route key a call carries: a load balancer hashes it, so that what shares a prompt meets the same replica.

The keys are the verifier's, who derives them from tenant and prompt; this device cannot read them and makes up its own
where it has none.
"""

from __future__ import annotations

import collections
import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

ROUTE_METADATA: Final = "pilotfish-route"
MAX_KNOWN: Final = 256  # prompts
_BEGINNING: Final = 256  # tokens of a prompt that tell it from others


class Routes:
    """What one client was told, by the beginning of its prompts; the oldest is forgotten."""

    def __init__(self) -> None:
        self._own = secrets.token_hex(8)
        self._told: collections.OrderedDict[bytes, tuple[str, ...]] = collections.OrderedDict()

    def learn(self, prompt: Sequence[int], routes: tuple[str, ...]) -> None:
        """The verifier named the routes of a prompt, the usual one first."""
        if routes:
            key = _key(prompt)
            self._told[key] = routes
            self._told.move_to_end(key)
            if len(self._told) > MAX_KNOWN:
                self._told.popitem(last=False)

    def of(self, prompt: Sequence[int], failures: int) -> str:
        """Where a call goes after so many failed ones. Each time elsewhere: the last one's replica may be dead."""
        told = self._told.get(_key(prompt), ())
        if failures < len(told):
            return told[failures]
        return self._own if failures == 0 else secrets.token_hex(8)


def _key(prompt: Sequence[int]) -> bytes:
    return hashlib.sha256(repr(tuple(prompt[:_BEGINNING])).encode()).digest()
