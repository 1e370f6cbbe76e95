"""Every family in every format: how far the export's logits are from torch's, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish.drafters.manifest import Manifest
from pilotfish.export import QUANTS, TARGETS, export_model
from pilotfish.export.progress import ProgressBar
from pilotfish.export.targets import check_names
from pilotfish_core.errors import ModelLoadError
from tests.device import models as tiny

REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "draft"
TEXT = "for abc in range(3):\n    print(abc)\n" * 3
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": False},
}
FORMATS = [
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("onnx", "int4"),
    ("onnx-web", "fp32"),
    ("onnx-web", "fp16"),
    ("onnx-web", "int8"),
    ("coreml", "fp16"),
    ("coreml", "int8"),
    ("coreml", "int4"),
]
MOST = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.05, "int4": 0.5}  # relative RMS of random weights
MOST_REFERENCE = {"fp32": 1e-5, "fp16": 0.005, "int8": 0.05, "int4": 0.12}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a size that models have: those of the other tests are larger, to be far from flat."""
    base = tmp_path_factory.mktemp("families")
    return {name: tiny.build(name, base / name, initializer_range=0.1, **changes) for name, changes in FAMILIES.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("to", "quant"),
    [pytest.param(to, quant, marks=[pytest.mark.slow] if to == "coreml" else []) for to, quant in FORMATS],
)
def test_every_family(family: str, to: str, quant: str, sources: dict[str, Path], tmp_path: Path) -> None:
    report = export_model(sources[family], tmp_path / "out", to=to, quant=quant, text=TEXT)
    print(f"{family} {to} {quant}: {report.match}")  # noqa: T201
    assert report.match["relative_rms"] <= MOST[quant]
    assert Manifest.read(report.folder).match == report.match


@pytest.mark.slow
@pytest.mark.parametrize(("to", "quant"), FORMATS)
def test_the_reference_draft(to: str, quant: str, tmp_path: Path) -> None:
    report = export_model(REFERENCE, tmp_path / "out", to=to, quant=quant)
    print(f"{to} {quant}: {report.size} bytes, {report.match}")  # noqa: T201
    assert report.match["relative_rms"] <= MOST_REFERENCE[quant]
    assert report.match["coupled_match"] >= {"fp32": 1.0, "fp16": 0.99, "int8": 0.94, "int4": 0.89}[quant]


def test_what_is_not_to_be_had_says_why() -> None:
    for to in TARGETS:
        for quant in QUANTS:
            if (to, quant) in FORMATS:
                check_names(to, quant)
                continue
            with pytest.raises(ModelLoadError, match=f"{quant} is not to be had for {to}: .*; there are "):
                check_names(to, quant)


def test_a_tied_matrix_is_stored_once(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"vocab_size": 4096, "num_hidden_layers": 1}
    source = tiny.build("Llama", tmp_path / "source", tie_word_embeddings=True, **changes)
    for to in ("onnx", "onnx-web"):
        for quant, width in (("fp32", 4), ("fp16", 2), ("int8", 1.25)):
            if (to, quant) in FORMATS:
                folder = export_model(source, tmp_path / f"{to}-{quant}", to=to, quant=quant, text=TEXT).folder
                embedding = 4096 * 64 * width
                assert embedding < (folder / "model.onnx").stat().st_size < 1.7 * embedding


def test_the_chat_template_goes_along(sources: dict[str, Path], tmp_path: Path) -> None:
    import hashlib

    source = tmp_path / "source"
    source.mkdir()
    for file in sources["Llama"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    plain = export_model(sources["Llama"], tmp_path / "plain", text=TEXT).folder
    out = export_model(source, tmp_path / "out", text=TEXT).folder
    assert Manifest.read(plain).template_hash is None
    assert Manifest.read(out).template_hash == hashlib.sha256(template.encode()).hexdigest()
    assert "chat_template.jinja" in Manifest.read(out).files


@pytest.mark.parametrize("name", ["../model.onnx", "a/../../b", "/etc/passwd", "a\\b", "C:/x", "a//b", ""])
def test_file_names_that_leave_the_folder(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    folder = export_model(sources["Llama"], tmp_path / "out", text=TEXT).folder
    file = folder / "manifest.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"files": {name: {"size": 1, "sha256": ""}}}))
    with pytest.raises(ModelLoadError, match="not a plain name"):
        Manifest.read(folder)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    bar = ProgressBar()
    export_model(sources["Qwen3"], tmp_path / "out", quant="int4", text=TEXT, progress=bar)
    bar.clear()
    shown = terminal.getvalue()
    assert "\n" not in shown
    lines = shown.split("\r\x1b[2K")
    assert lines[-1] == ""
    measuring = [line for line in lines if line.endswith("measuring")]
    assert len(measuring) > 20
    assert measuring[-1] == f"export: [{'#' * 24}] 100%  measuring"
    assert f"export: [{'#' * 12}{'.' * 12}]  50%  writing int4 for onnx" in lines


def test_progress_elsewhere_is_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    for stage, done in (("loading x", 0.0), ("loading x", 1.0), ("measuring", 0.2), ("measuring", 1.0)):
        bar(stage, done)
    bar.clear()
    assert capsys.readouterr().err == "export: loading x\nexport: measuring\n"
