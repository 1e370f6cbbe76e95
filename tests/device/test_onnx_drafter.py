"""The ONNX Runtime drafter on tiny exported models, and the drafters without a model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish.drafters import load_drafter
from pilotfish.drafters.junk import JunkDrafter
from pilotfish.drafters.onnx import OnnxDrafter
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.export.checkpoint import Checkpoint
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.ngram import NgramDrafter
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import coupled_candidates
from tests.core.drafter_contract import (
    BoundedContract,
    ExactChunksContract,
    FollowsContextContract,
    ModelDrafterContract,
)
from tests.device import models as tiny
from tests.device.model_contract import OwnLogitsContract, sampled


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.build("Llama", tmp_path_factory.mktemp("tiny"), tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="session")
def reference(checkpoint_folder: Path) -> Any:
    return Checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def exported(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from pilotfish.export import QUANTS, export_model

    base = tmp_path_factory.mktemp("exported")
    text = "def f(x): return abc\n" * 4
    return {q: export_model(checkpoint_folder, base / q, quant=q, text=text).folder for q in QUANTS}


class TestFp32(ModelDrafterContract, ExactChunksContract):
    """Against torch."""

    @pytest.fixture
    def drafter(self, exported: dict[str, Path], reference: Any) -> Drafter:
        self.reference = reference
        return OnnxDrafter(exported["fp32"])

    def expected(self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams) -> int:
        row = self.reference.logits(list(tokens))[-1]
        return sampled(row, tokens, len(self.prompt), params, 259)


class QuantisedOnnxContract(OwnLogitsContract):
    quant = ""

    @pytest.fixture
    def drafter(self, exported: dict[str, Path]) -> Drafter:
        return OnnxDrafter(exported[self.quant])


class TestFp16(QuantisedOnnxContract):
    quant = "fp16"


class TestInt8(QuantisedOnnxContract):
    quant = "int8"


class TestInt4(QuantisedOnnxContract):
    quant = "int4"


class TestJunk(FollowsContextContract, BoundedContract, ExactChunksContract):
    @pytest.fixture
    def drafter(self) -> Drafter:
        return JunkDrafter(100, seed=1, max_length=50)


class TestOracle(ExactChunksContract):
    @pytest.fixture
    def drafter(self) -> Drafter:
        sequence = [*self.prompt, *range(20)]
        return OracleDrafter([[9, 9], sequence], vocab_size=100, accuracy=0.7)


def test_logits_are_those_of_torch(exported: dict[str, Path], reference: Any) -> None:
    ids = [int(token) for token in np.random.default_rng(0).integers(0, 259, 96)]
    rows = reference.logits(ids)
    drafter = OnnxDrafter(exported["fp32"])
    whole, single = drafter.open(SamplingParams(), 0), drafter.open(SamplingParams(), 0)
    whole.extend(ids)
    np.testing.assert_allclose(whole.logits(), rows[-1], atol=1e-4)
    for token, row in zip(ids, rows, strict=True):
        single.extend([token])
        np.testing.assert_allclose(single.logits(), row, atol=1e-4)


def test_buffers_grow_and_keep_what_they_hold(
    exported: dict[str, Path], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.drafters.onnx.FIRST_CAPACITY", 4)
    monkeypatch.setattr("pilotfish.drafters.model.CHUNK", 6)
    ids = [int(token) for token in np.random.default_rng(1).integers(0, 259, 90)]
    rows = reference.logits(ids)
    context = OnnxDrafter(exported["fp32"]).open(SamplingParams(), 0)
    done = 0
    for count in (1, 2, 3, 1, 20, 40, 1, 22):
        context.extend(ids[done : done + count])
        done += count
        np.testing.assert_allclose(context.logits(), rows[done - 1], atol=1e-4)


@pytest.mark.parametrize("quant", ["fp32", "int8", "int4"])
def test_rollback_is_exact_over_stale_slots(exported: dict[str, Path], quant: str) -> None:
    drafter = OnnxDrafter(exported[quant])
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


def test_candidates(exported: dict[str, Path]) -> None:
    params = SamplingParams(temperature=0.9, seed=4)
    context = OnnxDrafter(exported["int8"]).open(params, 3)
    assert context.candidates(3) == []
    context.extend([1, 2, 3])
    best = context.candidates(3)
    assert best == coupled_candidates(context.logits(), params, 3, 3, vocab_size=259)
    assert context.length == 3
    assert context.draft(1) == best[:1]


def test_padded_rows_are_never_proposed(exported: dict[str, Path]) -> None:
    """The embedding has 260 rows, the tokenizer 259 ids."""
    params = SamplingParams(temperature=0.0, logit_bias=((259, 100.0),))
    context = OnnxDrafter(exported["fp32"]).open(params, 1)
    context.extend([1])
    assert 259 not in context.draft(20)


def test_end_tokens_wait_for_min_tokens(exported: dict[str, Path]) -> None:
    """As the target's do, or every draft would be refused there."""
    for wanted, stops in ((256, ()), (5, (5, 9999))):
        params = SamplingParams(
            temperature=0.0,
            min_tokens=4,
            logit_bias=((wanted, 100.0),),
            stop_token_ids=stops,
            ignore_eos=bool(stops),
        )
        context = OnnxDrafter(exported["fp32"]).open(params, 2)
        context.extend([1, 2])
        drafted = context.draft(6)
        assert wanted not in drafted[:3]
        assert drafted[3:] == [wanted] * 3


