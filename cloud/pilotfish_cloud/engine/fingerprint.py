"""The numerics fingerprint: equal ones compute equal bits, so that a resume elsewhere continues the same text."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
import transformers

ENGINE_VERSION: Final = "embedded-4"  # to be raised with any change that may change the bits


def fingerprint(weight_files: Iterable[Path], facts: Mapping[str, object], *, device: torch.device) -> str:
    """``pf-`` and 16 hex digits over the weights, ``facts`` and what this machine computes with.

    ``facts`` are the engine's own: model configuration, dtype, deterministic rule, sampler version and the like. The
    model's folder name does not count.
    """
    everything = {
        "engine": ENGINE_VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": [_file_hash(file) for file in weight_files],
        "machine": machine_facts(device),
        **facts,
    }
    text = json.dumps(everything, sort_keys=True, default=str)
    return "pf-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def machine_facts(device: torch.device) -> dict[str, object]:
    """What decides the kernels: instruction set and libraries, or the GPU and its libraries."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)()),
        "avx512_bf16": bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()),
        "mkldnn": torch._C._has_mkldnn,
        "mkl": torch._C.has_mkl,
    }


def _file_hash(file: Path) -> str:
    status = file.stat()
    return _hash_of_version(str(file.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of_version(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
