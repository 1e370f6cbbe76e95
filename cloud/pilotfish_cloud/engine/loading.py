"""Loads a target from a local Hugging Face folder; says which file is wrong when it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from pilotfish_cloud.engine.attention import ATTENTION_NAME, register
from pilotfish_cloud.engine.model_config import FAMILIES, ModelShape, in_one_line, load_config, read_json, shape_of
from pilotfish_cloud.engine.quantization import ask_for_dense, check_quantization, library_version
from pilotfish_core.errors import InvalidParameter, LocalError, ModelLoadError
from pilotfish_core.tokenizer import Tokenizer

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES: Final = ("cpu", "cuda")
_INERT: Final = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_DERIVED: Final = ("rotary_emb.inv_freq", "attn.masked_bias")  # tensors of old files that are computed today


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


def load_model(folder: str | Path, *, dtype: str = "bfloat16", device: str | torch.device = "cpu") -> LoadedModel:
    """Load ``folder`` onto ``device``.

    Raises ModelLoadError (file and reason), MissingExtra for quantised weights without their library, InvalidParameter
    for an unknown dtype or device, LocalError for a device that is not there or cannot compute in ``dtype``.
    """
    if dtype not in DTYPES:
        raise InvalidParameter.of("dtype", dtype, " or ".join(DTYPES))
    target = usable_device(device, DTYPES[dtype])
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder")
    config = load_config(folder)
    quantised = check_quantization(folder / "config.json", config.to_dict())
    understood = {name: value for name, value in config.to_dict().items() if name not in _INERT}
    tokenizer = Tokenizer.load(folder)
    files = weight_files(folder)
    for file in files:
        _check_safetensors(file)
    shape = shape_of(config)
    try:
        tokenizer = tokenizer.limited_to(shape.vocab_rows)
    except ValueError:
        raise ModelLoadError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} ids, but {folder / 'config.json'} says that "
            f"the model embeds {shape.vocab_rows}"
        ) from None
    if quantised:
        ask_for_dense(config)
        understood["dequantised_by"] = library_version()
    register()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, report = FAMILIES[config.model_type].model.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise whatever the folder's contents lead them to
        raise ModelLoadError(f"{folder}: the weights do not fit config.json: {in_one_line(error)}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    _check_report(files[0], report)
    model = model.to(target).eval().requires_grad_(False)
    return LoadedModel(folder, model, shape, tokenizer, DTYPES[dtype], files, understood)


def usable_device(name: str | torch.device, dtype: torch.dtype) -> torch.device:
    """The device of that name: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises InvalidParameter for another name, LocalError when this machine's PyTorch has no such device or cannot
    compute in ``dtype`` there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise InvalidParameter.of("device", str(name), " or ".join(DEVICES))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LocalError(f"device {device} was asked for, but PyTorch {torch.__version__} finds no CUDA GPU here")
    try:
        _try_out(device, dtype)
    except (RuntimeError, NotImplementedError) as error:
        raise LocalError(
            f"device {device} cannot compute in {str(dtype).removeprefix('torch.')}: {in_one_line(error)}"
        ) from None
    return device


def _try_out(device: torch.device, dtype: torch.dtype) -> None:
    """What a forward needs, in small; an operation that is not implemented raises."""
    rows = torch.ones(1, 2, 2, 16, dtype=dtype, device=device)
    mask = torch.zeros(1, 1, 2, 2, dtype=dtype, device=device)
    attended = nn.functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask)
    nn.functional.silu(nn.functional.linear(attended, rows[0, 0])).tanh().sum().item()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, sorted. Raises ModelLoadError when one is missing."""
    index = folder / _INDEX
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ModelLoadError(f"{index} names no weight files")
        names = sorted({str(name) for name in named.values()})
        strange = next((name for name in names if Path(name).name != name), None)
        if strange is not None:
            raise ModelLoadError(f"{index} names {strange!r}; expected files beside it")
        files = tuple(folder / name for name in names)
    else:
        files = (folder / _SINGLE,)
    for file in files:
        if not file.is_file():
            raise ModelLoadError(f"{file} is missing (only safetensors weights are read)")
    return files


def _check_report(file: Path, report: Mapping[str, set[str]]) -> None:
    """Every weight must have found its place: what is left over would be a part of the model that is not run."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(f"{file} lacks weights that config.json asks for: {_some(missing)}")
    left_over = sorted(key for key in report["unexpected_keys"] if not key.endswith(_DERIVED))
    if left_over:
        raise ModelLoadError(f"{file} has weights that config.json does not speak of: {_some(left_over)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{file} is damaged: {error}") from None
