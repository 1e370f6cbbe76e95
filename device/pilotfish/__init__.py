"""The device SDK of Pilotfish: drafts on this machine, verified by the cloud, never another text.

>>> client = Client("grpc://verifier:50051", draft="ngram")             # doctest: +SKIP
>>> for piece in client.generate("def quicksort(", max_tokens=128):     # doctest: +SKIP
...     print(piece.text, end="")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfish.client import AsyncClient, Client, Stream
    from pilotfish.generation import Generation
    from pilotfish.offline import Unconfirmed
    from pilotfish.result import Confirmed, Metrics, Piece, Result, Revised
    from pilotfish.runtimes import Runtime, availability
    from pilotfish.served_model import ServedModel
    from pilotfish.stream import AsyncStream
    from pilotfish_core.drafts import FinishReason, Origin
    from pilotfish_core.errors import PilotfishError
    from pilotfish_core.modes import Arm, Hint, Objective
    from pilotfish_core.parameters import SamplingParams

__all__ = [
    "Arm",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "Confirmed",
    "FinishReason",
    "Generation",
    "Hint",
    "Metrics",
    "Objective",
    "Origin",
    "Piece",
    "PilotfishError",
    "Result",
    "Revised",
    "Runtime",
    "SamplingParams",
    "ServedModel",
    "Stream",
    "Unconfirmed",
    "availability",
]

# Imported when first asked for: the command must be able to say what Ctrl-C does before gRPC is loaded.
_MODULES = {
    "Arm": "pilotfish_core.modes",
    "AsyncClient": "pilotfish.client",
    "AsyncStream": "pilotfish.stream",
    "Client": "pilotfish.client",
    "Confirmed": "pilotfish.result",
    "FinishReason": "pilotfish_core.drafts",
    "Generation": "pilotfish.generation",
    "Hint": "pilotfish_core.modes",
    "Metrics": "pilotfish.result",
    "Objective": "pilotfish_core.modes",
    "Origin": "pilotfish_core.drafts",
    "Piece": "pilotfish.result",
    "PilotfishError": "pilotfish_core.errors",
    "Result": "pilotfish.result",
    "Revised": "pilotfish.result",
    "Runtime": "pilotfish.runtimes",
    "SamplingParams": "pilotfish_core.parameters",
    "ServedModel": "pilotfish.served_model",
    "Stream": "pilotfish.client",
    "Unconfirmed": "pilotfish.offline",
    "availability": "pilotfish.runtimes",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
