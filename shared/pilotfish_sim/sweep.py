"""Many runs, over the machine's processors."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pilotfish_sim.details import Detail, detail_of
from pilotfish_sim.rows import Row, Speeds, compare, row_of, speeds_of
from pilotfish_sim.run import simulate
from pilotfish_sim.scenario import Scenario

Settings = Mapping[str, Any]  # what --set gave to one run


def sweep(
    scenarios: Sequence[Scenario],
    settings: Sequence[Settings],
    *,
    processes: int | None = None,
    done: Callable[[int], object] | None = None,
    details: list[Detail] | None = None,
) -> list[Row]:
    """A row for each scenario, in their order, whichever ends first. ``settings``: what was set for each.

    ``processes``: at most so many at a time (None: as many as processors); ``done`` is called with how many are over.
    ``details``: each run's are appended there. Raises what ends a run.
    """
    rows: list[Row] = []
    speeds: list[Speeds] = []
    for number, (row, speed, detail) in enumerate(_results(scenarios, processes or os.cpu_count() or 1), start=1):
        rows.append({"set": dict(settings[number - 1])} | row)
        speeds.append(speed)
        if details is not None:
            details.append(detail)
        if done is not None:
            done(number)
    groups = [repr({**one, "arm": None}) for one in settings]
    compare(rows, speeds, groups)
    return rows


def _results(scenarios: Sequence[Scenario], processes: int) -> Iterator[tuple[Row, Speeds, Detail]]:
    processes = min(processes, len(scenarios))
    if processes <= 1:
        yield from map(result, scenarios)
        return
    context = multiprocessing.get_context("spawn")  # fork copies locks that others hold
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(result, scenarios)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def result(scenario: Scenario) -> tuple[Row, Speeds, Detail]:
    """One run, in whatever process."""
    run = simulate(scenario)
    return row_of(run), speeds_of(run), detail_of(run)
