"""Reads the body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES: Final = 4 * 2**20
DISCARDED_BYTES: Final = 16 * 2**20  # of a body that is too large: who still sends when refused may not see why
BODY_S: Final = 60.0  # for a body to arrive in


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises HTTPException 413 beyond ``limit`` bytes, 408 when it does not come."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > limit + DISCARDED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from None
    if size > limit:
        raise HTTPException(413, f"the body is larger than {limit} bytes", {"connection": "close"})
    return bytes(body)
