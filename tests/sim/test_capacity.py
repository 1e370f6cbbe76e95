"""Users per replica: as many as keep the promise, and no more."""

from __future__ import annotations

import json

import pytest

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm
from pilotfish_sim.capacity import Promise, capacities, loaded, verdict
from pilotfish_sim.cli import main
from pilotfish_sim.run import simulate
from pilotfish_sim.scenario import Scenario

PLAIN = {
    "arm": "cloud",
    "target": {"step_ms": {1: 20, 8: 40, 16: 80}, "gpus": 1},
    "workload": {"output_tokens": 24, "prompt_tokens": 8},
    "prices": {"gpu_hour": 3.6},
}


def test_the_most_that_keep_the_promise() -> None:
    promise = Promise(ttft_ms=2000, tpot_ms=42)
    (found,) = capacities(Scenario.of(PLAIN), [Arm.CLOUD], promise, most=64, processes=1)
    assert 5 <= found.users <= 10  # a step of 8 rows takes 40 ms, one that takes in a prompt more
    assert found.limit == "tpot"
    assert promise.broken(simulate(loaded(Scenario.of(PLAIN), promise, 2 * found.users))) == "tpot"
    assert found.gpus_for(100) == -(-100 // found.users)
    assert found.usd_per_million_tokens == pytest.approx(1000 / found.tokens_per_s)


def test_none_and_all() -> None:
    scenario = Scenario.of(PLAIN)
    (none,) = capacities(scenario, [Arm.CLOUD], Promise(ttft_ms=2000, tpot_ms=10), most=4, processes=1)
    assert (none.users, none.limit, none.full, none.gpus_for(5)) == (0, "tpot", None, None)
    (every,) = capacities(scenario, [Arm.CLOUD], Promise(ttft_ms=9000, tpot_ms=900), most=3, processes=1)
    assert (every.users, every.limit) == (3, "")
    assert any("Latency, one user: cloud" in line for line in verdict([every]))


def test_an_open_workload_has_no_users() -> None:
    scenario = Scenario.of(PLAIN | {"workload": {"kind": "poisson", "rate_per_s": 1, "duration_s": 5}})
    with pytest.raises(InvalidParameter, match=r"workload\.kind"):
        capacities(scenario, [Arm.CLOUD], Promise(ttft_ms=1, tpot_ms=1), most=1, processes=1)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "workload.output_tokens=24", "--most", "2", "--processes", "1", "--users", "10"]
    assert main(["capacity", *small]) == 0
    said = capsys.readouterr().out
    assert "GPUs for 10" in said
    assert "Drafting on devices against cloud" in said
    assert main(["capacity", *small, "--arms", "cloud", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["arms"][0]["users_per_replica"] == 2
    assert document["simulated"] is True


@pytest.mark.parametrize(
    "arguments",
    [["--tpot-ms", "0"], ["--users", "many"], ["--arms", "moon"], ["--set", "arm=cloud"], ["--percentile", "101"]],
)
def test_wrong_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[0] in error
