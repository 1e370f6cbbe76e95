"""The device core's patience, step by step; the whole protocol is in test_protocol_machine."""

from __future__ import annotations

import random

from pilotfish_core.device_actions import Connect, DeviceConfig, End, SendPing
from pilotfish_core.device_core import DeviceCore, DeviceState
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import Opened, Pong
from pilotfish_core.modes import Mode, Pacing

CONFIG = DeviceConfig(ping_after_s=20.0, ping_timeout_s=10.0)
OPENED = Opened(model="m", fingerprint="f", max_model_len=100, max_draft_tokens=8, max_unacknowledged=64)


def core() -> DeviceCore:
    device = DeviceCore(prompt=(1, 2), output=[], max_tokens=8, config=CONFIG, drafting=False, jitter=random.Random(0))
    assert device.start(0.0) == [Connect(1, 2, Mode(Pacing.PAUSED))]
    return device


def ping_of(device: DeviceCore, now: float) -> int:
    assert device.next_deadline() == now
    assert device.expired(now - 0.001) == []
    (action,) = device.expired(now)
    assert isinstance(action, SendPing)
    return action.ping.nonce


def test_a_generation_in_the_clouds_queue_waits_while_pings_are_answered() -> None:
    device = core()
    now = 0.0
    for _ in range(10):
        nonce = ping_of(device, now + 20.0)
        now += 20.5
        assert device.heard(Pong(nonce), now) == []
        assert device.state is DeviceState.CONNECTING
    assert device.opened(OPENED, now) == []
    assert device.state is DeviceState.STREAMING
    assert device.attempt == 1


def test_a_verifier_that_answers_no_ping_is_given_up() -> None:
    device = core()
    ping_of(device, 20.0)
    assert device.next_deadline() == 30.0
    assert device.expired(30.0) == []
    assert device.state is DeviceState.WAITING
    retry_at = device.next_deadline()
    assert retry_at is not None
    assert device.expired(retry_at) == [Connect(2, 2, Mode(Pacing.PAUSED))]
    ping_of(device, retry_at + 20.0)


def test_who_is_told_to_come_again_is_more_patient_than_who_finds_nobody() -> None:
    for hint_s, failures in ((None, 4), (0.0, 10)):
        device, now = core(), 0.0
        for _ in range(failures - 1):
            assert device.lost(Unavailable("not now", retry_after_s=hint_s), now) == []
            now = device.next_deadline() or 0.0
            assert [type(action) for action in device.expired(now)] == [Connect]
        assert [type(action) for action in device.lost(Unavailable("not now", retry_after_s=hint_s), now)] == [End]


def test_whatever_is_heard_after_a_ping_is_a_sign_of_life() -> None:
    device = core()
    device.opened(OPENED, 0.0)
    ping_of(device, 20.0)
    device.committed(Commit(position=2, tokens=(7,)), 29.0)
    assert device.next_deadline() == 39.0
    assert device.expired(30.0) == []
    assert device.counts.reconnects == 0
    device.expired(39.0)
    assert device.state is DeviceState.WAITING


def test_a_verifier_that_answers_when_it_was_given_up_is_not_heard() -> None:
    device = core()
    ping_of(device, 20.0)
    device.expired(30.0)
    assert device.state is DeviceState.WAITING
    assert device.opened(OPENED, 30.01) == []
    assert device.state is DeviceState.WAITING
