"""The device's choices: it ramps, stops what does not pay, says why, and begins again when it does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pilotfish_core.device_actions import DeviceConfig, SendDraft, SendPing
from pilotfish_core.device_core import DeviceCore
from pilotfish_core.draft_policy import DraftPolicy, DraftPolicyConfig, DraftReason, PolicyMemory, depth
from pilotfish_core.drafts import Commit, Origin
from pilotfish_core.messages import Opened, Pong
from pilotfish_core.modes import Arm

STEP_S = 0.036


def run(
    policy: DraftPolicy, tokens: int, quality: float, *, draft_s: float, begin: float = 0.0, seed: int = 0
) -> float:
    """A cloud next door: each step verifies up to four draft tokens, if the policy drafts. Returns the time at the
    end.
    """
    rng, now, left = random.Random(seed), begin, tokens
    while left > 0:
        now += STEP_S
        drafts = min(policy.window, 4)
        if drafts:
            policy.drafted(1, draft_s)
        agreed = 0
        while agreed < drafts and rng.random() < quality:
            agreed += 1
        if policy.paused:  # one that was not sent can only be compared
            policy.committed(1, agreed, refuted=agreed < drafts, now=now)
            left -= 1
        else:
            policy.committed(agreed + 1, agreed, refuted=agreed < drafts, now=now)
            left -= agreed + 1
    return now


def test_a_good_draft_ramps_up() -> None:
    policy = DraftPolicy(DraftPolicyConfig(window=16))
    assert (policy.window, policy.reason) == (2, DraftReason.RAMP)
    run(policy, 100, 0.95, draft_s=0.002)
    assert policy.reason is DraftReason.USEFUL
    assert policy.window == 16
    assert not policy.paused
    assert (policy.gain or 0.0) > 0.5


def test_junk_is_paused_soon_and_begins_again_when_it_is_good() -> None:
    policy = DraftPolicy(DraftPolicyConfig(window=16))
    now = run(policy, 40, 0.0, draft_s=0.002)
    assert policy.paused
    assert policy.reason is DraftReason.USELESS
    assert policy.pauses == 1
    now = run(policy, 400, 0.0, draft_s=0.002, begin=now)
    assert policy.paused
    probes = policy.acceptance.compared
    assert probes < 40  # of 440 tokens
    run(policy, 400, 0.9, draft_s=0.002, begin=now)
    assert not policy.paused
    assert policy.reason is DraftReason.USEFUL


def test_a_device_slower_than_the_target_does_not_draft() -> None:
    policy = DraftPolicy(DraftPolicyConfig(window=16))
    policy.memory.round_trip.observe(0.02, 0.0)
    run(policy, 40, 0.6, draft_s=3 * STEP_S)
    assert policy.paused
    assert policy.reason is DraftReason.SLOW
    assert policy.explain()["draft_ms"] == pytest.approx(108.0)


def test_an_arm_is_judged_by_what_it_brings() -> None:
    """A target that the arithmetic flatters: drafts are right, yet every commit brings one token."""
    memory = PolicyMemory()
    policy = DraftPolicy(DraftPolicyConfig(window=4), memory)
    now = 0.0
    for _ in range(400):
        now += STEP_S
        if policy.window:
            policy.drafted(1, 0.002)
        policy.committed(1, 1, refuted=False, now=now)
    assert policy.pauses >= 1  # and it tries again now and then
    assert (memory.truth[Arm.ASYNC].value or 1.0) < 0.7


def test_commits_that_come_all_at_once_say_nothing_of_speed() -> None:
    """As those do that were held while the app was asked what becomes of unverified text."""
    memory = PolicyMemory()
    policy = DraftPolicy(DraftPolicyConfig(), memory)
    for step in range(40):
        policy.drafted(1, 0.002)
        policy.committed(1, 1, refuted=False, now=step * STEP_S)
    before = memory.truth[Arm.ASYNC].count
    for _ in range(40):
        policy.committed(1, 1, refuted=False, now=40 * STEP_S)
    assert memory.truth[Arm.ASYNC].count <= before + 1


def test_drafts_that_are_always_too_late_are_given_up() -> None:
    """Not one comes in time to be compared."""
    policy = DraftPolicy(DraftPolicyConfig(window=16))
    now, drafted = 0.0, 0
    for token in range(400):
        now += STEP_S
        if policy.window and token % 3 == 0:
            policy.drafted(1, 3 * STEP_S)
            drafted += 1
        policy.committed(1, 0, refuted=False, now=now)
    assert (policy.paused, policy.reason) == (True, DraftReason.SLOW)
    assert drafted < 20


def test_without_adaptation_it_drafts_on() -> None:
    policy = DraftPolicy(DraftPolicyConfig(window=5, adaptive=False))
    run(policy, 40, 0.0, draft_s=0.002)
    assert (policy.window, policy.paused) == (5, False)


def test_the_explanation_has_the_numbers() -> None:
    policy = DraftPolicy(DraftPolicyConfig())
    assert policy.explain()["gain"] is None
    policy.memory.round_trip.observe(0.05, 1.0)
    run(policy, 30, 0.8, draft_s=0.004)
    explained = policy.explain()
    assert explained["reason"] == "useful"
    assert explained["round_trip_ms"] == 50.0
    assert explained["step_ms"] == pytest.approx(36.0)
    assert 1.0 <= explained["flush_ms"] <= 8.0


def test_depth() -> None:
    assert tuple(depth(rate, 0.05) for rate in (0.0, 0.5, 0.9, 1.0)) == (1, 4, 28, 300)


def streaming(**options: object) -> DeviceCore:
    fields: dict[str, Any] = {"window": 8, "measure_every_s": 1000.0} | options
    config = DeviceConfig(**fields)
    device = DeviceCore(prompt=(1, 2), output=[], max_tokens=100, config=config, drafting=True)
    device.start(0.0)
    device.opened(Opened(model="m", fingerprint="f", max_model_len=500, max_draft_tokens=8, max_unacknowledged=64), 0.0)
    (ping,) = device.expired(0.0)
    assert isinstance(ping, SendPing)
    device.heard(Pong(ping.ping.nonce), 0.0)
    return device


def draft(device: DeviceCore, token: int, now: float) -> list[tuple[int, tuple[int, ...]]]:
    assert device.draft_task(now) is not None
    actions = device.drafted([token], now)
    return [(action.run.start, action.run.tokens) for action in actions if isinstance(action, SendDraft)]


def test_tokens_are_gathered_once_a_step_has_enough() -> None:
    device = streaming()
    device.committed(Commit(2, (5,), 0, Origin.CLOUD), 0.0)
    for agreed in range(6):
        device.policy.committed(1, 1, refuted=False, now=0.04 * (agreed + 1))
    assert device.policy.flush_s == pytest.approx(0.004)
    assert draft(device, 7, 0.300) == []
    assert device.next_deadline() == pytest.approx(0.301)  # the cloud may be waiting
    assert draft(device, 8, 0.301) == [(3, (7, 8))]
    for token in range(9, 13):
        assert draft(device, token, 0.31) == []
        (action,) = device.expired(0.32)
        assert isinstance(action, SendDraft)
    assert draft(device, 13, 0.330) == []  # six are with the cloud
    assert device.next_deadline() == pytest.approx(0.334)
    assert device.expired(0.3339) == []
    assert draft(device, 14, 0.3339) == [(9, (13, 14))]  # the window is full


def test_a_fast_drafter_sends_a_steps_worth_at_once() -> None:
    device = streaming()
    device.committed(Commit(2, (5,), 0, Origin.CLOUD), 0.0)
    for agreed in range(6):
        device.policy.committed(1, 1, refuted=False, now=0.04 * (agreed + 1))
    device.policy.drafted(1, 0.002)
    task = device.draft_task(0.3)
    assert task is not None
    assert task.count == 4  # within a quarter of a step
    (action,) = device.drafted([7, 8, 9, 10], 0.31)
    assert isinstance(action, SendDraft)
    assert action.run.tokens == (7, 8, 9, 10)
    slow = streaming()
    slow.committed(Commit(2, (5,), 0, Origin.CLOUD), 0.0)
    for agreed in range(6):
        slow.policy.committed(1, 1, refuted=False, now=0.04 * (agreed + 1))
    slow.policy.drafted(1, 0.03)
    task = slow.draft_task(0.3)
    assert task is not None
    assert task.count == 1


def test_what_the_cloud_decided_before_it_was_sent_begins_a_new_branch() -> None:
    device = streaming()
    for agreed in range(6):
        device.policy.committed(1, 1, refuted=False, now=0.04 * (agreed + 1))
    assert draft(device, 7, 0.300) == []
    device.expired(0.301)
    assert draft(device, 8, 0.302) == []
    actions = device.committed(Commit(2, (7, 8), 1, Origin.BONUS), 0.3025)
    assert not any(isinstance(action, SendDraft) for action in actions)
    assert draft(device, 9, 0.3028) == []
    (action,) = device.expired(0.304)
    assert isinstance(action, SendDraft)
    assert (action.run.branch, action.run.start, action.run.tokens) == (1, 4, (9,))


def test_paused_drafts_are_not_sent() -> None:
    device = streaming()
    now, sent = 0.0, 0
    for position in range(2, 90):
        now += STEP_S
        task = device.draft_task(now)
        if task is not None:
            sent += sum(isinstance(action, SendDraft) for action in device.drafted([9], now + 0.001))
        sent += sum(isinstance(action, SendDraft) for action in device.expired(now + 0.02))
        device.committed(Commit(position, (5,), 0, Origin.CLOUD), now + 0.03)
    assert device.policy.paused
    assert 1 <= sent <= 24
    assert device.policy.reason is DraftReason.USELESS


def test_the_round_trip_is_measured_while_drafting() -> None:
    device = streaming(measure_every_s=1.0)
    (action,) = device.expired(1.0)
    assert isinstance(action, SendPing)
    device.heard(Pong(action.ping.nonce), 1.05)
    assert device.policy.memory.round_trip.smoothed == pytest.approx(0.05 / 8)
    assert device.next_deadline() == pytest.approx(2.0)
