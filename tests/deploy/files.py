"""What operators copy, as data; and what the product knows, to hold it against."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.options import PREFIX, options_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
VARIABLES = {entry.variable for entry in options_of(ServerConfig).values()} | {f"{PREFIX}CONFIG"}


def documents(path: Path) -> list[dict[str, Any]]:
    """All documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document is not None]


def configuration(path: Path, **environment: str) -> ServerConfig:
    """What a verifier makes of a configuration file. Raises what it would say."""
    return ServerConfig.of(file=path, environment=environment, flags=argparse.Namespace())[0]


def seconds(text: str) -> float:
    """Of compose's durations in seconds."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found is not None, text
    return float(found[1])
