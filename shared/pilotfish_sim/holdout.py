"""How well a calibration predicts what it has not seen: the rest of the traces, replayed through the simulator."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.calibration import Calibration, calibrate, workload
from pilotfish_sim.run import simulate
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.trace_file import Client, Generation, Traces

METRICS: Final = ("tokens_per_s", "tpot_ms", "tpot_ms_p99", "ttft_ms", "ttft_ms_p99")
AIMS: Final = {"tokens_per_s": 0.10, "tpot_ms": 0.10, "tpot_ms_p99": 0.25, "ttft_ms": 0.15, "ttft_ms_p99": 0.25}
SEEDS: Final = 3  # runs of a cell, whose answers are taken together
ROUNDED_S: Final = 1e-5  # times of a trace are whole microseconds, sums of two
BY: Final = ("answers", "cells")
Span = tuple[float, float, float, int]  # of an answer: asked for, first and last token at, seconds; tokens
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One arm under one condition: ``real`` figures of the part held out, of the other part, and the prediction."""

    arm: str
    rtt_ms: float
    concurrency: int
    answers: int
    real: Figures
    other: Figures | None
    predicted: Figures

    @property
    def errors(self) -> Figures:
        """Of the prediction, relative."""
        return {name: self.predicted[name] / self.real[name] - 1.0 for name in METRICS}

    @property
    def halves(self) -> Figures | None:
        """How far the two real parts are apart: no prediction from the one can be expected to be nearer."""
        return None if self.other is None else {name: self.other[name] / self.real[name] - 1.0 for name in METRICS}


def medians(errors: Sequence[Figures]) -> Figures:
    """Of the absolute errors, by metric."""
    return {name: round(float(np.median([abs(one[name]) for one in errors])), 4) for name in METRICS} if errors else {}


def hold_out(
    traces: Traces, share: float, *, by: str, acceptance: str, done: Callable[[int, int], object] | None = None
) -> list[Cell]:
    """Calibrate on one part, predict the other. ``by`` answers: of each client the last ``share`` is held out; by
    cells: as many whole clients, spread evenly. ``done`` is called with how many cells of how many are over.

    Raises InvalidParameter where a part is too small.
    """
    clients = [client for client in traces.clients if client.counted]
    held: dict[int, list[Generation]] = {}
    for number, client in enumerate(clients):
        counted = client.counted
        if by == "cells":
            out = int((number + 1) * share) > int(number * share)
            held[number] = counted if out else []
        else:
            held[number] = counted[len(counted) - round(len(counted) * share) :]
    if not any(held.values()):
        raise InvalidParameter.of("--holdout", share, "more answers in the traces, or a larger share")
    seen = _without(traces, clients, held)
    calibration = calibrate(seen, acceptance=acceptance)
    wanted = [number for number in held if held[number]]
    cells = []
    for count, number in enumerate(wanted, start=1):
        cells.append(_cell(clients[number], held[number], calibration, acceptance))
        if done is not None:
            done(count, len(wanted))
    return cells


