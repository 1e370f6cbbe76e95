"""WebSocket under the HTTP server: uvicorn's, and what it leaves open for a peer that does not read."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_INTERVAL_S: Final = 20.0  # under the 60 s after which common proxies close idle connections
PING_TIMEOUT_S: Final = 40.0  # a ping waits behind what a slow link has not carried yet
MAX_UNREAD_BYTES: Final = 64 * 1024  # what waits to be sent before pings are not answered any more


class SocketProtocol(WebSocketsSansIOProtocol):
    """Holds no more for a peer than messages of bounded size, and ends a connection that is dead."""

    def handle_ping(self) -> None:
        """Answered as RFC 6455 has it: while older answers wait, a new ping may go without."""
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    def keepalive_timeout(self) -> None:
        """Closing alone would wait for what the peer does not take."""
        super().keepalive_timeout()
        self.transport.abort()
