"""The draft model beside the target: its tokens are those of the specification on the plain model's logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pilotfish_cloud.cli import main
from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.draft_model import MAX_ROWS, DraftModel
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.step_sampler import StepSampler
from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.drafts import Finish
from pilotfish_core.errors import TokenizerMismatch
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_token
from pilotfish_core.scheduling import Sampled, ScheduledRows, Sequence
from pilotfish_core.tokenizer import Tokenizer
from tests.device import models as tiny

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
CONTEXT = 1600
PROMPT = [72, 101, 108, 108, 111, 44, 32]
END = 256
PYTHON = 'def read_lines(path):\n    """Read a file."""\n    with open(path) as stream:\n        return'
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "nucleus": {"temperature": 0.8, "top_p": 0.95},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "greedy penalties": {"temperature": 0, "repetition_penalty": 1.5, "frequency_penalty": 1.0},
    "bias": {"top_k": 40, "min_p": 0.01, "logit_bias": ((65, 3.0), (66, -100.0))},
    "logprobs": {"logprobs": 5},
}


class NoEnd:
    def push(self, token: int) -> Finish | None:
        return None


class Plain:
    """transformers' own forward over the whole text for each token, and the specification of sampling."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.vocab_size = Tokenizer.load(folder).vocab_size

    def draft(self, sequence: Sequence, count: int, *, banned: Seq[int] = (), bans: int = 0) -> tuple[int, ...]:
        tokens, prompt_len = list(sequence.tokens), sequence.prompt_len
        history = TokenHistory(tokens[:prompt_len], tokens[prompt_len:])
        for index in range(count):
            with torch.inference_mode():
                logits = self.model(torch.tensor([tokens])).logits[0, -1].numpy()
            token = coupled_token(
                logits,
                sequence.params,
                len(tokens),
                history=history,
                banned=banned if index < bans else (),
                vocab_size=self.vocab_size,
            )
            tokens.append(token)
            history.push(token)
        return tuple(tokens[sequence.committed_len :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tiny.build("Llama", tmp_path_factory.mktemp("draft") / "tiny", max_position_embeddings=CONTEXT)
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


def drafter_of(folder: Path, *, slots: int = 4, max_len: int = CONTEXT, max_tokens: int = 32) -> DraftModel:
    torch.set_num_threads(1)
    loaded = load_model(folder, dtype="float32")
    target = Tokenizer.load(folder)
    return DraftModel(loaded, target=target, num_slots=slots, max_len=max_len, max_tokens=max_tokens)


def sequence(
    key: str, prompt: Seq[int] = PROMPT, *, output: Seq[int] = (), max_len: int = CONTEXT, **params: Any
) -> Sequence:
    core = CloudCore(
        prompt_length=len(prompt),
        output=output,
        finish_rule=NoEnd(),
        vocabulary_size=260,
        max_output=max_len - len(prompt),
        limits=CloudLimits(),
        now=0.0,
    )
    values = {"temperature": 0.9, "seed": 7, "ignore_eos": True} | params
    return Sequence(key, [*prompt, *output], core, SamplingParams.from_mapping(values), max_len=max_len)


def rows_of_forwards(drafter: DraftModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows of each forward from now on."""
    rows: list[int] = []
    inner = drafter._runner.hidden

    def counted(tokens: Seq[int], segments: Seq[Segment]) -> Tensor:
        rows.append(len(tokens))
        return inner(tokens, segments)

    monkeypatch.setattr(drafter._runner, "hidden", counted)
    return rows


@pytest.mark.parametrize("kind", PARAMS)
def test_a_draft_is_the_coupled_choice_on_the_plain_logits(folder: Path, plain: Plain, kind: str) -> None:
    drafter = drafter_of(folder)
    one = sequence("a", output=[3, 3, 65], **PARAMS[kind])
    for _ in range(4):  # each goes on from a draft of which three tokens and another one were committed
        draft = drafter.propose([(one, 6)])
        assert draft == {"a": plain.draft(one, 6)}
        one.tokens += [*draft["a"][:3], (draft["a"][3] + 1) % 256]
    assert drafter.propose([(one, 1)]) == {"a": plain.draft(one, 1)}
    drafter.check_integrity()


def test_only_what_was_not_seen_is_computed(folder: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = drafter_of(folder)
    rows = rows_of_forwards(drafter, monkeypatch)
    one = sequence("a", **PARAMS["nucleus"])
    assert drafter.missing(one) == len(PROMPT)
    draft = drafter.propose([(one, 5)])["a"]
    assert rows == [len(PROMPT), 1, 1, 1, 1]
    assert drafter.missing(one) == 1  # its last token gives the logits
    one.tokens += [*draft, 33]  # all accepted, and a bonus token
    assert drafter.missing(one) == 2
    rows.clear()
    draft = drafter.propose([(one, 5)])["a"]
    assert rows == [2, 1, 1, 1, 1]
    one.tokens += [*draft[:2], (draft[2] + 1) % 256]
    assert drafter.missing(one) == 1
    rows.clear()
    assert drafter.propose([(one, 2)])["a"] == plain.draft(one, 2)
    assert rows == [1, 1]
    del one.tokens[9:]  # never happens; should it, what is still the same is kept
    one.tokens[5] += 1
    assert drafter.missing(one) == 4
    assert drafter.propose([(one, 3)])["a"] == plain.draft(one, 3)


def test_penalties_follow_a_prefix_that_changed(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder)
    one = sequence("a", temperature=0, frequency_penalty=2.0)
    draft = plain.draft(one, 3)
    one.tokens += [*draft] * 20  # by which the same would be chosen no more
    assert drafter.propose([(one, 3)])["a"] == plain.draft(one, 3)
    del one.tokens[len(PROMPT) :]
    assert drafter.propose([(one, 3)])["a"] == draft


def test_all_sequences_are_drafted_together(folder: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = drafter_of(folder, slots=8)
    kinds = list(PARAMS.values())
    many = [
        sequence(str(i), [(31 * i + j) % 256 for j in range(1 + 4 * i)], seed=i, **kinds[i % len(kinds)])
        for i in range(8)
    ]
    wanted = [(one, 1 + index % 5) for index, one in enumerate(many)]
    rows = rows_of_forwards(drafter, monkeypatch)
    for _ in range(3):
        rows.clear()
        drafts = drafter.propose(wanted)
        assert drafts == {one.key: plain.draft(one, count) for one, count in wanted}
        assert len(rows) == 5  # one forward per draft position
        assert rows[1:] == [6, 4, 2, 1]
        for one in many[::2]:
            one.tokens += [*drafts[one.key], 50]
        for one in many[1::2]:
            one.tokens.append(99)
    assert drafter.propose([]) == {}


def test_a_new_generation_takes_the_least_recently_used_slot(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder, slots=2)
    a, b, c = (sequence(key, [*PROMPT, ord(key)], seed=ord(key)) for key in "abc")
    for one in (a, b, a, c):  # c takes that of b
        assert drafter.propose([(one, 4)])[one.key] == plain.draft(one, 4)
    assert [drafter.missing(one) for one in (a, b, c)] == [1, len(PROMPT) + 1, 1]
    for one in (b, a, c, b):  # each evicts another
        one.tokens.append(40)
        assert drafter.propose([(one, 4)])[one.key] == plain.draft(one, 4)
    drafter.check_integrity()


def test_more_sequences_than_slots_do_not_evict_each_other(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder, slots=2)
    a, b, c = (sequence(key, [*PROMPT, ord(key)]) for key in "abc")
    drafter.propose([(b, 3)])
    for _ in range(2):
        drafts = drafter.propose([(a, 3), (c, 3), (b, 3)])
        assert drafts == {"a": plain.draft(a, 3), "b": plain.draft(b, 3), "c": ()}
    drafter.forget(a)
    assert drafter.propose([(c, 3)]) == {"c": plain.draft(c, 3)}
    drafter.check_integrity()


def test_forgotten_generations_free_their_slots(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder, slots=1)
    one = sequence("a")
    drafter.forget(one)  # unknown
    drafter.propose([(one, 2)])
    drafter.forget(one)
    drafter.forget(one)
    drafter.check_integrity()
    assert drafter.missing(one) == len(PROMPT)
    assert drafter.propose([(one, 2)])["a"] == plain.draft(one, 2)


def test_a_long_prompt_is_computed_in_chunks_beside_other_drafts(
    folder: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = drafter_of(folder)
    rows = rows_of_forwards(drafter, monkeypatch)
    long, short = sequence("long", [(7 * i + i // 50) % 256 for i in range(1300)]), sequence("short")
    assert drafter.propose([(long, 2), (short, 4)]) == {"long": plain.draft(long, 2), "short": plain.draft(short, 4)}
    assert max(rows) == MAX_ROWS == 512
    assert sum(rows) == 1301 + len(PROMPT) + 3
    assert len(rows) == 4  # three chunks and one more token; short drafted meanwhile


def test_a_draft_ends_with_the_room(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder, max_len=20, max_tokens=5)
    one = sequence("a")
    assert drafter.propose([(one, 9)])["a"] == plain.draft(one, 5)
    assert drafter.propose([(one, 0)]) == {"a": ()}
    assert drafter.propose([(one, -1)]) == {"a": ()}
    one = sequence("b", list(range(17)))
    assert drafter.propose([(one, 5)])["b"] == plain.draft(one, 3)
    one.tokens += [1, 2, 3, 4]  # beyond what it can hold
    assert drafter.propose([(one, 5)]) == {"b": ()}
    one = sequence("c", max_len=len(PROMPT) + 3)  # the target's own row yields the last
    assert drafter.propose([(one, 5)])["c"] == plain.draft(one, 2)


def test_the_models_own_context_ends_a_draft(tmp_path: Path) -> None:
    folder = tiny.build("Llama", tmp_path / "short")  # 96 positions
    drafter = drafter_of(folder)
    one = sequence("a", [i % 256 for i in range(94)])
    assert drafter.propose([(one, 5)])["a"] == Plain(folder).draft(one, 2)
    one.tokens += [1, 2, 3]
    assert drafter.propose([(one, 5)]) == {"a": ()}


def test_a_draft_stops_at_a_token_that_ends_the_answer(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder)
    free = plain.draft(sequence("a"), 6)
    place = next(i for i in range(1, 6) if free[i] not in free[:i])
    drafts = drafter.propose([(sequence("b", stop_token_ids=[free[place]]), 6)])
    assert drafts["b"] == free[: place + 1]
    ends: dict[str, Any] = {"logit_bias": {END: 100}}
    assert drafter.propose([(sequence("c", **ends, ignore_eos=False), 6)])["c"] == (END,)
    assert drafter.propose([(sequence("d", **ends), 3)])["d"] == (END, END, END)


def test_end_tokens_are_banned_as_the_target_bans_them(folder: Path, plain: Plain) -> None:
    drafter = drafter_of(folder)
    one = sequence("a", output=[5, 6], ignore_eos=False, min_tokens=5, stop_token_ids=[65], logit_bias={END: 100})
    draft = drafter.propose([(one, 6)])["a"]  # output tokens 3 and 4, and the end as token 5
    assert draft == plain.draft(one, 3, banned=(65, END), bans=2)
    assert draft[-1] == END
    assert END not in draft[:-1]


def test_a_generation_with_nan_is_given_up_alone(folder: Path, plain: Plain, caplog: pytest.LogCaptureFixture) -> None:
    drafter = drafter_of(folder)
    a, b, c = (sequence(key, [*PROMPT, ord(key)]) for key in "abc")
    drafter.propose([(a, 2), (b, 2), (c, 2)])
    slot = drafter._held["b"].slot
    drafter._runner.store.keys[0][slot, :, 0] = float("nan")
    right = {"a": plain.draft(a, 3), "b": (), "c": plain.draft(c, 3)}
    with caplog.at_level(logging.WARNING):
        assert drafter.propose([(a, 3), (b, 3), (c, 3)]) == right
        assert drafter.propose([(a, 3), (b, 3), (c, 3)]) == right
    assert len(caplog.records) == 1
    assert "generation b" in caplog.text
    assert drafter._runner.store.keys[0][slot].isfinite().all()
    drafter.check_integrity()
    drafter.forget(b)
    assert drafter.propose([(b, 3)]) == {"b": plain.draft(b, 3)}


def test_a_failing_forward_costs_its_cause_only(
    folder: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = drafter_of(folder)
    a, b = sequence("a", **PARAMS["penalties"]), sequence("b", [*PROMPT, 255])
    draft = drafter.propose([(a, 3)])["a"]
    inner = drafter._runner.hidden

    def failing(tokens: Seq[int], segments: Seq[Segment]) -> Tensor:
        if 255 in tokens:
            raise RuntimeError("out of something")
        return inner(tokens, segments)

    monkeypatch.setattr(drafter._runner, "hidden", failing)
    a.tokens += draft[:2]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert drafter.propose([(a, 3), (b, 3)]) == {"a": plain.draft(a, 3), "b": ()}
    assert len(caplog.records) == 1
    assert "out of something" in caplog.text
    drafter.check_integrity()


def test_another_tokenizer_is_refused(folder: Path) -> None:
    other = Tokenizer.load(REFERENCE / "target")
    with pytest.raises(TokenizerMismatch, match="the draft model tiny has another tokenizer"):
        DraftModel(load_model(folder), target=other, num_slots=1, max_len=96, max_tokens=4)


def test_forwards_of_drafts_are_timed(folder: Path) -> None:
    drafter = drafter_of(folder)
    assert drafter.name == "tiny"
    assert drafter.step_seconds is None
    one = sequence("a")
    drafter.propose([(one, 1)])
    assert drafter.step_seconds is None  # a prompt says little about drafting
    drafter.propose([(one, 2)])
    assert drafter.step_seconds is not None
    assert 0 < drafter.step_seconds < 60


def test_neither_torch_nor_the_sequences_are_changed(folder: Path) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
        )

    torch.set_num_threads(1)
    loaded, before = load_model(folder, dtype="float32"), state()
    drafter = DraftModel(loaded, target=loaded.tokenizer, num_slots=2, max_len=96, max_tokens=4)
    one = sequence("a", **PARAMS["penalties"])
    copies = {name: getattr(one, name) for name in Sequence.__slots__} | {"tokens": list(one.tokens)}
    drafter.propose([(one, 4)])
    drafter.forget(one)
    assert state() == before
    assert {name: getattr(one, name) for name in Sequence.__slots__} == copies


def agrees_with_itself(folder: Path, prompts: Seq[Seq[int]], rounds: int) -> None:
    """Draft with the target's own weights, verify as the engine does: everything must be accepted."""
    drafter, loaded = drafter_of(folder), load_model(folder, dtype="float32")
    target = ModelRunner(loaded, num_slots=4, num_blocks=1, block_size=16, max_len=CONTEXT)
    sampler = StepSampler(loaded.tokenizer)
    kinds = ("greedy", "nucleus", "penalties")
    many = [sequence(kind, prompt, **PARAMS[kind]) for kind, prompt in zip(kinds, prompts, strict=True)]
    for one in many:
        one.slot = target.store.acquire()
        sampler.opened(one)
    for _ in range(rounds):
        drafts = drafter.propose([(one, 5) for one in many])
        step = [ScheduledRows(one, one.computed_len, one.uncomputed, drafts[one.key], 6) for one in many]
        outcomes = sampler.sample(step, target.forward(step))
        for one in many:
            outcome = outcomes[one.key]
            assert isinstance(outcome, Sampled)
            assert len(drafts[one.key]) == 5
            assert tuple(outcome.tokens[:5]) == drafts[one.key]
            one.computed_len = one.committed_len + 5
            one.tokens += outcome.tokens
            sampler.committed(one.key, outcome.tokens)


def test_a_target_that_drafts_for_itself_accepts_everything(folder: Path) -> None:
    agrees_with_itself(folder, [PROMPT, [1], list(range(40))], 12)


@pytest.mark.slow
def test_the_reference_target_accepts_all_of_its_own_drafts() -> None:
    prompt = Tokenizer.load(REFERENCE / "target").encode(PYTHON)
    agrees_with_itself(REFERENCE / "target", [prompt, prompt[:-7], prompt[:9]], 20)


@pytest.mark.slow
def test_the_reference_draft_is_the_plain_model() -> None:
    folder, prompt = REFERENCE / "draft", Tokenizer.load(REFERENCE / "draft").encode(PYTHON)
    plain, drafter = Plain(folder), drafter_of(folder, slots=3)
    many = [sequence(kind, prompt[: len(prompt) - i], seed=i, **PARAMS[kind]) for i, kind in enumerate(PARAMS)]
    for number in range(6):
        wanted = [(one, 4) for one in many[number % 4 :][:3]]  # each round evicts one
        drafts = drafter.propose(wanted)
        assert drafts == {one.key: plain.draft(one, 4) for one, _ in wanted}
        for one, _ in wanted:
            one.tokens += [*drafts[one.key][: number % 5], prompt[number]]
    drafter.check_integrity()


def test_a_draft_model_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OMP_NUM_THREADS", "GRPC_VERBOSITY"):  # set by the command, put back after the test
        monkeypatch.setenv(name, "1")
    assert main(["serve", str(folder), "--draft-model", str(tmp_path / "nowhere")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "nowhere is not a folder" in message
