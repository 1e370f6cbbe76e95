"""Folders with quantised weights: one format, ``compressed-tensors`` with weights only, on CPU and CUDA alike.

The weights become dense numbers of the engine's dtype when they are loaded, by the library of that name: what is saved
is disk and download, not memory. On CPU that is also the fast way: products of integer weights that PyTorch offers
there (and torchao uses) took two to five times as long as oneDNN's packed bf16 for few rows, when tried. Formats
that round activations too compute another function and are refused, like all other methods, by name.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from pilotfish_core.errors import MissingExtra, ModelLoadError

METHOD: Final = "compressed-tensors"
FORMATS: Final = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_ROUNDED_TOO: Final = ("input_activations", "output_activations")
_EXTRAS: Final = ("kv_cache_scheme", "sparsity_config", "moe_sparsity_config", "transform_config")


def check_quantization(file: Path, values: Mapping[str, Any]) -> bool:
    """Whether config.json's ``values`` speak of quantised weights, which then can be loaded.

    Raises ModelLoadError for another method, scheme or format, MissingExtra when the library is not installed.
    """
    settings = values.get("quantization_config", values.get("compression_config"))
    if settings is None:
        return False
    try:
        _check(settings)
    except ModelLoadError as error:
        raise ModelLoadError(f"{file}: {error}") from None
    if importlib.util.find_spec("compressed_tensors") is None:
        raise MissingExtra.of("compressed-tensors", "quantized", f"{file.parent} has quantised weights; loading them")
    return True


def ask_for_dense(config: PreTrainedConfig) -> None:
    """Make transformers turn the weights into dense ones as it loads them (``config`` is mutated)."""
    settings = config.quantization_config
    config.quantization_config = {**settings, "dequantize": True}


def library_version() -> str:
    """Of what makes the weights dense: part of what decides the bits."""
    return f"{METHOD} {importlib.metadata.version(METHOD)}"


def _check(settings: object) -> None:
    if not isinstance(settings, dict):
        raise ModelLoadError(f"quantization_config is {settings!r}; expected an object")
    method = settings.get("quant_method")
    if method != METHOD:
        raise ModelLoadError(
            f"weights quantised by {method!r} (quantization_config) are not supported; supported is {METHOD}, "
            "weights only"
        )
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        count = len(groups) if isinstance(groups, dict) else groups
        raise ModelLoadError(f"{METHOD} with {count!r} groups of layers is not supported; expected one")
    scheme = next(iter(groups.values()))
    if not isinstance(scheme, dict) or not isinstance(scheme.get("weights"), dict):
        raise ModelLoadError(f"{METHOD}: the scheme says nothing about weights")
    for name in _ROUNDED_TOO:
        if scheme.get(name):
            raise ModelLoadError(f"{METHOD} with rounded activations ({name}) is not supported; weights only are")
    layout = scheme.get("format") or settings.get("format")
    if layout not in FORMATS:
        raise ModelLoadError(f"{METHOD} of format {layout!r} is not supported; supported are {', '.join(FORMATS)}")
    for name in _EXTRAS:
        found = settings.get(name)
        if found and found != {"format": "dense"}:
            raise ModelLoadError(f"{METHOD} with {name} is not supported")