def test_ids_outside_the_embedding_are_refused(exported: dict[str, Path]) -> None:
    context = OnnxDrafter(exported["fp32"]).open(SamplingParams(), 1)
    for token in (-1, 260):
        with pytest.raises(ValueError, match="outside"):
            context.extend([1, token])
    assert context.length == 0
    with pytest.raises(ValueError, match="no logits"):
        context.logits()


def test_contexts_in_threads(exported: dict[str, Path]) -> None:
    drafter = OnnxDrafter(exported["int8"])
    prompts = [[1 + i, 2, 3 + i] for i in range(4)]

    def run(prompt: list[int]) -> list[int]:
        context = drafter.open(SamplingParams(seed=prompt[0]), 3)
        context.extend(prompt)
        return context.draft(60)

    alone = [run(prompt) for prompt in prompts]
    results: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda i=i, p=p: results.__setitem__(i, run(p))) for i, p in enumerate(prompts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == alone


def test_close_frees_and_the_context_can_be_dropped(exported: dict[str, Path]) -> None:
    drafter = OnnxDrafter(exported["int4"])
    context = drafter.open(SamplingParams(), 1)
    context.extend([1, 2])
    context.draft(3)
    context.close()
    drafter.close()


def test_load_drafter(exported: dict[str, Path], checkpoint_folder: Path, tmp_path: Path) -> None:
    assert load_drafter(None) is None
    assert load_drafter("none") is None
    assert isinstance(load_drafter("ngram"), NgramDrafter)
    drafter = load_drafter(str(exported["int8"]), threads=2)
    assert isinstance(drafter, OnnxDrafter)
    assert (drafter.name, drafter.max_length) == ("onnx-int8", 96)
    with pytest.raises(ModelLoadError, match="pilotfish export"):
        load_drafter(checkpoint_folder)
    with pytest.raises(ModelLoadError, match=r"no manifest\.json"):
        load_drafter(tmp_path)
    with pytest.raises(ModelLoadError, match="no such draft model"):
        load_drafter(tmp_path / "missing")
    with pytest.raises(ValueError, match="threads"):
        load_drafter(exported["int8"], threads=0)


def test_oracle_accuracy() -> None:
    sequence = list(range(3)) + [5] * 2000
    for accuracy in (0.0, 0.8, 1.0):
        context = OracleDrafter([sequence], vocab_size=8, accuracy=accuracy, seed=2).open(SamplingParams(), 3)
        context.extend(sequence[:3])
        drafted = context.draft(3000)
        assert len(drafted) == 2000
        assert set(drafted) <= set(range(8))
        assert drafted.count(5) / 2000 == pytest.approx(accuracy, abs=0.03)
    unknown = OracleDrafter([sequence], vocab_size=8).open(SamplingParams(), 3)
    unknown.extend([7, 7, 7])
    assert unknown.draft(4) == []
    with pytest.raises(ValueError, match="accuracy"):
        OracleDrafter([], vocab_size=8, accuracy=1.5)
