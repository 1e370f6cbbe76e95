"""The browser's graph run by ONNX Runtime on this machine: past keys and values in, new ones out.

Slower here than the graph of ``pilotfish export --to onnx``, whose cache is not copied; it is how a browser's export
is checked, and the browser's own drafter in a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pilotfish.drafters.manifest import Manifest
from pilotfish.drafters.model import KvCache, ModelDrafter, Row
from pilotfish.drafters.onnx import open_session
from pilotfish_core.errors import ModelLoadError

FIRST_CAPACITY: Final = 256  # positions; doubled as needed up to the context length


class FlatOnnxDrafter(ModelDrafter):
    """A browser's draft model; contexts may run in different threads.

    Raises ModelLoadError when the folder is not whole or ONNX Runtime refuses the graph.
    """

    runtime = "onnxruntime-web"
    model_file = "model.onnx"

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        super().__init__(folder, "onnx-web")
        file = self.folder / self.model_file
        self.session = open_session(file, threads)
        kv = self.manifest.kv
        slot = [kv.layers, 2, kv.heads, kv.head_size]
        given = {entry.name: entry for entry in (*self.session.get_inputs(), *self.session.get_outputs())}
        if set(given) != {"input_ids", "position_ids", "past", "logits", "new"}:
            raise ModelLoadError(f"{file} has inputs and outputs {', '.join(sorted(given))}: not a browser's graph")
        for name in ("past", "new"):
            found = given[name].shape[1:]
            if found != slot:
                raise ModelLoadError(f"{file} has {name} as {found}, the manifest says {slot}")
        width = given["logits"].shape[-1]
        if type(width) is not int or width < self.manifest.vocab_size:
            raise ModelLoadError(
                f"{file} has logits of width {width}, the manifest a vocabulary of {self.manifest.vocab_size}"
            )
        self.width = width

    def new_cache(self) -> KvCache:
        """One array that grows with the context."""
        return _FlatKv(self)

    def close(self) -> None:
        """Free the weights."""
        del self.session


class _FlatKv(KvCache):
    """Keys and values in the order of positions."""

    def __init__(self, drafter: FlatOnnxDrafter) -> None:
        self._session = drafter.session
        self._slot = _slot(drafter.manifest)
        self._limit = drafter.max_length
        self._past = np.zeros((0, *self._slot), dtype=np.float32)

    def forward(self, tokens: Sequence[int], begin: int) -> Row:
        """A copy of the new keys and values behind ``begin``."""
        end = begin + len(tokens)
        if end > len(self._past):
            self._grow(end, begin)
        inputs = {
            "input_ids": np.asarray([tokens], dtype=np.int32),
            "position_ids": np.arange(begin, end, dtype=np.int32)[None],
            "past": self._past[:begin],
        }
        logits, new = self._session.run(["logits", "new"], inputs)
        self._past[begin:end] = new
        row: Row = logits[0, 0]
        return row

    def _grow(self, needed: int, used: int) -> None:
        capacity = max(len(self._past), FIRST_CAPACITY)
        while capacity < needed:
            capacity *= 2
        past = np.zeros((min(capacity, self._limit), *self._slot), dtype=np.float32)
        past[:used] = self._past[:used]
        self._past = past


def _slot(manifest: Manifest) -> tuple[int, ...]:
    kv = manifest.kv
    return (kv.layers, 2, kv.heads, kv.head_size)
