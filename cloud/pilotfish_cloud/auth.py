"""Who calls: from what a caller presents to a ``Principal``. One authenticator serves all doors.

::

    authenticate(header) -> Principal       header: "Bearer pf_...", None when there was none

Keys and settings come from files that SIGHUP reads again; one that is broken keeps the old ones in force.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pilotfish_cloud.files import read_private
from pilotfish_cloud.keyring import Keyring
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.routing import Routing
from pilotfish_cloud.tables import read_table, unknown
from pilotfish_core.admission import ResumePolicy, TenantSettings
from pilotfish_core.errors import FileFormatError, InvalidParameter, PilotfishError, Unauthenticated
from pilotfish_core.tickets import Tickets

_log = logging.getLogger(__name__)

MIN_SECRET: Final = 32  # bytes
_FIELDS: Final = tuple(field.name for field in dataclasses.fields(TenantSettings))


class ServerSecret:
    """What replicas of one deployment share and nobody else knows: salts and tickets derive from it.

    Without a file it is drawn at random, and then no other process derives the same.
    """

    def __init__(self, value: bytes | None = None) -> None:
        self._value = secrets.token_bytes(MIN_SECRET) if value is None else value
        self.shared = value is not None

    @classmethod
    def load(cls, path: Path) -> ServerSecret:
        """Read a secret file: any bytes, white space around them left out. Raises FileFormatError."""
        value = read_private(path, "the secret file").strip()
        if len(value) < MIN_SECRET:
            raise FileFormatError(
                f"the secret file {path} has {len(value)} bytes; expected at least {MIN_SECRET}, such as those of: "
                f"openssl rand -hex 32"
            )
        return cls(value)

    def derive(self, purpose: str, name: str = "") -> bytes:
        """32 bytes for one purpose and name. Both are length-prefixed: no two pairs make the same message."""
        parts = (purpose.encode(), name.encode("utf-8", "surrogatepass"))
        message = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.new(self._value, message, hashlib.sha256).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class Tenants:
    """Settings by tenant, and those of tenants that have none of their own."""

    default: TenantSettings = dataclasses.field(default_factory=TenantSettings)
    by_name: Mapping[str, TenantSettings] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Tenants:
        """Read a TOML file with a table ``default`` and tables ``tenants.NAME``, which begin with the default's.

        Raises FileFormatError, InvalidParameter.
        """
        table = read_table(path, "the tenants file")
        for key in table:
            if key not in ("default", "tenants"):
                raise unknown(path, key, ("default", "tenants"))
        default = _settings(path, "default", table.get("default", {}), {})
        tenants = table.get("tenants", {})
        if not isinstance(tenants, dict):
            raise InvalidParameter(f"{path}: tenants is not a table; expected tables [tenants.NAME]")
        start = {name: getattr(default, name) for name in _FIELDS}
        named = {name: _settings(path, f"tenants.{name}", values, start) for name, values in tenants.items()}
        return cls(default, named)

    @property
    def want_tickets(self) -> bool:
        """Whether any of them resumes by ticket."""
        return any(settings.resume is ResumePolicy.TICKET for settings in (self.default, *self.by_name.values()))

    def of(self, tenant: str) -> TenantSettings:
        """What a tenant may do."""
        return self.by_name.get(tenant, self.default)


def _settings(path: Path, where: str, values: object, start: dict[str, object]) -> TenantSettings:
    if not isinstance(values, dict):
        raise InvalidParameter(f"{path}: {where} is not a table")
    fields = dict(start)
    for key, value in values.items():
        if key not in _FIELDS:
            raise unknown(path, key, _FIELDS)
        fields[key] = value
    resume = fields.get("resume")
    if resume is not None:
        try:
            fields["resume"] = ResumePolicy(str(resume))
        except ValueError:
            raise InvalidParameter(
                f"{path}: [{where}] resume is {resume!r:.50}; expected {', '.join(ResumePolicy)}"
            ) from None
    try:
        return TenantSettings(**fields)  # type: ignore[arg-type]  # checked there
    except InvalidParameter as error:
        raise InvalidParameter(f"{path}: [{where}] {error}") from None


class Authenticator:
    """Finds out who calls. Without a keys file everybody is the same unnamed tenant."""

    def __init__(
        self,
        secret: ServerSecret,
        *,
        keys_file: Path | None = None,
        tenants_file: Path | None = None,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """Raises FileFormatError, InvalidParameter for a file that cannot be used."""
        self._secret = secret
        self._keys_file = keys_file
        self._tenants_file = tenants_file
        self._clock = clock
        self._keyring, self._tenants = self._load()
        self.refused = 0  # calls without a valid key
        self.revoked_elsewhere: Callable[[str], bool] = lambda _: False  # by a key's id: what replicas share says so

    @property
    def needs_keys(self) -> bool:
        """Whether callers must show a key."""
        return self._keys_file is not None

    def __call__(self, header: str | None) -> Principal:
        """Whoever sent this Authorization header. Raises Unauthenticated."""
        tenant = ""
        if self._keyring is not None:
            try:
                key = _key_in(header)
                tenant = self._keyring.tenant_of(key, self._clock())
                if self.revoked_elsewhere(key.split("_", 2)[1]):
                    raise Unauthenticated(f"the API key {key.split('_', 2)[1]} is revoked")
            except Unauthenticated:
                self.refused += 1
                raise
        return Principal(
            tenant=tenant,
            cache_salt=self._secret.derive("cache salt", tenant),
            settings=self._tenants.of(tenant),
        )

    def tickets(self, *, every: int) -> Tickets:
        """Resume tickets under the server's secret."""
        return Tickets(self._secret.derive("tickets"), every=every)

    def routing(self) -> Routing:
        """Route keys under the server's secret."""
        return Routing(self._secret.derive("routes"))

    def reload(self) -> bool:
        """Read the files again. Returns whether they could be used; if not, what was in force stays so."""
        try:
            self._keyring, self._tenants = self._load()
        except PilotfishError as error:
            _log.error("the old keys and settings stay in force: %s", error)
            return False
        return True

    def _load(self) -> tuple[Keyring | None, Tenants]:
        keyring = None if self._keys_file is None else Keyring.load(self._keys_file)
        tenants = Tenants() if self._tenants_file is None else Tenants.load(self._tenants_file)
        if tenants.want_tickets and not self._secret.shared:
            raise InvalidParameter(
                f"{self._tenants_file}: resume = 'ticket' needs --secret-file: a replica must know the tickets of the "
                "others, and its own after a restart"
            )
        return keyring, tenants


def _key_in(header: str | None) -> str:
    if header is None:
        raise Unauthenticated("this verifier asks for an API key; send it as authorization: Bearer KEY")
    scheme, _, key = header.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("the authorization is not of the form Bearer KEY")
    return key.strip()
