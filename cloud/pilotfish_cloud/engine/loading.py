"""Loads a target from a local Hugging Face folder; says which file is wrong when it cannot."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.utils import logging as transformers_logging

from pilotfish_cloud.engine.attention import ATTENTION_NAME, register
from pilotfish_core.errors import InvalidParameter, ModelLoadError
from pilotfish_core.tokenizer import Tokenizer

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CONFIGS: Final[dict[str, Any]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
_STATIC_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})
_INERT: Final = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
_SIZES: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True, slots=True)
class ModelShape:
    """What the engine must know of an architecture."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab_rows: int  # of the embedding; the tokenizer may have fewer ids
    max_position: int

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """A target ready to run: the transformers model (in eval mode, our attention), its shape and its tokenizer."""

    folder: Path
    model: nn.Module
    shape: ModelShape
    tokenizer: Tokenizer
    dtype: torch.dtype
    weight_files: tuple[Path, ...]
    config: Mapping[str, object]  # config.json as transformers understood it, without names and versions

    @property
    def dtype_name(self) -> str:
        """As the user writes it."""
        return str(self.dtype).removeprefix("torch.")


def load_model(folder: str | Path, *, dtype: str = "bfloat16", device: str = "cpu") -> LoadedModel:
    """Load ``folder``. Raises ModelLoadError (file and reason), InvalidParameter for an unknown dtype."""
    if dtype not in DTYPES:
        raise InvalidParameter.of("dtype", dtype, " or ".join(DTYPES))
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder")
    config = _load_config(folder)
    understood = {name: value for name, value in config.to_dict().items() if name not in _INERT}
    tokenizer = Tokenizer.load(folder)
    files = weight_files(folder)
    for file in files:
        _check_safetensors(file)
    shape = shape_of(config)
    if tokenizer.vocab_size > shape.vocab_rows:
        raise ModelLoadError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} ids, but {folder / 'config.json'} says that "
            f"the model embeds {shape.vocab_rows}"
        )
    register()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise whatever the folder's contents lead them to
        raise ModelLoadError(f"{folder}: the weights do not fit config.json: {_in_one_line(error)}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(f"{files[0]} lacks weights that config.json asks for: {', '.join(missing[:3])}")
    model = model.to(device).eval().requires_grad_(False)
    return LoadedModel(folder, model, shape, tokenizer, DTYPES[dtype], files, understood)


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """The shape of a supported configuration. Raises ModelLoadError for sizes that no model has."""
    for name in _SIZES:
        value = getattr(config, name, None)
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise ModelLoadError(f"config.json: {name} is {value!r}; expected a positive integer")
    heads = config.num_attention_heads
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=config.intermediate_size,
        vocab_rows=config.vocab_size,
        max_position=config.max_position_embeddings,
    )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def prepared_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that asks for our attention. transformers writes into configs it is given, so never share one."""
    own = copy.deepcopy(config)
    own._attn_implementation = ATTENTION_NAME
    return own


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, sorted. Raises ModelLoadError when one is missing."""
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        files = tuple(folder / str(name) for name in names)
    else:
        files = (folder / _SINGLE,)
    for file in files:
        if not file.is_file():
            raise ModelLoadError(f"{file} is missing (only safetensors weights are read)")
    if not files:
        raise ModelLoadError(f"{index} names no weight files")
    return files


def _load_config(folder: Path) -> PreTrainedConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(f"{file} is missing")
    values = _read_json(file)
    model_type = values.get("model_type")
    if model_type not in _CONFIGS:
        raise ModelLoadError(
            f"{file}: architecture {model_type!r} is not supported; supported are {', '.join(_CONFIGS)}"
        )
    if values.get("quantization_config") is not None:
        raise ModelLoadError(f"{file}: quantised weights are not supported by the embedded engine")
    try:
        config = _CONFIGS[model_type].from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelLoadError(f"{file}: {_in_one_line(error)}") from error
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        raise ModelLoadError(
            f"{file}: rotary embeddings of type {rope!r} depend on the longest sequence of a step, so that neighbours "
            f"would change the text; supported are {', '.join(sorted(_STATIC_ROPE))}"
        )
    return prepared_config(config)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return values


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{file} is damaged: {error}") from None
