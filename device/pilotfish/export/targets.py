"""What can be exported for which runtime: who writes the model, and in what it is checked afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfish.runtimes import core_ml_reason
from pilotfish_core.errors import ModelLoadError

if TYPE_CHECKING:
    from pilotfish.drafters.model import ModelDrafter
    from pilotfish.export.checkpoint import Checkpoint
    from pilotfish.export.quantise import Packed

TARGETS: Final = ("onnx", "onnx-web", "coreml")
QUANTS: Final = ("fp32", "fp16", "int8", "int4")
INTERPRETER: Final = "the reference interpreter in numpy; Apple's runtime was not run"
_LACKING: Final = {
    (
        "onnx-web",
        "int4",
    ): "ONNX Runtime has no fast 4-bit kernel in WebAssembly, it would be ten times slower than fp32",
    ("coreml", "fp32"): "the states of Core ML are float16",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """A drafter over what was exported, and in what it runs; ``timed``: whether its speed means anything."""

    drafter: ModelDrafter
    runtime: str
    timed: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One runtime's format.

    ``name`` is the manifest's word for the runtime. ``longest`` is the context of a model that has more, unless the
    user asks for another. ``write`` gets the checkpoint, the quantisation, the folder, what to tell the share that is
    done, and the layers' matrices that are rounded to int4 already.
    """

    name: str
    longest: int | None
    cache_type: str  # of keys and values
    write: Callable[[Checkpoint, str, Path, Callable[[float], None], Mapping[str, Packed]], None]
    open: Callable[[Path], Checked]


def check_names(to: str, quant: str) -> None:
    """Raises ModelLoadError for what is not a runtime and a quantisation that go together."""
    if to not in TARGETS:
        raise ModelLoadError(f"cannot export to {to!r}; known: {', '.join(TARGETS)}")
    if quant not in QUANTS:
        raise ModelLoadError(f"unknown quantisation {quant!r}; known: {', '.join(QUANTS)}")
    reason = _LACKING.get((to, quant))
    if reason:
        fitting = ", ".join(name for name in QUANTS if (to, name) not in _LACKING)
        raise ModelLoadError(f"{quant} is not to be had for {to}: {reason}; there are {fitting}")


def target(to: str) -> Target:
    """The target of that name. Raises ImportError naming a package that it needs and that is not installed."""
    return {"onnx": _onnx, "onnx-web": _onnx_web, "coreml": _core_ml}[to]()


def _onnx() -> Target:
    from pilotfish.drafters.onnx import MODEL_FILE, OnnxDrafter
    from pilotfish.export.graph import write_graph

    return Target(
        name=OnnxDrafter.runtime,
        longest=None,
        cache_type="float32",
        write=lambda checkpoint, quant, folder, done, rounded: write_graph(
            checkpoint, quant, folder / MODEL_FILE, done, rounded
        ),
        open=lambda folder: Checked(OnnxDrafter(folder), _onnx_runtime(), timed=True),
    )


def _onnx_web() -> Target:
    from pilotfish.drafters.flat import FlatOnnxDrafter
    from pilotfish.export.flat_graph import write_flat_graph

    return Target(
        name=FlatOnnxDrafter.runtime,
        longest=None,
        cache_type="float32",
        write=lambda checkpoint, quant, folder, done, _: write_flat_graph(
            checkpoint, quant, folder / FlatOnnxDrafter.model_file, done
        ),
        open=lambda folder: Checked(FlatOnnxDrafter(folder), f"{_onnx_runtime()}; no browser was run", timed=True),
    )


def _core_ml() -> Target:
    from pilotfish.drafters.coreml import PACKAGE, CoreMLDrafter
    from pilotfish.export.coreml_package import DEFAULT_CONTEXT, write_package

    def opened(folder: Path) -> Checked:
        if not core_ml_reason():
            return Checked(CoreMLDrafter(folder), "Core ML on this Mac", timed=True)
        from pilotfish.export.mil_interpreter import MilInterpreter

        return Checked(CoreMLDrafter(folder, model=MilInterpreter(folder / PACKAGE)), INTERPRETER, timed=False)

    return Target(
        name=CoreMLDrafter.runtime,
        longest=DEFAULT_CONTEXT,
        cache_type="float16",
        write=lambda checkpoint, quant, folder, done, rounded: write_package(
            checkpoint, quant, folder / PACKAGE, done, rounded
        ),
        open=opened,
    )


def _onnx_runtime() -> str:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} on this processor"