def _without(traces: Traces, clients: Sequence[Client], held: Mapping[int, Sequence[Generation]]) -> Traces:
    """What remains to calibrate on: other answers, and the steps and openings that fall into none of those held out."""
    spans = sorted((one.began_s, one.ended_s) for some in held.values() for one in some)
    merged: list[list[float]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    begins = np.array([begin for begin, _ in merged])
    ends = np.array([end for _, end in merged])

    def outside(time: float) -> bool:
        place = int(np.searchsorted(begins, time, side="right")) - 1
        return place < 0 or time > ends[place]

    remaining = []
    for number, client in enumerate(clients):
        gone = {id(one) for one in held[number]}
        rest = [one for one in client.generations if id(one) not in gone]
        if any(rest) and len(rest) > client.record.warmup:
            remaining.append(Client(client.record, rest))
    return Traces(
        clients=remaining,
        steps=[step for step in traces.steps if outside(step[0])],
        openings=[opening for opening in traces.openings if outside(opening[0])],
    )


def replayed(
    client: Client, held: Sequence[Generation], calibration: Calibration, acceptance: str, seed: int
) -> Scenario:
    """The scenario that is to come out as ``client`` did, of which the answers ``held`` are measured."""
    record, sections = client.record, calibration.sections
    streams = record.concurrency
    first = client.generations.index(held[0])
    link = dict(sections["link"])
    if record.rtt_ms is not None:
        link["rtt_ms"] = round(record.rtt_ms + link.get("jitter_ms", 0.0), 3)
    values: dict[str, Any] = {
        "arm": record.arm,
        "seed": seed,
        "link": link,
        "device": dict(sections["device"]) | {"one_client": True},
        "target": dict(sections["target"]),
        "acceptance": _lines(client, calibration) if acceptance == "recorded" else sections["acceptance"],
        "workload": {
            **workload(held),
            "kind": "rounds" if _in_rounds(client) else "closed",
            "devices": streams,
            "warmup": max(round(first / streams), 0),
            "answers": max(round(len(held) / streams), 1),
        },
    }
    return Scenario.of(values)


def _in_rounds(client: Client) -> bool:
    """Whether all streams began together each time, once all had ended."""
    streams, some = client.record.concurrency, sorted(client.generations, key=lambda one: one.began_s)
    rounds = [some[begin : begin + streams] for begin in range(0, len(some), streams)]
    return all(
        max(one.ended_s for one in before) < after[0].began_s + ROUNDED_S
        for before, after in itertools.pairwise(rounds)
    )


def _lines(client: Client, calibration: Calibration) -> dict[str, Any]:
    """What was recorded of each answer's prompt, in order; of a prompt that was not seen, of another."""
    known = list(calibration.lines.values())
    if not known:
        return dict(calibration.sections["acceptance"])
    lines = [
        calibration.lines.get(one.record.prompt, known[number % len(known)])
        for number, one in enumerate(client.generations)
    ]
    return {"kind": "recorded", "lines": lines}


def _cell(client: Client, held: Sequence[Generation], calibration: Calibration, acceptance: str) -> Cell:
    streams = client.record.concurrency
    runs = []
    for seed in range(SEEDS):
        run = simulate(replayed(client, held, calibration, acceptance, seed))
        runs.append([(one.began, one.first_at, one.last_at, one.tokens) for one in run.measured])
    gone = {id(one) for one in held}
    other = [one for one in client.counted if id(one) not in gone]
    return Cell(
        arm=client.record.arm,
        rtt_ms=client.record.rtt_ms or 0.0,
        concurrency=streams,
        answers=len(held),
        real=figures([list(_spans(held))], streams),
        other=figures([list(_spans(other))], streams) if other else None,
        predicted=figures(runs, streams),
    )


def _spans(generations: Sequence[Generation]) -> Iterator[Span]:
    for one in generations:
        first = one.began_s + one.record.first_us / 1e6
        yield one.began_s, first, one.ended_s, one.record.tokens


def figures(runs: Sequence[Sequence[Span]], streams: int) -> Figures:
    """As ``pilotfish bench`` has them. One stream: of an answer, in the median. Several: tokens of all over the time in
    which any was being answered.
    """
    spans = [span for run in runs for span in run]
    tpot = [(last - first) / max(tokens - 1, 1) * 1e3 for _, first, last, tokens in spans]
    ttft = [(first - began) * 1e3 for began, first, _, _ in spans]
    if streams == 1:
        speed = float(np.median([tokens / max(last - began, 1e-9) for began, _, last, tokens in spans]))
    else:
        speed = sum(tokens for *_, tokens in spans) / max(sum(_busy(run) for run in runs), 1e-9)
    middle, high = np.percentile(tpot, (50, 99))
    early, late = np.percentile(ttft, (50, 99))
    values = (speed, float(middle), float(high), float(early), float(late))
    return dict(zip(METRICS, (max(value, 1e-9) for value in values), strict=True))


def _busy(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of them was on its way."""
    total, until = 0.0, -np.inf
    for began, _, last, _ in sorted(spans):
        total += max(last - max(began, until), 0.0)
        until = max(until, last)
    return float(total)
