"""At any load, with drafts of any quality and a target of any shape: speculation is never slower than none.

The real scheduler, cores and policy in virtual time, against the same without devices.
"""

from __future__ import annotations

import functools

import pytest

from pilotfish_core.scheduling import FixedRows, Goodput, Scheduler, SchedulerConfig, SpeculationPolicy
from tests.core.virtual_cloud import StepModel, Stream, VirtualCloud

DRAFTS = 8
STEPS = 250


def flat(rows: int, context: int) -> float:
    """Bound by the weights: rows are all but free."""
    return 0.030 + 2e-5 * rows


def linear(rows: int, context: int) -> float:
    """Half of a single row's time goes with the rows."""
    return 0.015 + 0.015 * rows + 2e-8 * context


def convex(rows: int, context: int) -> float:
    """Free up to 40 rows, then bound by arithmetic."""
    return 0.030 * max(1.0, rows / 40) + 1e-7 * context


def steep(rows: int, context: int) -> float:
    """Bound by arithmetic from the first row."""
    return 0.02 + 0.01 * rows


MODELS: dict[str, StepModel] = {"flat": flat, "linear": linear, "convex": convex}
QUALITY = {"junk": 0.0, "mediocre": 0.5, "good": 0.9}


def policy(model: StepModel) -> Goodput:
    """As the engine begins: it has timed one sequence."""
    made = Goodput(DRAFTS)
    for rows in (1, 2, 4, 8, 9):
        made.observe(rows, model(rows, 64))
    return made


def cloud(model: StepModel, chosen: SpeculationPolicy, count: int, *, noise: float, **stream: float) -> VirtualCloud:
    config = SchedulerConfig(max_model_len=32768, num_blocks=count * 2048, max_num_seqs=64, max_draft_rows=DRAFTS)
    made = VirtualCloud(Scheduler(config, chosen), model, noise=noise)
    made.add(*(Stream(str(number), tokens=30000, **stream) for number in range(count)))  # type: ignore[arg-type]
    return made


@functools.cache
def without(name: str, count: int, noise: float) -> float:
    model = MODELS[name]
    return cloud(model, FixedRows(0), count, noise=noise, window=0).run(STEPS * model(count, 64 * count))


@pytest.mark.parametrize(
    "count", [1, 8, pytest.param(32, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("quality", QUALITY)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("response", "gap"), [pytest.param(0.0, 0.0, id="at once"), pytest.param(0.012, 0.004, id="by and by")]
)
def test_speculation_is_never_slower(name: str, quality: str, count: int, response: float, gap: float) -> None:
    model, acceptance, noise = MODELS[name], QUALITY[quality], 0.05
    speculating = cloud(
        model, policy(model), count, noise=noise, acceptance=acceptance, response=response, gap=gap, window=DRAFTS
    )
    speed = speculating.run(STEPS * model(count, 64 * count)) / without(name, count, noise)
    assert speed >= 0.97
    if quality == "good" and (name == "flat" or (name == "convex" and count * 4 <= 40)):
        assert speed >= 1.3


@pytest.mark.parametrize("count", [1, 8])
def test_a_machine_that_has_changed_is_found_out(count: int) -> None:
    current = convex

    def changing(rows: int, context: int) -> float:
        return current(rows, context)

    chosen = policy(changing)
    running = cloud(changing, chosen, count, noise=0.02, acceptance=0.8, response=0.0, gap=0.0, window=DRAFTS)
    for current, settling, expected in ((flat, 2.0, 1.3), (steep, 30.0, 0.97), (flat, 150.0, 1.3)):
        plain = count / current(count, 64 * count) / (1 + 0.02 * 0.8)
        running.run(running.now + settling)
        assert running.run(running.now + 10.0) >= expected * plain


@pytest.mark.parametrize("count", [1, 4, 8])
def test_on_short_links_waiting_together_pays(count: int) -> None:
    speeds = []
    for cap in (0.0, 0.05):
        chosen = Goodput(DRAFTS, hold_cap=cap)
        for rows in (1, 2, 4, 8, 9):
            chosen.observe(rows, flat(rows, 64))
        running = cloud(flat, chosen, count, noise=0.03, acceptance=0.7, response=0.003, gap=0.0015, window=DRAFTS)
        speeds.append(running.run(15.0))
    assert speeds[1] >= 1.05 * speeds[0]


def test_nobody_waits_beside_one_that_cannot_draft() -> None:
    running = cloud(flat, policy(flat), 3, noise=0.03, acceptance=0.7, response=0.003, gap=0.0015, window=DRAFTS)
    running.add(Stream("plain", tokens=30000, window=0))
    running.run(5.0)
    assert running.scheduler.counts.holds == 0
    assert running.tokens["plain"] >= 0.97 * 5.0 / flat(4, 64) / 1.03
