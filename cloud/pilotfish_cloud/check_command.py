"""``pilotfish-cloud check``: what the configuration is, and whether a server could begin with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.options import Layered, options_of
from pilotfish_cloud.preflight import problems
from pilotfish_cloud.shared_state.opening import where_of
from pilotfish_core.errors import PilotfishError


def run_check(config: ServerConfig, found: Layered, *, as_json: bool) -> int:
    """Print the configuration and what is wrong. Returns the exit code, 1 when a server would not begin."""
    wrong = problems(config)
    entries = options_of(ServerConfig)
    shown = {key: _shown(key, getattr(config, entry.field)) for key, entry in entries.items()}
    origins = {key: found.origins[entry.field] for key, entry in entries.items()}
    if as_json:
        document = {"configuration": shown, "origins": origins, "problems": [_problem(error) for error in wrong]}
        print(json.dumps(document))
    else:
        width = max(map(len, shown))
        for key, value in shown.items():
            print(f"{key:<{width}} = {json.dumps(value)}  # {origins[key]}")
        for error in wrong:
            print(f"WRONG: {error}")
        if not wrong:
            print("ok: a server could begin with this")
    return 1 if wrong else 0


def _problem(error: PilotfishError) -> dict[str, str]:
    return {"kind": error.kind, "message": error.message}


def _shown(key: str, value: Any) -> Any:
    """As JSON. Secrets stand in files of their own, whose names tell nothing; a URL may carry a password."""
    if isinstance(value, Path):
        return str(value)
    if key == "redis_url" and value is not None:
        return where_of(value)
    if key == "otlp_endpoint" and value is not None:
        parts = urlsplit(value)
        return parts._replace(netloc=f"***@{parts.hostname}").geturl() if "@" in parts.netloc else value
    return value
