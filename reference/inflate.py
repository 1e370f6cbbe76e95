"""Zero-pad a Llama checkpoint to a wider, deeper one that computes the same function.

    python -m reference.inflate SRC OUT --hidden-size 1280 --num-layers 8

The result says exactly what the source says, at the cost of the larger model: demos and benchmarks
of a small model get the step time of a big one without sleeping. The hidden state is padded with
zeros. RMSNorm then sees a mean square smaller by d/D, so its weights are scaled by sqrt(d/D) and
its epsilon by d/D. Added heads, channels and layers have zero output projections. A hidden size of
four times the source's scales the norms by exactly one half, which no rounding disturbs.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from reference.models import ModelFolderError, replace_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_MODEL_TYPES = frozenset({"llama"})
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


class InflateError(Exception):
    """The wanted shape cannot hold the source model, or the source is not a Llama model."""


@dataclass(frozen=True)
class Shape:
    """The sizes that inflating changes, and the head size, which it keeps."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The shape a config.json describes."""
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return cls(
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
        )

    def wider(self, hidden: int, layers: int, intermediate: int | None) -> Shape:
        """The shape at the wanted sizes: whole groups of heads are added to fill `hidden`.

        The number of heads divides `hidden`, as Llama configurations must. The intermediate size
        grows in proportion, to a multiple of 64, unless given.
        """
        group = self.heads // self.kv_heads
        most = max(self.kv_heads, hidden // (self.head_dim * group))
        fitting = (count for count in range(most, self.kv_heads - 1, -1) if hidden % (count * group) == 0)
        groups = next(fitting, 0)
        if intermediate is None:
            intermediate = max(self.intermediate, self.intermediate * hidden // self.hidden // 64 * 64)
        wide = Shape(hidden, intermediate, layers, groups * group, groups, self.head_dim)
        for name in ("hidden", "intermediate", "layers"):
            if getattr(wide, name) < getattr(self, name):
                raise InflateError(
                    f"cannot inflate {name} from {getattr(self, name)} to {getattr(wide, name)}: it can only grow"
                )
        if not groups:
            raise InflateError(
                f"hidden size {hidden} is no multiple of any number of heads that would do"
                f" ({self.heads} or more, in groups of {group})"
            )
        return wide

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Weight shapes of one layer by their name in the checkpoint."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "self_attn.q_proj.bias": (queries,),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.bias": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
            "mlp.gate_proj.bias": (self.intermediate,),
            "mlp.up_proj.bias": (self.intermediate,),
            "mlp.down_proj.bias": (self.hidden,),
        }


def _padded(weight: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """`weight` in the low corner of zeros of `shape`."""
    result = torch.zeros(shape, dtype=dtype)
    result[tuple(slice(size) for size in weight.shape)] = weight.to(dtype)
    return result


def inflate_weights(
    weights: dict[str, torch.Tensor], source: Shape, wide: Shape, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The padded checkpoint: names as in the source, plus those of the added layers."""
    scale = math.sqrt(source.hidden / wide.hidden)
    result: dict[str, torch.Tensor] = {}
    sizes = wide.sizes()
    for name, weight in weights.items():
        layer_part = name.split(".", 3)[3] if name.startswith("model.layers.") else ""
        if layer_part.endswith("rotary_emb.inv_freq"):
            continue
        if layer_part in sizes:
            shape = sizes[layer_part]
        elif name == "model.norm.weight":
            shape = (wide.hidden,)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            shape = (weight.shape[0], wide.hidden)
        else:
            raise InflateError(f"unknown weight {name} in a Llama checkpoint")
        if name.endswith("norm.weight"):
            weight = weight.float() * scale
        result[name] = _padded(weight, shape, dtype)
    present = {name.split(".", 3)[3] for name in result if name.startswith("model.layers.0.")}
    for layer in range(source.layers, wide.layers):
        for part in sorted(present):
            filler = torch.ones if part.endswith("layernorm.weight") else torch.zeros
            result[f"model.layers.{layer}.{part}"] = filler(sizes[part], dtype=dtype)
    return result


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's .safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder} has no .safetensors file")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(load_file(file))
    return weights


def inflate(
    src: Path | str,
    out: Path | str,
    hidden_size: int,
    num_layers: int,
    intermediate_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the inflated copy of the Llama folder `src` to `out` and return `out`.

    `intermediate_size` defaults to growing in proportion, `dtype` to the source's. The tokenizer's
    files are copied. `out` appears by rename and replaces a folder of that name.

    Raises:
        InflateError: a size is smaller than the source's, or the source is no Llama model.
        ModelFolderError: `src` lacks its config or its weights.
    """
    source_folder, out_folder = Path(src), Path(out).absolute()
    config_file = source_folder / "config.json"
    if not config_file.is_file():
        raise ModelFolderError(f"{source_folder} has no config.json")
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("model_type") not in _MODEL_TYPES:
        raise InflateError(f"model_type {config.get('model_type')!r} is not a Llama model")
    weights = read_weights(source_folder)
    source = Shape.of(config)
    wide = source.wider(hidden_size, num_layers, intermediate_size)
    kept = dtype if dtype is not None else weights["model.norm.weight"].dtype
    config.update(
        hidden_size=wide.hidden,
        intermediate_size=wide.intermediate,
        num_hidden_layers=wide.layers,
        num_attention_heads=wide.heads,
        num_key_value_heads=wide.kv_heads,
        head_dim=wide.head_dim,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)) * source.hidden / wide.hidden,
        dtype=str(kept).removeprefix("torch."),
    )
    config.pop("torch_dtype", None)
    padded = inflate_weights(weights, source, wide, kept)
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out_folder.name}-", dir=out_folder.parent))
    staging.chmod(0o755)
    save_file(padded, staging / "model.safetensors", metadata={"format": "pt"})
    (staging / "model.safetensors").chmod(0o644)
    (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        if (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, staging / name)
    replace_folder(staging, out_folder)
    return out_folder


def main() -> None:
    """Inflate one folder into another."""
    parser = argparse.ArgumentParser(prog="python -m reference.inflate", description=__doc__)
    parser.add_argument("source", type=Path, help="a Llama folder in Hugging Face format")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--hidden-size", type=int, required=True)
    parser.add_argument("--num-layers", type=int, required=True)
    parser.add_argument("--intermediate-size", type=int)
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: the source's")
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    try:
        out = inflate(
            arguments.source,
            arguments.out,
            arguments.hidden_size,
            arguments.num_layers,
            arguments.intermediate_size,
            dtype,
        )
    except (InflateError, ModelFolderError) as error:
        parser.error(str(error))
    size = sum(file.stat().st_size for file in out.iterdir())
    sys.stdout.write(f"{out}: {size / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
