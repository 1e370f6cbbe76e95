"""Deterministic mode: the same tokens and the same bits, whatever the company, the chunks and the drafts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_cloud.engine import determinism, slow_sizes
from pilotfish_cloud.engine.attention_plan import AttentionRule
from pilotfish_cloud.engine.determinism import equal_sizes
from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.engine.engine_config import EngineConfig
from pilotfish_cloud.engine.linear import PackedLinear
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.rule import row_ladder
from pilotfish_cloud.engine.slow_sizes import undominated
from pilotfish_core.errors import LocalError
from tests.cloud.engines import Ear, drafting, request, running
from tests.device import models as tiny

REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "target"


# Wide enough that orders of summation differ, long enough for several blocks of keys.
SIZES: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 448,
    "head_dim": 32,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1200,
    "initializer_range": 0.05,
}
# Windows that leave whole blocks of keys behind.
OTHERS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 100},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    "Gemma": {},
    "Gemma2": {"sliding_window": 100, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "Gemma3": {"sliding_window": 100, "sliding_window_pattern": 2},
    "Phi3": {"sliding_window": 100},
    "Phi": {"qk_layernorm": True, "num_key_value_heads": 6},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Qwen3", tmp_path_factory.mktemp("qwen3") / "tiny", **SIZES)


def engine_of(folder: Path, dtype: str, **options: Any) -> EmbeddedEngine:
    values: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 300, "deterministic": True}
    values["speculation"] = "fixed"  # every draft is verified, however bad it is
    return EmbeddedEngine(load_model(folder, dtype=dtype), EngineConfig(**(values | options)))


class Recorder:
    """The logits of every committed position, as bits, and whether they ever differed."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.bits: dict[tuple[int, ...], torch.Tensor] = {}
        self.compared = self.different = 0
        forward = engine.runner.forward

        def recorded(scheduled: Any) -> Any:
            computed = forward(scheduled)
            first = 0
            for entry in scheduled:
                tokens = tuple(entry.sequence.tokens)
                for row in range(entry.yields):
                    self._record((*tokens, *entry.draft[:row]), computed.logits[first + row])
                first += entry.yields
            return computed

        engine.runner.forward = recorded  # type: ignore[method-assign]

    def _record(self, context: tuple[int, ...], logits: torch.Tensor) -> None:
        known = self.bits.setdefault(context, logits.clone())
        self.compared += 1
        self.different += not torch.equal(known, logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_and_bits_depend_on_nothing_but_the_request(folder: Path, dtype: str) -> None:
    compare(folder, dtype, max_tokens=24)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", OTHERS)
def test_every_family_is_deterministic(tmp_path: Path, kind: str, dtype: str) -> None:
    compare(tiny.build(kind, tmp_path / "tiny", **{**SIZES, **OTHERS[kind]}), dtype, max_tokens=16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_target_is_deterministic(dtype: str) -> None:
    compare(REFERENCE, dtype, max_tokens=60)


def compare(folder: Path, dtype: str, *, max_tokens: int) -> None:
    engine = engine_of(folder, dtype)
    recorder = Recorder(engine)
    chance = random.Random(1)
    prompts = [[chance.randrange(250) for _ in range(length)] for length in (5, 37, 300, 498, 505, 20, 1, 700)]
    params: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.8, "seed": 3}
    with running(engine) as ear:
        alone = {}
        for number, prompt in enumerate(prompts):
            key = f"alone {number}"
            engine.open(request(key, prompt, salt=key.encode(), **params))
            ear.wait_end(key)
            alone[number] = ear.tokens(key)
        together(engine, ear, prompts, alone, params)
        resumed(engine, ear, prompts, alone, params)
        for number, prompt in enumerate(prompts):  # from the prefix cache
            key = f"cached {number}"
            engine.open(request(key, prompt, salt=f"alone {number}".encode(), **params))
            ear.wait_end(key)
            assert ear.opened[key] == (len(prompt) - 1) // 16 * 16
            assert ear.tokens(key) == alone[number]
    assert recorder.compared > 4 * len(prompts) * max_tokens
    assert recorder.different == 0


def together(
    engine: EmbeddedEngine, ear: Ear, prompts: list[list[int]], alone: dict[int, list[int]], params: Any
) -> None:
    """All in one batch, with oracle and junk drafts of several lengths."""
    chance = random.Random(2)
    for number, prompt in enumerate(prompts):
        key = f"together {number}"
        wrong = 0.0 if number % 2 else 0.4
        source = [chance.randrange(250) if chance.random() < wrong else token for token in alone[number]]
        drafting(engine, ear, key, len(prompt), source, (0, 1, 3, 7, 16, 2, 5, 11)[number])
        engine.open(request(key, prompt, salt=key.encode(), **params))
    ear.wait_end(*(f"together {number}" for number in alone))
    for number, tokens in alone.items():
        assert ear.tokens(f"together {number}") == tokens


def resumed(
    engine: EmbeddedEngine, ear: Ear, prompts: list[list[int]], alone: dict[int, list[int]], params: Any
) -> None:
    """From the middle of the answer, all at once: other chunks than before."""
    for number, prompt in enumerate(prompts):
        held = alone[number][: 3 + number]
        engine.open(request(f"resumed {number}", prompt, output=held, salt=b"resumed", **params))
    ear.wait_end(*(f"resumed {number}" for number in alone))
    for number, tokens in alone.items():
        assert tokens[: 3 + number] + ear.tokens(f"resumed {number}") == tokens


def test_without_it_bits_do_differ(folder: Path) -> None:
    """Else the tests above would prove nothing."""
    engine = engine_of(folder, "float32", deterministic=False)
    assert determinism.self_check(engine.runner) > 0


def test_without_it_few_row_counts_are_ever_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps half a megabyte for every one in every layer."""
    seen, product = set[int](), PackedLinear.product

    def watched(linear: PackedLinear, rows: torch.Tensor) -> torch.Tensor:
        seen.add(rows.shape[:-1].numel())
        return product(linear, rows)

    monkeypatch.setattr(PackedLinear, "product", watched)
    engine = engine_of(folder, "float32", deterministic=False)
    with running(engine) as ear:
        lengths = range(1, 300, 23)
        for length in lengths:
            prompt = [(7 * i + length) % 256 for i in range(length)]
            engine.open(request(str(length), prompt, max_tokens=9, ignore_eos=True))
        ear.wait_end(*map(str, lengths))
    assert len(seen) > 8
    assert seen <= set(row_ladder(300))


@given(st.integers(1, 5000))
def test_the_ladder_of_row_counts(rows: int) -> None:
    ladder = row_ladder(rows)
    assert ladder[-1] >= rows
    assert len(ladder) <= 8 + 4 * rows.bit_length()
    assert all(lower < upper <= max(lower + 1, lower * 1.25) for lower, upper in itertools.pairwise(ladder))


def test_sizes_that_a_larger_one_outruns_are_left_out() -> None:
    assert undominated([(1, 15.6), (2, 18.6), (3, 14.3), (4, 14.1), (6, 14.2), (8, 18.1)]) == (3, 4, 6, 8)
    assert undominated([(1, 5.0), (2, 4.9), (4, 6.0)]) == (1, 2, 4)  # by less than noise
    assert undominated([(1, 3.0), (2, 2.0), (4, 1.0)]) == (4,)
    assert undominated([]) == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaving_sizes_out_changes_no_bit(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the fingerprint, whatever this machine's timing says."""
    answers, fingerprints = set(), set()
    for slow in ((), (1, 2, 4), (1, 2, 3, 4, 5, 6, 7, 8, 12)):

        def left(times: Iterable[tuple[int, float]], slow: tuple[int, ...] = slow) -> tuple[int, ...]:
            return tuple(size for size, _ in times if size not in slow)

        monkeypatch.setattr(slow_sizes, "undominated", left)
        engine = engine_of(folder, dtype)
        assert engine.runner.row_sizes is not None
        assert not set(slow) & set(engine.runner.row_sizes)
        assert not set(slow) & set(engine.runner.output_layer.tile_sizes or ())
        with running(engine) as ear:
            engine.open(request("a", list(range(40)), max_tokens=24, ignore_eos=True))
            ear.wait_end("a")
            answers.add(tuple(ear.tokens("a")))
        fingerprints.add(engine.info.fingerprint)
    assert len(answers) == len(fingerprints) == 1


def test_a_rule_that_does_not_hold_is_replaced_by_a_stricter_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(determinism, "attention_rule", lambda runner: AttentionRule())
    engine = engine_of(folder, "float32")
    assert engine.runner.rule.min_query == engine.runner.rule.max_query
    assert determinism.self_check(engine.runner, length=1100, rows=600) == 0


def test_a_machine_without_a_rule_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(determinism, "self_check", lambda runner: 3)
    with pytest.raises(LocalError, match="deterministic mode"):
        engine_of(folder, "float32")


def test_the_fingerprint_tells_the_modes_apart(folder: Path) -> None:
    modes = [("float32", True), ("float32", False), ("bfloat16", True)]
    assert len({engine_of(folder, dtype, deterministic=on).info.fingerprint for dtype, on in modes}) == 3


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (AttentionRule(512, 4, 128, 32), {4, 31, 32, 36, 64, 68, 100, 128}),
        (AttentionRule(512, 16, 16), {16}),
    ],
)
def test_which_calls_a_rule_allows(rule: AttentionRule, allowed: set[int]) -> None:
    assert all(rule.allows(count) for count in allowed)
    assert not any(rule.allows(count) for count in (1, 3, 33, 65, 67, 129))


class _RarelyDiffering(PackedLinear):
    """One output of one row in sixteen is another in products of a single row, as another kernel might have it."""

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        result = super().product(rows)
        if rows.shape[0] == 1 and int(rows[0, :4].view(torch.int16).sum()) % 16 == 0:
            result[0, 0] = -result[0, 0]
        return result


def test_a_kernel_that_rarely_differs_is_found() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
    assert 1 not in equal_sizes(_RarelyDiffering(plain, packed=False))
    assert 8 in equal_sizes(_RarelyDiffering(plain, packed=False))
