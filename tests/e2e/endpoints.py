"""Endpoints of ``pilotfish serve`` for tests: on the test's own event loop, in front of a real verifier."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pilotfish.api.server import Endpoint
from pilotfish.client import AsyncClient
from pilotfish_openai.listener import bind


@contextlib.asynccontextmanager
async def endpoint(verifier: str, *, key: str | None = None, **options: Any) -> AsyncIterator[str]:
    """Yields its address. ``options``: of the client."""
    listener = bind("127.0.0.1", 0, "--listen")
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with AsyncClient(verifier, **{"draft": "ngram"} | options) as client:
        running = Endpoint(client, listener, key=key, guarded=key is None)
        await running.start()
        try:
            yield address
        finally:
            await running.stop(at_once=True)
