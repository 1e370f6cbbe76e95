"""Our side of ``benchmarks.against_llama_cpp``: an exported draft model in ONNX Runtime, one thread, in a process of
its own that imports nothing but the drafter.

    python -m benchmarks.onnx_side FOLDER

Answers the same lines of JSON as ``benchmarks/llama_side.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import onnxruntime  # noqa: F401 - what it takes is not the model's

from benchmarks.llama_side import resident, serve
from pilotfish.drafters.model import Row
from pilotfish.drafters.onnx import OnnxDrafter


class Model:
    """One context of the drafter, below its sampling."""

    def __init__(self, folder: str) -> None:
        self._drafter = OnnxDrafter(folder, threads=1)
        self._cache = self._drafter.new_cache()
        self._length = 0

    def clear(self) -> None:
        """Back to nothing; the buffers stay as they are."""
        self._length = 0

    def rewind(self, length: int) -> None:
        """Back to so many tokens."""
        self._length = length

    def take(self, tokens: Sequence[int]) -> Row:
        """Logits after the last of them, a view."""
        row = self._cache.forward(tokens, self._length)
        self._length += len(tokens)
        return row


if __name__ == "__main__":
    before = resident()
    serve(Model(sys.argv[1]), before)
