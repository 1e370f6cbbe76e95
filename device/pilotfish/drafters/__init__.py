"""Drafters of the device, and how one is found by name or folder."""

from __future__ import annotations

from pathlib import Path

from pilotfish.drafters.manifest import MANIFEST_FILE, Manifest
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.ngram import NgramDrafter

__all__ = ["DraftContext", "Drafter", "load_drafter"]


def load_drafter(spec: str | Path | None, *, threads: int = 1) -> Drafter | None:
    """The drafter that ``spec`` names, or None for no drafting.

    None or ``"none"``; ``"ngram"``; or a folder that ``pilotfish export`` wrote (``threads``: of the
    runtime, per forward). Raises ModelLoadError for anything else, and for a folder that is not whole.
    """
    if spec is None or spec == "none":
        return None
    if spec == "ngram":
        return NgramDrafter()
    folder = Path(spec).expanduser()
    if (folder / MANIFEST_FILE).is_file():
        return _of_runtime(folder, threads)
    if (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder} is a Hugging Face folder, not an exported draft model; "
            f"run `pilotfish export {folder} --out DIR --quant int8` and give that folder"
        )
    if folder.is_dir():
        raise ModelLoadError(f"{folder} has no {MANIFEST_FILE}: not an exported draft model, or incomplete")
    raise ModelLoadError(f"no such draft model: {folder} (a folder that `pilotfish export` wrote, 'ngram' or 'none')")


def _of_runtime(folder: Path, threads: int) -> Drafter:
    """Runtimes take a while to import."""
    runtime = Manifest.read(folder).runtime
    if runtime == "coreml":
        from pilotfish.drafters.coreml import CoreMLDrafter

        return CoreMLDrafter(folder)
    if runtime == "onnxruntime-web":
        from pilotfish.drafters.flat import FlatOnnxDrafter

        return FlatOnnxDrafter(folder, threads=threads)
    from pilotfish.drafters.onnx import OnnxDrafter

    return OnnxDrafter(folder, threads=threads)
