"""The keys file: API keys by their public id, hashed. Written by ``pilotfish-cloud keys``, read by the server.

A key is ``pf_<id>_<secret>``: the id finds its entry and may be shown and logged, the secret has 256 random bits and
is shown once. The file keeps SHA-256 of the whole key. A slow or salted hash is for passwords, which can be guessed;
nobody guesses 256 bits, so a fast hash gives nothing away and a flood of wrong keys costs next to nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pilotfish_cloud.files import alone_in, read_private, write_private
from pilotfish_core.errors import FileFormatError, InvalidParameter, Unauthenticated

FORMAT: Final = "pilotfish-keys"
FORMAT_VERSION: Final = 1
PREFIX: Final = "pf"
ID_BYTES: Final = 6
SECRET_BYTES: Final = 32
MAX_KEY: Final = 256  # characters; longer ones are not looked at
MAX_TENANT: Final = 100
_ID: Final = re.compile("[0-9a-f]{12}")
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_NOBODY: Final = bytes(32)  # what a key of no known id is compared with, so that it takes as long


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """What is known of one key. Times in UTC."""

    id: str
    tenant: str
    digest: bytes
    created: datetime.datetime
    expires: datetime.datetime | None = None
    revoked: datetime.datetime | None = None

    def state(self, now: datetime.datetime) -> str:
        """ "valid", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


class Keyring:
    """Keys by id. Immutable: a change makes another one."""

    def __init__(self, entries: Mapping[str, KeyEntry] | None = None) -> None:
        self.entries = dict(entries or {})

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Read a keys file. Raises FileFormatError."""
        data = read_private(path, "the keys file")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"the keys file {path} is not JSON: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileFormatError(f"{path} is not a keys file")
        if document.get("version") != FORMAT_VERSION:
            raise FileFormatError(
                f"the keys file {path} has format version {document.get('version')!r}; this program reads "
                f"{FORMAT_VERSION}"
            )
        entries: dict[str, KeyEntry] = {}
        try:
            for row in document["keys"]:
                entry = _entry(row)
                if entry.id in entries:
                    raise ValueError(f"key {entry.id} is there twice")
                entries[entry.id] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the keys file {path} is damaged: {error or type(error).__name__}") from None
        return cls(entries)

    def save(self, path: Path) -> None:
        """Write a keys file. Raises FileFormatError."""
        rows = [
            {
                "id": entry.id,
                "tenant": entry.tenant,
                "sha256": entry.digest.hex(),
                "created": entry.created.isoformat(),
                "expires": None if entry.expires is None else entry.expires.isoformat(),
                "revoked": None if entry.revoked is None else entry.revoked.isoformat(),
            }
            for entry in self.entries.values()
        ]
        document = {"format": FORMAT, "version": FORMAT_VERSION, "keys": rows}
        write_private(path, json.dumps(document, indent=2) + "\n", "the keys file")

    def created(
        self, tenant: str, *, now: datetime.datetime, expires: datetime.datetime | None = None
    ) -> tuple[Keyring, str]:
        """A keyring with one more key, and that key. Raises InvalidParameter."""
        if not tenant or len(tenant) > MAX_TENANT or not tenant.isprintable():
            raise InvalidParameter.of("--tenant", tenant, f"a name of 1 to {MAX_TENANT} printable characters")
        if expires is not None and expires <= now:
            raise InvalidParameter.of("--expires", expires.isoformat(), "a time to come")
        identity = secrets.token_hex(ID_BYTES)
        while identity in self.entries:
            identity = secrets.token_hex(ID_BYTES)
        key = f"{PREFIX}_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
        entry = KeyEntry(id=identity, tenant=tenant, digest=_digest(key), created=now, expires=expires)
        return Keyring(self.entries | {identity: entry}), key

    def revoked(self, identity: str, *, now: datetime.datetime) -> Keyring:
        """A keyring in which the key is revoked. Raises InvalidParameter for one that is not there."""
        entry = self.entries.get(identity)
        if entry is None:
            raise InvalidParameter.of("key id", identity, "one that `pilotfish-cloud keys list` shows")
        return Keyring(self.entries | {identity: dataclasses.replace(entry, revoked=entry.revoked or now)})

    def tenant_of(self, key: str, now: datetime.datetime) -> str:
        """Whose key it is. Raises Unauthenticated, whose message never contains the key.

        Takes one hash and one comparison whether the id is known or not, and remembers nothing.
        """
        parts = key.split("_", 2) if len(key) <= MAX_KEY else []
        entry = self.entries.get(parts[1]) if len(parts) == 3 and parts[0] == PREFIX else None
        presented = _digest(key[:MAX_KEY])
        known = hmac.compare_digest(presented, _NOBODY if entry is None else entry.digest)
        if entry is None or not known:
            raise Unauthenticated("the API key is not one of this verifier's")
        state = entry.state(now)
        if state != "valid":  # said to holders of the secret only
            raise Unauthenticated(f"the API key {entry.id} is {state}")
        return entry.tenant


def create_key(path: Path, tenant: str, *, expires: datetime.datetime | None = None) -> str:
    """Add a key to a file, which is made if need be. Returns the key. Raises FileFormatError, InvalidParameter."""
    with alone_in(path.absolute().parent):
        keyring = Keyring.load(path) if path.exists() else Keyring()
        keyring, key = keyring.created(tenant, now=_now(), expires=expires)
        keyring.save(path)
    return key


def revoke_key(path: Path, identity: str) -> None:
    """Revoke a key of a file by its id. Raises FileFormatError, InvalidParameter."""
    with alone_in(path.absolute().parent):
        Keyring.load(path).revoked(identity, now=_now()).save(path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _entry(row: Any) -> KeyEntry:
    identity, digest, tenant = row["id"], row["sha256"], row["tenant"]
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise ValueError(f"id is {identity!r:.50}; expected 12 hexadecimal digits")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"sha256 of key {identity} is not 64 hexadecimal digits")
    if not isinstance(tenant, str) or not tenant or len(tenant) > MAX_TENANT:
        raise ValueError(f"tenant of key {identity} is {tenant!r:.50}; expected a name")
    created = _time(row["created"])
    if created is None:
        raise ValueError(f"key {identity} has no time of creation")
    return KeyEntry(
        id=identity,
        tenant=tenant,
        digest=bytes.fromhex(digest),
        created=created,
        expires=_time(row["expires"]),
        revoked=_time(row["revoked"]),
    )


def _time(value: object) -> datetime.datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is not a time")
    time = datetime.datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"{value!r:.50} has no time zone")
    return time
