"""What of the device's runtimes works on this machine, and why not where it does not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
from typing import Final

MACOS: Final = 15  # the first with states in Core ML, and the macOS of iOS 18


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime. ``reason`` says why it is not ``usable`` and what would help; empty where it is.

    ``version`` is that of its Python package, None where that is not installed.
    """

    name: str
    purpose: str
    usable: bool
    reason: str
    version: str | None


def availability() -> dict[str, Runtime]:
    """All of them by name. Nothing is imported for it, so a package that is there but broken counts as usable."""
    runtimes = (
        _of("onnx", "runs drafts of `pilotfish export --to onnx` and `--to onnx-web`", "onnxruntime", "onnxruntime"),
        _core_ml(),
        _of("export-onnx", "writes exports for ONNX Runtime", "torch transformers safetensors onnx", "export"),
        _of(
            "export-coreml", "writes exports for Core ML", "torch transformers safetensors coremltools", "export,coreml"
        ),
        _genai(),
    )
    return {runtime.name: runtime for runtime in runtimes}


def table() -> str:
    """For people."""
    runtimes = availability().values()
    lines = [f"{'yes' if runtime.usable else 'no':<5}{runtime.name:<15}{runtime.purpose}" for runtime in runtimes]
    return "\n".join(
        line if runtime.usable else f"{line}\n{'':20}{runtime.reason}"
        for line, runtime in zip(lines, runtimes, strict=True)
    )


def core_ml_reason() -> str:
    """Why Core ML cannot run models here; empty when it can."""
    if platform.system() != "Darwin":
        return f"Apple's runtime is only on Apple's systems; this is {platform.system() or 'an unknown system'}"
    found = platform.mac_ver()[0]
    major = found.split(".")[0]
    if not major.isdigit() or int(major) < MACOS:
        return f"models with a state need macOS {MACOS} or later; this is macOS {found or 'of an unknown version'}"
    return _missing("coremltools", "coreml")


def _core_ml() -> Runtime:
    reason = core_ml_reason()
    purpose = "runs drafts of `pilotfish export --to coreml`"
    return Runtime("coreml", purpose, not reason, reason, _version("coremltools"))


def _genai() -> Runtime:
    reason = (
        "no drafter of Pilotfish uses onnxruntime-genai: it decodes at the speed of ONNX Runtime itself, which "
        "the drafter `onnx` drives directly"
    )
    return Runtime("genai", "onnxruntime-genai", False, reason, _version("onnxruntime-genai"))


def _of(name: str, purpose: str, packages: str, extra: str) -> Runtime:
    reason = _missing(packages, extra)
    return Runtime(name, purpose, not reason, reason, _version(packages.split()[-1]))


def _missing(packages: str, extra: str) -> str:
    """What to install for the packages that are not there; empty when all are."""
    lacking = [package for package in packages.split() if importlib.util.find_spec(package) is None]
    if not lacking:
        return ""
    install = extra if extra == "onnxruntime" else f"'pilotfish[{extra}]'"
    return f"not installed: {', '.join(lacking)}; pip install {install}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
