"""With too few blocks for all: who gives way, and that nothing is lost by it."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_core.drafts import DraftRun
from pilotfish_core.scheduling import ScheduledStep, Sequence, SequenceStatus
from tests.core.test_scheduler import Bench, answer, sequence


class Preemptions(Bench):
    """Counts them by sequence, and checks that whoever gives way is the last in rank."""

    def __init__(self, **options: int | bool) -> None:
        super().__init__(**options)
        self.lost: Counter[str] = Counter()

    def step(self) -> ScheduledStep | None:
        step = super().step()
        if step is not None:
            self.lost.update(one.key for one in step.preempted)
        return step

    def check(self, step: ScheduledStep) -> None:
        super().check(step)
        running = self.scheduler.running
        seats = Counter(one.tenant for one in running)
        waiting = {one.tenant for one in step.preempted if not one.core.paused} - set(seats)
        # A tenant's last seat goes only when nobody has two.
        assert not waiting or max(seats.values()) == 1


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_with_very_few_blocks_everyone_finishes_with_the_right_tokens(data: st.DataObject) -> None:
    bench = Preemptions(
        num_blocks=data.draw(st.integers(16, 20)),
        max_num_seqs=data.draw(st.integers(2, 8)),
        max_num_batched_tokens=data.draw(st.integers(8, 24)),
        max_draft_rows=data.draw(st.integers(0, 6)),
        prefix_cache=data.draw(st.booleans()),
    )
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    tenants = data.draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=2, max_size=9))
    weights = {tenant: data.draw(st.sampled_from([0.5, 1.0, 3.0])) for tenant in set(tenants)}
    sequences: dict[str, Sequence] = {}
    prompts: dict[str, tuple[list[int], int]] = {}
    for number, tenant in enumerate(tenants):
        prompt = [chance.randrange(3) for _ in range(chance.randrange(1, 40))]
        count = chance.randrange(1, 64 - len(prompt))
        prompts[str(number)] = (prompt, count)
        sequences[str(number)] = sequence(
            str(number), prompt, count, tenant=tenant, weight=weights[tenant], unacknowledged=chance.choice([8, 1000])
        )
    joining, branch = list(sequences.values()), 0
    for _ in range(4000):
        if joining and chance.random() < 0.3:
            bench.add(joining.pop())
        for one in sequences.values():
            if one.status is SequenceStatus.ENDED or one.arrival < 0:
                continue
            if one.core.paused and chance.random() < 0.3:
                one.core.acknowledge(one.core.length, bench.now)
            if one.status is SequenceStatus.RUNNING and chance.random() < 0.3:
                right = answer(one.tokens, 4)
                right[chance.randrange(4)] = chance.choice([0, right[0]])
                branch += 1
                one.core.receive(DraftRun(branch, one.committed_len, tuple(right)), bench.now)
        bench.step()
        if not joining and len(bench.ended) == len(sequences):
            break
    assert set(bench.ended) == set(sequences)
    for key, (prompt, count) in prompts.items():
        assert bench.outputs[key] == answer(prompt, count)
    assert bench.scheduler.blocks.num_held == 0
    assert len(bench.scheduler.counters) == 0
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens) == (0, 0)


def test_the_only_generation_of_a_tenant_outlives_the_many_of_another() -> None:
    bench = Preemptions(num_blocks=30, max_num_seqs=8, max_num_batched_tokens=64)
    bench.add(*(sequence(f"many {number}", [number] * 4, 40, tenant="many") for number in range(12)))
    for _ in range(10):
        bench.step()
    bench.add(sequence("one", [40] * 4, 40, tenant="one"))
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    assert bench.lost["one"] == 0
    assert bench.ended.index("one") <= 3
    assert bench.outputs["one"] == answer([40] * 4, 40)


def test_nobody_is_preempted_again_and_again_by_those_who_came_later() -> None:
    bench = Preemptions(num_blocks=16, max_num_seqs=8, max_num_batched_tokens=64)
    for number in range(60):
        bench.add(sequence(str(number), [number % 40] * 4, 30, tenant=f"tenant {number % 3}"))
        bench.step()
    bench.run()
    assert len(bench.ended) == 60
    assert max(bench.lost.values()) <= 8  # of those that are ever senior to one at the same time


def test_what_waits_is_counted() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add(*(sequence(str(number), [number] * (3 + number), 5, tenant=str(number % 2)) for number in range(4)))
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens) == (4, 3 + 4 + 5 + 6)
    bench.step()
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens) == (3, 4 + 5 + 6)
    bench.scheduler.remove(next(one for one in bench.scheduler.waiting if one.key == "3"))
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens) == (2, 4 + 5)
    bench.run()
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens) == (0, 0)


def test_drafts_give_up_their_blocks_before_anybody_is_preempted() -> None:
    bench = Bench(num_blocks=16, max_num_seqs=2, max_draft_rows=8, max_model_len=60)
    one, other = sequence("a", [1] * 20, 20), sequence("b", [2] * 20, 20)
    bench.add(one, other)
    bench.step()
    bench.step()
    other.core.receive(DraftRun(0, other.committed_len, (49,) * 7), 0.0)
    bench.step()
    assert len(other.block_table) == 7  # one more than what is committed needs, for its junk
    other.core.hold(bench.now + 100.0, 8)
    while one.status is SequenceStatus.RUNNING:
        bench.step()
    assert bench.outputs["a"] == answer([1] * 20, 20)  # ten blocks
    assert bench.scheduler.counts.preemptions == 0
    assert len(other.block_table) == 6
