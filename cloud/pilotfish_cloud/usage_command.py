"""``pilotfish-cloud usage``: what tenants used on a day, as all replicas counted it."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
from pathlib import Path
from typing import Any

from pilotfish_cloud.shared_state.interface import COUNTERS, StateTroubleError
from pilotfish_cloud.shared_state.opening import open_redis
from pilotfish_core.errors import InvalidParameter, LocalError


def add_usage_parser(commands: Any) -> None:
    """Add ``usage`` to the subcommands."""
    usage = commands.add_parser("usage", help="what tenants used", description="Usage by tenant on one UTC day.")
    usage.add_argument("--day", metavar="DATE", help="such as 2026-01-31 (default: today, UTC)")
    usage.add_argument("--redis-url", default=os.environ.get("PILOTFISH_REDIS_URL"), metavar="URL", help="shared Redis")
    usage.add_argument("--redis-password-file", type=Path, metavar="FILE", help="its password")
    usage.add_argument("--redis-ca", type=Path, metavar="FILE", help="the authorities of its certificate, PEM")
    usage.add_argument("--json", action="store_true", help="print JSON")


def run_usage(arguments: argparse.Namespace) -> int:
    """Print it. Returns the exit code. Raises InvalidParameter, LocalError."""
    if not arguments.redis_url:
        raise InvalidParameter("give --redis-url (or PILOTFISH_REDIS_URL): usage is counted there")
    found = asyncio.run(_usage(arguments, _day(arguments.day)))
    if arguments.json:
        print(json.dumps(found))
        return 0
    width = max([len("tenant"), *map(len, found)])
    print("  ".join([f"{'tenant':<{width}}", *(f"{name:>16}" for name in COUNTERS)]))
    for tenant, counts in sorted(found.items()):
        print("  ".join([f"{tenant:<{width}}", *(f"{counts.get(name, 0):>16}" for name in COUNTERS)]))
    return 0


def _day(text: str | None) -> str:
    if text is None:
        return datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidParameter.of("--day", text, "a date such as 2026-01-31") from None


async def _usage(arguments: argparse.Namespace, day: str) -> dict[str, dict[str, int]]:
    state = open_redis(arguments.redis_url, arguments.redis_password_file, arguments.redis_ca)
    try:
        return await state.usage(day)
    except StateTroubleError as error:
        raise LocalError(str(error), private=error.private) from None
    finally:
        await state.close()
