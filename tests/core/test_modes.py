"""Who drafts: what the policy chooses for which objective, and what mode, hint and advice mean to the two cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pilotfish_core.cloud_core import CloudLimits
from pilotfish_core.device_actions import DeviceConfig, SendDraft, SendHint, SendMode
from pilotfish_core.device_core import DeviceCore
from pilotfish_core.draft_policy import DraftPolicy, DraftPolicyConfig, DraftReason, PolicyMemory
from pilotfish_core.drafts import Commit, DraftRun, Origin, RunFate
from pilotfish_core.goodput import Pipeline, best_lockstep, best_own_draft, lockstep_rate
from pilotfish_core.messages import Opened
from pilotfish_core.modes import Advice, Arm, CloudDraft, Hint, Mode, Objective, Pacing
from pilotfish_core.own_draft import OwnDraft, OwnRecord
from pilotfish_core.scheduling import CloudNgram, Goodput, Scheduler, SchedulerConfig
from pilotfish_core.scheduling.step import Sampled, ScheduledStep
from pilotfish_core.wire import CloudFrameReader, CloudFrameWriter
from tests.core.test_draft_policy import STEP_S, run
from tests.core.test_scheduler import sequence, target

OPENED = Opened(
    model="m",
    fingerprint="f",
    max_model_len=500,
    max_draft_tokens=8,
    max_unacknowledged=64,
    cloud_draft=CloudDraft.MODEL,
)


def sampled(step: ScheduledStep, choose: Callable[[list[int]], int]) -> dict[str, Sampled]:
    """What a target that chooses so gives for the rows of a step."""
    outcomes = {}
    for entry in step.scheduled:
        rows = [[*entry.sequence.tokens, *entry.draft[:row]] for row in range(entry.yields)]
        outcomes[entry.sequence.key] = Sampled([choose(row) for row in rows])
    return outcomes


def policy_of(arm: Arm = Arm.AUTO, *, drafting: bool = True, rtt_s: float = 0.02, **config: Any) -> DraftPolicy:
    policy = DraftPolicy(DraftPolicyConfig(window=16, arm=arm, **config), drafting=drafting)
    policy.memory.round_trip.observe(rtt_s, 0.0)
    policy.offered(CloudDraft.MODEL)
    return policy


# -- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "mode"),
    [
        (Arm.CLOUD, Mode(Pacing.PAUSED)),
        (Arm.CO_LOCATED, Mode(Pacing.PAUSED, CloudDraft.MODEL)),
        (Arm.CO_LOCATED_NGRAM, Mode(Pacing.PAUSED, CloudDraft.NGRAM)),
        (Arm.LOCKSTEP, Mode(Pacing.LOCKSTEP)),
        (Arm.ASYNC, Mode(Pacing.FREE)),
    ],
)
def test_a_named_arm_is_stayed_in(arm: Arm, mode: Mode) -> None:
    policy = policy_of(arm)
    assert policy.mode == mode
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, 5.0, 0.2))
    run(policy, 40, 0.95, draft_s=0.002)
    assert (policy.arm, policy.mode) == (arm, mode)


def test_auto_takes_what_is_fastest() -> None:
    policy = policy_of()
    assert policy.mode == Mode(Pacing.FREE, CloudDraft.NGRAM)
    run(policy, 40, 0.8, draft_s=0.004)
    gain = policy.gain
    assert gain is not None
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, gain - 0.2, 0.8))
    assert policy.arm is Arm.ASYNC
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, gain + 0.3, 0.4))
    assert (policy.arm, policy.reason) == (Arm.CO_LOCATED, DraftReason.CLOUD_DRAFTS)
    assert policy.paused
    run(policy, 10, 0.8, draft_s=0.004)
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, gain - 0.6, 0.9))
    assert (policy.arm, policy.reason) == (Arm.ASYNC, DraftReason.USEFUL)


def test_a_little_better_is_not_enough_to_change() -> None:
    policy = policy_of()
    run(policy, 60, 0.8, draft_s=0.004)
    gain = policy.gain
    assert gain is not None
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, gain - 0.01, 0.5))
    assert policy.arm is Arm.ASYNC


def test_a_choice_is_kept_for_some_commits() -> None:
    policy = policy_of()
    run(policy, 40, 0.8, draft_s=0.004)
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, 9.0, 0.1))
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, 0.0, 1.0))
    assert policy.arm is Arm.CO_LOCATED
    run(policy, 8, 0.8, draft_s=0.004)
    assert policy.mode.pacing is Pacing.FREE


def test_without_a_drafter_the_cloud_may_draft() -> None:
    policy = policy_of(drafting=False)
    assert policy.arm is Arm.CLOUD
    policy.advised(Advice(STEP_S, CloudDraft.NGRAM, 0.2, 0.8))
    assert (policy.arm, policy.reason, policy.window) == (Arm.CO_LOCATED, DraftReason.NO_DRAFTER, 0)
    assert policy_of(Arm.ASYNC, drafting=False).mode == Mode(Pacing.PAUSED)


@pytest.mark.parametrize(
    ("hint", "reason"),
    [(Hint(battery_low=True), DraftReason.BATTERY), (Hint(metered_network=True), DraftReason.BYTES)],
)
def test_hints_stop_the_device_until_they_are_taken_back(hint: Hint, reason: DraftReason) -> None:
    policy = policy_of()
    run(policy, 40, 0.9, draft_s=0.002)
    policy.hinted(hint)
    assert (policy.arm, policy.reason, policy.window) == (Arm.CLOUD, reason, 0)
    run(policy, 100, 0.9, draft_s=0.002)
    assert policy.window == 0  # not even a probe
    policy.hinted(Hint(battery_low=True, metered_network=True, prefer_fast=True))
    assert policy.arm is Arm.ASYNC
    assert policy_of(objective=Objective.BATTERY).arm is Arm.CLOUD


def test_for_the_clouds_sake_the_device_drafts_where_the_cloud_would_be_faster() -> None:
    policy = policy_of(objective=Objective.CLOUD_COST)
    run(policy, 40, 0.8, draft_s=0.004)
    policy.advised(Advice(STEP_S, CloudDraft.MODEL, 1.5, 0.9))
    assert policy.arm is Arm.ASYNC
    slow = policy_of(objective=Objective.CLOUD_COST, rtt_s=0.3)
    run(slow, 40, 0.3, draft_s=0.1)
    assert slow.arm is Arm.CLOUD


def test_a_cloud_under_load_is_heeded() -> None:
    policy = policy_of()
    run(policy, 40, 0.9, draft_s=0.002)
    policy.advised(Advice(STEP_S, max_draft_tokens=0, reason="load"))
    assert (policy.arm, policy.reason) == (Arm.CLOUD, DraftReason.LOAD)
    run(policy, 8, 0.9, draft_s=0.002)
    policy.advised(Advice(STEP_S))
    assert policy.arm is Arm.ASYNC


def test_the_next_generation_begins_with_what_this_one_learned() -> None:
    memory = PolicyMemory()
    run(DraftPolicy(DraftPolicyConfig(window=16), memory), 60, 0.9, draft_s=0.002)
    second = DraftPolicy(DraftPolicyConfig(window=16), memory)
    second.advised(Advice(STEP_S))
    assert (second.arm, second.reason, second.window) == (Arm.ASYNC, DraftReason.USEFUL, 16)
    junk = PolicyMemory()
    run(DraftPolicy(DraftPolicyConfig(window=16), junk), 60, 0.0, draft_s=0.002)
    junk.advice = Advice(STEP_S)
    paused = DraftPolicy(DraftPolicyConfig(window=16), junk)
    assert (paused.arm, paused.reason) == (Arm.CLOUD, DraftReason.USELESS)
    run(paused, 400, 0.9, draft_s=0.002)
    assert paused.arm is Arm.ASYNC


def test_the_arithmetic_of_drafting_in_turn() -> None:
    flat = Pipeline(acceptance=0.8, response=0.03, gap=0.005, window=16)
    best = best_lockstep(flat, lambda rows: STEP_S)
    rates = [lockstep_rate(flat, lambda rows: STEP_S, drafts) for drafts in range(1, 17)]
    assert rates[best - 1] == max(rates)
    own = best_own_draft(0.8, 1.0, 16, lambda rows: STEP_S, 0.003)
    assert 4 <= own.tokens <= 10
    assert own.gain == pytest.approx(1 / own.cost - 1)
    assert own.gain > 1.0
    assert best_own_draft(0.8, 0.1, 16, lambda rows: STEP_S, 0.003).gain < 0.3
    assert best_own_draft(0.2, 1.0, 16, lambda rows: STEP_S, STEP_S).tokens == 0


# -- the device ----------------------------------------------------------------------------------------------------


def device_in(arm: Arm, **config: Any) -> DeviceCore:
    settings = DeviceConfig(window=4, adaptive=False, arm=arm, measure_every_s=1000.0, **config)
    device = DeviceCore(prompt=(1, 2), output=[], max_tokens=20, config=settings, drafting=True)
    device.start(0.0)
    device.opened(OPENED, 0.0)
    return device


def test_in_lockstep_the_device_waits_for_its_turn() -> None:
    device = device_in(Arm.LOCKSTEP)
    assert device.draft_task(0.0) is None  # the first token comes from the prefill
    device.committed(Commit(2, (5,)), 0.1)
    task = device.draft_task(0.1)
    assert task is not None
    assert task.count == 4
    (action,) = device.drafted([6, 7, 8, 9], 0.12)
    assert isinstance(action, SendDraft)
    assert action.run.tokens == (6, 7, 8, 9)
    assert device.draft_task(0.13) is None
    device.committed(Commit(3, (6, 3), 1, Origin.RECOVERED), 0.2)
    task = device.draft_task(0.2)
    assert task is not None
    assert task.start == 5


def test_in_lockstep_the_device_says_that_it_has_nothing() -> None:
    device = device_in(Arm.LOCKSTEP)
    device.committed(Commit(2, (5,)), 0.1)
    assert device.draft_task(0.1) is not None
    (action,) = device.drafted([], 0.12)
    assert isinstance(action, SendDraft)
    assert (action.run.start, action.run.tokens) == (3, ())
    last = device_in(Arm.LOCKSTEP)
    actions = last.committed(Commit(2, tuple(range(5, 24))), 0.1)  # one token is left: the cloud's
    assert [action.run.tokens for action in actions if isinstance(action, SendDraft)] == [()]


def test_in_lockstep_what_the_cloud_still_has_is_answer_enough() -> None:
    """Near the end there is nothing left to draft, but a part of the last run is still to be verified."""
    device = device_in(Arm.LOCKSTEP)
    device.committed(Commit(2, tuple(range(15))), 0.1)
    assert device.draft_task(0.1) is not None
    device.drafted([6, 7, 8, 9], 0.12)
    assert device.committed(Commit(17, (6,), 1, Origin.ACCEPTED), 0.2)[1:] == []


def test_a_failed_drafter_ends_the_lockstep() -> None:
    device = device_in(Arm.LOCKSTEP)
    device.committed(Commit(2, (5,)), 0.1)
    assert device.draft_task(0.1) is not None
    assert device.drafter_failed() == [SendMode(Mode(Pacing.PAUSED))]


def test_hints_go_to_the_cloud() -> None:
    device = DeviceCore(prompt=(1, 2), output=[], max_tokens=20, config=DeviceConfig(), drafting=True)
    assert device.hinted(Hint(metered_network=True), 0.0) == []  # open will say it
    device.start(0.0)
    device.opened(OPENED, 0.0)
    hint = Hint(prefer_fast=True)
    assert device.hinted(hint, 0.0)[0] == SendHint(hint)
    assert device.hinted(hint, 0.0) == []


# -- the cloud -----------------------------------------------------------------------------------------------------


def test_in_lockstep_the_cloud_waits_for_a_run_but_not_for_ever() -> None:
    core = sequence("a", [1, 2, 3], 30).core
    core.steer(Mode(Pacing.LOCKSTEP), 0.0)
    core.draft(8, 0.0)
    core.step([5], 1.0)
    assert core.held(1.0)
    deadline = core.next_deadline()
    assert deadline == 1.0 + CloudLimits().lockstep_timeout_s
    core.receive(DraftRun(0, 4, ()), 1.1)
    assert not core.held(1.1)
    core.draft(8, 1.1)
    core.step([6], 1.2)
    assert core.held(1.2)
    core.receive(DraftRun(1, 5, (7, 8)), 1.3)
    assert not core.held(1.3)
    assert core.draft(8, 1.3) == (7, 8)
    core.step([7, 8, 9], 1.4)
    assert not core.held(1.4 + CloudLimits().lockstep_timeout_s)
    assert core.next_deadline() is None
    core.steer(Mode(Pacing.LOCKSTEP), 4.0)
    core.draft(8, 4.0)
    core.step([1], 4.1)
    core.steer(Mode(Pacing.FREE), 4.2)
    assert not core.held(4.2)


def test_a_device_that_let_its_turn_pass_is_not_waited_for_until_it_is_back() -> None:
    """Its drafter may hang: that costs one turn, not one for each token."""
    core = sequence("a", [1, 2, 3], 30).core
    core.steer(Mode(Pacing.LOCKSTEP), 0.0)
    core.draft(8, 0.0)
    core.step([5], 1.0)
    late = 1.0 + CloudLimits().lockstep_timeout_s
    assert not core.held(late)
    for token in (6, 7):
        core.draft(8, late)
        core.step([token], late)
        assert not core.held(late)
    core.receive(DraftRun(0, 6, ()), late)  # it is back, with nothing
    core.draft(8, late)
    core.step([8], late)
    assert core.held(late)


def test_stale_runs_do_not_make_the_cloud_wait_again() -> None:
    """Or a peer could hold a seat for two seconds a token, at the price of a run that costs it nothing."""
    core = sequence("a", [1, 2, 3], 30).core
    core.steer(Mode(Pacing.LOCKSTEP), 0.0)
    core.receive(DraftRun(5, 3, (1,)), 0.0)
    core.draft(8, 0.0)
    core.step([5, 0], 1.0)
    late = 1.0 + CloudLimits().lockstep_timeout_s
    assert not core.held(late)
    for token in (6, 7):
        assert core.receive(DraftRun(1, 3, (1,)), late) is RunFate.STALE
        core.draft(8, late)
        core.step([token], late)
        assert not core.held(late)


def test_what_the_cloud_drafts_is_no_draft_to_the_device() -> None:
    core = sequence("a", [1, 2, 3], 30).core
    core.own = OwnDraft(CloudDraft.NGRAM, OwnRecord())
    core.own.propose((5, 6, 7))
    assert core.draftable == 3
    assert core.draft(2, 0.0) == (5, 6)
    commit = core.step([5, 6, 9], 0.1)
    assert commit is not None
    assert (commit.tokens, commit.accepted, commit.origin) == ((5, 6, 9), 0, Origin.CLOUD)
    assert (core.counts.own_draft_tokens, core.counts.own_accepted_tokens, core.counts.draft_tokens) == (2, 2, 0)
    assert core.own.acceptance.compared == 3  # the third was compared, too
    assert core.draftable == 0


def test_the_device_counts_its_own_drafts_alone_as_accepted() -> None:
    """Over the wire, where a commit leaves out what is implied."""
    core = sequence("a", [1, 2], 20).core
    device = device_in(Arm.ASYNC)
    core.own = OwnDraft(CloudDraft.NGRAM, OwnRecord())
    writer, reader = CloudFrameWriter(), CloudFrameReader()
    reader.read(writer.opened(OPENED))

    def step(targets: list[int]) -> None:
        core.draft(4, 0.0)
        commit = core.step(targets, 0.0)
        assert commit is not None
        (received,) = reader.read(writer.commit(commit))
        assert isinstance(received, Commit)
        device.committed(received, 0.0)

    core.own.propose((5, 6, 7))
    step([5, 6, 7, 8])
    assert (device.counts.accepted, device.counts.cloud) == (0, 4)
    core.receive(DraftRun(0, 6, (3, 4)), 0.0)
    core.own.propose((3,))
    step([3, 4, 9])
    assert (device.counts.accepted, device.counts.bonus, device.counts.cloud) == (2, 1, 4)


def test_the_devices_draft_goes_before_the_clouds() -> None:
    core = sequence("a", [1, 2, 3], 30).core
    core.own = OwnDraft(CloudDraft.NGRAM, OwnRecord())
    core.own.propose((5,))
    core.receive(DraftRun(0, 3, (8,)), 0.0)
    assert core.draft(4, 0.0) == (8,)
    commit = core.step([8, 9], 0.1)
    assert commit is not None
    assert (commit.accepted, commit.origin) == (1, Origin.BONUS)
    assert core.own.acceptance.compared == 1  # and the cloud's was compared


def test_prompt_lookup_in_the_cloud_changes_no_token() -> None:
    """A target that repeats itself: the cloud's own drafts save steps, and the text is the same."""

    def text(mode: Mode, drafters: list[CloudNgram]) -> tuple[list[int], int]:
        scheduler = Scheduler(SchedulerConfig(max_model_len=200, num_blocks=64, block_size=4), Goodput(8), drafters)
        for rows in (1, 9):
            scheduler.policy.observe(rows, 0.03)
        one = sequence("a", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2], 40)
        one.core.steer(mode, 0.0)
        scheduler.add(one)
        now = 0.0
        while one.core.finish is None:
            now += 0.03
            step = scheduler.schedule(now)
            assert step is not None
            scheduler.complete(step, sampled(step, repeating), now)
        assert all(not drafter._contexts for drafter in drafters)
        return one.core.output, scheduler.counts.steps

    def repeating(context: list[int]) -> int:
        return context[-4]

    plain, steps = text(Mode(Pacing.PAUSED), [CloudNgram()])
    drafted, fewer = text(Mode(Pacing.PAUSED, CloudDraft.MODEL), [CloudNgram()])
    assert drafted == plain
    assert fewer < steps / 2


