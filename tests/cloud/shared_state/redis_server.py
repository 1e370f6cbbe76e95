"""A real redis-server for tests: on a port that the system chose, stopped, paused and started again as a test says."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

PATIENCE_S = 30.0
INSTALL = "make servers"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """``options`` are redis-server's own; without any it listens on loopback and keeps nothing on disk."""

    def __init__(
        self, folder: Path, *options: str, url: str | None = None, probe: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = options
        self.url = url or f"redis://127.0.0.1:{self.port}/0"
        self._probe = probe or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = [] if "--port" in self.options else ["--port", str(self.port)]
        base = ["redis-server", *port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        try:
            self._process = subprocess.Popen(
                [*base, "--dir", str(self.folder), *self.options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except FileNotFoundError:
            pytest.fail(f"redis-server is missing; say: {INSTALL}")
        end = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.exceptions.ConnectionError):
                    client.ping()
                    return
                if self._process.poll() is not None or time.monotonic() > end:
                    output = self._process.stdout.read() if self._process.stdout else b""
                    pytest.fail(f"redis-server did not start: {output.decode()[-500:]}")

    def client(self) -> redis.Redis:
        options = {"retry": None} | self._probe
        return redis.Redis.from_url(self.url, decode_responses=True, **options)

    def stop(self) -> None:
        """Killed: what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, **more: Any) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options, **more)
    server.start()
    try:
        yield server
    finally:
        server.stop()
