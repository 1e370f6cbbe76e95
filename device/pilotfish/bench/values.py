"""Numbers and lists from the command line. Each mistake is one line that names the option and the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from pilotfish_core.errors import InvalidParameter

T = TypeVar("T")


def integer(name: str, text: str, low: int, high: int) -> int:
    """An integer in [low, high]. Raises InvalidParameter."""
    expected = f"an integer in [{low}, {high}]"
    try:
        value = int(text)
    except ValueError:
        raise InvalidParameter.of(name, text, expected) from None
    if not low <= value <= high:
        raise InvalidParameter.of(name, text, expected)
    return value


def number(name: str, text: str, low: float, high: float, unit: str = "") -> float:
    """A number in [low, high]; ``unit`` only for the message. Raises InvalidParameter, for NaN too."""
    expected = f"a number{f' of {unit}' if unit else ''} in [{low:g}, {high:g}]"
    try:
        value = float(text)
    except ValueError:
        raise InvalidParameter.of(name, text, expected) from None
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidParameter.of(name, text, expected)
    return value + 0.0  # -0 would be shown as such


def several(name: str, text: str, one: Callable[[str, str], T], expected: str) -> tuple[T, ...]:
    """Values between commas, each read by ``one(name, part)`` and there once. Raises InvalidParameter."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidParameter.of(name, text, expected)
    values = tuple(one(name, part) for part in parts)
    if len(set(values)) < len(values):
        raise InvalidParameter.of(name, text, f"{expected}, each once")
    return values
