"""The link models: FIFO, no byte early, rates and traces as stated."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.links import TRACE_PACKET, Change, Cut, Direction, Jitter, LinkSpec, load_trace
from pilotfish_sim.quantities import bits_per_second, seconds, size_bytes


def arrivals(spec: LinkSpec, sends: list[tuple[float, int]], *, up: bool = True) -> list[float]:
    direction = Direction(spec, up=up)
    return [direction.arrival(now, size) for now, size in sends]


def test_half_the_round_trip_each_way() -> None:
    spec = LinkSpec(rtt_s=0.05)
    assert arrivals(spec, [(0.0, 10), (1.0, 10)]) == pytest.approx([0.025, 1.025])
    assert arrivals(spec, [(0.0, 10)], up=False) == pytest.approx([0.025])


def test_a_slow_wire_takes_one_after_the_other() -> None:
    spec = LinkSpec(rtt_s=0.02, rate_up=80_000.0)  # 10,000 bytes a second
    assert arrivals(spec, [(0.0, 1000), (0.0, 1000), (5.0, 500)]) == pytest.approx([0.11, 0.21, 5.06])
    assert arrivals(spec, [(0.0, 1000)], up=False) == pytest.approx([0.01])
    direction = Direction(LinkSpec(rate_up=80_000.0, queue_bytes=2000), up=True)
    for _ in range(5):
        direction.arrival(0.0, 1000)
    assert direction.room_at(0.0) == pytest.approx(0.3)
    assert direction.room_at(1.0) == 1.0


def test_a_trace_lets_a_packet_through_at_each_of_its_times() -> None:
    spec = LinkSpec(trace_up=(10, 20, 100))
    whole = TRACE_PACKET
    sends = [(0.0, whole), (0.0, whole), (0.0, whole), (0.0, whole), (0.305, whole), (1.0, 500), (1.0, 500)]
    assert arrivals(spec, sends) == pytest.approx([0.010, 0.020, 0.100, 0.110, 0.310, 1.0, 1.0])


@pytest.mark.parametrize("kind", list(Jitter))
def test_jitter_spreads_as_stated(kind: Jitter) -> None:
    spec = LinkSpec(rtt_s=0.2, jitter_s=0.04, jitter=kind, seed=3)
    delays = [
        due - now for now, due in zip(range(4000), arrivals(spec, [(float(i), 1) for i in range(4000)]), strict=True)
    ]
    assert statistics.mean(delays) == pytest.approx(0.1, abs=0.001)
    assert min(delays) >= (0.02 if kind is Jitter.NORMAL else 0.08) - 1e-9
    spread = {Jitter.UNIFORM: 0.02 / 3**0.5, Jitter.NORMAL: 0.02, Jitter.EXPONENTIAL: 0.02}[kind]
    assert statistics.pstdev(delays) == pytest.approx(spread, rel=0.06)


def test_losses_come_late_and_hold_up_what_follows() -> None:
    spec = LinkSpec(rtt_s=0.1, loss=0.1, seed=1)
    sends = [(index * 0.001, 1) for index in range(3000)]
    delays = [due - now for (now, _), due in zip(sends, arrivals(spec, sends), strict=True)]
    assert min(delays) == pytest.approx(0.05)
    assert max(delays) >= 0.25 - 1e-9
    alone = arrivals(spec, [(float(10 * index), 1) for index in range(4000)])
    late = sum(due - 10 * index > 0.051 for index, due in enumerate(alone)) / 4000
    assert late == pytest.approx(0.1, abs=0.02)


def test_nothing_passes_a_cut_and_changes_hold_from_their_time_on() -> None:
    spec = LinkSpec(rtt_s=0.02, cuts=(Cut(1.0, 5.0),), changes=(Change(10.0, 0.4), Change(20.0, 0.02)))
    sends = [(0.5, 1), (0.995, 1), (3.0, 1), (7.0, 1), (11.0, 1), (30.0, 1)]
    assert arrivals(spec, sends) == pytest.approx([0.51, 6.01, 6.01, 7.01, 11.2, 30.01])


@given(
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 1448)), max_size=60),
    st.builds(
        LinkSpec,
        rtt_s=st.floats(0.2, 1),
        jitter_s=st.floats(0, 0.2),
        jitter=st.sampled_from(list(Jitter)),
        rate_up=st.none() | st.floats(1e4, 1e7),
        loss=st.floats(0, 0.4),
        cuts=st.lists(st.builds(Cut, st.floats(0, 5), st.floats(0.1, 3), st.booleans()), max_size=3).map(tuple),
        trace_up=st.just(())
        | st.lists(st.integers(0, 50), min_size=1, max_size=9).map(lambda gaps: (*itertools.accumulate(gaps), 999)),
        seed=st.integers(0, 9),
    ),
)
def test_no_segment_overtakes_and_none_is_early(gaps: list[tuple[float, int]], spec: LinkSpec) -> None:
    now, sends = 0.0, []
    for gap, size in gaps:
        now += gap
        sends.append((now, size))
    found = arrivals(spec, sends)
    assert found == sorted(found)
    assert all(due >= sent for (sent, _), due in zip(sends, found, strict=True))
    assert all(spec.cut_at(due) is None for due in found)
    assert found == arrivals(spec, sends)


def test_quantities() -> None:
    assert seconds("50ms", name="x") == pytest.approx(0.05)
    assert seconds("1.5", name="x") == 1.5
    assert seconds("2min", name="x") == 120
    assert bits_per_second("20mbit", name="x") == 2e7
    assert size_bytes("64KiB", name="x") == 65536


@pytest.mark.parametrize("text", ["", "fast", "-5ms", "5 parsecs", "1e999s", "ms"])
def test_a_bad_quantity_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"--rtt is .*; expected a duration"):
        seconds(text, name="--rtt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rtt_s": -1}, "rtt_s"),
        ({"rtt_s": 0.01, "jitter_s": 0.02}, "at most the round trip"),
        ({"loss": 0.7}, "loss is 0.7"),
        ({"queue_bytes": 3}, "queue_bytes is 3"),
        ({"rate_up": 0.0}, "above 0"),
        ({"cuts": (Cut(1, 0),)}, "cut"),
        ({"changes": (Change(2, 0), Change(1, 0))}, "in the order"),
        ({"rtt_s": 0.1, "jitter_s": 0.02, "changes": (Change(1, 0.01),)}, "at most the round trip"),
        ({"changes": (Change(1, 1e9),)}, "rtt_s is"),
        ({"changes": (Change(1, -0.1),)}, "rtt_s is"),
    ],
)
def test_a_link_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        LinkSpec(**changes)


@pytest.mark.parametrize("text", ["", "a\n", "5\n3\n", "0\n", "-1\n4\n", f"{10**400}\n", "\xff\xfe\x00"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(InvalidParameter, match="a Mahimahi trace"):
        load_trace(file)
    with pytest.raises(InvalidParameter, match="a Mahimahi trace"):
        load_trace(tmp_path / "none")


def test_a_trace_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("0\n4\n4\n9\n")
    assert load_trace(file) == (0, 4, 4, 9)
