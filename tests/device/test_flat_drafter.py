"""The browser's graph in ONNX Runtime: the contract of drafters, torch's logits, and rollback over one array."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish.drafters import load_drafter
from pilotfish.drafters.flat import FlatOnnxDrafter
from pilotfish.export import export_model
from pilotfish.export.checkpoint import Checkpoint
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.parameters import SamplingParams
from tests.core.drafter_contract import ExactChunksContract, ModelDrafterContract
from tests.device import models as tiny
from tests.device.model_contract import IDS, OwnLogitsContract, sampled

TEXT = "for abc in range(3):\n    print(abc)\n"


@pytest.fixture(scope="session")
def flat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("flat"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def flat(flat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("flat-exported")
    quants = ("fp32", "int8")
    return {q: export_model(flat_checkpoint, base / q, to="onnx-web", quant=q, text=TEXT).folder for q in quants}


class TestFp32(ModelDrafterContract, ExactChunksContract):
    """Against torch."""

    @pytest.fixture
    def drafter(self, flat: dict[str, Path], flat_checkpoint: Path) -> Drafter:
        self.reference = Checkpoint(flat_checkpoint)
        return FlatOnnxDrafter(flat["fp32"])

    def expected(self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams) -> int:
        return sampled(self.reference.logits(list(tokens))[-1], tokens, len(self.prompt), params, IDS)


class TestInt8(OwnLogitsContract):
    @pytest.fixture
    def drafter(self, flat: dict[str, Path]) -> Drafter:
        return FlatOnnxDrafter(flat["int8"])


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_logits_are_those_of_torch(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.drafters.flat.FIRST_CAPACITY", 4)
    name, changes = KINDS[kind]
    source = tiny.build(name, tmp_path / "source", **changes)
    folder = export_model(source, tmp_path / "out", to="onnx-web", quant="fp32", text=TEXT).folder
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 259, 60)]
    rows = Checkpoint(source).logits(ids)
    context = FlatOnnxDrafter(folder).open(SamplingParams(), 0)
    done = 0
    for count in (1, 2, 20, 1, 6, 30):
        context.extend(ids[done : done + count])
        done += count
        np.testing.assert_allclose(context.logits(), rows[done - 1], atol=1e-4)


@pytest.mark.parametrize("quant", ["fp32", "int8"])
def test_rollback_is_exact(flat: dict[str, Path], quant: str) -> None:
    drafter = FlatOnnxDrafter(flat[quant])
    context, fresh = drafter.open(SamplingParams(), 0), drafter.open(SamplingParams(), 0)
    for one in (context, fresh):
        one.extend([1, 2, 3, 4])
        one.logits()
    for token in (200, 201, 202):
        context.extend([token])
        context.logits()
    context.rewind(4)
    for token in (5, 6):
        context.extend([token])
        fresh.extend([token])
        np.testing.assert_array_equal(context.logits(), fresh.logits())


def test_the_graph_needs_nothing_that_is_slow_in_a_browser(flat: dict[str, Path]) -> None:
    import onnx

    operators = {node.op_type for node in onnx.load(flat["int8"] / "model.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert not operators & {"MatMulNBits", "GroupQueryAttention"}


def test_load_drafter_knows_it(flat: dict[str, Path]) -> None:
    drafter = load_drafter(flat["int8"])
    assert isinstance(drafter, FlatOnnxDrafter)
    assert (drafter.name, drafter.max_length) == ("onnx-web-int8", 96)
    drafter.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv": {"layers": 3, "heads": 2, "head_size": 16, "dtype": "float32"}}, r"past as \[2, 2, 2, 16\]"),
        ({"vocab_size": 10**6}, "logits of width 260"),
        ({"runtime": "onnxruntime"}, "was exported for onnxruntime"),
    ],
)
def test_manifests_that_are_wrong(flat: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for file in flat["int8"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ModelLoadError, match=message):
        FlatOnnxDrafter(tmp_path)


def test_a_graph_of_another_kind(flat: dict[str, Path], flat_checkpoint: Path, tmp_path: Path) -> None:
    folder = export_model(flat_checkpoint, tmp_path / "out", quant="fp32", text=TEXT).folder
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"runtime": "onnxruntime-web"}))
    with pytest.raises(ModelLoadError, match="not a browser's graph"):
        FlatOnnxDrafter(folder)
