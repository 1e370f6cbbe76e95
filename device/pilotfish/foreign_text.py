"""What others wrote (verifiers, libraries), where it becomes part of an error of ours."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE: Final = 300  # characters


def one_line(text: str) -> str:
    """Fit for a terminal: one line of printable characters, shortened."""
    plain = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return plain if len(plain) <= MAX_MESSAGE else f"{plain[:MAX_MESSAGE]}... ({len(plain)} characters)"
