"""A real verifier for the end-to-end tests: gRPC on loopback, the reference target behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pilotfish.client import AsyncClient
from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.server import VerifierServer

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "reference" / "target"


class Verifier:
    """A server of the reference target on the test's own event loop; the engine steps in its thread."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"model": TARGET, "served_model_name": "target", "port": 0, "http_port": 0}
        self.config = ServerConfig(**defaults | {"deterministic": True} | options)
        self.engine = EmbeddedEngine.load(self.config)
        self.server = VerifierServer(self.config, self.engine, self.engine.tokenizer)

    @property
    def address(self) -> str:
        return f"grpc://127.0.0.1:{self.server.port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Verifier]:
    verifier = await asyncio.to_thread(Verifier, **options)
    await verifier.server.start()
    try:
        yield verifier
    finally:
        await verifier.server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def verifier() -> AsyncIterator[Verifier]:
    async with serving() as running:
        yield running


@contextlib.asynccontextmanager
async def connected(verifier: Verifier, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client; without a drafter the target decodes alone. ``server``: another address of it."""
    alone = {"draft": None, "arm": "cloud"} if options.get("draft") is None else {}
    async with AsyncClient(options.pop("server", verifier.address), **alone | options) as client:
        yield client


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
