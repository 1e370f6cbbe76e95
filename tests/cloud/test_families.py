"""Every family of models, as our engine runs it and as transformers does: the same tokens, the same logits.

Ours goes through chunked prefill beside other sequences, ragged verification of good and bad drafts, and rollback;
transformers generates one sequence at a time with its own cache and its own attention.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from tests.device import models as tiny

NEW_TOKENS = 64
MAX_LEN = 160
PROMPTS = (45, 3, 90)  # tokens; two are longer than every window below
SIZES: dict[str, Any] = {"max_position_embeddings": MAX_LEN, "initializer_range": 0.15}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


def longrope(original: int, long: float = 3.0) -> dict[str, Any]:
    parameters = rope("longrope", short_factor=[1.0, 1.1] * 4, long_factor=[1.0, long] * 4, factor=8.0)
    parameters["rope_parameters"]["original_max_position_embeddings"] = original
    return parameters | {"original_max_position_embeddings": original}


GEMMA_2: dict[str, Any] = {
    "sliding_window": 11,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
}
LLAMA_3: dict[str, Any] = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=40
)
TWO_ROPES: dict[str, Any] = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, sharded": ("Llama", {"tie_word_embeddings": True, "shard": "60KB"}),
    "llama, biases, wide heads": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama, one key head": ("Llama", {"num_key_value_heads": 1}),
    "llama, linear": ("Llama", rope("linear", factor=4.0)),
    "llama, llama3": ("Llama", LLAMA_3),
    "llama, yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=40)),
    "llama, dynamic": ("Llama", rope("dynamic", factor=4.0)),
    "mistral, window": ("Mistral", {"sliding_window": 9}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "head_dim": 20}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, yarn": ("Qwen3", rope("yarn", factor=4.0, original_max_position_embeddings=40)),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", GEMMA_2),
    "gemma3": ("Gemma3", {"sliding_window": 10, "num_hidden_layers": 4, "sliding_window_pattern": 2}),
    "gemma3, linear": (
        "Gemma3",
        {"sliding_window": 10, "query_pre_attn_scalar": 24, "rope_parameters": TWO_ROPES}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3, window": ("Phi3", {"sliding_window": 14}),
    "phi3, longrope within": ("Phi3", {"tie_word_embeddings": True} | longrope(MAX_LEN)),
    "phi4 mini": ("Phi3", {"partial_rotary_factor": 0.75} | rope("default", partial_rotary_factor=0.75)),
    "phi": ("Phi", {}),
    "phi, qk norm": ("Phi", {"qk_layernorm": True, "partial_rotary_factor": 0.25}),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(case: str) -> Path:
        if case not in made:
            kind, changes = CASES[case]
            made[case] = tiny.build(kind, base / case, **{**SIZES, **changes})
        return made[case]

    return folder


def texts() -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(256) for _ in range(length)] for length in PROMPTS]


def reference(folder: Path, **changes: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **changes)
    model.generation_config.eos_token_id = None
    return model.eval()


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@torch.inference_mode()
def plain_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@dataclasses.dataclass
class Running:
    """One sequence in our runner: its tokens, how many of them are computed, and the logits of those that count."""

    slot: int
    tokens: list[int]
    expected: list[int]  # what transformers wrote
    end: int
    computed: int = 0
    logits: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)


def runner_of(folder: Path, *, max_len: int = MAX_LEN, dtype: str = "float32") -> ModelRunner:
    torch.set_num_threads(1)
    loaded = load_model(folder, dtype=dtype)
    return ModelRunner(loaded, num_slots=6, num_blocks=1, block_size=4, max_len=max_len)


@torch.inference_mode()
def run(runner: ModelRunner, prompts: list[list[int]], expected: list[list[int]]) -> list[Running]:
    """All sequences to their ends: prompts in chunks, then drafts of which some are right."""
    chance = random.Random(1)
    slots = [runner.store.acquire() for _ in range(6)]
    running = [
        Running(slot, list(prompt), wanted, len(prompt) + len(wanted))
        for slot, prompt, wanted in zip((slots[4], slots[1], slots[3]), prompts, expected, strict=True)
    ]
    while any(len(one.tokens) < one.end for one in running):
        tokens: list[int] = []
        segments: list[Segment] = []
        parts: list[tuple[Running, list[int], int]] = []
        for one in chance.sample(running, len(running)):
            pending = len(one.tokens) - one.computed
            if len(one.tokens) >= one.end:
                continue
            if pending > 1:
                inputs = one.tokens[one.computed : one.computed + chance.choice((1, 7, 16, 30))]
            else:
                begin = len(one.tokens) - (one.end - len(one.expected))
                good = one.expected[begin : begin + chance.choice((0, 0, 1, 3))]
                bad = [chance.randrange(256) for _ in range(chance.choice((0, 0, 2, 4)))]
                room = one.end - len(one.tokens) - 1
                inputs = [one.tokens[-1], *[*good, *bad][:room]]
            segments.append(Segment(one.slot, len(tokens), len(tokens) + len(inputs), one.computed))
            tokens += inputs
            parts.append((one, inputs, pending))
        logits = runner.lm_head(runner.hidden(tokens, segments))
        for (one, inputs, pending), segment in zip(parts, segments, strict=True):
            if len(inputs) < pending:
                one.computed += len(inputs)
                continue
            draft = inputs[pending:]
            for row in range(pending - 1, len(inputs)):
                token = int(logits[segment.begin + row].argmax())
                one.logits[len(one.tokens) - 1] = logits[segment.begin + row]
                one.tokens.append(token)
                accepted = row - pending + 1
                if accepted < len(draft) and draft[accepted] != token:
                    break
            one.computed = len(one.tokens) - 1
    return running


def compare(
    folder: Path, model: Any, prompts: list[list[int]], *, max_len: int = MAX_LEN, new_tokens: int = NEW_TOKENS
) -> None:
    expected = [generated(model, prompt, new_tokens) for prompt in prompts]
    for one in run(runner_of(folder, max_len=max_len), prompts, expected):
        assert one.tokens[-new_tokens:] == one.expected
        theirs = plain_logits(model, one.tokens)
        assert theirs.std() > 0.1
        for position, ours in one.logits.items():
            torch.testing.assert_close(ours, theirs[position], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_family_writes_what_transformers_writes(folder_of: Callable[[str], Path], case: str) -> None:
    folder = folder_of(case)
    compare(folder, reference(folder), texts())


# A model pretrained on 32 tokens, extended to 160: which frequencies hold is decided by the longest text admitted.


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Phi3", tmp_path_factory.mktemp("longrope") / "tiny", **{**SIZES, **longrope(32)})


def test_longrope_takes_the_long_factors_for_long_contexts(extended: Path) -> None:
    long = texts()[0]  # beyond the length of pretraining, where transformers takes them too
    compare(extended, reference(extended), [long, long[:40], long[::-1]])


def test_longrope_takes_the_short_factors_for_short_contexts(extended: Path) -> None:
    prompts = [[7, 8, 9], [200, 3], [5] * 8]
    compare(extended, reference(extended), prompts, max_len=32, new_tokens=20)


def test_a_short_text_gets_the_long_factors_too_where_longer_ones_are_admitted(extended: Path, tmp_path: Path) -> None:
    factors = longrope(32)["rope_parameters"]
    always_long = tiny.build(
        "Phi3",
        tmp_path / "long",
        **{**SIZES, **longrope(32), "rope_parameters": {**factors, "short_factor": factors["long_factor"]}},
    )
    compare(extended, reference(always_long), [[7, 8, 9], [200, 3], [5] * 8], new_tokens=20)


def test_the_shape_says_how_far_layers_look_and_what_bounds_their_scores(folder_of: Callable[[str], Path]) -> None:
    shape = load_model(folder_of("gemma2"), dtype="float32").shape
    assert (shape.window, shape.softcap, shape.logit_softcap) == (11, 2.0, 5.0)
    assert load_model(folder_of("qwen2, window"), dtype="float32").shape.window == 13
    assert load_model(folder_of("qwen2, tied"), dtype="float32").shape.window is None
