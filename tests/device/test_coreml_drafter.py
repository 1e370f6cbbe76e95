"""The Core ML drafter over the reference interpreter, which loads the saved package and runs it with its states.

Apple's runtime is not run by any test: it is on Apple's systems only.
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish import availability
from pilotfish.drafters import load_drafter
from pilotfish.drafters.coreml import PACKAGE, CoreMLDrafter
from pilotfish.drafters.manifest import FileEntry, Manifest
from pilotfish.export import ExportReport, export_model
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.mil_interpreter import MilInterpreter
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import MissingExtra, ModelLoadError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import Tokenizer
from tests.device import models as tiny
from tests.device.model_contract import OwnLogitsContract

TEXT = "for abc in range(3):\n    print(abc)\n"
REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "draft"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("coreml"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def report(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_model(checkpoint, tmp_path_factory.mktemp("out") / "fp16", to="coreml", quant="fp16", text=TEXT)


@pytest.fixture(scope="module")
def interpreter(report: ExportReport) -> MilInterpreter:
    return MilInterpreter(report.folder / PACKAGE)


class TestFp16(OwnLogitsContract):
    @pytest.fixture
    def drafter(self, report: ExportReport, interpreter: MilInterpreter) -> Drafter:
        return CoreMLDrafter(report.folder, model=interpreter)


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> CoreMLDrafter:
    base = tmp_path_factory.mktemp("int4")
    source = tiny.build("Mistral", base / "source", sliding_window=8)
    folder = export_model(source, base / "out", to="coreml", quant="int4", text=TEXT).folder
    return CoreMLDrafter(folder, model=MilInterpreter(folder / PACKAGE))


class TestInt4WithWindow(OwnLogitsContract):
    @pytest.fixture
    def drafter(self, int4: CoreMLDrafter) -> Drafter:
        return int4


def test_rollback_is_exact_over_stale_slots(report: ExportReport, interpreter: MilInterpreter) -> None:
    drafter = CoreMLDrafter(report.folder, model=interpreter)
    context, fresh = drafter.open(SamplingParams(), 0), drafter.open(SamplingParams(), 0)
    for one in (context, fresh):
        one.extend([1, 2, 3, 4])
        one.logits()
    context.extend([200, 201, 202])
    context.logits()
    context.rewind(4)
    for token in (5, 6):
        context.extend([token])
        fresh.extend([token])
        np.testing.assert_array_equal(context.logits(), fresh.logits())


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["fp16", "int8", "int4"])
def test_the_reference_draft(quant: str, tmp_path: Path) -> None:
    """500 tokens of text: float16 has torch's best token wherever the two best are further apart than its steps."""
    text = inspect.getsource(textwrap)
    folder = export_model(REFERENCE, tmp_path / "out", to="coreml", quant=quant, text=TEXT).folder
    ids = Tokenizer.load(REFERENCE).encode(text, add_special_tokens=False)[:500]
    assert len(ids) == 500
    expected = Checkpoint(REFERENCE).logits(ids)
    context = CoreMLDrafter(folder, model=MilInterpreter(folder / PACKAGE)).open(SamplingParams(), 0)
    rows = []
    for token in ids:
        context.extend([token])
        rows.append(context.logits())
    found = np.stack(rows)
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    error = float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
    print(f"{quant}: best token equal at {same.sum()} of 500, relative RMS {error:.4f}")  # noqa: T201
    most, fewest = {"fp16": (0.005, 498), "int8": (0.05, 475), "int4": (0.12, 440)}[quant]
    assert error <= most
    assert same.sum() >= fewest
    if quant == "fp16":
        best = np.sort(expected, axis=1)
        assert same[best[:, -1] - best[:, -2] > 0.01].all()


def test_manifest_and_report(checkpoint: Path, report: ExportReport) -> None:
    manifest = Manifest.read(report.folder)
    manifest.verify(report.folder)
    assert (manifest.runtime, manifest.quant, manifest.kv.dtype) == ("coreml", "fp16", "float16")
    assert f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin" in manifest.files
    assert "Apple's runtime was not run" in report.checked_with == manifest.checked_with
    assert report.checked_with in report.table()
    assert "tokens_per_s" not in report.match
    assert "not measured" in report.table()
    assert report.match["relative_rms"] < 0.02


