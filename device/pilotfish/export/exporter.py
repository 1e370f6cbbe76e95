"""Export of a checkpoint: graph, tokenizer and manifest in a folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from pilotfish.drafters.manifest import FileEntry, KvShape, Manifest, is_export
from pilotfish.export.progress import Progress
from pilotfish.export.targets import check_names, target
from pilotfish.signals import held
from pilotfish_core.errors import MissingExtra, ModelLoadError
from pilotfish_core.tokenizer import TOKENIZER_FILE, Tokenizer

_TOKENIZER_FILES: Final = (TOKENIZER_FILE, "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
_SHOWN: Final = 50  # characters of a folder's name in that of its temporary one, which has to fit as well
# Beyond these the graph does not compute the model; quantisation alone stays well below, on trained weights.
_WORST_RMS: Final = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.2, "int4": 1.0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export made. ``match`` are the figures of ``check.Match`` by name; ``size`` is in bytes.

    ``runtime`` is what it is for, ``checked_with`` in what the figures were measured.
    """

    folder: Path
    model: str
    runtime: str
    quant: str
    context_length: int
    size: int
    seconds: float
    match: dict[str, float]
    checked_with: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def table(self) -> str:
        """For people."""
        match = self.match
        speed = match.get("tokens_per_s")
        rows = [
            ("model", self.model),
            ("folder", str(self.folder)),
            ("format", f"{self.runtime}, {self.quant}, context {self.context_length}"),
            ("size", f"{self.size / 1e6:.2f} MB, {self.quant}"),
            ("checked with", self.checked_with),
            ("logits", f"{match['relative_rms']:.2g} relative RMS from fp32"),
            ("greedy match", f"{match['greedy_match']:.1%} of {match['positions']:.0f} positions, with fp32"),
            ("coupled match", f"{match['coupled_match']:.1%} at temperature 0.8, with fp32"),
            ("speed", "not measured" if speed is None else f"{speed:.0f} tokens/s on one thread"),
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
    calibration: str | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, done: None,
) -> ExportReport:
    """Export the Hugging Face folder (or id) ``model_dir`` to the folder ``out_dir`` and measure the result.

    ``to`` and ``quant`` are of ``targets.TARGETS`` and ``QUANTS``. ``text`` is what it is measured on, ``calibration``
    what int4 is rounded with: text like what the model will write. ``progress`` is called with the stage and how much
    of it is done. The folder is written beside ``out_dir`` and renamed. ``overwrite`` replaces an earlier export or an
    empty folder, nothing else.
    Raises ModelLoadError (also when ``out_dir`` exists and may not be replaced, or when the graph turns out not to
    compute the model) and MissingExtra.
    """
    check_names(to, quant)
    out = Path(out_dir).resolve()
    _check_replaceable(out, overwrite)
    _check_apart(Path(model_dir), out)
    begin = time.monotonic()
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with held():
            staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:_SHOWN]}-", dir=out.parent))
        manifest = _write(str(model_dir), staging, to, quant, text, calibration, context_length, progress)
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
        runtime=manifest.runtime,
        quant=quant,
        context_length=manifest.context_length,
        size=sum(entry.size for entry in manifest.files.values()),
        seconds=time.monotonic() - begin,
        match=dict(manifest.match),
        checked_with=manifest.checked_with,
    )


def _write(
    model: str,
    folder: Path,
    to: str,
    quant: str,
    text: str | None,
    calibration: str | None,
    context_length: int | None,
    progress: Progress,
) -> Manifest:
    try:
        from pilotfish.export.calibrate import calibration_ids, round_layers
        from pilotfish.export.check import measure
        from pilotfish.export.checkpoint import Checkpoint, resolve_folder

        format_ = target(to)
    except ImportError as error:
        raise MissingExtra.of(error.name or "onnx", "export", "exporting a model") from None
    stage = f"loading {model}"
    progress(stage, 0.0)
    source = resolve_folder(model)
    tokenizer = Tokenizer.load(source)
    checkpoint = Checkpoint(source, context_length, longest=format_.longest)
    shape = checkpoint.shape
    if tokenizer.vocab_size > shape.embeddings:
        raise ModelLoadError(
            f"{source} has a tokenizer of {tokenizer.vocab_size} ids but only {shape.embeddings} embeddings"
        )
    progress(stage, 1.0)
    rounded = {}
    if quant == "int4":
        progress("rounding to 4 bits", 0.0)
        sequences = calibration_ids(tokenizer, calibration)
        rounded = round_layers(checkpoint, sequences, lambda done: progress("rounding to 4 bits", done))
    stage = f"writing {quant} for {to}"
    progress(stage, 0.0)
    format_.write(checkpoint, quant, folder, lambda done: progress(stage, done), rounded)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    manifest = Manifest(
        model=source.resolve().name if Path(model).is_dir() else model,
        architecture=shape.architecture,
        runtime=format_.name,
        quant=quant,
        tokenizer_hash=tokenizer.hash,
        template_hash=_template_hash(source),
        vocab_size=tokenizer.vocab_size,
        context_length=shape.context_length,
        eos_token_ids=tokenizer.eos_token_ids,
        kv=KvShape(shape.layers, shape.kv_heads, shape.head_size, format_.cache_type),
        files={name: FileEntry.of(folder / name) for name in _files(folder)},
    )
    manifest.write(folder)
    progress(stage, 1.0)
    checked = format_.open(folder)
    found = measure(
        checkpoint,
        checked.drafter,
        tokenizer,
        text,
        timed=checked.timed,
        progress=lambda done: progress("measuring", done),
    )
    checked.drafter.close()
    if not found.relative_rms <= _WORST_RMS[quant]:  # not <=: NaN as well
        raise ModelLoadError(
            f"the exported graph of {source} does not compute the model: its logits are "
            f"{found.relative_rms:.3g} (relative RMS) from the checkpoint's"
        )
    manifest = dataclasses.replace(manifest, match=found.figures(), checked_with=checked.runtime)
    manifest.write(folder)
    return manifest


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _template_hash(source: Path) -> str | None:
    from pilotfish_openai.chat_template import ChatTemplate  # with jinja2, which no other command should wait for

    try:
        template = ChatTemplate.load(source)
    except ModelLoadError:  # a draft model does not need one
        return None
    return None if template is None else hashlib.sha256(template.source.encode()).hexdigest()


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
