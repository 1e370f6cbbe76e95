"""Export of a checkpoint: graph, tokenizer and manifest in a folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pilotfish.drafters.manifest import FileEntry, KvShape, Manifest, is_export
from pilotfish.signals import held
from pilotfish_core.errors import MissingExtra, ModelLoadError
from pilotfish_core.tokenizer import TOKENIZER_FILE, Tokenizer

QUANTS: Final[dict[str, int | None]] = {"int8": 8, "int4": 4, "fp32": None}
TARGETS: Final = ("onnx",)
_TOKENIZER_FILES: Final = (TOKENIZER_FILE, "tokenizer_config.json", "generation_config.json")
_SHOWN: Final = 50  # characters of a folder's name in that of its temporary one, which has to fit as well
# Beyond these the graph does not compute the model; quantisation alone stays well below, on trained weights.
_WORST_RMS: Final = {"fp32": 1e-3, "int8": 0.2, "int4": 1.0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export made. ``match`` are the figures of ``check.Match`` by name; ``size`` is in bytes."""

    folder: Path
    model: str
    quant: str
    size: int
    seconds: float
    match: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def table(self) -> str:
        """For people."""
        match = self.match
        rows = [
            ("model", self.model),
            ("folder", str(self.folder)),
            ("size", f"{self.size / 1e6:.2f} MB, {self.quant}"),
            ("logits", f"{match['relative_rms']:.2g} relative RMS from fp32"),
            ("greedy match", f"{match['greedy_match']:.1%} of {match['positions']:.0f} positions, with fp32"),
            ("coupled match", f"{match['coupled_match']:.1%} at temperature 0.8, with fp32"),
            ("speed", f"{match['tokens_per_s']:.0f} tokens/s on one thread"),
            ("took", f"{self.seconds:.1f} s"),
        ]
        return "\n".join(f"{name:<14} {value}" for name, value in rows)


def export_model(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    to: str = "onnx",
    quant: str = "int8",
    text: str | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> ExportReport:
    """Export the Hugging Face folder (or id) ``model_dir`` to the folder ``out_dir`` and measure the result.

    ``text`` is what it is measured on. ``progress`` is called with a line per stage. The folder is written
    beside ``out_dir`` and renamed. ``overwrite`` replaces an earlier export or an empty folder, nothing else.
    Raises ModelLoadError (also when ``out_dir`` exists and may not be replaced, or when the graph turns out not to
    compute the model) and MissingExtra.
    """
    import time

    if to not in TARGETS:
        raise ModelLoadError(f"cannot export to {to!r}; known: {', '.join(TARGETS)}")
    if quant not in QUANTS:
        raise ModelLoadError(f"unknown quantisation {quant!r}; known: {', '.join(QUANTS)}")
    out = Path(out_dir).resolve()
    _check_replaceable(out, overwrite)
    _check_apart(Path(model_dir), out)
    begin = time.monotonic()
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with held():
            staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:_SHOWN]}-", dir=out.parent))
        manifest = _write(str(model_dir), staging, quant, text, context_length, progress)
        staging.chmod(0o755)
        _check_replaceable(out, overwrite)  # again: minutes have passed
        with held():
            _replace(staging, out)
    except OSError as error:
        raise ModelLoadError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            with held():
                shutil.rmtree(staging, ignore_errors=True)
    return ExportReport(
        folder=out,
        model=manifest.model,
        quant=quant,
        size=sum(entry.size for entry in manifest.files.values()),
        seconds=time.monotonic() - begin,
        match=dict(manifest.match),
    )


def _write(
    model: str,
    folder: Path,
    quant: str,
    text: str | None,
    context_length: int | None,
    progress: Callable[[str], None],
) -> Manifest:
    try:
        from pilotfish.drafters.onnx import MODEL_FILE, RUNTIME, OnnxDrafter
        from pilotfish.export.check import measure
        from pilotfish.export.checkpoint import Checkpoint, resolve_folder
        from pilotfish.export.graph import write_graph
    except ImportError as error:
        raise MissingExtra.of(error.name or "onnx", "export", "exporting a model") from None
    source = resolve_folder(model)
    progress(f"loading {source}")
    tokenizer = Tokenizer.load(source)
    checkpoint = Checkpoint(source, context_length)
    shape = checkpoint.shape
    if tokenizer.vocab_size > shape.embeddings:
        raise ModelLoadError(
            f"{source} has a tokenizer of {tokenizer.vocab_size} ids but only {shape.embeddings} embeddings"
        )
    progress(f"writing {quant}")
    write_graph(checkpoint, QUANTS[quant], folder / MODEL_FILE)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    manifest = Manifest(
        model=source.resolve().name if Path(model).is_dir() else model,
        architecture=shape.architecture,
        runtime=RUNTIME,
        quant=quant,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        context_length=shape.context_length,
        eos_token_ids=tokenizer.eos_token_ids,
        kv=KvShape(shape.layers, shape.kv_heads, shape.head_size),
        files={file.name: FileEntry.of(file) for file in sorted(folder.iterdir())},
    )
    manifest.write(folder)
    progress("measuring")
    match = dataclasses.asdict(measure(checkpoint, OnnxDrafter(folder), tokenizer, text))
    if not match["relative_rms"] <= _WORST_RMS[quant]:  # not <=: NaN as well
        raise ModelLoadError(
            f"the exported graph of {source} does not compute the model: its logits are "
            f"{match['relative_rms']:.3g} (relative RMS) from the checkpoint's"
        )
    manifest = dataclasses.replace(manifest, match=match)
    manifest.write(folder)
    return manifest


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Raises ModelLoadError when something is at ``out`` that must stay."""
    try:
        if not out.exists():
            return
    except OSError as error:  # a name that no file can have
        raise ModelLoadError(f"cannot write {out}: {error.strerror or error}") from None
    if not overwrite:
        raise ModelLoadError(f"{out} exists already")
    try:
        ours = out.is_dir() and (is_export(out) or not any(out.iterdir()))
    except OSError as error:
        raise ModelLoadError(f"cannot read {out}: {error.strerror or error}") from None
    if not ours:
        raise ModelLoadError(f"{out} exists and is not an exported draft model; it is not overwritten")


def _check_apart(source: Path, out: Path) -> None:
    """Raises ModelLoadError when writing ``out`` would remove the model it is made of."""
    if source.is_dir() and source.resolve().is_relative_to(out):
        raise ModelLoadError(f"{out} holds the model to export, {source}; choose another folder to write")


def _replace(staging: Path, out: Path) -> None:
    """Rename ``staging`` to ``out``, removing what was there."""
    if not out.exists():
        staging.rename(out)
        return
    old = out.with_name(f".{out.name[:_SHOWN]}-old-{os.getpid()}")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
