"""The socket that a door listens on, and the HTTP server behind it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

from pilotfish_core.errors import AddressInUse

UNREAD_TIMEOUT_MS: Final = 60_000


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: a signal drains whatever else there is, not HTTP alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """No."""
        yield


def address_of(host: str, port: int) -> str:
    """``host:port`` as it is written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 lets the system choose. Raises AddressInUse, naming the option ``flag``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, UnicodeError, TypeError) as error:  # the last two: a host that is no text
        listener.close()
        error = error if isinstance(error, OSError) else OSError(0, "not a host name")
        raise AddressInUse(f"cannot listen on {address_of(host, port)} ({flag}): {error.strerror or error}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of each connection that it accepts: who reads nothing is cut
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
    listener.setblocking(False)
    return listener
