"""WebSocket under the HTTP server: uvicorn's, and what it leaves open for peers that break rules or do not read."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_INTERVAL_S: Final = 20.0  # under the 60 s after which common proxies close idle connections
PING_TIMEOUT_S: Final = 40.0  # a ping waits behind what a slow link has not carried yet
MAX_UNREAD_BYTES: Final = 64 * 1024  # what waits to be sent before pings are not answered any more
LINGER_S: Final = 2.0  # in which a peer that is closed for what it sent may read why


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

    def handle_parser_exception(self) -> None:
        """Say why, and read on without looking for a moment: to close at once with bytes unread would reset the
        connection, and the reason with it.
        """
        closed = self.conn.close_sent
        if self.close_sent or closed is None:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def send_receive_event_to_app(self) -> None:
        """Of a text only that it came: nothing here takes one, and one that is not UTF-8 would fill the log."""
        if self.curr_msg_data_type == "text":
            self.frames = [b""]
        super().send_receive_event_to_app()
