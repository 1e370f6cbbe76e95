"""One verifier process behind the load balancer: started, killed, drained, stopped, always on the same ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.cloud.shared_state.redis_server import free_port

START_TIMEOUT_S = 300.0  # of a machine that is busy with something else


class Replica:
    """``options``: of ``pilotfish-cloud serve``. ``kills`` and ``drains`` count what was done to it."""

    def __init__(self, number: int, model: Path, folder: Path, options: Sequence[str]) -> None:
        self.name = f"verifier-{number}"
        self.port, self.http_port = free_port(), free_port()
        self.kills = self.drains = 0
        self.ready = asyncio.Event()
        self._log = folder / f"{self.name}.log"
        ports = ("--port", str(self.port), "--http-port", str(self.http_port))
        self._command = [
            *(sys.executable, "-m", "pilotfish_cloud", "serve", str(model), "--served-model-name", "target", "--json"),
            *(*ports, "--replica-name", self.name, *options),
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises RuntimeError with the end of its log when it does not."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), START_TIMEOUT_S)
        if not line or json.loads(line).get("event") != "ready":
            await self._process.wait()
            raise RuntimeError(f"{self.name} did not start: {self._log.read_text()[-2000:]}")
        self.ready.set()

    async def kill(self) -> None:
        """As ``kill -9``."""
        self.kills += 1
        self._signal(signal.SIGKILL)
        await self._gone()

    async def drain(self) -> None:
        """As a supervisor ends it; returns when it has ended."""
        self.drains += 1
        self._signal(signal.SIGTERM)
        await self._gone()

    def freeze(self) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def figures(self) -> dict[str, float]:
        """Its metrics, by name and labels as Prometheus reads them."""
        async with httpx.AsyncClient(timeout=30) as http:
            text = (await http.get(f"http://127.0.0.1:{self.http_port}/metrics")).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def close(self) -> None:
        """Whatever it does, it ends."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.kill()
            await self._gone()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.ready.clear()
        self._process.send_signal(number)

    async def _gone(self) -> None:
        assert self._process is not None
        self.ready.clear()
        await self._process.wait()
