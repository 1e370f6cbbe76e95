"""What a client is made with, checked before anything is opened."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm, Objective

Prompt = str | Sequence[int]
Choice = TypeVar("Choice", bound=enum.StrEnum)


def chosen_arm(arm: str | Arm | None, *, cloud: str, draft: str | Path | Drafter | None) -> Arm | None:
    """The arm that is named, if any. Raises InvalidParameter for one that does not go with ``cloud`` or ``draft``."""
    if cloud not in ("auto", "never"):
        raise InvalidParameter.of("cloud", cloud, "'auto' or 'never'")
    named = None if arm is None else choice("arm", Arm, arm)
    if cloud == "never" and named not in (None, Arm.AUTO, Arm.DEVICE_ONLY):
        raise InvalidParameter.of("arm", str(named), "device-only, or none: with cloud='never' nothing is sent")
    alone = cloud == "never" or named is Arm.DEVICE_ONLY
    if alone and not isinstance(draft, Drafter) and draft in (None, "none", "auto", "ngram"):
        raise InvalidParameter.of("draft", draft, "a draft model: without the cloud it writes the answer")
    drafts = isinstance(draft, Drafter) or draft not in (None, "none")
    if named is not None and named.device_drafts and not drafts:
        raise InvalidParameter.of("draft", draft, f"something to draft with, for the arm {named}")
    return named


def chosen_config(
    config: DeviceConfig | None, *, window: int, arm: Arm | None, objective: str | Objective | None
) -> DeviceConfig:
    """``config``, or the usual one, with what is named instead of its own. Raises InvalidParameter."""
    if not 1 <= window <= 1024:
        raise InvalidParameter.of("window", window, "an integer in [1, 1024]")
    config = config or DeviceConfig(window=window)
    return dataclasses.replace(
        config,
        arm=config.arm if arm is None else arm,
        objective=config.objective if objective is None else choice("objective", Objective, objective),
    )


def choice(name: str, kind: type[Choice], value: str) -> Choice:
    """The member of ``kind`` with that value. Raises InvalidParameter, which names them all."""
    try:
        return kind(value)
    except ValueError:
        raise InvalidParameter.of(name, value, " or ".join(kind)) from None


def checked_bytes(name: str, value: int | None) -> int | None:
    """A size that may be left to the usual one. Raises InvalidParameter."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidParameter.of(name, value, "a number of bytes")
    return value


def token_ids(prompt: Sequence[int]) -> tuple[int, ...]:
    """A prompt given as ids. Raises InvalidParameter."""
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise InvalidParameter.of("prompt", token, "text, or a list of token ids")
    return tuple(prompt)
