"""Rows, table, verdict and picture from figures that were made up."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from pilotfish.bench import report
from pilotfish.bench.link_process import LinkOptions
from pilotfish.bench.plan import ARMS, Cell
from pilotfish.bench.plots import STYLES, draw
from pilotfish.bench.rows import Row, first_difference, reference_tokens, rows_of, verdict_of
from pilotfish.bench.runner import Answer, Measured, Round
from pilotfish.result import Metrics
from pilotfish_core.errors import MissingExtra
from pilotfish_core.modes import Arm

DIRECT = LinkOptions()
NEAR, FAR, MANY = Cell(0, 1), Cell(20, 1), Cell(20, 2)
TOKENS = (5, 6, 7, 8)


def metrics(**changes: Any) -> Metrics:
    fields: dict[str, Any] = {
        "model": "m",
        "drafter": "none",
        "seed": 1,
        "fingerprints": ("pf-a",),
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "cached_tokens": 0,
        "elapsed_s": 0.4,
        "ttft_s": 0.1,
        "tpot_s": 0.1,
        "tokens_per_s": 10.0,
        "steps": 4,
        "steps_per_token": 1.0,
        "mean_acceptance_length": 1.0,
        "draft_tokens": 0,
        "sent_draft_tokens": 0,
        "accepted_draft_tokens": 0,
        "recovered_tokens": 0,
        "bonus_tokens": 0,
        "cloud_tokens": 4,
        "rollbacks": 0,
        "reconnects": 0,
        "bytes_up": 40,
        "bytes_down": 30,
    }
    return Metrics(**fields | changes)


def one(
    arm: Arm, cell: Cell, speed: float, prompt: int = 0, token_ids: tuple[int, ...] = TOKENS, **changes: Any
) -> Answer:
    return Answer(arm, cell, prompt, 0, token_ids, metrics(tokens_per_s=speed, **changes))


def drafted(speed: float, prompt: int, **changes: Any) -> Answer:
    figures: dict[str, Any] = {
        "steps": 2,
        "draft_tokens": 9,
        "sent_draft_tokens": 5,
        "accepted_draft_tokens": 2,
        "drafter": "onnx-int8",
    }
    return one(Arm.ASYNC, FAR, speed, prompt, **figures | changes)


def measured(*answers: Answer, rounds: tuple[Round, ...] = ()) -> Measured:
    return Measured(list(answers), list(rounds))


PAIRS = measured(
    *(one(Arm.CLOUD, FAR, 10.0 + prompt, prompt) for prompt in range(6)),
    *(drafted(15.0 + 1.5 * prompt, prompt, policy={"reason": "useful", "window": 3}) for prompt in range(6)),
)


def test_a_row_has_what_was_measured() -> None:
    cloud, device = rows_of(PAIRS, FAR, (Arm.CLOUD, Arm.ASYNC), LinkOptions(5.0, (("--rate", "1mbit"),)))
    assert (cloud["arm"], device["arm"]) == ("cloud", "device-async")
    assert (device["rtt_ms"], device["concurrency"], device["jitter_ms"]) == (20, 1, 5)
    assert device["link"] == {"--jitter": "5ms", "--rate": "1mbit"}
    assert (device["answers"], device["tokens"]) == (6, 24)
    assert (device["tokens_per_s"], device["tokens_per_s_quartiles"]) == (18.75, [16.875, 20.625])
    assert device["answer_tokens_per_s_quartiles"] == [16.875, 18.75, 20.625]
    assert (device["ttft_ms"], device["tpot_ms"]) == (100, 100)
    assert (device["steps_per_token"], device["mean_acceptance_length"]) == (0.5, 2)
    assert (device["useful_draft_fraction"], cloud["useful_draft_fraction"]) == (0.4, None)
    assert (device["bytes_up_per_token"], device["bytes_down_per_token"]) == (10, 7.5)
    assert (device["ratio_to_cloud"], device["ratio_to_cloud_95"]) == (1.5, [1.5, 1.5])
    assert (cloud["ratio_to_cloud"], cloud["ratio_to_cloud_95"]) == (1, [1, 1])
    assert (device["reasons"], cloud["reasons"]) == ({"useful": 6}, {})
    assert "arms_chosen" not in device
    assert (device["identical"], device["differing_answers"], device["drafter"]) == (True, 0, "onnx-int8")
    json.dumps([cloud, device], allow_nan=False)


def test_what_auto_chose_is_counted() -> None:
    arms = ["device-async", "co-located", "device-async"]
    answers = [
        one(Arm.AUTO, FAR, 10, prompt, policy={"reason": "faster", "arm": arm}) for prompt, arm in enumerate(arms)
    ]
    (row,) = rows_of(measured(*answers), FAR, (Arm.AUTO,), DIRECT)
    assert row["arms_chosen"] == {"device-async": 2, "co-located": 1}
    assert row["reasons"] == {"faster": 3}
    assert row["ratio_to_cloud"] is row["ratio_to_cloud_95"] is None


def test_several_streams_are_measured_together() -> None:
    answers = [one(Arm.CLOUD, MANY, 6.0 + prompt, prompt) for prompt in range(4)]
    rounds = (Round(Arm.CLOUD, MANY, 0, 16, 1.0), Round(Arm.CLOUD, MANY, 1, 16, 2.0))
    (row,) = rows_of(measured(*answers, rounds=rounds), MANY, (Arm.CLOUD,), DIRECT)
    assert row["tokens_per_s"] == pytest.approx(32 / 3, abs=1e-3)
    assert row["tokens_per_s_quartiles"] == [10, 14]
    assert row["answer_tokens_per_s_quartiles"] == [6.75, 7.5, 8.25]
    (single,) = rows_of(measured(*answers, rounds=rounds[:1]), MANY, (Arm.CLOUD,), DIRECT)
    assert (single["tokens_per_s"], single["tokens_per_s_quartiles"]) == (16, None)
    assert report.table([single])[1].split()[:3] == ["cloud", "16.0", "-"]
    assert picture(single)[0] > 0


def test_another_token_is_found_in_whatever_cell() -> None:
    """The reference is the cloud's first answer, though another arm was asked before it."""
    answers = (
        one(Arm.ASYNC, NEAR, 9, 0, (5, 6, 9, 8)),
        one(Arm.CLOUD, NEAR, 9),
        one(Arm.CLOUD, FAR, 9, 0, (5, 6, 7)),
        one(Arm.ASYNC, FAR, 9),
    )
    arms = (Arm.ASYNC, Arm.CLOUD)
    assert reference_tokens(answers, arms) == {0: TOKENS}
    everything = measured(*answers)
    rows = [*rows_of(everything, NEAR, arms, DIRECT), *rows_of(everything, FAR, arms, DIRECT)]
    assert [row["identical"] for row in rows] == [False, True, True, False]
    assert rows[0]["first_difference"] == {"prompt": 0, "repeat": 0, "token": 2}
    assert rows[3]["first_difference"]["token"] == 3
    lines = report.differences(rows, "cloud", deterministic=True)
    assert lines[0] == "DIFFERENT: 2 of 4 answers are not those of cloud"
    assert lines[1] == "  device-async at RTT 0 ms, 1 stream: 1 of 1, first in prompt 1 at token 3"
    assert lines[-1].endswith("this is a defect, please report it.")
    assert "--deterministic" in report.differences(rows, "cloud", deterministic=False)[-1]
    assert report.differences(rows[1:3], "cloud", deterministic=True) == []
    assert not verdict_of(rows[:2])["identical"]


