"""The scheduler against a target made of arithmetic: everyone finishes, nothing leaks, budgets hold."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.drafts import DraftRun, Finish, FinishReason
from pilotfish_core.errors import EngineFailure, PilotfishError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.scheduling import (
    Outcome,
    Sampled,
    ScheduledRows,
    ScheduledStep,
    Scheduler,
    SchedulerConfig,
    Sequence,
    SequenceStatus,
)
from pilotfish_core.scheduling.row_policy import fair_shares
from pilotfish_core.scheduling.seats import MOST_PASSED, Seats

VOCABULARY = 50


class Length:
    """Ends after so many tokens."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def push(self, token: int) -> Finish | None:
        self.limit -= 1
        return Finish(FinishReason.LENGTH) if self.limit == 0 else None


def target(context: tuple[int, ...]) -> int:
    return random.Random(repr(context)).randrange(VOCABULARY)


def answer(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(target(tuple(tokens)))
    return tokens[len(prompt) :]


def sequence(
    key: str,
    prompt: list[int],
    count: int,
    *,
    salt: bytes = b"",
    unacknowledged: int = 1000,
    tenant: str = "",
    weight: float = 1.0,
) -> Sequence:
    limits = CloudLimits(max_unacknowledged=unacknowledged)
    core = CloudCore(
        prompt_length=len(prompt),
        output=(),
        finish_rule=Length(count),
        vocabulary_size=VOCABULARY,
        max_output=count,
        limits=limits,
        now=0.0,
    )
    return Sequence(
        key,
        list(prompt),
        core,
        SamplingParams(),
        max_len=len(prompt) + count,
        cache_salt=salt,
        tenant=tenant,
        weight=weight,
    )


class Bench:
    """Runs steps, checks every invariant after each, and keeps what was committed."""

    def __init__(self, **options: int | bool) -> None:
        values: dict[str, int | bool] = {
            "max_model_len": 64,
            "num_blocks": 64,
            "block_size": 4,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 32,
        }
        self.config = SchedulerConfig(**(values | options))  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.config)
        self.outputs: dict[str, list[int]] = {}
        self.ended: list[str] = []
        self.now = 0.0
        self.fail: Callable[[ScheduledRows], PilotfishError | None] = lambda entry: None

    def add(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.add(one)
            self.outputs[one.key] = []

    def step(self) -> ScheduledStep | None:
        self.now += 1.0
        step = self.scheduler.schedule(self.now)
        if step is None:
            return None
        self.check(step)
        outcomes = {entry.sequence.key: self.compute(entry) for entry in step.scheduled}
        done = self.scheduler.complete(step, outcomes, self.now)
        self.scheduler.look_ahead(done, self.now)
        for one, commit in done.commits:
            self.outputs[one.key].extend(commit.tokens)
        self.ended.extend(one.key for one in done.ended)
        self.scheduler.check_integrity()
        return step

    def check(self, step: ScheduledStep) -> None:
        assert step.num_rows <= self.config.max_num_batched_tokens
        assert len(step.scheduled) <= self.config.max_num_seqs
        taken: set[int] = set()
        for entry in step.scheduled:
            one = entry.sequence
            assert one.status is SequenceStatus.RUNNING
            assert entry.rows > 0
            assert len(entry.draft) <= self.config.max_draft_rows
            assert entry.start + entry.rows <= len(one.block_table) * self.config.block_size
            written = range(entry.start // self.config.block_size, len(one.block_table))
            for block in (one.block_table[index] for index in written):
                assert self.scheduler.blocks.references(block) == 1  # nobody writes what another reads
                assert block not in taken
                taken.add(block)

    def compute(self, entry: ScheduledRows) -> Outcome:
        error = self.fail(entry)
        if error is not None:
            return error
        tokens = tuple(entry.sequence.tokens)
        return Sampled([target((*tokens, *entry.draft[:row])) for row in range(entry.yields)])

    def run(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_work(0.0):
                return
            assert self.step() is not None
        raise AssertionError(f"no end in sight: {self.scheduler.running} {self.scheduler.waiting}")


def test_one_sequence_prefills_in_chunks_then_decodes() -> None:
    bench = Bench(max_num_batched_tokens=10)
    bench.add(sequence("a", list(range(25)), 3))
    rows = [step.scheduled[0].rows for step in iter(bench.step, None)]
    assert rows == [10, 10, 5, 1, 1]
    assert bench.outputs["a"] == answer(list(range(25)), 3)
    assert bench.ended == ["a"]
    assert bench.scheduler.blocks.num_held == 0


def test_decoding_never_waits_for_anothers_prompt() -> None:
    bench = Bench(max_num_batched_tokens=12)
    bench.add(sequence("a", [1], 30))
    bench.step()
    bench.add(sequence("long", [2] * 40, 2))
    while not bench.outputs["long"]:
        before = len(bench.outputs["a"])
        bench.step()
        assert len(bench.outputs["a"]) == before + 1


def test_prompts_share_what_remains_of_a_step() -> None:
    bench = Bench(max_num_batched_tokens=12)
    bench.add(sequence("long", [2] * 40, 2), sequence("short", [3] * 6, 2))
    step = bench.step()
    assert step is not None
    assert {entry.sequence.key: entry.rows for entry in step.scheduled} == {"long": 6, "short": 6}
    assert len(bench.outputs["short"]) == 1


def test_drafts_are_verified_up_to_the_cap() -> None:
    bench = Bench(max_draft_rows=3)
    one = sequence("a", [1, 2, 3], 20)
    bench.add(one)
    bench.step()
    right = answer([1, 2, 3], 20)
    one.core.receive(DraftRun(0, 3, tuple(right[:6])), 0.0)
    step = bench.step()
    assert step is not None
    assert step.scheduled[0].draft == tuple(right[1:4])
    assert bench.outputs["a"] == right[:5]
    assert (one.computed_len, one.committed_len) == (7, 8)


def test_drafts_leave_a_quarter_to_prompts_and_lose_their_tails() -> None:
    bench = Bench(max_num_batched_tokens=16, max_draft_rows=16)
    pair = [sequence("a", [1], 30), sequence("b", [2], 30)]
    bench.add(*pair)
    bench.step()
    for one in pair:
        one.core.receive(DraftRun(0, one.committed_len, tuple([0] * 20)), 0.0)
    bench.add(sequence("c", [3] * 30, 2))
    step = bench.step()
    assert step is not None
    rows = {entry.sequence.key: entry.rows for entry in step.scheduled}
    assert rows == {"a": 7, "b": 6, "c": 3}


def test_a_rejected_drafts_slot_is_not_hashed() -> None:
    bench = Bench()
    one = sequence("a", [1, 2, 3], 20)
    bench.add(one)
    bench.step()
    one.core.receive(DraftRun(0, 4, (VOCABULARY - 1,)), 0.0)  # position 4 will be recovered
    for _ in range(1):
        bench.step()
    assert one.committed_len == 5
    assert len(one.block_hashes) == 1  # positions 0..3; position 4 holds the rejected draft's KV
    assert one.computed_len == 4


def test_the_prefix_cache_serves_the_second_of_equal_prompts() -> None:
    bench = Bench()
    prompt = list(range(17))
    bench.add(sequence("a", prompt, 2))
    bench.run()
    bench.add(sequence("b", prompt, 2), sequence("other", prompt, 2, salt=b"other"))
    step = bench.step()
    assert step is not None
    assert {entry.sequence.key: entry.start for entry in step.scheduled} == {"b": 16, "other": 0}
    assert [(copy.index, copy.sequence.key) for copy in step.loads] == [(index, "b") for index in range(4)]
    assert step.admitted[0].cached_len == 16
    bench.run()
    assert bench.outputs["a"] == bench.outputs["b"] == bench.outputs["other"]


def rows_of(step: ScheduledStep | None) -> dict[str, int]:
    assert step is not None
    return {entry.sequence.key: entry.rows for entry in step.scheduled}


def test_what_several_prompts_begin_with_is_computed_once() -> None:
    bench = Bench(max_num_batched_tokens=24)
    prompt = [index % VOCABULARY for index in range(50)]
    bench.add(sequence("a", prompt, 3), sequence("b", prompt, 3), sequence("c", [*prompt[:24], 0, 1, 2], 3))
    bench.add(sequence("other", [7] * 10, 3), sequence("salted", prompt[:30], 3, salt=b"x"))
    steps = [rows_of(bench.step())]
    assert steps[0] == {"a": 8, "other": 8, "salted": 8}  # b and c let those behind them pass
    steps += [rows_of(step) for step in iter(bench.step, None)]
    computed = {key: sum(rows.get(key, 0) for rows in steps) - 2 for key in bench.outputs}  # each decodes two rows
    # b and c go on alone for their last few blocks.
    assert computed == {"a": 50, "b": 10, "c": 11, "other": 10, "salted": 30}
    for key, its in {"a": prompt, "b": prompt, "c": [*prompt[:24], 0, 1, 2]}.items():
        assert bench.outputs[key] == answer(its, 3)


def test_a_long_line_of_equal_prompts_costs_a_step_no_more_than_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(max_num_batched_tokens=24)
    prompt = [index % VOCABULARY for index in range(50)]
    looked: list[str] = []
    follows = Seats._follows

    def counted(seats: Seats, waiting: Sequence, now: float) -> bool:
        looked.append(waiting.key)
        return follows(seats, waiting, now)

    monkeypatch.setattr(Seats, "_follows", counted)
    keys = [f"many {number}" for number in range(4 * MOST_PASSED)]
    bench.add(*(sequence(key, prompt, 3) for key in keys), sequence("other", [7] * 10, 3, tenant="other"))
    assert set(rows_of(bench.step())) == {keys[0], "other"}  # who is behind them is not forgotten
    assert len(looked) == MOST_PASSED + 2
    bench.run()
    assert all(bench.outputs[key] == answer(prompt, 3) for key in keys)


def test_who_lets_others_pass_goes_on_when_the_first_is_gone() -> None:
    bench = Bench(max_num_batched_tokens=16)
    prompt = [index % VOCABULARY for index in range(50)]
    first = sequence("a", prompt, 3)
    bench.add(first, sequence("b", prompt, 3))
    assert rows_of(bench.step()) == {"a": 16}
    bench.scheduler.remove(first, keep=False)
    assert rows_of(bench.step()) == {"b": 16}
    bench.run()
    assert bench.outputs["b"] == answer(prompt, 3)


def test_a_short_common_part_makes_nobody_wait() -> None:
    bench = Bench(max_num_batched_tokens=32)
    bench.add(sequence("a", [1] * 12 + [2] * 10, 3), sequence("b", [1] * 12 + [3] * 10, 3))
    assert set(rows_of(bench.step())) == {"a", "b"}


def test_without_a_prefix_cache_nobody_waits_for_anothers_prompt() -> None:
    bench = Bench(max_num_batched_tokens=16, prefix_cache=False)
    bench.add(sequence("a", [1] * 40, 3), sequence("b", [1] * 40, 3))
    assert set(rows_of(bench.step())) == {"a", "b"}


def test_running_sequences_share_blocks() -> None:
    bench = Bench()
    prompt = list(range(17))
    bench.add(sequence("a", prompt, 10))
    bench.step()
    bench.add(sequence("b", prompt, 10))
    bench.step()
    a, b = bench.scheduler.running
    assert a.block_table[:4] == b.block_table[:4]
    assert a.block_table[4] != b.block_table[4]


def test_the_youngest_gives_way_and_comes_back() -> None:
    bench = Bench(num_blocks=16, max_num_seqs=4)
    prompts = {key: [index] * 12 for index, key in enumerate("abcd")}
    bench.add(*(sequence(key, prompt, 40) for key, prompt in prompts.items()))
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    assert bench.ended[0] == "a"
    for key, prompt in prompts.items():
        assert bench.outputs[key] == answer(prompt, 40)


def test_a_paused_sequence_gives_way_first_and_goes_on_when_acknowledged() -> None:
    bench = Bench(max_num_seqs=1)
    paused = sequence("a", [1], 10, unacknowledged=2)
    bench.add(paused)
    bench.run()
    assert paused.core.paused
    bench.add(sequence("b", [2], 3))
    bench.run()
    assert bench.ended == ["b"]
    assert paused.status is SequenceStatus.WAITING
    while len(bench.outputs["a"]) < 10:
        paused.core.acknowledge(paused.core.length, 0.0)
        bench.run()
    assert bench.outputs["a"] == answer([1], 10)


def test_a_failure_ends_its_own_sequence_and_uncaches_its_blocks() -> None:
    bench = Bench()
    bench.add(sequence("a", list(range(9)), 5), sequence("b", [7] * 9, 5))
    bench.step()
    bench.fail = lambda entry: EngineFailure("no") if entry.sequence.key == "a" else None
    step = bench.scheduler.schedule(9.0)
    assert step is not None
    done = bench.scheduler.complete(step, {e.sequence.key: bench.compute(e) for e in step.scheduled}, 9.0)
    assert [one.key for one, _ in done.failures] == ["a"]
    bench.scheduler.check_integrity()
    assert bench.scheduler.cache.match([*range(9), 1], b"").blocks == []
    bench.run()
    assert bench.ended == ["b"]


def test_cancelled_while_its_step_runs() -> None:
    bench = Bench()
    one = sequence("a", [1], 5)
    bench.add(one)
    step = bench.scheduler.schedule(1.0)
    assert step is not None
    one.core.cancel(1.5)
    done = bench.scheduler.complete(step, {"a": Sampled([3])}, 2.0)
    assert done.commits == []
    assert done.ended == [one]
    bench.scheduler.check_integrity()
    assert bench.scheduler.blocks.num_held == 0


def test_an_abandoned_step_can_be_scheduled_again() -> None:
    bench = Bench()
    bench.add(sequence("a", [1, 2], 3))
    step = bench.scheduler.schedule(1.0)
    assert step is not None
    bench.scheduler.abandon(step)
    bench.run()
    assert bench.outputs["a"] == answer([1, 2], 3)


@pytest.mark.parametrize(
    "options", [{"max_num_batched_tokens": 4}, {"num_blocks": 2}, {"max_draft_rows": -1}, {"max_num_seqs": 0}]
)
def test_impossible_limits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected|cannot hold"):
        Bench(**options)


@given(st.lists(st.integers(0, 20), max_size=8), st.integers(0, 60))
def test_fair_shares(wanted: list[int], budget: int) -> None:
    shares = fair_shares(wanted, budget)
    assert sum(shares) == min(sum(wanted), budget)
    assert all(0 <= share <= count for share, count in zip(shares, wanted, strict=True))
    for share, count in zip(shares, wanted, strict=True):  # who wants more than it got is at most one behind
        if share < count:
            assert share >= max(shares) - 1


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_everyone_finishes_with_the_targets_tokens_whatever_happens(data: st.DataObject) -> None:
    bench = Bench(
        num_blocks=data.draw(st.integers(16, 30)),
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_num_batched_tokens=data.draw(st.integers(5, 24)),
        max_draft_rows=data.draw(st.integers(0, 6)),
        prefix_cache=data.draw(st.booleans()),
    )
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    sequences: dict[str, Sequence] = {}
    prompts: dict[str, tuple[list[int], int]] = {}
    branch = 0
    for number in range(data.draw(st.integers(1, 7))):
        prompt = [1] * chance.randrange(12) + [chance.randrange(3) for _ in range(chance.randrange(1, 25))]
        if prompts and chance.random() < 0.3:
            prompt = list(chance.choice(list(prompts.values()))[0])
        count = chance.randrange(1, 64 - len(prompt))
        key = str(number)
        prompts[key] = (prompt, count)
        sequences[key] = sequence(key, prompt, count, salt=chance.choice([b"", b"x"]))
    joining = list(sequences.values())
    for _ in range(3000):
        if joining and chance.random() < 0.3:
            bench.add(joining.pop())
        elif not joining and not bench.scheduler.has_work(0.0):
            break
        for one in sequences.values():
            if one.status is not SequenceStatus.RUNNING or chance.random() < 0.5:
                continue
            right = answer(one.tokens, 4)
            if chance.random() < 0.4:
                right[chance.randrange(4)] = 0
            branch += 1
            one.core.receive(DraftRun(branch, one.committed_len, tuple(right)), bench.now)
        bench.step()
    assert set(bench.ended) == set(sequences)
    for key, (prompt, count) in prompts.items():
        assert bench.outputs[key] == answer(prompt, count)
    assert bench.scheduler.blocks.num_held == 0
