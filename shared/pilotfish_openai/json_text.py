"""JSON as the server writes it."""

from __future__ import annotations

import json


def json_bytes(value: object) -> bytes:
    """Compact UTF-8. What a caller sent and UTF-8 does not have (a lone surrogate) becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
