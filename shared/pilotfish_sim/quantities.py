"""Durations, rates and sizes as people write them: ``50ms``, ``20mbit``, ``64kib``. Bit rates as in tc: decimal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from pilotfish_core.errors import InvalidParameter

_DURATIONS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "": 1.0}
_RATES: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SIZES: Final = {"": 1.0, "b": 1.0, "kib": 1024.0, "mib": 1048576.0, "kb": 1e3, "mb": 1e6}
_PATTERN: Final = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def seconds(text: str, *, name: str) -> float:
    """``50ms`` is 0.05; a bare number means seconds. Raises InvalidParameter."""
    return _read(text, _DURATIONS, name, "a duration such as 50ms or 1.5s")


def bits_per_second(text: str, *, name: str) -> float:
    """``20mbit`` is 2e7. Raises InvalidParameter, for zero too."""
    expected = "a rate such as 256kbit or 20mbit"
    rate = _read(text, _RATES, name, expected)
    if rate <= 0:
        raise InvalidParameter.of(name, text, expected)
    return rate


def size_bytes(text: str, *, name: str) -> int:
    """``64kib`` is 65,536; a bare number means bytes. Raises InvalidParameter."""
    return int(_read(text, _SIZES, name, "a size such as 64kib"))


def _read(text: str, units: Mapping[str, float], name: str, expected: str) -> float:
    match = _PATTERN.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise InvalidParameter.of(name, text, expected)
    value = float(match[1]) * units[match[2].lower()]
    if not math.isfinite(value):
        raise InvalidParameter.of(name, text, expected)
    return value