def test_advice_comes_at_first_and_when_it_has_changed() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=400, num_blocks=128, block_size=4), Goodput(8), [CloudNgram()])
    scheduler.policy.observe(1, 0.03)
    scheduler.policy.observe(9, 0.031)
    one = sequence("a", [1, 2, 3], 200)
    scheduler.add(one)
    said: list[tuple[int, Advice]] = []
    for index in range(120):
        step = scheduler.schedule(float(index))
        assert step is not None
        done = scheduler.complete(step, sampled(step, lambda context: target(tuple(context))), float(index))
        said += [(index, advice) for _, advice in scheduler.look_ahead(done, float(index))]
        if index == 60:
            for _ in range(100):
                scheduler.policy.observe(1, 0.3)
    assert said[0][0] == 0
    assert said[0][1].step_s == pytest.approx(0.03)
    assert said[0][1].cloud_draft is CloudDraft.NGRAM
    assert len(said) == 2
    assert 60 < said[1][0] <= 60 + 17


def test_only_rows_that_others_take_are_called_load() -> None:
    policy = Goodput(8)
    for rows, seconds in {1: 0.030, 9: 0.034, 17: 0.080, 33: 0.160}.items():
        policy.observe(rows, seconds)
    junk = sequence("a", [1, 2, 3], 200)
    for _ in range(60):
        junk.core.acceptance.observe(0, refuted=True)
    alone = policy.advise(junk, None, 0, 0.0)
    assert alone is not None
    assert (alone.max_draft_tokens, alone.reason) == (None, "")
    good = sequence("b", [1, 2, 3], 200)
    good.core.acceptance.observe(10, refuted=True)
    crowded = policy.advise(good, None, 15, 0.0)
    assert crowded is not None
    assert crowded.reason == "load"
    assert crowded.max_draft_tokens is not None
