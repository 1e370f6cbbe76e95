"""Sizes that a checkpoint claims, compared with what it holds before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pilotfish.foreign_text import one_line
from pilotfish_core.errors import MissingExtra, ModelLoadError

# Far above any model that drafts; a configuration beyond would take the memory of this machine, or for ever.
_LIMITS: Final = {
    "num_hidden_layers": 2**12,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
}
_MAY_BE_NULL: Final = ("num_key_value_heads", "head_dim")

Shapes = dict[str, tuple[Path, tuple[int, ...]]]  # of each tensor: its file and its shape


def check_sizes(file: Path) -> None:
    """Raises ModelLoadError when a size in ``config.json`` is not one."""
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} is not a model's configuration: it holds no JSON object")
    for name, limit in _LIMITS.items():
        value = config.get(name, 1)
        if value is None and name in _MAY_BE_NULL:
            continue
        if type(value) is not int or not 1 <= value <= limit:
            raise ModelLoadError(f"{file} has {name} {value!r:.80}; expected an integer in [1, {limit}]")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelLoadError(f"{file} has architectures {names!r:.80}; expected a list of names")


def stored_shapes(folder: Path) -> Shapes:
    """From the headers of the ``*.safetensors``. Raises ModelLoadError naming a file that is damaged."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise MissingExtra.of("safetensors", "export", "exporting a model") from None
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                names = weights.keys()  # it is no mapping
                shapes |= {name: (file, tuple(weights.get_slice(name).get_shape())) for name in names}
        except Exception as error:  # its own, which is no OSError even for a file that is cut
            raise ModelLoadError(f"{file} is damaged: {one_line(str(error))}") from None
    return shapes


def check_shapes(folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Shapes) -> None:
    """Raises ModelLoadError for the first tensor that has not the shape which the configuration gives it."""
    for name, shape in expected.items():
        file, found = stored.get(name, (folder, shape))
        if found != shape:
            raise ModelLoadError(
                f"{file} has {name} as {list(found)}, config.json makes it {list(shape)}: they do not belong together"
            )
