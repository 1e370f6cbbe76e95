"""The exporter: every supported architecture against torch, the manifest, and folders that are not whole."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish.drafters.manifest import Manifest
from pilotfish.drafters.onnx import OnnxDrafter
from pilotfish.export import ExportReport, export_model
from pilotfish.export.calibrate import calibration_ids, round_layers
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.command import add_export_parser
from pilotfish.export.quantise import dequantise, quantise
from pilotfish_core.errors import InvalidParameter, MissingExtra, ModelLoadError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import Tokenizer
from tests.device import models as tiny

KV = {"layers": 2, "heads": 2, "head_size": 16, "dtype": "float32"}  # of the tiny models
TEXT = "for abc in range(3):\n    print(abc)\n"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama-3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            }
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.build("Llama", tmp_path_factory.mktemp("export"), tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_model(checkpoint, tmp_path_factory.mktemp("out") / "int8", quant="int8", text=TEXT)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_architectures_equal_torch(kind: str, tmp_path: Path) -> None:
    name, changes = KINDS[kind]
    source = tiny.build(name, tmp_path / "source", **changes)
    export_model(source, tmp_path / "out", quant="fp32", text=TEXT)
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 259, 60)]
    rows = Checkpoint(source).logits(ids)
    drafter = OnnxDrafter(tmp_path / "out")
    for first in (1, 30, 60):  # prompts in one chunk, then token by token
        context = drafter.open(SamplingParams(), 0)
        context.extend(ids[:first])
        np.testing.assert_allclose(context.logits(), rows[first - 1], atol=1e-4)
        for index in range(first, 60):
            context.extend([ids[index]])
            np.testing.assert_allclose(context.logits(), rows[index], atol=1e-4)


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied"])
def test_quantised_weights_are_what_the_graph_uses(
    quant: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch with the dequantised weights, and activations left in float32."""
    import torch

    monkeypatch.setattr("pilotfish.export.graph._INT8_ACTIVATIONS", 1)
    name, changes = KINDS[kind]
    source = tiny.build(name, tmp_path / "source", **changes)
    export_model(source, tmp_path / "out", quant=quant, text=TEXT)
    checkpoint = Checkpoint(source)
    packed = {}
    if quant == "int4":
        packed = round_layers(checkpoint, calibration_ids(Tokenizer.load(source), None), lambda done: None)
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            if parameter.ndim == 2:
                matrix = name.removesuffix(".weight")
                bits = 4 if matrix in packed else 8
                rounded = dequantise(*packed.get(matrix, quantise(parameter.numpy(), 8)), bits, parameter.shape[1])
                parameter.copy_(torch.from_numpy(rounded))
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 259, 40)]
    rows = checkpoint.logits(ids)
    context = OnnxDrafter(tmp_path / "out").open(SamplingParams(), 0)
    drafted = []
    for token in ids:
        context.extend([token])
        drafted.append(context.logits())
    error = np.sqrt(np.square(np.stack(drafted) - rows).mean() / np.square(rows).mean())
    assert error < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(3, 64), (5, 50), (1, 1)])
