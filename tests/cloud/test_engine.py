"""The embedded engine on tiny models: the same text as transformers, its own failures only, nothing leaks."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.engine.engine_config import EngineConfig
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import StepLogits
from pilotfish_cloud.engine.sampler import Sampler
from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason, Origin
from pilotfish_core.errors import (
    EngineFailure,
    InvalidParameter,
    NumericalFailure,
    PromptTooLong,
    ProtocolViolation,
    ResumeRefused,
    Unavailable,
)
from pilotfish_core.scheduling import ScheduledRows
from tests.cloud.engines import drafting, request, running
from tests.device import models as tiny

PROMPT = [72, 101, 108, 108, 111]
END = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tiny.build("Llama", tmp_path_factory.mktemp("llama") / "tiny")
    return made


def engine_of(folder: Path, **options: Any) -> EmbeddedEngine:
    values: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "block_size": 4}
    return EmbeddedEngine(load_model(folder, dtype="float32"), EngineConfig(**(values | options)))


def test_greedy_output_is_that_of_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    expected = model.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), max_new_tokens=30, do_sample=False
    )
    engine = engine_of(folder)
    # The embedding has ids that the tokenizer has not: transformers may choose them, we never do.
    masked = engine.info.vocabulary_size
    tokens = expected[0, len(PROMPT) :].tolist()
    usable = next((index for index, token in enumerate(tokens) if token >= masked), len(tokens))
    assert usable > 10
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=30))
        ear.wait_end("a")
    assert ear.tokens("a")[:usable] == tokens[:usable]
    assert ear.finish("a") == Finish(FinishReason.LENGTH)
    assert all(commit.origin is Origin.CLOUD for commit in ear.commits["a"])


def test_right_drafts_save_steps_and_change_nothing(folder: Path) -> None:
    engine = engine_of(folder, deterministic=True)
    with running(engine) as ear:
        engine.open(request("alone", PROMPT, max_tokens=40))
        ear.wait_end("alone")
        right = ear.tokens("alone")
        drafting(engine, ear, "drafted", len(PROMPT), right, 7)
        engine.open(request("drafted", PROMPT, max_tokens=40))
        ear.wait_end("drafted")
    assert ear.tokens("drafted") == right
    assert len(ear.commits["drafted"]) <= 8
    assert {commit.origin for commit in ear.commits["drafted"][1:]} == {Origin.BONUS}
    assert engine.stats().verify.accepted_tokens >= 32


def test_a_resume_goes_on_where_it_was(folder: Path) -> None:
    engine = engine_of(folder, deterministic=True)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=30, temperature=1.0, seed=7))
        ear.wait_end("a")
        whole = ear.tokens("a")
        engine.open(request("b", PROMPT, output=whole[:13], max_tokens=30, temperature=1.0, seed=7))
        ear.wait_end("b")
    assert ear.commits["b"][0].position == len(PROMPT) + 13
    assert whole[:13] + ear.tokens("b") == whole


def test_a_resume_of_a_complete_answer_only_finishes(folder: Path) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, output=[1, 2, 3], max_tokens=3))
        engine.open(request("b", PROMPT, output=[1, 2, 3], max_tokens=2))
        ear.wait_end("a", "b")
    assert ear.commits["a"] == [Commit(position=8, tokens=(), finish=Finish(FinishReason.LENGTH))]
    assert isinstance(ear.errors["b"], ResumeRefused)
    assert engine.stats().steps == 0


def test_many_at_once_join_and_leave(folder: Path) -> None:
    engine = engine_of(folder, max_num_seqs=3, num_blocks=30, deterministic=True)
    prompts = {str(number): [(number * 31 + i) % 256 for i in range(1 + 3 * number)] for number in range(8)}
    with running(engine) as ear:
        for key, prompt in prompts.items():
            engine.open(request(key, prompt, max_tokens=5 + int(key), temperature=0.9, seed=int(key)))
        ear.wait_end(*prompts)
        for key, prompt in prompts.items():  # again, alone
            engine.open(request("alone" + key, prompt, max_tokens=5 + int(key), temperature=0.9, seed=int(key)))
            ear.wait_end("alone" + key)
            assert ear.tokens("alone" + key) == ear.tokens(key)
            assert len(ear.tokens(key)) == 5 + int(key)


def test_preempted_generations_say_the_same(folder: Path) -> None:
    engine = engine_of(folder, num_blocks=24, deterministic=True)  # one generation's whole context
    keys = [f"{number}" for number in range(4)]
    with running(engine) as ear:
        engine.open(request("alone", PROMPT, max_tokens=60))
        ear.wait_end("alone")
        for key in keys:
            engine.open(request(key, PROMPT, max_tokens=60, salt=key.encode()))
        ear.wait_end(*keys)
    assert engine.stats().preemptions > 0
    assert all(ear.tokens(key) == ear.tokens("alone") for key in keys)


def test_the_prefix_cache_serves_its_tenant_only(folder: Path) -> None:
    engine = engine_of(folder)
    prompt = [i % 256 for i in range(41)]
    with running(engine) as ear:
        for key, salt in (("cold", b"a"), ("hit", b"a"), ("other", b"b")):
            engine.open(request(key, prompt, max_tokens=4, salt=salt))
            ear.wait_end(key)
    assert ear.opened == {"cold": 0, "hit": 40, "other": 0}
    assert ear.tokens("cold") == ear.tokens("hit") == ear.tokens("other")
    stats = engine.stats()
    assert stats.cache_hit_tokens == 40
    assert stats.cache_miss_tokens == {"unknown": 80, "tail": 3}
    assert stats.blocks_kept > 0


def test_stop_ids_end_and_min_tokens_bans_them(folder: Path) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        engine.open(request("free", PROMPT, max_tokens=20))
        ear.wait_end("free")
        free = ear.tokens("free")
        engine.open(request("stop", PROMPT, max_tokens=20, stop_token_ids=[free[4]]))
        engine.open(request("later", PROMPT, max_tokens=20, stop_token_ids=[free[4]], min_tokens=15))
        ear.wait_end("stop", "later")
    first = free.index(free[4])
    assert ear.tokens("stop") == free[: first + 1]
    assert ear.finish("stop") == Finish(FinishReason.STOP, free[4])
    assert free[4] not in ear.tokens("later")[:14]
    assert len(ear.tokens("later")) >= 15


def test_the_context_ends_an_answer(folder: Path) -> None:
    engine = engine_of(folder, max_model_len=32)
    with running(engine) as ear:
        engine.open(request("fits", [1] * 31, max_tokens=100))
        engine.open(request("long", [1] * 32, max_tokens=1))
        engine.open(request("some", [1] * 20, max_tokens=100))
        ear.wait_end("fits", "long", "some")
    assert (len(ear.tokens("fits")), len(ear.tokens("some"))) == (1, 12)
    assert ear.finish("some") == Finish(FinishReason.LENGTH)
    assert isinstance(ear.errors["long"], PromptTooLong)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompt": ()}, InvalidParameter),
        ({"prompt": (1, 5000)}, InvalidParameter),
        ({"prompt": (-1,)}, InvalidParameter),
        ({"prompt": (1,), "output": (5000,)}, ProtocolViolation),
        ({"prompt": (1,), "logit_bias": {5000: 1.0}}, InvalidParameter),
    ],
)
def test_wrong_requests_are_answered(folder: Path, changes: dict[str, Any], error: type[Exception]) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        engine.open(request("a", **changes))
        ear.wait_end("a")
    assert type(ear.errors["a"]) is error


def test_a_tenant_with_one_generation_does_not_wait_for_anothers_many(folder: Path) -> None:
    engine = engine_of(folder, max_num_seqs=2)
    order: list[str] = []
    for number in range(6):
        engine.open(dataclasses.replace(request(f"many {number}", PROMPT, max_tokens=30), tenant="many"))
    engine.open(dataclasses.replace(request("one", PROMPT, max_tokens=30), tenant="one", weight=2.0))
    engine.open(dataclasses.replace(request("bad", PROMPT, max_tokens=30), weight=0.0))
    with running(engine) as ear:
        ear.on_commit = lambda key, commit: order.append(key) if commit.finish is not None else None
        ear.wait_end("one", "bad", *(f"many {number}" for number in range(6)))
        stats = engine.stats()
    assert order.index("one") < 2
    assert type(ear.errors["bad"]) is InvalidParameter
    assert (stats.tenants, stats.waiting, stats.waiting_tokens) == (0, 0, 0)
    assert all(ear.tokens(f"many {number}") == ear.tokens("one") for number in range(6))


def test_penalties_and_logprobs_follow_the_draft(folder: Path) -> None:
    engine = engine_of(folder, deterministic=True)
    params: dict[str, Any] = {"max_tokens": 30, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 2}
    with running(engine) as ear:
        engine.open(request("alone", PROMPT, **params))
        ear.wait_end("alone")
        right = ear.tokens("alone")
        drafting(engine, ear, "drafted", len(PROMPT), right, 5)
        engine.open(request("drafted", PROMPT, **params))
        ear.wait_end("drafted")
    assert ear.tokens("drafted") == right
    logprobs = [entry for commit in ear.commits["alone"] for entry in commit.logprobs or ()]
    assert logprobs == [entry for commit in ear.commits["drafted"] for entry in commit.logprobs or ()]
    assert len(logprobs) == 30


def test_abort_frees_everything_and_is_silent(folder: Path) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=60))
        engine.open(request("b", PROMPT, max_tokens=60))
        ear.wait(lambda: len(ear.commits["a"]) > 3)
        engine.abort("a")
        engine.abort("a")
        engine.abort("never seen")
        ear.wait_end("b")
        told = len(ear.commits["a"])
        engine.open(request("c", PROMPT, max_tokens=60))
        ear.wait_end("c")
        assert len(ear.commits["a"]) == told
        assert not ear.ended("a")


def test_abort_in_the_middle_of_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folder)
    inside, go_on = threading.Event(), threading.Event()
    forward = engine.runner.forward

    def slow(scheduled: list[ScheduledRows]) -> StepLogits:
        inside.set()
        assert go_on.wait(60)
        return forward(scheduled)

    monkeypatch.setattr(engine.runner, "forward", slow)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=9))
        assert inside.wait(60)
        engine.abort("a")
        engine.open(request("b", PROMPT, max_tokens=9))
        go_on.set()
        ear.wait_end("b")
    assert len(ear.commits["a"]) <= 1


def test_a_hostile_run_fails_its_own_generation(folder: Path) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        for key in "ab":
            engine.open(request(key, PROMPT, max_tokens=60))
        ear.wait(lambda: bool(ear.commits["a"]))
        engine.push("a", DraftRun(0, 90, (1,)))
        ear.wait_end("a", "b")
        engine.push("a", DraftRun(1, 5, (1,)))  # ended: dropped
    assert isinstance(ear.errors["a"], ProtocolViolation)
    assert len(ear.tokens("b")) == 60


def test_acknowledging_what_was_never_sent_fails(folder: Path) -> None:
    engine = engine_of(folder)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=60))
        ear.wait(lambda: bool(ear.commits["a"]))
        engine.acknowledge("a", 95)
        ear.wait_end("a")
    assert isinstance(ear.errors["a"], ProtocolViolation)


def test_a_device_that_does_not_acknowledge_is_paused_then_failed(folder: Path) -> None:
    engine = engine_of(folder, max_unacknowledged=4, acknowledge_timeout_s=0.05)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=60))
        ear.wait_end("a")
    assert len(ear.tokens("a")) == 4
    assert isinstance(ear.errors["a"], Unavailable)


def test_an_acknowledgement_goes_on(folder: Path) -> None:
    engine = engine_of(folder, max_unacknowledged=4, acknowledge_timeout_s=30.0)
    with running(engine) as ear:
        ear.on_commit = lambda key, commit: engine.acknowledge(key, commit.end)
        engine.open(request("a", PROMPT, max_tokens=40))
        ear.wait_end("a")
    assert len(ear.tokens("a")) == 40


def test_not_a_number_fails_its_own_generation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folder)
    forward = engine.runner.forward

    def poisoned(scheduled: list[ScheduledRows]) -> StepLogits:
        for entry in scheduled:
            if entry.sequence.key == "a" and entry.start > 8:
                engine.runner.store.values[0][entry.sequence.slot, :, 0] = float("nan")
        return forward(scheduled)

    monkeypatch.setattr(engine.runner, "forward", poisoned)
    with running(engine) as ear:
        for key in "ab":
            engine.open(request(key, PROMPT, max_tokens=30, salt=key.encode()))
        ear.wait_end("a", "b")
        engine.open(request("c", PROMPT, max_tokens=30, salt=b"a"))  # in an arena that was wiped
        ear.wait_end("c")
    assert isinstance(ear.errors["a"], NumericalFailure)
    assert ear.tokens("c") == ear.tokens("b")


def test_a_sampler_that_raises_fails_its_own_generation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folder)
    sample = Sampler.sample

    def broken(self: Sampler, logits: Any, sequences: Any, **options: Any) -> Any:
        if sequences[0].params.min_p == 0.5:
            raise IndexError("out of luck")
        return sample(self, logits, sequences, **options)

    monkeypatch.setattr(Sampler, "sample", broken)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=30, min_p=0.5))
        engine.open(request("b", PROMPT, max_tokens=30))
        ear.wait_end("a", "b")
    assert type(ear.errors["a"]) is EngineFailure
    assert len(ear.tokens("b")) == 30


def test_the_fingerprint_follows_the_configuration(folder: Path, tmp_path: Path) -> None:
    other, same = tmp_path / "other", tmp_path / "same"
    shutil.copytree(folder, other)
    shutil.copytree(folder, same)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    first, second, third = (engine_of(each).info.fingerprint for each in (folder, same, other))
    assert first == second != third


def test_a_step_that_raises_ends_who_took_part_and_the_engine_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(folder)
    forward = engine.runner.forward

    def broken(scheduled: list[ScheduledRows]) -> StepLogits:
        if any(entry.sequence.key == "a" for entry in scheduled):
            raise RuntimeError("out of luck")
        return forward(scheduled)

    monkeypatch.setattr(engine.runner, "forward", broken)
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=30))
        ear.wait_end("a")
        engine.open(request("b", PROMPT, max_tokens=30))
        ear.wait_end("b")
    assert type(ear.errors["a"]) is EngineFailure
    assert "luck" not in str(ear.errors["a"])
    assert "luck" in caplog.text
    assert len(ear.tokens("b")) == 30


def test_close_tells_everyone(folder: Path) -> None:
    engine = engine_of(folder, max_num_seqs=1)
    with running(engine) as ear:
        for key in "ab":
            engine.open(request(key, PROMPT, max_tokens=90))
        ear.wait(lambda: bool(ear.commits["a"]))
        engine.close()
        engine.open(request("late", PROMPT))
        engine.close()
        for key in ("a", "b", "late"):
            assert isinstance(ear.errors[key], Unavailable)


def test_an_idle_engine_sleeps(folder: Path) -> None:
    engine = engine_of(folder)
    rounds = 0
    step = engine._step

    def counted() -> bool:
        nonlocal rounds
        rounds += 1
        return step()

    engine._step = counted  # type: ignore[method-assign]
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=3))
        ear.wait_end("a")
        assert rounds <= 4


def test_a_trace_tells_when_steps_ran(folder: Path, tmp_path: Path) -> None:
    engine = engine_of(folder)
    engine.trace(tmp_path / "cloud.jsonl")
    with running(engine) as ear:
        engine.open(request("a", PROMPT, max_tokens=6))
        ear.wait_end("a")
    engine.close()
    lines = [json.loads(line) for line in (tmp_path / "cloud.jsonl").read_text().splitlines()]
    assert (lines[0]["side"], lines[-1]) == ("cloud", {"r": "end", "records": len(lines) - 2})
    steps = [line for line in lines if line["r"] == "step"]
    assert sum(step["committed"] for step in steps) == 6
    assert all(0 < step["took_us"] <= step["whole_us"] for step in steps)
    (opened,) = [line for line in lines if line["r"] == "opened"]
    assert opened["prompt_tokens"] == len(PROMPT)
