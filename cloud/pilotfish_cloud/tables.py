"""TOML files that people write: read with one clear line for whatever is wrong in them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pilotfish_core.errors import FileFormatError, InvalidParameter


def read_table(path: Path, what: str) -> dict[str, Any]:
    """The file's top-level table. Raises FileFormatError, naming the file as ``what`` it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FileFormatError(f"{what} {path} cannot be read: {reason}") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileFormatError(f"{what} {path} is not TOML: {error}") from None


def unknown(path: Path, key: str, known: Collection[str]) -> InvalidParameter:
    """The error for a key that nothing reads, with the one that was probably meant."""
    close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return InvalidParameter(f"{path}: unknown key {key[:100]!r}; {hint}")
