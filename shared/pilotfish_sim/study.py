"""Policies under study: a Python class that a scenario names takes the place of the shipped one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pilotfish_core.draft_policy import DraftPolicy
from pilotfish_core.errors import InvalidParameter

DraftPolicyClass = Callable[..., DraftPolicy]  # (config, memory, *, drafting), as DraftPolicy


def load_class(key: str, name: str) -> Any:
    """The class that ``module:Class`` names; ``key`` is the scenario's, for the error. Raises InvalidParameter."""
    expected = "module:Class, importable from here"
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidParameter.of(key, name, expected)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidParameter.of(key, name, f"{expected} ({error})") from None
