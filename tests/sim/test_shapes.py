"""What others have published or computed comes out of the simulator, from their own parameters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from pilotfish_sim.run import Run, simulate
from pilotfish_sim.scenario import Scenario

LONG = {"answers": 4, "output_tokens": 1000, "warmup": 1}


def run(**values: Any) -> Run:
    return simulate(Scenario.of({"workload": LONG} | values))


def speed(**values: Any) -> float:
    """Tokens a second."""
    answers = run(**values).measured
    return sum(answer.tokens for answer in answers) / sum(answer.elapsed_s for answer in answers)


def stop_and_wait(length: int, **values: Any) -> dict[str, Any]:
    """A scenario of stop-and-wait with a fixed draft length."""
    device = {"window": length, "adaptive": False} | values.pop("device", {})
    target = {"speculation": "fixed", "max_draft_rows": max(length, 16)} | values.pop("target")
    return {"arm": "device-lockstep", "device": device, "target": target} | values


@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("length", [1, 3, 8])
def test_expected_tokens_of_a_step(acceptance: float, length: int) -> None:
    """(1 - a^(k+1)) / (1 - a): Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding"
    (2023), equation 1. The tolerance is four standard errors of some hundred steps.
    """
    answers = run(**stop_and_wait(length, acceptance=acceptance, target={"step_ms": 30})).measured
    steps = sum(answer.counts.commits for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    expected = (1 - acceptance ** (length + 1)) / (1 - acceptance)
    spread = math.sqrt(sum((n + 1 - expected) ** 2 * share for n, share in enumerate(shares(acceptance, length))))
    assert tokens / steps == pytest.approx(expected, abs=4 * spread / math.sqrt(steps) + 0.01 * expected)


def shares(acceptance: float, length: int) -> list[float]:
    """How often n of ``length`` draft tokens are accepted."""
    return [acceptance**n * (1 - acceptance) for n in range(length)] + [acceptance**length]


@pytest.mark.parametrize("draft_ms", [10, 5])
def test_stop_and_wait_breaks_even_between_30_and_60_ms(draft_ms: float) -> None:
    """For a target of 30 ms and acceptance 0.8; a faster draft reaches farther."""
    values = {"arm": "device-lockstep", "device": {"draft_ms": draft_ms}, "target": {"step_ms": 30}, "acceptance": 0.8}
    alone = 1000 / 30
    assert speed(link={"rtt_ms": 28}, **values) > alone
    assert speed(link={"rtt_ms": 65}, **values) < alone


def test_a_round_trip_for_each_token_costs_petals_a_quarter() -> None:
    """Borzunov et al., "Petals" (2023), table 3: BLOOM-176B over three servers, 100 Mbit/s, sequence length 128: 1.66
    steps/s below 5 ms, 1.23 at 100 ms. A token's way over three servers and back takes four one-way trips, so twice
    the round trip. Measured 1.23, here 1.26: 3%. The cloud that does not wait for the device loses nothing.
    """
    step_ms = 1000 / 1.66 - 2 * 5
    chain = {"acceptance": 0.0, "workload": {"answers": 1, "output_tokens": 200, "warmup": 0}}
    near, far = (
        speed(
            link={"rtt_ms": 2 * rtt}, **stop_and_wait(1, device={"draft_ms": 0}, target={"step_ms": step_ms}, **chain)
        )
        for rtt in (5, 100)
    )
    assert near == pytest.approx(1.66, rel=0.02)
    assert far == pytest.approx(1.23, rel=0.05)
    free = speed(arm="device-async", link={"rtt_ms": 200}, target={"step_ms": step_ms}, **chain)
    assert free > 0.99 * near


@pytest.mark.slow
def test_the_best_draft_length_grows_with_the_logarithm_of_the_distance() -> None:
    """UCB-SpecStop (arXiv 2606.20591): the best length of stop-and-wait grows logarithmically with the delay. The
    optimum is flat, so the length is taken at which 99% of the best speed is reached.
    """
    workload = {"answers": 1, "output_tokens": 4000, "warmup": 0}
    lengths = {}
    for rtt in (50, 100, 200, 400, 800):
        speeds = [
            speed(
                link={"rtt_ms": rtt},
                **stop_and_wait(length, acceptance=0.8, device={"draft_ms": 5}, target={"step_ms": 30}),
                workload=workload,
            )
            for length in range(1, 21)
        ]
        lengths[rtt] = 1 + next(place for place, value in enumerate(speeds) if value >= 0.99 * max(speeds))
    found = list(lengths.values())
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert found[0] < found[2] < found[4]
    assert all(0 <= step <= 4 for step in steps)  # about as much for each doubling; linear would be 6, 12, 24, 48
    assert found[4] < 3 * found[0]


# Tokens a second at round trips of 0, 20, 50 and 100 ms, computed in an event model before any of this was built
# (DESIGN.md, section 4): draft, target, acceptance; the cloud alone; stop-and-wait at its best length; this scheme.
DESIGN = [
    (10, 30, 0.8, 33, (48, 37, 28, 20), (60, 52, 44, 39)),
    (5, 40, 0.9, 25, (73, 60, 48, 37), (91, 80, 67, 54)),
]
RTTS = (0, 20, 50, 100)


@pytest.mark.slow
@pytest.mark.parametrize(("draft_ms", "step_ms", "acceptance", "cloud", "waiting", "free"), DESIGN)
def test_the_event_model_of_the_design(
    draft_ms: float,
    step_ms: float,
    acceptance: float,
    cloud: float,
    waiting: tuple[float, ...],
    free: tuple[float, ...],
) -> None:
    """The shipped policy must find out what the model was given, probes, and stays with its bounds: it is allowed 9%
    less than the model's scheme (7% at no distance with the slow draft is the most that is seen), and 7% either way
    in stop-and-wait, whose length it chooses itself. Some thousand tokens leave 3% to chance.
    """
    values = {
        "device": {"draft_ms": draft_ms},
        "target": {"step_ms": step_ms},
        "acceptance": acceptance,
        "workload": {"answers": 6, "output_tokens": 1000, "warmup": 1},
    }
    for rtt, of_waiting, of_free in zip(RTTS, waiting, free, strict=True):
        link = {"rtt_ms": rtt}
        assert speed(arm="cloud", link=link, **values) == pytest.approx(cloud, rel=0.02)
        assert speed(arm="device-lockstep", link=link, **values) == pytest.approx(of_waiting, rel=0.07)
        asynchronous = speed(arm="device-async", link=link, **values)
        assert 0.91 * of_free < asynchronous < 1.05 * of_free
        assert asynchronous > max(of_waiting, cloud)


@pytest.mark.parametrize("rtt", [0, 20, 100])
def test_the_policys_choice_is_near_the_best_arm(rtt: int) -> None:
    """Devices that draft fast, beside a draft model in the cloud: which of them is better depends on the distance."""
    values = {
        "link": {"rtt_ms": rtt},
        "device": {"draft_ms": 1, "one_client": True},
        "acceptance": 0.68,
        "target": {
            "step_ms": {4: 35, 6: 36.5, 8: 46, 12: 55, 16: 66},
            "row_sizes": [4, 6, 8, 12, 16],
            "draft_step_ms": 3,
            "draft_acceptance": 0.7,
        },
        "workload": {"answers": 24, "output_tokens": 96, "prompt_tokens": 60},
    }
    there, here = (speed(arm=arm, **values) for arm in ("co-located-model", "device-async"))
    assert (here > 1.1 * there) == (rtt == 0)
    assert speed(arm="auto", **values) > 0.95 * max(there, here)