def test_only_the_matrices_are_rounded(int4: CoreMLDrafter) -> None:
    """The sizes of the down projection do not divide by 32: like embedding and head it has int8."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types
    from coremltools.models.utils import load_spec

    package = int4.folder / PACKAGE
    spec = load_spec(str(package))
    assert spec.specificationVersion == 9  # iOS 18
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    operations = load(spec, spec.specificationVersion, str(weights)).functions["main"].operations
    rounded = [op for op in operations if op.op_type == "constexpr_blockwise_shift_scale"]
    kinds = sorted(types.builtin_to_string(op.inputs["data"].dtype) for op in rounded)
    assert kinds == ["int8"] * 4 + ["uint4"] * 12
    assert all((op.inputs["scale"].val > 0).all() for op in rounded)
    assert not [op for op in rounded if "norm" in op.name or "before" in op.name or "sines" in op.name]


def test_a_package_that_is_not_whole(report: ExportReport, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(report.folder, tmp_path / "copy"))
    weights = folder / PACKAGE / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(ModelLoadError, match=r"weight\.bin has .* bytes"):
        load_drafter(folder)
    weights.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ModelLoadError, match=r"weight\.bin is damaged"):
        load_drafter(folder)
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"cannot read .*weight\.bin"):
        load_drafter(folder)


def test_a_package_that_says_something_else_than_the_manifest(
    report: ExportReport, interpreter: MilInterpreter, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(report.folder, tmp_path / "copy"))
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, vocab_size=10**6).write(folder)
    with pytest.raises(ModelLoadError, match=r"logits of shape \(260,\), the manifest a vocabulary of 1000000"):
        CoreMLDrafter(folder, model=interpreter)


def test_where_there_is_no_apple_runtime(report: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(ModelLoadError, match=r"model\.mlpackage cannot run here: .* this is Linux"):
        load_drafter(report.folder)
    assert not availability()["coreml"].usable
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.6.1", ("", "", ""), "arm64"))
    with pytest.raises(ModelLoadError, match=r"macOS 15 or later; this is macOS 14\.6\.1"):
        load_drafter(report.folder)


def test_an_operator_that_the_interpreter_does_not_know(report: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("pilotfish.export.mil_interpreter", fromlist=["_"])._OPERATORS, "silu")
    with pytest.raises(ModelLoadError, match="operator silu"):
        MilInterpreter(report.folder / PACKAGE)


def test_a_package_that_is_none(report: ExportReport, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(report.folder, tmp_path / "copy"))
    model = folder / PACKAGE / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.write_bytes(b"no model")
    manifest = Manifest.read(folder)
    files = {**manifest.files, CoreMLDrafter.model_file: FileEntry.of(model)}
    dataclasses.replace(manifest, files=files).write(folder)
    Manifest.read(folder).verify(folder)
    with pytest.raises(ModelLoadError, match="not a readable Core ML package"):
        MilInterpreter(folder / PACKAGE)


def test_without_coremltools(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(MissingExtra, match=r"pilotfish\[coreml\]"):
        export_model(checkpoint, tmp_path / "out", to="coreml", quant="fp16", text=TEXT)


def test_contexts_that_are_too_long(tmp_path: Path) -> None:
    source = tiny.build("Llama", tmp_path / "source", max_position_embeddings=40000)
    with pytest.raises(ModelLoadError, match="context length 40000 is beyond 32767"):
        export_model(source, tmp_path / "out", to="coreml", quant="fp16", context_length=40000)


@pytest.mark.slow
@pytest.mark.parametrize(("vocab_size", "positions"), [(70_000, 8192)])
def test_long_contexts_and_large_vocabularies(vocab_size: int, positions: int, tmp_path: Path) -> None:
    """Ids beyond 16 bits, and a context that is cut to what a state should take."""
    source = tiny.build("Qwen2", tmp_path / "source", vocab_size=vocab_size, max_position_embeddings=positions)
    report = export_model(source, tmp_path / "out", to="coreml", quant="fp16", text=TEXT)
    assert report.context_length == 4096
    drafter = CoreMLDrafter(report.folder, model=MilInterpreter(report.folder / PACKAGE))
    context = drafter.open(SamplingParams(), 0)
    context.extend([69_999, 5, 69_998])
    expected = Checkpoint(source).logits([69_999, 5, 69_998])[-1]
    error = np.sqrt(np.square(context.logits() - expected).mean() / np.square(expected).mean())
    assert error < 0.02


class Recorder:
    """What the drafter asks of coremltools' MLModel."""

    def __init__(self, interpreter: MilInterpreter) -> None:
        self.interpreter = interpreter
        self.calls: list[dict[str, Any]] = []

    def make_state(self) -> Any:
        return self.interpreter.make_state()

    def predict(self, data: Any, state: Any) -> Any:
        self.calls.append({name: (value.dtype.name, value.shape) for name, value in data.items()})
        return self.interpreter.predict(data, state)


def test_types_and_shapes_are_those_of_the_package(report: ExportReport, interpreter: MilInterpreter) -> None:
    """Apple's runtime refuses others."""
    recorder = Recorder(interpreter)
    context = CoreMLDrafter(report.folder, model=recorder).open(SamplingParams(), 3)
    context.extend([1, 2, 3])
    context.draft(2)
    assert recorder.calls[-2:] == [
        {"input_ids": ("int32", (1, new)), "position_ids": ("int32", (1, new)), "mask": ("float16", (1, 1, new, total))}
        for new, total in ((3, 3), (1, 4))
    ]
