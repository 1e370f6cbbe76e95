"""Reading a Hugging Face checkpoint of the Llama family: shape, weights, and the model as the reference."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pilotfish.export.sizes import check_shapes, check_sizes, stored_shapes
from pilotfish.foreign_text import one_line
from pilotfish_core.errors import MissingExtra, ModelLoadError, PilotfishError

ARCHITECTURES: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_STATIC_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})

Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder. ``windows[i]`` is layer i's attention window in tokens, -1 for all."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    embeddings: int  # rows of the embedding; at least the tokenizer's vocabulary
    norm_epsilon: float
    context_length: int
    windows: tuple[int, ...]


class Checkpoint:
    """A checkpoint in memory, float32. ``model`` is the transformers model."""

    def __init__(self, folder: Path, context_length: int | None = None, *, longest: int | None = None) -> None:
        """``context_length`` None: the model's, at most ``longest``.

        Raises MissingExtra without torch or transformers, ModelLoadError for what cannot be exported.
        """
        self.model = _load_model(folder)
        self.folder = folder
        self.shape = _shape(self.model, folder, context_length, longest)
        self._state: dict[str, Any] = self.model.state_dict()

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        head, embedding = self._state["lm_head.weight"], self._state["model.embed_tokens.weight"]
        return bool(head.data_ptr() == embedding.data_ptr())

    def weight(self, name: str) -> Array:
        """A parameter by its name in the checkpoint, float32."""
        array: Array = self._state[name].numpy()
        return array

    def has(self, name: str) -> bool:
        """Whether there is such a parameter (biases, query and key norms)."""
        return name in self._state

    def rotary(self) -> tuple[Array, Array]:
        """Cosines and sines of the rotary embedding, float32 ``[context, head_size // 2]`` each."""
        import torch

        positions = torch.arange(self.shape.context_length)[None]
        with torch.no_grad():
            cosines, sines = self.model.model.rotary_emb(torch.zeros(1), positions)
        half = self.shape.head_size // 2
        return cosines[0, :, :half].numpy().copy(), sines[0, :, :half].numpy().copy()

    def logits(self, ids: list[int]) -> Array:
        """Reference logits of every position of ``ids``, float32 ``[len(ids), embeddings]``."""
        import torch

        with torch.no_grad():
            array: Array = self.model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return array


def resolve_folder(name: str | Path) -> Path:
    """A model folder, or a Hugging Face id fetched into its cache (HF_HUB_OFFLINE and HF_HOME are honoured).

    Raises ModelLoadError when there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).startswith(".") or str(name).count("/") != 1:
        raise ModelLoadError(f"no such model folder: {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra.of("huggingface_hub", "export", "fetching a model") from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except Exception as error:  # its errors come from several libraries
        raise ModelLoadError(f"{name} is neither a folder nor to be had from Hugging Face: {error}") from error


def _load_model(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: not a Hugging Face model folder")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtra.of(error.name or "transformers", "export", "exporting a model") from None
    check_sizes(folder / "config.json")
    stored = stored_shapes(folder)
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            name = config.architectures[0] if config.architectures else "none"
            if name not in ARCHITECTURES:
                raise ModelLoadError(f"{folder} is a {name}; can be exported: {', '.join(sorted(ARCHITECTURES))}")
            with torch.device("meta"):
                expected = transformers.AutoModelForCausalLM.from_config(config).state_dict()
        except PilotfishError:
            raise
        except Exception as error:  # its errors, and those of what it validates with, share no base class
            raise _unusable(folder / "config.json", error) from error
        check_shapes(folder, {name: tuple(tensor.shape) for name, tensor in expected.items()}, stored)
        try:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise _unusable(folder, error) from error
    if report["missing_keys"]:  # it would have filled them with random numbers
        raise ModelLoadError(f"the weights in {folder} lack {min(report['missing_keys'])}, which config.json asks for")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelLoadError(f"the weights in {folder} are damaged: {name} has values that are no numbers")
    return model.eval()


def _unusable(path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"cannot load the model of {path}: {type(error).__name__}: {one_line(str(error))}")


def _shape(model: Any, folder: Path, context_length: int | None, longest: int | None) -> ModelShape:
    config = model.config
    if config.hidden_act != "silu":
        raise ModelLoadError(f"{folder} uses the activation {config.hidden_act!r}; only silu can be exported")
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if rope not in _STATIC_ROPE:
        raise ModelLoadError(f"{folder} uses rotary embeddings of type {rope!r}, which depend on the length")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * model.model.rotary_emb.inv_freq.numel() != head_size:
        raise ModelLoadError(f"{folder} rotates part of each head only; that cannot be exported")
    most = int(config.max_position_embeddings)
    if context_length is not None and not 0 < context_length <= most:
        raise ModelLoadError(f"context length {context_length} is not in [1, {most}], which {folder} has")
    return ModelShape(
        architecture=ARCHITECTURES[config.architectures[0]],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size,
        embeddings=config.vocab_size,
        norm_epsilon=config.rms_norm_eps,
        context_length=context_length or min(most, longest or most),
        windows=_windows(config),
    )


def _windows(config: Any) -> tuple[int, ...]:
    window = getattr(config, "sliding_window", None)
    layers: int = config.num_hidden_layers
    if not window or not getattr(config, "use_sliding_window", True):
        return (-1,) * layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(int(window) if kind == "sliding_attention" else -1 for kind in kinds)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars, log lines or warnings of the library while it loads."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # reports of many lines are errors there; what matters is raised too
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
