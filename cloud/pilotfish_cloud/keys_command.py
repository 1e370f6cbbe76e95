"""``pilotfish-cloud keys``: make, list and revoke API keys."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from pilotfish_cloud.keyring import Keyring, create_key, revoke_key
from pilotfish_cloud.shared_state.interface import SharedState, StateTroubleError
from pilotfish_cloud.shared_state.opening import open_redis
from pilotfish_core.errors import InvalidParameter, LocalError

_SPAN: Final = re.compile(r"([0-9]{1,5})([dhm])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def add_keys_parser(commands: Any) -> None:
    """Add ``keys`` to the subcommands."""
    keys = commands.add_parser("keys", help="API keys of tenants", description="Make, list and revoke API keys.")
    actions = keys.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--tenant", required=True, metavar="NAME", help="whose key it is")
    create.add_argument("--expires", metavar="WHEN", help="after that long (90d, 12h, 30m), or an ISO date or time")
    revoke = actions.add_parser("revoke", help="make a key worthless")
    revoke.add_argument("id", metavar="ID", help="the key's id, the part after pf_")
    revoke.add_argument(
        "--redis-url",
        default=os.environ.get("PILOTFISH_REDIS_URL"),
        metavar="URL",
        help="tell all replicas now, over the Redis that they share (or PILOTFISH_REDIS_URL)",
    )
    revoke.add_argument("--redis-password-file", type=Path, metavar="FILE", help="its password")
    revoke.add_argument("--redis-ca", type=Path, metavar="FILE", help="the authorities of its certificate, PEM")
    for action in (create, actions.add_parser("list", help="all keys, without their secrets"), revoke):
        action.add_argument("--file", required=True, type=Path, metavar="FILE", help="the keys file")
        action.add_argument("--json", action="store_true", help="print JSON")


def run_keys(arguments: argparse.Namespace) -> int:
    """Do it. Returns the exit code. Raises FileFormatError, InvalidParameter."""
    if arguments.action == "create":
        key = create_key(arguments.file, arguments.tenant, expires=_expiry(arguments.expires))
        print(json.dumps({"id": key.split("_")[1], "key": key}) if arguments.json else key)
        if not arguments.json:
            print(
                f"key {key.split('_')[1]} of {arguments.tenant!r}; it cannot be shown again. "
                "Servers learn it by SIGHUP",
                file=sys.stderr,
            )
    elif arguments.action == "revoke":
        revoke_key(arguments.file, arguments.id)
        if arguments.redis_url:
            state = open_redis(arguments.redis_url, arguments.redis_password_file, arguments.redis_ca)
            asyncio.run(_tell(state, arguments.id))
        print(json.dumps({"id": arguments.id, "state": "revoked"}) if arguments.json else f"revoked {arguments.id}")
    else:
        _list(Keyring.load(arguments.file), arguments.json)
    return 0


async def _tell(state: SharedState, key_id: str) -> None:
    try:
        await state.revoke(key_id)
    except StateTroubleError as error:
        raise LocalError(
            f"the file says so, but the replicas could not be told: {error}; say it again, or send each SIGHUP",
            private=error.private,
        ) from None
    finally:
        await state.close()


def _list(keyring: Keyring, as_json: bool) -> None:
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        {
            "id": entry.id,
            "tenant": entry.tenant,
            "state": entry.state(now),
            "created": entry.created.isoformat(),
            "expires": None if entry.expires is None else entry.expires.isoformat(),
        }
        for entry in keyring.entries.values()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        expires = f", expires {row['expires']}" if row["expires"] else ""
        print(f"{row['id']}  {row['state']:<7}  {row['tenant']}  (created {row['created']}{expires})")


def _expiry(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return now + datetime.timedelta(**{_UNITS[span[2]]: int(span[1])})
        when = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidParameter.of("--expires", text, "a time such as 90d, 12h or 2027-01-31") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)
