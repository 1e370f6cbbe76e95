"""From the configuration to the shared state; Redis' package is needed only where one is named."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pilotfish_cloud.files import read_private
from pilotfish_cloud.shared_state.interface import SharedState, StateTroubleError
from pilotfish_cloud.shared_state.memory import MemoryState
from pilotfish_core.errors import FileFormatError, InvalidParameter, LocalError, MissingExtra

if TYPE_CHECKING:
    from pilotfish_cloud.config import ServerConfig

SCHEMES: Final = ("redis", "rediss", "unix")


def open_state(config: ServerConfig) -> SharedState:
    """What this replica shares with others; not connected yet.

    Raises InvalidParameter, FileFormatError, MissingExtra.
    """
    if config.redis_url is None:
        return MemoryState()
    return open_redis(
        config.redis_url, config.redis_password_file, config.redis_ca, take_timeout_s=config.redis_timeout_ms / 1000
    )


def open_redis(url: str, password_file: Path | None, ca: Path | None, *, take_timeout_s: float = 0.05) -> SharedState:
    """See ``open_state``."""
    where_of(url)
    password = None
    if password_file is not None:
        try:
            password = read_private(password_file, "the password file of Redis").decode().strip()
        except UnicodeDecodeError:
            raise FileFormatError(f"the password file of Redis {password_file} is not UTF-8") from None
    try:
        from pilotfish_cloud.shared_state.redis_state import RedisState
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "redis", "cloud", "--redis-url") from None
    return RedisState(url, password=password, ca=ca, take_timeout_s=take_timeout_s)


def check_state(config: ServerConfig) -> None:
    """What is wrong before a model is loaded. Raises as ``open_state``, and LocalError where it must be there."""

    async def ping() -> None:
        state = open_state(config)
        try:
            if config.redis_required:
                await state.ping()
        except StateTroubleError as error:
            raise LocalError(
                f"{error} (--redis-url), and --redis-required says not to serve without it", private=error.private
            ) from None
        finally:
            await state.close()

    asyncio.run(ping())


def where_of(url: str) -> str:
    """What may be shown of a Redis URL: no user, no password, no query. Raises InvalidParameter."""
    expected = "redis://host:port/db, rediss://... over TLS, or unix:///path/to/socket"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidParameter(f"--redis-url is not a URL; expected {expected}") from None
    if parts.scheme not in SCHEMES or not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise InvalidParameter(f"--redis-url has the scheme {parts.scheme!r:.50}; expected {expected}")
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.hostname}:{port or 6379}{parts.path.rstrip('/')}"