def test_first_difference() -> None:
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2


def row_of(arm: str, speed: float, **changes: Any) -> Row:
    (row,) = rows_of(measured(one(Arm(arm), FAR, speed)), FAR, (Arm(arm),), DIRECT)
    return row | changes


def test_a_cell_in_a_line() -> None:
    rows = [
        row_of("cloud", 10),
        row_of("co-located", 20),
        row_of("device-lockstep", 8),
        row_of("device-async", 16),
        row_of("auto", 19),
    ]
    verdict = verdict_of(rows)
    assert (verdict["best"], verdict["best_device"], verdict["auto_to_best"]) == ("co-located", "device-async", 0.95)
    assert report.summary(verdict) == (
        "RTT 20 ms, 1 stream: best co-located (20.0 tokens/s); with device drafting device-async (16.0); "
        "auto 95% of the best; identical: yes"
    )
    fast = verdict_of([*rows[:-1], row_of("auto", 22)])
    assert (fast["best"], fast["auto_to_best"]) == ("co-located", 1.1)
    alone = verdict_of([row_of("auto", 5)])
    assert (alone["best"], alone["best_device"], alone["auto_to_best"]) == ("auto", None, None)
    assert report.summary(alone) == "RTT 20 ms, 1 stream: best auto (5.0 tokens/s); identical: yes"


def test_a_table_has_a_line_for_each_row() -> None:
    rows = rows_of(PAIRS, FAR, (Arm.CLOUD, Arm.ASYNC), DIRECT)
    heading, cloud, device = report.table(rows)
    assert len({len(heading), len(cloud), len(device)}) == 1
    assert " ".join(cloud.split()) == "cloud 12.5 11.2-13.8 1.00 1.00-1.00 100 100.0 1.00 1.00 - 10.0 7.5 yes"
    assert " ".join(device.split()) == (
        "device-async 18.8 16.9-20.6 1.50 1.50-1.50 100 100.0 0.50 2.00 40% 10.0 7.5 yes"
    )


def test_a_table_says_what_went_wrong() -> None:
    answers = (
        one(Arm.CLOUD, FAR, 10),
        drafted(9, 0, drafter_error="ValueError: no", reconnects=2, token_ids=(5,)),
    )
    rows = rows_of(measured(*answers), FAR, (Arm.CLOUD, Arm.ASYNC), DIRECT)
    lines = report.table(rows)
    assert lines[2].endswith("NO (1)")
    assert lines[3] == "  its drafter failed in 1 of 1 answers: ValueError: no"
    assert lines[4] == "  it had to connect again 2 times"
    assert rows[1]["ratio_to_cloud_95"] is None


def picture(*rows: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height, once it is known to be a PNG."""
    data = draw([dict(row) for row in rows], "title")
    assert data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_picture_is_a_png() -> None:
    rows = [row_of(arm, 10 + index, rtt_ms=rtt) for index, arm in enumerate(ARMS) for rtt in (0.0, 20.0, 100.0)]
    single = picture(*rows)
    many = picture(*rows, *(row | {"concurrency": 4} for row in rows))
    assert single[1] == many[1]
    assert many[0] > 1.5 * single[0]
    assert picture(row_of("cloud", 10)) == single
    beyond = row_of("cloud", 10, concurrency=2, tokens_per_s=9.0, tokens_per_s_quartiles=[10.0, 12.0])
    assert picture(beyond) == single
    assert set(STYLES) == set(ARMS)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pilotfish\[bench\]'"):
        draw([row_of("cloud", 10)], "title")
