"""Where verifiers listen, as users write it."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from pilotfish_core.errors import InvalidParameter

DEFAULT_PORT: Final = 50051
_DEFAULT_PORTS: Final = {"grpc": DEFAULT_PORT, "grpcs": DEFAULT_PORT, "ws": 80, "wss": 443}


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a verifier listens. ``secure``: over TLS; ``websocket``: it is its HTTP port that is meant."""

    host: str
    port: int
    secure: bool = False
    websocket: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """``grpc://host:port``, ``grpcs://``, ``ws://`` or ``wss://``, or ``host:port``. Raises InvalidParameter."""
        scheme, separator, rest = text.strip().partition("://")
        if not separator:
            scheme, rest = "grpc", scheme
        if scheme not in _DEFAULT_PORTS:
            raise InvalidParameter.of("server", text, "grpc://host:port, grpcs://host:port, ws:// or wss://")
        rest = rest.rstrip("/")
        host, colon, port = rest.rpartition(":")
        if not colon or (rest.startswith("[") and rest.endswith("]")):
            host, port = rest, str(_DEFAULT_PORTS[scheme])
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise InvalidParameter.of("server", text, "an address host:port with a port in [1, 65535]")
        if not host or not host.isprintable():  # what came from the command line may not even be Unicode
            raise InvalidParameter.of("server", text, "an address host:port with a port in [1, 65535]")
        return cls(host, int(port), scheme in ("grpcs", "wss"), scheme in ("ws", "wss"))

    @property
    def scheme(self) -> str:
        """Without the "s" of TLS."""
        return "ws" if self.websocket else "grpc"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_addresses(server: str | list[str] | tuple[str, ...] | None) -> tuple[Address, ...]:
    """One address, a comma-separated list or a list. Raises InvalidParameter when there is none."""
    parts = server.split(",") if isinstance(server, str) else server or ()
    addresses = tuple(Address.parse(part) for part in parts if part.strip())
    if not addresses:
        raise InvalidParameter.of("server", server, "at least one address")
    return addresses
