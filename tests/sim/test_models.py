"""The models of the world: acceptance, text, step times, workloads, paths."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.messages import Ping
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import DeviceFrameWriter
from pilotfish_sim.acceptance import Acceptance
from pilotfish_sim.clock import Clock
from pilotfish_sim.path import Path as LinkPath
from pilotfish_sim.path import Stream
from pilotfish_sim.target_model import MODELS, Target
from pilotfish_sim.text import Text
from pilotfish_sim.workload import Request, Workload
from pilotfish_sim.world import Link


def text_of(acceptance: Acceptance, tokens: int = 4000, *, repetition: float = 0.0, answer: int = 0) -> Text:
    return Text(
        shared=(),
        prompt_tokens=64,
        output_tokens=tokens,
        acceptance=acceptance,
        own_acceptance=0.5,
        vocabulary=1000,
        repetition=repetition,
        answer=answer,
        seed=7,
    )


def right(text: Text, index: int, count: int, ahead: int = 0) -> list[bool]:
    drafted = text.drafted(index, count, ahead)
    return [token == true for token, true in zip(drafted, text.output[index:], strict=False)]


def test_a_constant_rate_and_a_draft_that_does_not_change_its_mind() -> None:
    text = text_of(Acceptance(rate=0.7))
    assert np.mean(right(text, 0, 4000)) == pytest.approx(0.7, abs=0.03)
    assert text.drafted(100, 5, 0) == text.drafted(98, 7, 3)[2:]
    assert text.drafted(3998, 5, 0) == text.drafted(3998, 2, 0)  # nothing beyond the end
    assert np.mean([a == b for a, b in zip(text.drafted_in_cloud(0, 4000), text.output, strict=True)]) == pytest.approx(
        0.5, abs=0.03
    )


def test_rates_by_position_beyond_the_commit() -> None:
    text = text_of(Acceptance.of([0.9, 0.5, 0.1]))
    for ahead, rate in ((0, 0.9), (1, 0.5), (2, 0.1), (9, 0.1)):
        found = np.mean([right(text, index, 1, ahead)[0] for index in range(4000)])
        assert found == pytest.approx(rate, abs=0.03)


def test_bursts_have_the_share_and_the_length_asked_for() -> None:
    acceptance = Acceptance.of({"kind": "bursts", "rate": 1.0, "hard_rate": 0.0, "hard_share": 0.25, "stretch": 10})
    matches = right(text_of(acceptance, 100_000), 0, 100_000)
    assert np.mean(matches) == pytest.approx(0.75, abs=0.03)
    changes = sum(a != b for a, b in itertools.pairwise(matches))
    assert len(matches) / changes == pytest.approx(10, rel=0.1)


def test_a_recorded_trace_is_followed_and_must_be_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "matches.jsonl"
    file.write_text(json.dumps([1, 0, 1, 1]) + "\n" + json.dumps([0, 0, 0, 0]) + "\n", encoding="utf-8")
    acceptance = Acceptance.of({"kind": "trace", "file": str(file)})
    assert right(text_of(acceptance, 4), 0, 4) == [True, False, True, True]
    assert right(text_of(acceptance, 4, answer=1), 0, 4) == [False] * 4
    with pytest.raises(InvalidParameter, match=r"acceptance.file is .*expected at least 5 positions in line 1"):
        text_of(acceptance, 5)
    file.write_text("[1, 2]\n", encoding="utf-8")
    with pytest.raises(InvalidParameter, match=r"acceptance.file is .*each output position"):
        text_of(Acceptance.of({"kind": "trace", "file": str(file)}), 1)


def test_repetition_is_what_prompt_lookup_finds() -> None:
    plain, repeated = text_of(Acceptance()), text_of(Acceptance(), repetition=0.6)
    assert len(repeated.output) == 4000

    def known(text: Text) -> float:
        seen: set[tuple[int, ...]] = set()
        found = 0
        whole = [*text.prompt, *text.output]
        for end in range(3, len(whole)):
            found += tuple(whole[end - 3 : end]) in seen
            seen.add(tuple(whole[end - 3 : end]))
        return found / len(text.output)

    assert known(plain) < 0.01
    assert 0.35 < known(repeated) < 0.65  # the first tokens of a copy cannot be known


def test_a_curve_is_straight_between_its_points() -> None:
    seconds = Target.of({"step_ms": {1: 10, 5: 30}, "context_us": 100}).step_time()
    assert [seconds(rows, 0) * 1e3 for rows in (1, 2, 3, 5, 9)] == pytest.approx([10, 15, 20, 30, 50])
    assert seconds(1, 10_000) * 1e3 == pytest.approx(11)
    assert Target.of({"step_ms": 30}).step_time()(100, 10**6, 1) == pytest.approx(0.03)


def test_the_roofline_of_a_70b_on_four_h100() -> None:
    target = Target.of({"model": "llama-3.1-70b", "gpu": "h100", "gpus": 4})
    seconds = target.step_time()
    weights = 70.6e9 * 2 / (4 * 3.35e12 * 0.75)
    assert seconds(1, 0) == pytest.approx(weights)
    assert seconds(100, 0) == pytest.approx(weights)  # memory-bound: more rows are free
    assert seconds(2000, 0) == pytest.approx(2 * 70.6e9 * 2000 / (4 * 989e12 * 0.6))  # compute-bound
    assert seconds(1, 1000) - seconds(1, 0) == pytest.approx(1000 * 327_680 / (4 * 3.35e12 * 0.75))
    assert MODELS["llama-3.1-70b"].kv_bytes() == 327_680
    assert target.kv_capacity == pytest.approx((4 * 80e9 * 0.9 - 141.2e9) / 327_680, abs=1)
    eight = Target.of({"model": "llama-3.1-70b", "gpu": "h100", "gpus": 4, "weight_bits": 8}).step_time()
    assert eight(1, 0) == pytest.approx(weights / 2)


def test_arrivals_of_a_closed_loop_a_poisson_process_and_a_trace(tmp_path: Path) -> None:
    closed = list(Workload(devices=3, answers=2, warmup=1).loop(1, 0))
    assert [(request.number, request.device) for request in closed] == [(1, 1), (4, 1), (7, 1)]
    assert [request.measured for request in closed] == [False, True, True]
    endless = Workload(devices=3, answers=2, duration_s=60).loop(1, 0)
    assert len(list(itertools.islice(endless, 50))) == 50
    poisson = Workload.of({"kind": "poisson", "rate_per_s": 50, "duration_s": 100, "warmup_s": 10, "devices": 7})
    arrivals = list(poisson.requests(0))
    assert len(arrivals) == pytest.approx(5000, rel=0.06)
    gaps = np.diff([request.at for request in arrivals])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)
    assert all(request.measured == (request.at >= 10) for request in arrivals)
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0.5,100,20\n3,50,10\n", encoding="utf-8")
    recorded = Workload.of({"kind": "trace", "file": str(file), "devices": 2})
    assert list(recorded.requests(0)) == [Request(0, 0, 0.5, 100, 20), Request(1, 1, 3.0, 50, 10)]
    assert recorded.longest == 120
    with pytest.raises(InvalidParameter, match=r"workload.file is .*expected arrivals until 10 s; it ends at 3 s"):
        list(Workload.of({"kind": "trace", "file": str(file), "duration_s": 10}).requests(0))


def test_lengths_follow_their_distribution() -> None:
    workload = Workload.of(
        {
            "answers": 3000,
            "prompt_tokens": {"min": 10, "max": 20},
            "output_tokens": {"median": 100, "sigma": 1.0, "max": 900},
        }
    )
    requests = list(workload.loop(0, 0))
    assert {request.prompt_tokens for request in requests} == set(range(10, 21))
    outputs = [request.output_tokens for request in requests]
    assert np.median(outputs) == pytest.approx(100, rel=0.1)
    assert max(outputs) == 900
    assert workload.longest == 920


def sent(link: Link, frames: list[tuple[float, pb.DeviceFrame]], **ends: float) -> tuple[list[float], LinkPath]:
    clock = Clock()
    path = LinkPath(clock, link, link.spec(0), device_s=ends.get("device_s", 0.0), service_s=ends.get("service_s", 0.0))
    stream = Stream(clock, path)
    arrived: list[float] = []
    stream.cloud_end(lambda _: arrived.append(clock.now))
    for at, frame in frames:
        clock.at(at, stream.up, frame)
    clock.run()
    return arrived, path


def test_a_path_takes_headers_ends_and_the_connection_into_account() -> None:
    frame = DeviceFrameWriter().ping(Ping(3))
    size = frame.ByteSize()
    link = Link(rtt_ms=20, rate_up_mbit=0.8, overhead_bytes=100)  # 100,000 bytes a second
    arrived, path = sent(link, [(0.0, frame)], device_s=0.001, service_s=0.002)
    assert arrived == pytest.approx([0.001 + (size + 100) / 1e5 + 0.010 + 0.002])
    assert (path.bytes_up, path.messages_up) == (size + 100, 1)
    arrived, _ = sent(Link(rtt_ms=20, connect_round_trips=2), [(0.0, frame), (1.0, frame)])
    assert arrived == pytest.approx([0.050, 1.010])


def test_a_radio_that_sleeps_wakes_up_late() -> None:
    frame = DeviceFrameWriter().ping(Ping(3))
    link = Link(rtt_ms=20, wake_ms=250, sleep_s=5)
    arrived, _ = sent(link, [(1.0, frame), (2.0, frame), (20.0, frame)])
    assert arrived == pytest.approx([1.26, 2.01, 20.26])


def test_what_is_on_its_way_when_a_stream_is_cut_does_not_arrive() -> None:
    clock = Clock()
    link = Link(rtt_ms=20)
    stream = Stream(clock, LinkPath(clock, link, link.spec(0), device_s=0.0, service_s=0.0))
    arrived: list[object] = []
    stream.cloud_end(arrived.append)
    stream.up(pb.DeviceFrame(acknowledged=3))
    clock.at(0.005, lambda _: stream.cut())
    clock.run()
    assert arrived == []
