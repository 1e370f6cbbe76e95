"""What the cloud does with drafts: rows by their worth, holds where they pay, others never wait."""

from __future__ import annotations

import pytest

from pilotfish_core.drafts import DraftRun
from pilotfish_core.scheduling import FixedRows, Goodput, Hold, Scheduler, SchedulerConfig, Sequence, SpeculationPolicy
from tests.core.test_scheduler import VOCABULARY, answer, sequence, target


def policy_of(times: dict[int, float], *, hold_cap: float = 0.05) -> Goodput:
    policy = Goodput(8, hold_cap=hold_cap)
    for rows, seconds in times.items():
        policy.observe(rows, seconds)
    return policy


CHEAP = {1: 0.030, 9: 0.032}
DEAR = {1: 0.030, 9: 0.090}


def known(key: str, accepted: int, refuted: int) -> Sequence:
    one = sequence(key, [1, 2, 3], 40)
    one.core.acceptance.observe(accepted, refuted=False)
    for _ in range(refuted):
        one.core.acceptance.observe(0, refuted=True)
    return one


def test_rows_go_to_the_drafts_that_are_worth_them() -> None:
    good, bad = known("good", 60, 4), known("bad", 4, 60)
    assert policy_of(CHEAP).draft_rows([good], [8], 31, 0.0) == [8]
    assert policy_of(DEAR).draft_rows([bad], [8], 31, 0.0) == [0]
    rows = policy_of({1: 0.030, 9: 0.045, 17: 0.080}).draft_rows([bad, good], [8, 8], 30, 0.0)
    assert rows[0] <= 1 < 4 <= rows[1]
    assert sum(policy_of(CHEAP).draft_rows([good, good], [8, 8], 5, 0.0)) == 5
    assert Goodput(8).draft_rows([bad, good], [8, 3], 31, 0.0) == [8, 3]  # nothing is known of the step


def test_drafts_fill_what_a_step_is_padded_to() -> None:
    """One row more than 4 costs as much as four more: all of them are taken, or none."""
    policy = Goodput(8, row_sizes=(1, 2, 4, 8, 16))
    for rows, seconds in {1: 0.030, 4: 0.032, 5: 0.045, 9: 0.090}.items():
        policy.observe(rows, seconds)
    four = [known(str(number), 60, 40) for number in range(4)]
    assert sum(policy.draft_rows(four, [1, 0, 0, 0], 30, 0.0)) == 0
    assert sum(policy.draft_rows(four, [8, 8, 8, 8], 30, 0.0)) == 4
    assert sum(policy.draft_rows(four[:3], [1, 0, 0], 30, 0.0)) == 1


def test_a_hold_needs_a_device_that_answers_soon_and_well() -> None:
    policy = policy_of(CHEAP)
    one = known("a", 40, 10)
    assert policy.hold(one, 0, 0.0) is None  # nothing is known of its pace
    for _ in range(5):
        one.core.response.committed(3, 0.0)
        one.core.response.opened(3, 1, 0.004)
        one.core.response.continued(1, 0.006)
    hold = policy.hold(one, 0, 0.0)
    assert hold is not None
    assert 0.004 <= hold.seconds <= 0.02
    assert 1 <= hold.tokens <= 8
    assert policy_of(CHEAP, hold_cap=0.003).hold(one, 0, 0.0) is None
    slow = known("slow", 40, 10)
    slow.core.response.committed(3, 0.0)
    slow.core.response.opened(3, 1, 0.080)
    assert policy_of(CHEAP, hold_cap=0.2).hold(slow, 0, 0.0) is None
    junk = known("junk", 0, 40)
    junk.core.response.committed(3, 0.0)
    junk.core.response.opened(3, 1, 0.002)
    assert policy.hold(junk, 0, 0.0) is None
    assert FixedRows(8).hold(one, 0, 0.0) is None


class Holding(FixedRows):
    """Holds sequence ``a`` after each commit."""

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        return Hold(0.010, 2) if sequence.key == "a" else None


def step(scheduler: Scheduler, now: float) -> list[str]:
    """Keys of those who took part."""
    from pilotfish_core.scheduling import Sampled

    planned = scheduler.schedule(now)
    if planned is None:
        return []
    outcomes = {
        entry.sequence.key: Sampled(
            [target((*entry.sequence.tokens, *entry.draft[:row])) for row in range(entry.yields)]
        )
        for entry in planned.scheduled
    }
    scheduler.look_ahead(scheduler.complete(planned, outcomes, now), now)
    scheduler.check_integrity()
    return sorted(outcomes)


