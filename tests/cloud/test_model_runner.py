"""The packed forward against transformers' own, and folders that cannot be loaded."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pilotfish_cloud.engine.fingerprint import fingerprint
from pilotfish_cloud.engine.linear import PackedLinear, pack_linears, tiles_of
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.drafts import Finish
from pilotfish_core.errors import InvalidParameter, ModelLoadError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.scheduling import BlockCopy, IntegrityError, ScheduledRows, Sequence
from tests.device import models as tiny

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Mistral": {"sliding_window": 9},
}


class NoEnd:
    def push(self, token: int) -> Finish | None:
        return None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {kind: tiny.build(kind, base / kind, **changes) for kind, changes in KINDS.items()}


def runner_of(folder: Path, dtype: str = "float32") -> ModelRunner:
    torch.set_num_threads(1)
    return ModelRunner(load_model(folder, dtype=dtype), num_slots=4, num_blocks=8, block_size=4, max_len=96)


def sequence(runner: ModelRunner, key: str, tokens: list[int]) -> Sequence:
    core = CloudCore(
        prompt_length=len(tokens),
        output=(),
        finish_rule=NoEnd(),
        vocabulary_size=256,
        max_output=50,
        limits=CloudLimits(),
        now=0.0,
    )
    one = Sequence(key, tokens, core, SamplingParams(), max_len=96)
    one.slot = runner.store.acquire()
    return one


def rows(one: Sequence, start: int, end: int, *draft: int) -> ScheduledRows:
    return ScheduledRows(one, start, end - start, draft, 1 + len(draft) if end == one.committed_len else 0)


def plain_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_step_equals_the_plain_model(folders: dict[str, Path], kind: str) -> None:
    runner = runner_of(folders[kind])
    texts = [[(7 * i + 3) % 256 for i in range(20)], [11, 12, 13], [(5 * i) % 256 for i in range(31)]]
    a, b, c = (sequence(runner, key, text) for key, text in zip("abc", texts, strict=True))
    runner.forward([rows(a, 0, 19), rows(b, 0, 2), rows(c, 0, 11)])
    runner.forward([rows(c, 11, 30), rows(a, 19, 20, 99, 98, 97)])  # c goes on, a's drafts will be rejected
    drafts: tuple[list[int], ...] = ([1, 2, 3, 4], [], [9, 8, 7, 6, 5, 4, 3])
    step = [rows(a, 19, 20, *drafts[0]), rows(b, 2, 3), rows(c, 30, 31, *drafts[2])]
    logits, broken = runner.forward(step)
    assert not broken
    first = 0
    for text, draft in zip(texts, drafts, strict=True):
        expected = plain_logits(folders[kind], text + draft)[len(text) - 1 :]
        found = logits[first : first + 1 + len(draft)]
        first += 1 + len(draft)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert first == len(logits)


def test_a_chunk_that_yields_nothing_gives_no_logits(folders: dict[str, Path]) -> None:
    runner = runner_of(folders["Llama"])
    one = sequence(runner, "a", [1, 2, 3, 4])
    assert runner.forward([rows(one, 0, 3)]).logits.shape[0] == 0


def test_cached_blocks_travel_between_arenas(folders: dict[str, Path]) -> None:
    runner = runner_of(folders["Llama"])
    text = [(3 * i) % 256 for i in range(9)]
    a, b = sequence(runner, "a", text), sequence(runner, "b", list(text))
    expected = runner.forward([rows(a, 0, 9)]).logits
    runner.keep([BlockCopy(a, index, 5 - index) for index in range(2)])
    runner.detach(a, wipe=True)
    for index in range(2):
        assert b.slot is not None
        runner.store.load(b.slot, index, 5 - index)
    torch.testing.assert_close(runner.forward([rows(b, 8, 9)]).logits, expected, rtol=1e-5, atol=1e-5)


def test_not_a_number_is_found_in_its_own_sequence(folders: dict[str, Path]) -> None:
    runner = runner_of(folders["Llama"])
    a, b, c = (sequence(runner, key, [1, 2, 3]) for key in "abc")
    runner.forward([rows(a, 0, 2), rows(b, 0, 2), rows(c, 0, 2)])
    assert b.slot is not None
    runner.store.keys[0][b.slot, :, 0] = float("nan")
    computed = runner.forward([rows(a, 2, 3, 4), rows(b, 2, 3), rows(c, 2, 3)])
    assert computed.broken == {"b"}
    assert computed.logits[[0, 1, 3]].isfinite().all()
    slot = b.slot
    runner.detach(b, wipe=True)
    assert runner.store.keys[0][slot].isfinite().all()


def test_arenas_are_accounted_for(folders: dict[str, Path]) -> None:
    runner = runner_of(folders["Llama"])
    used = [runner.store.acquire() for _ in range(4)]
    with pytest.raises(IntegrityError, match="no free KV arena"):
        runner.store.acquire()
    runner.check_integrity(used)
    runner.store.release(used[0])
    with pytest.raises(IntegrityError, match="twice"):
        runner.store.release(used[0])
    with pytest.raises(IntegrityError):
        runner.check_integrity(used)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01)])
def test_all_dtypes_load_and_compute(folders: dict[str, Path], dtype: str, tolerance: float) -> None:
    loaded = load_model(folders["Qwen3"], dtype=dtype)
    assert loaded.dtype_name == dtype
    runner = runner_of(folders["Qwen3"], dtype)
    text = [(7 * i + 3) % 256 for i in range(20)]
    one = sequence(runner, "a", text)
    runner.forward([rows(one, 0, 19)])
    logits = runner.forward([rows(one, 19, 20)]).logits
    expected = plain_logits(folders["Qwen3"], text)[19:]
    assert str(logits.dtype) == f"torch.{dtype}"
    assert (logits.float() - expected).abs().max() <= tolerance * expected.abs().max()
    assert loaded.shape.group == 2
    assert loaded.tokenizer.vocab_size <= loaded.shape.vocab_rows


def test_an_unknown_dtype_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="float32 or bfloat16 or float16"):
        load_model(folders["Llama"], dtype="int3")


def damaged(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["Llama"], tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = damaged(folders, tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=name):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_named(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = damaged(folders, tmp_path)
    (folder / name).write_bytes(b"{" * 40)
    with pytest.raises(ModelLoadError, match=name):
        load_model(folder)


def test_truncated_weights_are_damaged(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(folders, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged"):
        load_model(folder)


def changed_config(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"num_hidden_layers": 3}, "lacks weights"),
        ({"vocab_size": 100}, "embeds 100"),
        ({"intermediate_size": 80}, "do not fit"),
        ({"hidden_size": -1}, r"config\.json: "),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a positive integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, r"config\.json"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ],
)
def test_a_config_that_does_not_fit_is_explained(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = changed_config(damaged(folders, tmp_path), **changes)
    with pytest.raises(ModelLoadError, match=message):
        load_model(folder)


def test_the_fingerprint_follows_weights_and_facts(folders: dict[str, Path]) -> None:
    cpu = torch.device("cpu")
    files = [folders["Llama"] / "model.safetensors"]
    first = fingerprint(files, {"dtype": "float32"}, device=cpu)
    assert first == fingerprint(files, {"dtype": "float32"}, device=cpu)
    assert first.startswith("pf-")
    assert len(first) == 19
    others = [
        fingerprint(files, {"dtype": "bfloat16"}, device=cpu),
        fingerprint([folders["Qwen3"] / "model.safetensors"], {"dtype": "float32"}, device=cpu),
    ]
    assert len({first, *others}) == 3


@pytest.mark.parametrize("sizes", [(1, 2, 4, 8), (16,), (2, 8, 32), (1, 2, 4, 6, 8, 12, 16, 24, 32, 256)])
def test_tiles_cover_all_rows_and_only_the_last_sticks_out(sizes: tuple[int, ...]) -> None:
    for count in range(1, 600):
        tiles = tiles_of(count, sizes)
        assert set(tiles) <= set(sizes)
        assert sum(tiles) >= count
        assert sum(tiles[:-1]) < count


class Siblings(torch.nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        sizes = {"q_proj": 24, "k_proj": 8, "v_proj": 8}
        for name, size in sizes.items():
            self.add_module(name, torch.nn.Linear(16, size, bias=bias))

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return [layer(inputs) for layer in self.children()]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_layers_of_one_input_are_one_product(packed: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Siblings(bias=bias)
    one, other = torch.randn(1, 5, 16), torch.randn(1, 3, 16)
    expected = [layers(one), layers(other)]
    (linear,) = pack_linears(layers, packed=packed)
    assert linear.shape_key == (16, 40, bias)
    calls, product = [0], PackedLinear.product

    def counted(linear: PackedLinear, rows: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return product(linear, rows)

    monkeypatch.setattr(PackedLinear, "product", counted)
    for inputs, wanted in zip((one, other), expected, strict=True):
        torch.testing.assert_close(layers(inputs), wanted)
    assert calls[0] == 2
    # Asked out of turn, twice, or for some of them only: computed again, never another input's.
    q, k, v = layers.children()
    torch.testing.assert_close(
        [k(one), k(other), q(one), q(other)], [expected[0][1], expected[1][1], expected[0][0], expected[1][0]]
    )
    torch.testing.assert_close([v(one), v(one)], [expected[0][2]] * 2)


def test_layers_of_other_sizes_stay_apart() -> None:
    layers = torch.nn.ModuleDict({"gate_proj": torch.nn.Linear(4, 8), "up_proj": torch.nn.Linear(5, 8)})
    assert len(pack_linears(layers, packed=False)) == 2


def test_no_two_layers_are_held_twice_while_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(5)))
    originals = weakref.WeakSet(module for module in layers.modules() if type(module) is torch.nn.Linear)
    held: list[int] = []
    begin = PackedLinear.__init__

    def counted(linear: PackedLinear, *linears: torch.nn.Linear, packed: bool) -> None:
        held.append(len(originals))
        begin(linear, *linears, packed=packed)

    monkeypatch.setattr(PackedLinear, "__init__", counted)
    assert len(pack_linears(layers, packed=True)) == 5
    # The last one that was replaced is still named by the loop.
    assert held[0] == 5
    assert held[-1] <= 2