def test_quantise(bits: int, shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[0] = 0.0
    packed, scales = quantise(weight, bits)
    blocks = -(-shape[1] // 32)
    assert packed.shape == (shape[0], blocks, 4 * bits)
    assert scales.shape == (shape[0], blocks)
    back = dequantise(packed, scales, bits, shape[1])
    assert not back[0].any()
    plain = np.abs(weight).max(initial=0.0) / 2 ** (bits - 1)  # round-to-nearest without a search
    assert np.sqrt(np.square(back - weight).mean()) <= plain / np.sqrt(3)


def test_manifest(checkpoint: Path, exported: ExportReport) -> None:
    manifest = Manifest.read(exported.folder)
    manifest.verify(exported.folder)
    tokenizer = Tokenizer.load(checkpoint)
    assert manifest.tokenizer_hash == tokenizer.hash == Tokenizer.load(exported.folder).hash
    assert (manifest.vocab_size, manifest.context_length, manifest.eos_token_ids) == (259, 96, (256,))
    assert dataclasses.astuple(manifest.kv) == (2, 2, 16, "float32")
    assert manifest.kv.bytes_per_position == 2 * 2 * 2 * 16 * 4
    assert set(manifest.files) >= {"model.onnx", "tokenizer.json"}
    assert manifest.match == exported.match
    assert exported.size == sum((exported.folder / name).stat().st_size for name in manifest.files)


def test_report(exported: ExportReport) -> None:
    assert 0 < exported.match["relative_rms"] < 0.1
    assert exported.match["greedy_match"] > 0.8
    assert exported.match["coupled_match"] > 0.8
    assert exported.match["tokens_per_s"] > 0
    assert json.loads(json.dumps(exported.to_dict()))["quant"] == "int8"
    assert "tokens/s" in exported.table()


def test_large_weights_go_beside_the_graph(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.export.graph.INLINE_UP_TO", 0)
    folder = export_model(checkpoint, tmp_path / "out", quant="fp32", text=TEXT).folder
    assert "model.onnx.data" in Manifest.read(folder).files


def copy_of(folder: Path, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_folders_that_are_not_whole(exported: ExportReport, tmp_path: Path) -> None:
    folder = copy_of(exported.folder, tmp_path / "copy")
    model = folder / "model.onnx"
    data = model.read_bytes()
    model.write_bytes(data[:-1])
    with pytest.raises(ModelLoadError, match=r"model\.onnx has .* bytes"):
        OnnxDrafter(folder)
    model.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ModelLoadError, match=r"model\.onnx is damaged"):
        OnnxDrafter(folder)
    model.unlink()
    with pytest.raises(ModelLoadError, match=r"cannot read .*model\.onnx"):
        OnnxDrafter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "does not describe"),
        ({"version": 2}, "format version 2"),
        ({"kv": {}}, "damaged: KeyError"),
        ({"files": {"../model.onnx": {"size": 1, "sha256": ""}}}, "not a plain name"),
        ({"vocab_size": 0}, "not positive"),
        ({"context_length": float("inf")}, "damaged: .*context_length is inf"),
        ({"vocab_size": 10**9}, r"model\.onnx has logits of width 260, the manifest a vocabulary of 1000000000"),
        ({"kv": KV | {"layers": 1_000_000}}, r"model\.onnx has 7 inputs .* not a graph of 1000000 layers"),
        ({"kv": KV | {"layers": 10**12}}, "layers is 1000000000000"),
        ({"kv": KV | {"layers": 1}}, "not a graph of 1 layers"),
        ({"kv": KV | {"heads": 7}}, r"past\.0\.key as .* the manifest says"),
        ({"kv": KV | {"head_size": 8}}, r"past\.0\.key as .* the manifest says"),
        ({"kv": KV | {"heads": 2.0}}, r"heads is 2\.0"),
        ({"kv": KV | {"dtype": "nonsense"}}, "nonsense"),
        ({"kv": KV | {"dtype": "float16"}}, "float16"),
        ({"kv": 5}, "damaged: TypeError"),
        ({"files": {}}, "lacks model.onnx"),
        ({"runtime": "coreml"}, "exported for coreml"),
        ({"added_later": 1}, None),
    ],
)
def test_manifests_that_are_wrong(
    exported: ExportReport, tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    folder = copy_of(exported.folder, tmp_path / "copy")
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if message is None:
        OnnxDrafter(folder)
        return
    with pytest.raises(ModelLoadError, match=message):
        OnnxDrafter(folder)
    file.write_text("{")
    with pytest.raises(ModelLoadError, match="not JSON"):
        OnnxDrafter(folder)


def test_a_graph_that_the_runtime_refuses(exported: ExportReport, tmp_path: Path) -> None:
    from pilotfish.drafters.manifest import FileEntry

    folder = copy_of(exported.folder, tmp_path / "copy")
    (folder / "model.onnx").write_bytes(b"no graph")
    manifest = Manifest.read(folder)
    files = {**manifest.files, "model.onnx": FileEntry.of(folder / "model.onnx")}
    dataclasses.replace(manifest, files=files).write(folder)
    with pytest.raises(ModelLoadError, match=r"cannot load .*model\.onnx"):
        OnnxDrafter(folder)


def test_refusals(checkpoint: Path, exported: ExportReport, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="exists already"):
        export_model(checkpoint, exported.folder)
    with pytest.raises(ModelLoadError, match="no such model folder"):
        export_model(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ModelLoadError, match="tokenizer"):
        export_model(tmp_path, tmp_path / "out")
    with pytest.raises(ModelLoadError, match="unknown quantisation"):
        export_model(checkpoint, tmp_path / "out", quant="int3")
    with pytest.raises(ModelLoadError, match="cannot export to"):
        export_model(checkpoint, tmp_path / "out", to="tflite")
    with pytest.raises(ModelLoadError, match="context length 97"):
        export_model(checkpoint, tmp_path / "out", context_length=97)
    odd = tiny.build("Llama", tmp_path / "odd", hidden_size=48)
    with pytest.raises(ModelLoadError, match="multiple of 32"):
        export_model(odd, tmp_path / "out", quant="int4")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelLoadError, match="GPT2LMHeadModel"):
        export_model(odd, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["odd"], "nothing half-written is left"


def test_a_graph_that_computes_something_else_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.export.exporter._WORST_RMS", {"int8": 1e-9})
    with pytest.raises(ModelLoadError, match="does not compute the model"):
        export_model(checkpoint, tmp_path / "out", text=TEXT)
    assert list(tmp_path.iterdir()) == []


def test_missing_extra(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pilotfish\[export\]"):
        export_model(checkpoint, tmp_path / "out")


def test_overwrite_and_shorter_context(checkpoint: Path, tmp_path: Path) -> None:
    for length in (96, 40):
        export_model(checkpoint, tmp_path / "out", quant="int4", context_length=length, overwrite=True, text=TEXT)
    assert OnnxDrafter(tmp_path / "out").max_length == 40
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_only_an_export_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    """Not the checkpoint itself, not a folder that holds it, not a folder or a file of anybody else."""
    source = copy_of(checkpoint, tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "manifest.json").write_text('{"format": "of a web page"}')
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for out in (source, tmp_path / "link", source / ".." / "source", tmp_path, theirs, tmp_path / "file"):
        with pytest.raises(ModelLoadError, match=r"is not overwritten|holds the model"):
            export_model(source, out, quant="int4", overwrite=True, text=TEXT)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_holds_the_checkpoint_is_not_overwritten(
    checkpoint: Path, exported: ExportReport, tmp_path: Path
) -> None:
    out = copy_of(exported.folder, tmp_path / "out")
    source = copy_of(checkpoint, out / "source")
    with pytest.raises(ModelLoadError, match="holds the model to export"):
        export_model(source, out, overwrite=True, text=TEXT)
    assert (source / "config.json").is_file()


def test_a_folder_that_came_meanwhile_is_not_overwritten(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def write(*_: Any) -> Any:
        out.mkdir()
        (out / "notes").touch()

    monkeypatch.setattr("pilotfish.export.exporter._write", write)
    for overwrite in (False, True):
        with pytest.raises(ModelLoadError, match="exists"):
            export_model(checkpoint, out, overwrite=overwrite)
        assert [file.name for file in tmp_path.rglob("*")] == ["out", "notes"]
        (out / "notes").unlink()
        out.rmdir()


def test_an_empty_folder_and_an_older_export_are_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_model(checkpoint, out, quant="int4", overwrite=True, text=TEXT)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    export_model(checkpoint, out, quant="int4", overwrite=True, text=TEXT)
    assert Manifest.read(out).quant == "int4"


def test_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_export_parser(parser.add_subparsers())
    text = tmp_path / "text"
    text.write_text(TEXT)
    base = ["export", str(checkpoint), "--text-file", str(text), "--quant", "int4", "--out"]
    arguments = parser.parse_args([*base, str(tmp_path / "a"), "--json"])
    assert arguments.run(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["match"]["positions"] > 20
    assert all(line.startswith("export: ") for line in captured.err.splitlines())
    arguments = parser.parse_args([*base, str(tmp_path / "b")])
    arguments.run(arguments)
    assert "MB, int4" in capsys.readouterr().out
    text.write_bytes(b"\xff")
    with pytest.raises(InvalidParameter, match="cannot read the text file"):
        arguments.run(arguments)