def test_a_held_sequence_sits_out_and_the_others_go_on() -> None:
    holding: SpeculationPolicy = Holding(8)
    scheduler = Scheduler(SchedulerConfig(max_model_len=64, num_blocks=64, block_size=4), holding)
    one, other = sequence("a", [1, 2, 3], 30), sequence("b", [4, 5], 30)
    scheduler.add(one)
    scheduler.add(other)
    assert step(scheduler, 0.0) == ["a", "b"]
    assert one.core.next_deadline() == pytest.approx(0.010)
    assert step(scheduler, 0.004) == ["b"]
    right = answer([1, 2, 3], 30)
    one.core.receive(DraftRun(0, 4, tuple(right[1:2])), 0.005)
    assert step(scheduler, 0.006) == ["b"]  # two were waited for
    one.core.receive(DraftRun(0, 5, tuple(right[2:3])), 0.007)
    assert step(scheduler, 0.008) == ["a", "b"]
    assert one.core.output == right[:4]
    assert step(scheduler, 0.012) == ["b"]
    assert step(scheduler, 0.019) == ["a", "b"]  # its time is over
    assert one.core.output == right[:5]


def answering(key: str, response: float) -> Sequence:
    one = known(key, 40, 10)
    for _ in range(5):
        one.core.response.committed(3, 0.0)
        one.core.response.opened(3, 1, response)
        one.core.response.continued(1, response + 0.002)
    return one


def test_nobody_is_held_while_others_go_on() -> None:
    policy = policy_of(CHEAP)
    pair = [answering("a", 0.004), answering("b", 0.008)]
    first, second = policy.holds(pair, 1, False, 0.0)
    assert first is not None
    assert second is not None
    assert first.seconds == pytest.approx(second.seconds)  # the first waits for the second
    assert policy.holds(pair, 5, True, 0.0) == [None, None]
    assert policy.holds([*pair, known("c", 40, 10)], 2, False, 0.0) == [None] * 3  # nothing is known of its pace
    assert policy.holds([*pair, answering("far", 0.200)], 2, False, 0.0) == [None] * 3
    assert policy.holds([], 0, False, 0.0) == []


class Together(FixedRows):
    """Holds everybody for one token."""

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        return Hold(0.010, 1)


def test_those_who_are_held_together_begin_together() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64, num_blocks=64, block_size=4), Together(8))
    pair = [sequence("a", [1, 2, 3], 30), sequence("b", [4, 5, 6], 30)]
    for one in pair:
        scheduler.add(one)
    assert step(scheduler, 0.0) == ["a", "b"]
    pair[0].core.receive(DraftRun(0, 4, (1,)), 0.002)
    assert not scheduler.has_work(0.002)  # b's draft is still on its way
    pair[1].core.receive(DraftRun(0, 4, (1,)), 0.003)
    assert scheduler.has_work(0.003)
    assert step(scheduler, 0.003) == ["a", "b"]
    assert not scheduler.has_work(0.004)
    assert scheduler.has_work(0.014)  # late drafts are not waited for
    assert step(scheduler, 0.014) == ["a", "b"]
    assert not scheduler.has_work(0.015)
    scheduler.add(sequence("c", [7], 30))
    assert scheduler.has_work(0.015)  # who comes does not wait for others
    assert step(scheduler, 0.015) == ["c"]


def test_a_hold_that_is_over_is_nobody_s_deadline() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64, num_blocks=64, block_size=4), Together(8))
    pair = [sequence("a", [1, 2, 3], 30), sequence("b", [4, 5, 6], 30)]
    for one in pair:
        scheduler.add(one)
    assert step(scheduler, 0.0) == ["a", "b"]
    pair[1].core.receive(DraftRun(0, 4, (1,)), 0.002)
    assert pair[1].core.next_deadline() is not None
    assert not scheduler.has_work(0.002)  # a is still waited for
    assert pair[1].core.next_deadline() is None  # an engine would wake at it again and again


def test_a_step_is_not_much_larger_than_any_before() -> None:
    policy = policy_of({1: 0.030, 8: 0.030})
    batch = [known(str(number), 60, 4) for number in range(8)]
    assert sum(policy.draft_rows(batch, [8] * 8, 500, 0.0)) == 4
    policy.observe(64, 0.030)
    assert sum(policy.draft_rows(batch, [8] * 8, 500, 0.0)) == 64


def test_now_and_then_a_step_does_without_drafts() -> None:
    policy = policy_of(CHEAP)
    plain = 0
    for _ in range(1000):
        rows = policy.draft_rows([known("a", 60, 4)], [8], 31, 0.0)[0]
        policy.observe(1 + rows, 0.030)
        plain += rows == 0
    assert 5 <= plain <= 10


def test_what_was_not_verified_is_compared_all_the_same() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64, num_blocks=64, block_size=4), FixedRows(0))
    one = sequence("a", [1, 2, 3], 30)
    scheduler.add(one)
    right = answer([1, 2, 3], 30)
    step(scheduler, 0.0)
    one.core.receive(DraftRun(0, 4, (right[1], right[2], (right[3] + 1) % VOCABULARY)), 0.0)
    for _ in range(3):
        step(scheduler, 0.0)
    assert one.core.acceptance.compared == 3
    assert one.core.refuted
    assert one.core.counts.draft_tokens == 0
