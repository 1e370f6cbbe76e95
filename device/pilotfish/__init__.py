"""The device SDK of Pilotfish: drafts on this machine, verified by the cloud, never another text.

>>> client = Client("grpc://verifier:50051", draft="ngram")             # doctest: +SKIP
>>> for piece in client.generate("def quicksort(", max_tokens=128):     # doctest: +SKIP
...     print(piece.text, end="")
"""

from pilotfish.client import AsyncClient, Client, Stream
from pilotfish.generation import Generation
from pilotfish.result import Metrics, Piece, Result
from pilotfish.stream import AsyncStream
from pilotfish_core.drafts import FinishReason, Origin
from pilotfish_core.errors import PilotfishError
from pilotfish_core.parameters import SamplingParams

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "FinishReason",
    "Generation",
    "Metrics",
    "Origin",
    "Piece",
    "PilotfishError",
    "Result",
    "SamplingParams",
    "Stream",
]
