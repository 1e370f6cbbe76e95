"""How many users one replica carries at a promised speed, arm by arm, and what that costs."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Final

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm
from pilotfish_sim.rows import Row, row_of
from pilotfish_sim.run import Run, simulate
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.workload import WorkloadKind

CYCLES: Final = 3  # questions that each user asks at least, the first of which does not count
ANSWERS: Final = 40  # that a run has at least, however few users
NEAR: Final = 1 / 10  # of the users: nearer the bisection does not look
HOURS_A_MONTH: Final = 730.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Of all answers the share ``percentile`` has its first token within ``ttft_ms`` and ``tpot_ms`` for each other."""

    ttft_ms: float
    tpot_ms: float
    percentile: int = 90

    def broken(self, run: Run) -> str:
        """What does not hold: "", or ``ttft`` or ``tpot``, whichever is further off."""
        worst, what = 1.0, ""
        for name, allowed, values in (
            ("ttft", self.ttft_ms, sorted(answer.ttft_s for answer in run.measured)),
            ("tpot", self.tpot_ms, sorted(answer.tpot_s for answer in run.measured)),
        ):
            place = min(math.ceil(len(values) * self.percentile / 100) - 1, len(values) - 1)
            if values[max(place, 0)] * 1e3 / allowed > worst:
                worst, what = values[max(place, 0)] * 1e3 / allowed, name
        return what


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """One arm: the most ``users`` of a replica (0: not even one), the run with them, and with one alone.

    ``limit``: what breaks with more; "" where as many as were tried are carried.
    """

    arm: Arm
    users: int
    limit: str
    full: Row | None
    alone: Row
    gpus: int
    gpu_hour: float

    @property
    def tokens_per_s(self) -> float:
        """Of a replica that is as full as it may be."""
        return 0.0 if self.full is None else float(self.full["tokens_per_s"])

    def gpus_for(self, users: int) -> int | None:
        """Whole replicas' GPUs for so many users; None where not even one is served."""
        return None if not self.users else -(-users // self.users) * self.gpus

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Of GPUs of a full replica; None without a price, or a user."""
        if not self.gpu_hour or not self.tokens_per_s:
            return None
        return self.gpus * self.gpu_hour / 3600 / self.tokens_per_s * 1e6


def capacities(
    scenario: Scenario,
    arms: Sequence[Arm],
    promise: Promise,
    *,
    most: int,
    processes: int | None = None,
    done: Callable[[int], object] | None = None,
) -> list[Capacity]:
    """Each arm's, over the machine's processors. ``done`` is called with how many arms are over.

    Raises InvalidParameter for a workload that is not a closed loop, and what a scenario raises for an arm.
    """
    if scenario.workload.kind is not WorkloadKind.CLOSED:
        raise InvalidParameter.of(
            "workload.kind", scenario.workload.kind.value, "closed, for capacity: users ask again when they have read"
        )
    scenarios = [dataclasses.replace(scenario, arm=arm) for arm in arms]
    processes = min(processes or os.cpu_count() or 1, len(arms))
    if processes <= 1:
        found = []
        for number, one in enumerate(scenarios, start=1):
            found.append(capacity(one, promise, most))
            if done is not None:
                done(number)
        return found
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(capacity, one, promise, most) for one in scenarios]
        try:
            for number, _ in enumerate(concurrent.futures.as_completed(futures), start=1):
                if done is not None:
                    done(number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def capacity(scenario: Scenario, promise: Promise, most: int) -> Capacity:
    """The most users, up to ``most``: doubled until the promise is broken, then bisected. More users are taken never
    to be faster.
    """
    alone = simulate(loaded(scenario, promise, 1))
    limit = promise.broken(alone)
    best, full, users = (0, None, 1) if limit else (1, alone, 2)
    ceiling = 1 if limit else most + 1  # the fewest that are known, or ruled, to be too many
    while not limit and users <= most:
        run = simulate(loaded(scenario, promise, users))
        limit = promise.broken(run)
        if limit:
            ceiling = users
        else:
            best, full, users = users, run, users * 2 if users == most else min(users * 2, most)
    while best and limit and ceiling - best > max(1, best * NEAR):
        users = (best + ceiling) // 2
        run = simulate(loaded(scenario, promise, users))
        broken = promise.broken(run)
        if broken:
            ceiling, limit = users, broken
        else:
            best, full = users, run
    return Capacity(
        arm=scenario.arm,
        users=best,
        limit=limit,
        full=None if full is None else row_of(full),
        alone=row_of(alone),
        gpus=scenario.target.gpus,
        gpu_hour=scenario.prices.gpu_hour,
    )


def loaded(scenario: Scenario, promise: Promise, users: int) -> Scenario:
    """The scenario with so many users of one replica, for as long as several questions of each take at the promised
    speed.
    """
    workload = scenario.workload
    cycle = workload.think_s + (promise.ttft_ms + promise.tpot_ms * workload.output_tokens.low) / 1e3
    return dataclasses.replace(
        scenario,
        target=dataclasses.replace(scenario.target, replicas=1),
        workload=dataclasses.replace(
            workload, devices=users, warmup=1, duration_s=cycle * max(CYCLES, 1 + ANSWERS / users)
        ),
    )


def verdict(found: Sequence[Capacity]) -> list[str]:
    """Which arm is best at what, in sentences: for one user, for a full replica, and for whose money."""
    by_arm = {one.arm: one for one in found}
    lines = []
    fastest = min(found, key=lambda one: one.alone["tpot_ms"])
    speeds = ", ".join(f"{one.arm} {one.alone['tpot_ms']:.1f} ms" for one in found)
    lines.append(f"Latency, one user: {fastest.arm} is the fastest a token ({speeds}).")
    largest = max(found, key=lambda one: one.users)
    counts = ", ".join(f"{one.arm} {one.users}{'+' if not one.limit else ''}" for one in found)
    lines.append(f"Capacity of a replica at the promise: {largest.arm} carries the most users ({counts}).")
    device, beside = by_arm.get(Arm.ASYNC), by_arm.get(Arm.CO_LOCATED_MODEL) or by_arm.get(Arm.CO_LOCATED)
    if device is not None and beside is not None:
        lines.append(_against(device, beside))
    if device is not None and Arm.CLOUD in by_arm:
        lines.append(_against(device, by_arm[Arm.CLOUD]))
    return lines


def _against(device: Capacity, other: Capacity) -> str:
    latency = device.alone["tpot_ms"] / other.alone["tpot_ms"] - 1.0
    faster = f"{abs(latency):.0%} {'slower' if latency > 0 else 'faster'} for one user"
    if not other.users or not device.users:
        carries = "not to be compared at the promise, which one of them cannot keep for a single user"
    else:
        more = device.users / other.users - 1.0
        carries = f"{abs(more):.0%} {'more' if more >= 0 else 'fewer'} users a replica"
    return f"Drafting on devices against {other.arm}: {faster}, {carries}."
