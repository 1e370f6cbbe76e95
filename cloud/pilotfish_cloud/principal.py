"""Who calls: the tenant that a generation is counted, limited and cached for."""

from __future__ import annotations

import dataclasses
from typing import Final

from pilotfish_core.admission import TenantSettings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller. ``cache_salt`` keeps tenants apart in the prefix cache; the server derives it."""

    tenant: str
    cache_salt: bytes = b""
    settings: TenantSettings = dataclasses.field(default_factory=TenantSettings)


ANYONE: Final = Principal(tenant="")  # where no keys are asked for
