"""What a store that is not ours answers, checked: anybody may have written there."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from pilotfish_cloud.shared_state.interface import StateTroubleError

MAX_ROWS: Final = 1e9
MAX_COUNT: Final = 2**53


def object_of(answer: object) -> dict[str, Any]:
    """A JSON object. Raises StateTroubleError."""
    try:
        found = json.loads(answer) if isinstance(answer, (bytes, str)) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _nonsense("no JSON object")
    return found


def whole_of(value: object) -> int:
    """A count. Raises StateTroubleError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT:  # NaN neither
        raise _nonsense("a count that is none")
    return int(value)


def level_of(value: object) -> float:
    """Rows. Raises StateTroubleError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _nonsense("a level that is no number")
    return min(max(float(value), -MAX_ROWS), MAX_ROWS)


def levels_of(value: object) -> dict[str, float]:
    """Rows by tenant. Raises StateTroubleError. Lua knows no difference between an empty list and an empty object."""
    if value == []:
        return {}
    if not isinstance(value, dict):
        raise _nonsense("no levels")
    return {str(tenant): level_of(level) for tenant, level in value.items()}


def lines_of(value: object) -> dict[str, str]:
    """Pairs of texts; what is none is left out."""
    pairs = value if isinstance(value, list) else []
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
    }


def _nonsense(what: str) -> StateTroubleError:
    return StateTroubleError(f"the shared state answered with {what}")
