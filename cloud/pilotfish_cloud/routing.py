"""Route keys: what a load balancer hashes to find the replica whose prefix cache is warm. They tell nothing."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Final

ROUTE_METADATA: Final = "pilotfish-route"
ROUTES: Final = 3  # the usual one, and where to go when that fails: the same for all who share a prompt
BEGINNING: Final = 256  # tokens of a prompt that share a route
BLOCK: Final = 16  # the beginning ends at a multiple, where the prompt is that long
_DIGITS: Final = 16


class Routing:
    """``key``: what the replicas derive from the secret that they share; with another one their routes differ."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, tenant: str, prompt: Sequence[int]) -> tuple[str, ...]:
        """The routes of a tenant's prompt."""
        length = min(len(prompt), BEGINNING)
        if length >= BLOCK:
            length -= length % BLOCK
        name = tenant.encode("utf-8", "surrogatepass")
        message = struct.pack(f"<I{len(name)}s{length}q", len(name), name, *prompt[:length])
        return tuple(
            hmac.new(self._key, bytes([number]) + message, hashlib.sha256).hexdigest()[:_DIGITS]
            for number in range(ROUTES)
        )
