"""Whose pages may speak to a verifier from a browser: its own, and those that the operator names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pilotfish_core.errors import InvalidParameter

ANY: Final = "*"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[0-9a-z._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


class Origins:
    """``allowed``: origins as browsers write them (``https://app.example``), or ``*``.

    A browser sends the Origin of the page with each cross-origin request and each WebSocket; whoever sends none is no
    page, and is admitted.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """Raises InvalidParameter for what no browser would send."""
        for origin in allowed:
            if origin != ANY and not _ORIGIN.fullmatch(origin):
                raise InvalidParameter.of(
                    "--allow-origin", origin, "an origin in lower case, without a path, as https://HOST[:PORT], or *"
                )
        self.allowed = tuple(allowed)

    def admits(self, origin: str | None, host: str | None, *, secure: bool) -> bool:
        """Whether a page of ``origin`` may speak to what it calls ``host``. ``secure``: it came over TLS to us; else a
        proxy before us may have taken that off, and the page's scheme tells nothing.
        """
        if origin is None or ANY in self.allowed or origin in self.allowed:
            return True
        scheme, separator, rest = origin.partition("://")
        if not separator or scheme not in (("https",) if secure else ("https", "http")):
            return False
        return host is not None and rest.lower() == host.lower()
