"""Scenarios: presets, files and flags, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm
from pilotfish_sim.presets import PRESETS
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.scenario_file import combinations, read_file, read_sets, scenario_of


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, names in PRESETS.items() for name in names])
def test_every_preset_is_a_scenario(section: str, name: str) -> None:
    scenario = Scenario.of({section: name})
    for key, value in PRESETS[section][name].items():
        if key != "step_ms":  # kept as a curve
            assert getattr(getattr(scenario, section), key) == value


def test_keys_beside_a_preset_go_before_it() -> None:
    link = Scenario.of({"link": {"preset": "lte", "rtt_ms": 90}}).link
    assert (link.rtt_ms, link.rate_up_mbit) == (90, 6)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"link": {"rtt_ms": -1}}, "link.rtt_ms is -1; expected a number of milliseconds from 0 to 3.6e+06"),
    ({"link": {"rtt_ms": "fast"}}, "link.rtt_ms is 'fast'; expected a number"),
    ({"link": {"rtt_ms": float("nan")}}, "link.rtt_ms is nan; expected a number"),
    ({"link": {"rtt_mss": 5}}, "link.rtt_mss is not a key of a scenario; did you mean link.rtt_ms?"),
    ({"linc": "lte"}, "linc is not a key of a scenario; did you mean link?"),
    ({"link": "5gg"}, "link.preset is '5gg'; expected one of local, metro"),
    ({"link": "transatlantik"}, "did you mean transatlantic?"),
    ({"link": 5}, "link is 5; expected keys and values"),
    ({"link": {"rtt_ms": 10, "jitter_ms": 20}}, "link.jitter_ms is 20.0; expected at most link.rtt_ms, 10"),
    ({"link": {"rate_up_mbit": 1, "trace_up": "x"}}, "link.rate_up_mbit is 1.0; expected nothing beside link.trace_up"),
    ({"link": {"trace_up": "/nowhere"}}, "link: trace is '/nowhere'; expected a Mahimahi trace"),
    ({"link": {"cuts": [{"begin": 1}]}}, "link.cuts is [{'begin': 1}]; expected a list of cuts such as"),
    ({"arm": "device-asink"}, "did you mean device-async?"),
    ({"arm": "device-only"}, "arm is 'device-only'; expected one of auto, cloud"),
    ({"arm": "co-located-model"}, "expected target.draft_step_ms to be given with it"),
    ({"target": {"step_ms": 0}}, "target.step_ms is 0; expected milliseconds above 0, or a curve"),
    ({"target": {"step_ms": {1: 30, 8: 20}}}, "never falling"),
    ({"target": {"row_sizes": [8, 4]}}, "target.row_sizes is [8, 4]; expected row counts that ascend"),
    ({"target": {"row_sizes": 4}}, "target.row_sizes is 4; expected a list of row counts"),
    ({"target": {"step_ms": 30, "gpu": "h100"}}, "target.gpu is 'h100'; expected nothing beside target.step_ms"),
    ({"target": {"model": "llama-3.1-70b"}}, "target.gpu is ''; expected one of h100"),
    (
        {"target": {"model": "llama-3.1-70b", "gpu": "h100"}},
        "target.gpus is 1; expected enough memory for 132 GiB of weights and 8192 tokens of KV",
    ),
    ({"target": {"model": "llama-3.1-8b", "gpu": "h100", "kv_tokens": 99}}, "target.kv_tokens is 99; expected nothing"),
    ({"target": {"step_ms": 30, "speculation": "no"}}, "target.speculation is 'no'; expected goodput or fixed"),
    ({"target": {"step_ms": 30, "max_num_seqs": 4096}}, "expected a row each of 4096 max_num_seqs"),
    ({"device": {"tuning": {"bursts": 2}}}, "expected keys and values, of worth, flush_share, enough"),
    ({"device": {"tuning": {"burst": 2.5}}}, "expected a whole number above 0 for burst"),
    ({"target": {"tuning": {"dearer": 0}}}, "expected a number above 0 for dearer"),
    ({"device": {"window": 1.5}}, "device.window is 1.5; expected a whole number"),
    ({"device": {"adaptive": 1}}, "device.adaptive is 1; expected true or false"),
    ({"acceptance": 1.5}, "acceptance.rate is 1.5; expected a number from 0 to 1"),
    ({"acceptance": []}, "acceptance.rates is []; expected shares by draft position"),
    ({"acceptance": {"rates": [0.5]}}, "acceptance.rates is [0.5]; expected shares by draft position with kind"),
    ({"workload": {"kind": "poisson"}}, "workload.rate_per_s is None; expected answers a second"),
    ({"workload": {"rate_per_s": 5}}, "workload.rate_per_s is 5.0; expected nothing with workload.kind closed"),
    ({"workload": {"kind": "poisson", "rate_per_s": 5}}, "workload.duration_s is None; expected seconds"),
    ({"workload": {"output_tokens": 0}}, "workload.output_tokens is 0; expected tokens"),
    ({"workload": {"prefix_tokens": 64}}, "workload.prefix_tokens is 64; expected less than the shortest prompt, 64"),
    ({"workload": {"prompt_tokens": 9000}}, "target.max_model_len is 8192; expected at least 9128"),
    ({"workload": {"kind": "trace", "file": "/nowhere"}}, "workload.file is '/nowhere'; expected a CSV file"),
    ({"prices": {"gpu_hour": -1}}, "prices.gpu_hour is -1; expected a number of dollars"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_that_names_key_value_and_what_was_expected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Scenario.of(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_and_what_is_set_over_it(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text("link: lte\nacceptance: 0.7\nworkload:\n  devices: 4\n", encoding="utf-8")
    grid = read_sets(
        ["link.rtt_ms=0,20", "arm=cloud,device-async", "acceptance.rate=0.5", "workload.output_tokens={min: 1, max: 3}"]
    )
    settings = list(combinations(grid))
    assert [(one["link.rtt_ms"], one["arm"]) for one in settings] == [
        (0, "cloud"), (0, "device-async"), (20, "cloud"), (20, "device-async"),
    ]  # fmt: skip
    scenario = scenario_of(read_file(file), {**settings[2], "link.jitter_ms": 1})
    assert (scenario.link.rtt_ms, scenario.link.rate_up_mbit, scenario.arm) == (20, 6, Arm.CLOUD)
    assert (scenario.acceptance.rate, scenario.workload.devices, scenario.workload.output_tokens.high) == (0.5, 4, 3)
    assert read_file(file)["workload"] == {"devices": 4}  # untouched


def test_a_preset_may_be_set_together_with_what_changes_it() -> None:
    scenario = scenario_of({}, {"link.rtt_ms": 5, "link": "lte"})
    assert (scenario.link.rtt_ms, scenario.link.rate_down_mbit) == (5, 13)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("link: {rtt_ms: 1\n", "line 2: "),
        ("link: lte\nlink: 5g\n", "line 2: the key link stands twice; expected it once"),
        ("- 1\n", "expected keys and values"),
        ("link:\n  rtt_ms: 1\n  rtt_ms: 2\n", "line 3: the key rtt_ms stands twice"),
    ],
)
def test_what_is_no_scenario_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidParameter) as caught:
        read_file(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["link.rtt_ms", "=5", "link..rtt_ms=5", "link.rtt_ms=1,,2", "link.rtt_ms="])
def test_what_cannot_be_set_is_one_line(given: str) -> None:
    with pytest.raises(InvalidParameter, match="expected key=value"):
        read_sets([given])


def test_a_key_is_set_once() -> None:
    with pytest.raises(InvalidParameter, match=r"link.rtt_ms once"):
        read_sets(["link.rtt_ms=5", "link.rtt_ms=6"])


def test_a_value_is_no_section() -> None:
    with pytest.raises(InvalidParameter, match=r"expected a key; arm is a value"):
        scenario_of({"arm": 5}, {"arm.x": 1})
