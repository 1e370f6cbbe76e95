"""The Core ML drafter: a folder of ``pilotfish export --to coreml``, run by Apple's runtime through coremltools.

Keys and values live in the runtime's own state. A rollback is no more than smaller positions at the next forward:
the graph reads the state up to the last new token only, and writes before it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pilotfish.drafters.model import KvCache, ModelDrafter, Row
from pilotfish.runtimes import core_ml_reason
from pilotfish_core.errors import ModelLoadError

PACKAGE: Final = "model.mlpackage"
MASKED: Final = -1e4  # added to the score of a key that must not be seen; float16 holds it


class CoreMLModel(Protocol):
    """What is used of coremltools' ``MLModel``."""

    def make_state(self) -> Any:
        """Fresh keys and values, zeroed."""

    def predict(self, data: Mapping[str, NDArray[Any]], state: Any) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; ``state`` is changed in place."""


class CoreMLDrafter(ModelDrafter):
    """A model in Core ML; the runtime chooses among processor, GPU and Neural Engine.

    ``model`` runs the folder's package; None loads it into Apple's runtime. Raises ModelLoadError when the folder
    is not whole, where there is no such runtime (macOS 15 or later, extra ``coreml``), or when it refuses the model.
    """

    runtime = "coreml"
    model_file = f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"

    def __init__(self, folder: str | Path, *, model: CoreMLModel | None = None) -> None:
        super().__init__(folder, "coreml")
        self.model = _load(self.folder / PACKAGE) if model is None else model
        # One forward says how wide a row is, whether the model runs at all, and makes the runtime compile it.
        self.width = 1
        row = self.new_cache().forward([0], 0)
        if row.ndim != 1 or len(row) < self.manifest.vocab_size:
            raise ModelLoadError(
                f"{self.folder / PACKAGE} has logits of shape {row.shape}, the manifest a vocabulary of "
                f"{self.manifest.vocab_size}"
            )
        self.width = len(row)

    def new_cache(self) -> KvCache:
        """A state of the runtime's own."""
        return _StateKv(self.model)

    def close(self) -> None:
        """Free the weights."""
        del self.model


class _StateKv(KvCache):
    """Keys and values in the runtime's state, for the whole context length from the start."""

    def __init__(self, model: CoreMLModel) -> None:
        self._model = model
        self._state = model.make_state()

    def forward(self, tokens: Sequence[int], begin: int) -> Row:
        """The mask's width tells the graph where the new tokens are."""
        end = begin + len(tokens)
        positions = np.arange(begin, end, dtype=np.int32)
        later = np.arange(end) > positions[:, None]
        inputs = {
            "input_ids": np.asarray([tokens], dtype=np.int32),
            "position_ids": positions[None],
            "mask": np.where(later, np.float16(MASKED), np.float16(0))[None, None],
        }
        logits = self._model.predict(inputs, self._state)["logits"]
        row: Row = np.asarray(logits[0, 0], dtype=np.float32)
        return row


def _load(package: Path) -> CoreMLModel:
    reason = core_ml_reason()
    if reason:
        raise ModelLoadError(f"{package} cannot run here: {reason}")
    import coremltools

    try:
        model: CoreMLModel = coremltools.models.MLModel(str(package))
    except Exception as error:  # its errors share no base class
        raise ModelLoadError(f"Core ML cannot load {package}: {error}") from error
    return model
