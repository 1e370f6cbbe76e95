"""What a model folder's config.json says, and whether the embedded engine can run it.

Supported are decoder-only language models whose transformers class hands queries, keys and values to an attention
function of ours and does nothing with the cache itself. Everything else is refused here, by name, before any weight is
read. Code that a folder brings along (``auto_map``) is never run: the classes below are transformers' own.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models import gemma, gemma2, gemma3, llama, mistral, phi, phi3, qwen2, qwen3

from pilotfish_cloud.engine.attention import ATTENTION_NAME
from pilotfish_cloud.engine.rope import rope_types
from pilotfish_core.errors import ModelLoadError


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Classes of one ``model_type``."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]


FAMILIES: Final[Mapping[str, Family]] = {
    "gemma": Family(gemma.GemmaConfig, gemma.GemmaForCausalLM),
    "gemma2": Family(gemma2.Gemma2Config, gemma2.Gemma2ForCausalLM),
    "gemma3_text": Family(gemma3.Gemma3TextConfig, gemma3.Gemma3ForCausalLM),
    "llama": Family(llama.LlamaConfig, llama.LlamaForCausalLM),
    "mistral": Family(mistral.MistralConfig, mistral.MistralForCausalLM),
    "phi": Family(phi.PhiConfig, phi.PhiForCausalLM),
    "phi3": Family(phi3.Phi3Config, phi3.Phi3ForCausalLM),
    "qwen2": Family(qwen2.Qwen2Config, qwen2.Qwen2ForCausalLM),
    "qwen3": Family(qwen3.Qwen3Config, qwen3.Qwen3ForCausalLM),
}
_ROPE_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_LAYER_TYPES: Final = ("full_attention", "sliding_attention")
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_TOWERS: Final = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower")
_SIZES: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


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
    window: int | None = None  # of layers that look back only so far; others may see everything
    softcap: float | None = None  # of attention scores
    logit_softcap: float | None = None

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.num_heads // self.num_kv_heads


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a supported model that asks for our attention. Raises ModelLoadError (file and reason)."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(f"{file} is missing")
    values = read_json(file)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelLoadError(f"{file}: {_why_unsupported(model_type, values)}; supported are {', '.join(FAMILIES)}")
    _check_task(file, values)
    try:
        config = FAMILIES[model_type].config.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever the values lead it to
        raise ModelLoadError(f"{file}: {in_one_line(error)}") from error
    try:
        _check_attention(config)
    except ModelLoadError as error:
        raise ModelLoadError(f"{file}: {error}") from None
    return prepared_config(config)


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """The shape of a supported configuration. Raises ModelLoadError for sizes that no model has."""
    for name in _SIZES:
        _check_size(name, getattr(config, name, None))
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    _check_size("num_key_value_heads", kv_heads)
    _check_size("head_dim", head_dim)
    if heads % kv_heads:
        raise ModelLoadError(f"config.json: {heads} attention heads cannot share {kv_heads} key heads evenly")
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        vocab_rows=config.vocab_size,
        max_position=config.max_position_embeddings,
        window=_window(config),
        # Gemma 3 has the setting too, but its class does not hand it on.
        softcap=config.attn_logit_softcapping if config.model_type == "gemma2" else None,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )


def prepared_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that asks for our attention. transformers writes into configs it is given, so never share one."""
    own = copy.deepcopy(config)
    own._attn_implementation = ATTENTION_NAME
    return own


def read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``. Raises ModelLoadError."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return values


def in_one_line(error: Exception) -> str:
    """The beginning of what an error says."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _why_unsupported(model_type: object, values: Mapping[str, object]) -> str:
    name = f"architecture {model_type!r}"
    if values.get("is_encoder_decoder") is True:
        return f"{name} is an encoder and a decoder; a decoder alone is needed"
    if any(values.get(key) for key in _TOWERS):
        return f"{name} sees or hears (it has a tower beside the language model); text alone is served"
    if any(values.get(key) for key in _EXPERTS):
        return f"{name} is a mixture of experts, which the embedded engine cannot run"
    if values.get("auto_map"):
        return f"{name} comes with code of its own (auto_map), which is never run"
    return f"{name} is not supported"


def _check_task(file: Path, values: Mapping[str, object]) -> None:
    """Refuse folders of a known family that are no language models."""
    named = values.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if names and not any(name.lower().endswith("forcausallm") for name in names):
        raise ModelLoadError(f"{file}: {names[0]} writes no text; expected a ...ForCausalLM")
    if any(values.get(key) for key in _TOWERS):
        raise ModelLoadError(f"{file}: {values['model_type']} with a tower beside the language model is not supported")


def _check_attention(config: PreTrainedConfig) -> None:
    for rope in rope_types(config):
        if rope not in _ROPE_TYPES:
            raise ModelLoadError(
                f"rotary embeddings of type {rope!r} are not supported; supported are {', '.join(_ROPE_TYPES)}"
            )
    if getattr(config, "use_bidirectional_attention", None) or not getattr(config, "is_causal", True):
        raise ModelLoadError("the model looks at later tokens too (bidirectional attention); it cannot write")
    for layer_type in getattr(config, "layer_types", None) or ():
        if layer_type not in _LAYER_TYPES:
            raise ModelLoadError(
                f"layers of type {layer_type!r} are not supported; supported are {', '.join(_LAYER_TYPES)}"
            )
    window = getattr(config, "sliding_window", None)
    if window is not None:
        _check_size("sliding_window", window)
    elif "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelLoadError("there are layers of type 'sliding_attention', but sliding_window is not set")


def _window(config: PreTrainedConfig) -> int | None:
    """The sliding window, if a layer uses one."""
    if config.model_type not in ("gemma2", "gemma3_text", "mistral", "phi3", "qwen2", "qwen3"):
        return None
    types = None if config.model_type in ("mistral", "phi3") else config.layer_types
    window: int | None = config.sliding_window
    return window if types is None or "sliding_attention" in types else None


def _check_size(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        prefix = "config.json: " if name in _SIZES else ""
        raise ModelLoadError(f"{prefix}{name} is {value!r}; expected a positive integer")
