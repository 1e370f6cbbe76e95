"""Whole runs: the same text, the same run for the same seed, and what production would have counted."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish_core.draft_policy import DraftPolicy
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm
from pilotfish_core.scheduling import FixedRows
from pilotfish_sim.rows import row_of
from pilotfish_sim.run import Run, simulate
from pilotfish_sim.scenario import ARMS, Scenario

SHORT = {"answers": 2, "output_tokens": 48, "warmup": 1}


def run(**values: Any) -> Run:
    return simulate(Scenario.of({"workload": SHORT} | values))


def tokens_per_s(result: Run) -> float:
    answers = result.measured
    return sum(answer.tokens for answer in answers) / sum(answer.elapsed_s for answer in answers)


class Timid(DraftPolicy):
    """Drafts one token ahead."""

    @property
    def window(self) -> int:
        return min(super().window, 1)


class Frugal(FixedRows):
    """Verifies nothing."""

    def __init__(self, cap: int) -> None:
        super().__init__(0)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("link", ["local", "wifi-busy"])
def test_every_arm_gives_the_target_s_text(arm: Arm, link: str) -> None:
    result = run(arm=arm, link=link, target={"step_ms": {1: 20, 16: 30}, "draft_step_ms": 2}, seed=3)
    assert len(result.measured) == 2
    assert all(answer.identical and answer.tokens == 48 and not answer.error for answer in result.answers)
    if arm.device_drafts:
        assert sum(answer.counts.sent for answer in result.answers) > 0
    elif arm is not Arm.AUTO:
        assert sum(answer.counts.sent + answer.bytes_up // 500 for answer in result.answers) == 0


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    arm=st.sampled_from(ARMS),
    rtt_ms=st.floats(0, 300),
    jitter_ms=st.floats(0, 100),
    loss=st.floats(0, 0.2),
    acceptance=st.floats(0, 1),
    draft_ms=st.floats(0, 60),
    devices=st.integers(1, 4),
    repetition=st.sampled_from([0.0, 0.5]),
)
def test_no_world_changes_the_text(
    seed: int, arm: Arm, rtt_ms: float, jitter_ms: float, loss: float, acceptance: float, draft_ms: float,
    devices: int, repetition: float,
) -> None:  # fmt: skip
    result = run(
        seed=seed,
        arm=arm,
        link={"rtt_ms": rtt_ms, "jitter_ms": jitter_ms, "jitter": "exponential", "loss": loss},
        acceptance=acceptance,
        device={"draft_ms": draft_ms},
        target={"step_ms": {1: 20, 16: 30}, "draft_step_ms": 2},
        workload={
            "answers": 1,
            "output_tokens": {"min": 1, "max": 40},
            "warmup": 0,
            "devices": devices,
            "repetition": repetition,
        },
    )
    assert all(answer.identical and not answer.error for answer in result.answers)


def test_the_same_scenario_gives_the_same_run() -> None:
    scenario = Scenario.of({"link": "wifi", "workload": SHORT | {"devices": 3}, "seed": 5})
    first, second = simulate(scenario), simulate(scenario)
    assert first == second
    assert simulate(dataclasses.replace(scenario, seed=6)).answers != first.answers


def test_the_cloud_alone_is_arithmetic() -> None:
    result = run(arm="cloud", link={"rtt_ms": 50}, target={"step_ms": 30})
    for answer in result.measured:
        assert answer.ttft_s == pytest.approx(0.050 + 0.030)
        assert answer.tpot_s == pytest.approx(0.030)
    row = row_of(result)
    assert row["tokens_per_s"] == pytest.approx(48 / (0.050 + 48 * 0.030), abs=0.001)
    assert (row["steps_per_token"], row["sent_draft_tokens"], row["useful_draft_fraction"]) == (1.0, 0, None)
    assert row["identical"] is True


def test_what_both_ends_add_is_added() -> None:
    result = run(arm="cloud", link={"rtt_ms": 50}, target={"step_ms": 30, "service_ms": 2}, device={"overhead_ms": 1})
    assert result.measured[0].ttft_s == pytest.approx(0.050 + 0.030 + 2 * (0.002 + 0.001))


def test_prompts_by_hash_and_the_prefix_cache_know_what_came_before() -> None:
    workload = SHORT | {"prompt_tokens": 256, "prefix_tokens": 192, "devices": 2}
    first, second = [answer for answer in run(arm="cloud", workload=workload).answers if answer.device == 0][:2]
    assert first.cached_tokens in (0, 192)  # the other device's came at the same time
    assert second.cached_tokens == 192
    assert first.bytes_up > 3 * 192 > second.bytes_up


def test_a_cut_is_survived_and_costs_a_new_stream() -> None:
    link = {"rtt_ms": 20, "cuts": [{"begin_s": 1.0, "length_s": 0.5, "reset": True}]}
    result = run(link=link, target={"step_ms": 30}, workload={"answers": 1, "output_tokens": 100, "warmup": 0})
    (answer,) = result.answers
    assert answer.identical
    assert answer.counts.reconnects == 1
    plain = run(link={"rtt_ms": 20}, target={"step_ms": 30}, workload={"answers": 1, "output_tokens": 100, "warmup": 0})
    assert answer.elapsed_s > plain.answers[0].elapsed_s + 0.3


def test_more_devices_share_the_steps() -> None:
    one, many = (
        row_of(run(arm="cloud", target={"step_ms": {1: 20, 64: 40}}, workload=SHORT | {"devices": devices}))
        for devices in (1, 32)
    )
    assert many["tokens_per_s"] > 10 * one["tokens_per_s"]
    assert many["tpot_ms"] == pytest.approx(20 + 20 * 31 / 63, rel=0.05)
    assert many["rows_per_step"] > 10


def test_little_memory_makes_answers_wait() -> None:
    workload = SHORT | {"devices": 8, "prompt_tokens": 100}
    roomy = run(arm="cloud", target={"step_ms": 30}, workload=workload)
    tight = run(arm="cloud", target={"step_ms": 30, "kv_tokens": 320, "max_model_len": 320}, workload=workload)
    assert tight.wall_s > 2 * roomy.wall_s
    assert all(answer.identical for answer in tight.answers)


def test_replicas_share_the_streams() -> None:
    workload = SHORT | {"devices": 16}
    target = {"step_ms": {1: 20, 16: 100}}
    one = run(arm="cloud", target=target, workload=workload)
    four = run(arm="cloud", target=target | {"replicas": 4}, workload=workload)
    assert four.wall_s < 0.6 * one.wall_s
    assert all(replica.steps for replica in four.replicas)


def test_arrivals_at_random_and_from_a_file(tmp_path: Path) -> None:
    poisson = run(workload={"kind": "poisson", "rate_per_s": 5, "duration_s": 10, "devices": 20, "output_tokens": 16})
    assert 30 <= len(poisson.answers) <= 70
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n0.1,50,10\n", encoding="utf-8")
    recorded = run(workload={"kind": "trace", "file": str(file), "devices": 2})
    assert [(answer.began, answer.tokens) for answer in recorded.answers] == [(0.0, 20), (0.1, 10)]


def test_a_closed_loop_goes_on_for_as_long_as_it_is_told_to() -> None:
    result = run(arm="cloud", target={"step_ms": 30}, workload=SHORT | {"devices": 2, "duration_s": 10})
    begun = [answer.began for answer in result.answers]
    assert len(begun) == 2 * 7  # of 1.44 s each
    assert max(begun) < 10 < result.answers[-1].last_at


def test_in_rounds_all_ask_at_once_when_the_last_one_is_done() -> None:
    workload = {"kind": "rounds", "devices": 3, "answers": 2, "warmup": 1, "output_tokens": {"min": 8, "max": 64}}
    result = run(arm="device-async", acceptance=0.6, target={"step_ms": 30}, workload=workload)
    answers = sorted(result.answers, key=lambda answer: answer.began)
    rounds = [answers[begin : begin + 3] for begin in (0, 3, 6)]
    assert len({answer.last_at for answer in rounds[0]}) > 1
    for before, after in itertools.pairwise(rounds):
        begun = {answer.began for answer in after}
        assert len(begun) == 1
        assert max(answer.last_at for answer in before) <= begun.pop()


def test_streams_of_one_client_share_its_drafter() -> None:
    values = {"arm": "device-async", "device": {"draft_ms": 10}, "target": {"step_ms": 40}}
    workload = SHORT | {"devices": 8}
    apart = run(**values, workload=workload)
    together = run(**values | {"device": {"draft_ms": 10, "one_client": True}}, workload=workload)
    drafted = [sum(answer.counts.drafted for answer in result.measured) for result in (apart, together)]
    assert drafted[1] < 0.7 * drafted[0]


def test_energy_and_money() -> None:
    values = {
        "arm": "cloud",
        "link": {"rtt_ms": 0, "radio_w": 2},
        "target": {"step_ms": 36},
        "prices": {"gpu_hour": 4},
        "device": {"battery_wh": 10},
    }
    row = row_of(run(**values))
    assert row["usd_per_million_tokens"] == pytest.approx(4 / 3600 * 0.036 * 1e6, rel=0.001)
    assert row["device_j_per_token"] == pytest.approx(2 * 0.036, rel=0.001)
    assert row["battery_share_per_1000_tokens"] == pytest.approx(72 / 36000, rel=0.001)
    drafting = row_of(run(**values | {"arm": "device-async", "device": {"draft_ms": 10, "power_w": 5}}))
    assert drafting["device_j_per_token"] > 5 * 0.010


def test_policies_under_study_take_the_place_of_the_shipped_ones() -> None:
    values = {"arm": "device-async", "link": {"rtt_ms": 20}, "target": {"step_ms": 40}}
    shipped = run(**values)
    timid = run(**values | {"device": {"policy": f"{__name__}:Timid"}})
    frugal = run(**values | {"target": {"step_ms": 40, "policy": f"{__name__}:Frugal"}})
    assert tokens_per_s(timid) < tokens_per_s(shipped)
    assert sum(answer.counts.accepted for answer in frugal.answers) == 0
    with pytest.raises(InvalidParameter, match=r"device.policy is 'nowhere:X'; expected module:Class"):
        run(device={"policy": "nowhere:X"})
