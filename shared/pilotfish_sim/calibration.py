"""From traces to the models of a scenario: what a drafter, a link, a step and a service take, and what is accepted."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.trace import StepRecord
from pilotfish_sim.fitting import knots, robust_fit, segments
from pilotfish_sim.trace_file import Client, Generation, Traces

Values = dict[str, Any]  # of a scenario's section
BLOCK: Final = 16  # tokens of a block of the prefix cache
FACTORS: Final = 41  # of a spread
FEW: Final = 20  # observations that a fit needs
BURST_US: Final = 3000  # between commits that came together, of several generations
BACK_TO_BACK_S: Final = 0.0005  # between steps of which one begins when the other is over
LOW, HIGH = 5, 95  # percentiles of round trips: the floor; what is above is an accident
TELLING_BYTES: Final = 20_000  # by which prompts must differ before their time says anything of the link's rate
UNKNOWN: Final = "?"


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Sections of a scenario; ``residuals``: median relative errors of fits, or what their names say; ``remarks``: what
    is not known."""

    sections: Mapping[str, Values]
    residuals: Mapping[str, float]
    remarks: Sequence[str]
    lines: Mapping[str, str]  # acceptance by prompt: 1, 0 or ? for each output position


def calibrate(traces: Traces, *, acceptance: str = "recorded") -> Calibration:
    """Fit all. ``acceptance``: recorded, position or rate. Raises InvalidParameter for traces that say too little."""
    residuals: dict[str, float] = {}
    remarks: list[str] = []
    generations = [one for client in traces.clients for one in client.generations if not one.record.error]
    if not generations:
        raise InvalidParameter("the traces: no answer of a device; expected a trace of pilotfish bench or generate")
    link, two_way_ms = _link(traces.clients, residuals, remarks)
    device = _device(traces.clients, two_way_ms, residuals, remarks)
    target = _target(traces, residuals, remarks)
    target |= {"service_ms": round(two_way_ms / 4, 4), "open_ms": _opening(traces, two_way_ms, remarks)}
    lines = matches(generations)
    sections = {
        "link": link,
        "device": device,
        "target": target,
        "acceptance": _acceptance(generations, lines, acceptance, remarks),
        "workload": workload(generations),
    }
    return Calibration(sections, residuals, remarks, lines)


def workload(generations: Sequence[Generation]) -> Values:
    """Lengths as they were. What the verifier's cache knew of a prompt, in whole blocks, is a shared prefix; what is
    computed is as long as it was on average.
    """
    cached = BLOCK * round(float(np.mean([one.record.cached_tokens for one in generations])) / BLOCK)
    fresh = float(np.mean([one.record.prompt_tokens - one.record.cached_tokens for one in generations]))
    output = int(np.median([one.record.tokens for one in generations]))
    prompt = cached + max(round(fresh), 1)
    return {"prompt_tokens": prompt, "output_tokens": max(output, 1), "prefix_tokens": cached}


def matches(generations: Sequence[Generation]) -> dict[str, str]:
    """For each prompt, whether the draft was right at each output position, as far as any of its answers shows it."""
    found: dict[str, dict[int, str]] = collections.defaultdict(dict)
    lengths: dict[str, int] = collections.defaultdict(int)
    for one in generations:
        known = found[one.record.prompt]
        lengths[one.record.prompt] = max(lengths[one.record.prompt], one.record.tokens)
        for commit in one.commits:
            for place in range(commit.position, commit.position + commit.agreed):
                known[place] = "1"
            if commit.refuted:
                known.setdefault(commit.position + commit.agreed, "0")
    return {
        prompt: "".join(known.get(place, UNKNOWN) for place in range(lengths[prompt]))
        for prompt, known in found.items()
        if known
    }


def by_position(generations: Sequence[Generation]) -> list[float]:
    """How often the draft was right by how far beyond the committed prefix, given that it was before."""
    right: collections.Counter[int] = collections.Counter()
    compared: collections.Counter[int] = collections.Counter()
    for one in generations:
        for commit in one.commits:
            right.update(range(commit.agreed))
            compared.update(range(commit.agreed + commit.refuted))
    rates = []
    for place in range(max(compared, default=-1) + 1):
        if compared[place] < FEW:
            break
        rates.append(round(right[place] / compared[place], 4))
    return rates


def _acceptance(generations: Sequence[Generation], lines: Mapping[str, str], how: str, remarks: list[str]) -> Values:
    known = "".join(lines.values())
    right, wrong = known.count("1"), known.count("0")
    if right + wrong < FEW:
        remarks.append("acceptance: too few drafts were compared; 0.5 is assumed")
        return {"rate": 0.5}
    if how == "position":
        rates = by_position(generations)
        return {"kind": "position", "rates": rates} if rates else {"rate": round(right / (right + wrong), 4)}
    if how == "rate":
        return {"rate": round(right / (right + wrong), 4)}
    unknown = known.count(UNKNOWN) / len(known)
    if unknown > 0.3:
        remarks.append(f"acceptance: {unknown:.0%} of the positions were never drafted; the rest of their line decides")
    return {"kind": "recorded", "lines": list(lines.values())}


def _link(clients: Sequence[Client], residuals: dict[str, float], remarks: list[str]) -> tuple[Values, float]:
    """The link, and milliseconds that devices and service add to a round trip at the least."""
    extras, nominal = [], []
    for client in clients:
        rtt_us = (client.record.rtt_ms or 0.0) * 1e3
        trips = [trip.took_us - rtt_us for one in client.generations for trip in one.round_trips]
        extras += [(trip, client.record.rtt_ms is not None) for trip in trips]
        nominal += [client.record.rtt_ms or 0.0] * bool(trips)
    known = np.array([extra for extra, set_by_hand in extras if set_by_hand]) / 1e3
    other = np.array([extra for extra, set_by_hand in extras if not set_by_hand]) / 1e3
    samples = known if len(known) >= FEW or not len(other) else other
    if len(samples) < 3:
        remarks.append("link: too few round trips were measured; nothing but what the clients say is known")
        rtts = [client.record.rtt_ms or 0.0 for client in clients]
        return {"rtt_ms": float(np.median(rtts))}, 0.0
    floor, top = np.percentile(samples, (LOW, HIGH))
    floor = max(float(floor), 0.0)
    jitter = round(max(float(samples[samples <= top].mean()) - floor, 0.0), 3)
    residuals["round_trip_ms_p95_over_floor"] = round(float(top) - floor, 3)
    two_way, rtt = (floor, float(np.median(nominal))) if samples is known else (0.0, floor)
    link: Values = {"rtt_ms": round(rtt + jitter, 3), "jitter_ms": jitter, "jitter": "exponential"}
    rate = _rate(clients)
    if rate is None:
        remarks.append("link: prompts of much the same size say nothing of its rate; no limit is assumed")
    else:
        link["rate_up_mbit"] = rate
    return link, two_way


def _rate(clients: Sequence[Client]) -> float | None:
    """Mbit/s upwards, from how much later larger prompts are answered; None where that does not show."""
    seen = [one.record for client in clients for one in client.counted]
    if len(seen) < FEW:
        return None
    sizes = np.array([record.open_bytes for record in seen], dtype=np.float64)
    if float(np.ptp(sizes)) < TELLING_BYTES:
        return None
    uncached = np.array([record.prompt_tokens - record.cached_tokens for record in seen], dtype=np.float64)
    matrix = np.stack([np.ones(len(sizes)), sizes, uncached], axis=1)
    late = np.array([max(record.first_us, 1) for record in seen]) / 1e6
    seconds_a_byte = float(robust_fit(matrix, late).coefficients[1])
    return round(8e-6 / seconds_a_byte, 3) if seconds_a_byte > 0 else None


def _device(clients: Sequence[Client], two_way_ms: float, residuals: dict[str, float], remarks: list[str]) -> Values:
    values: Values = {"one_client": True, "overhead_ms": round(two_way_ms / 4, 4), "frame_us": _frame_us(clients)}
    tasks = [task for client in clients for one in client.generations for task in one.drafts if task.took_us > 0]
    if len(tasks) < FEW:
        remarks.append("device: too few draft tasks; its drafter is as fast as nothing")
        return values | {"draft_ms": 0.0}
    alone = [
        task.asked_us - task.took_us
        for client in clients
        if client.record.concurrency == 1
        for one in client.generations
        for task in one.drafts
    ]
    matrix = np.array([[task.tokens, task.taken_in, task.opened, 1] for task in tasks], dtype=np.float64)
    fit = robust_fit(matrix, np.array([task.took_us for task in tasks]) / 1e3)
    draft, prefill, first, each = (round(float(one), 4) for one in fit.coefficients)
    if not draft and matrix[:, 0].std() == 0:  # always as many tokens: which of the two it is does not show
        draft, each = each, 0.0
    hop = float(np.median(alone)) / 1e3 if alone else 0.0
    residuals["draft_task"] = round(fit.median_error, 4)
    return values | {
        "draft_ms": draft,
        "prefill_ms": prefill,
        "first_ms": first,
        "task_ms": round(each + max(hop, 0.0), 4),
        "spread": fit.spread(FACTORS),
    }


def _frame_us(clients: Sequence[Client]) -> float:
    """What the device is busy for with a commit: how far those of a step with several generations come apart."""
    gaps: list[int] = []
    for client in clients:
        if client.record.concurrency > 1:
            times = sorted(
                (round(one.began_s * 1e6) - one.record.at_us + commit.at_us, one.record.generation)
                for one in client.generations
                for commit in one.commits
            )
            gaps += [
                late - early
                for (early, one), (late, other) in itertools.pairwise(times)
                if one != other and late - early < BURST_US
            ]
    return round(float(np.median(gaps)), 1) if len(gaps) >= FEW else 0.0


def _target(traces: Traces, residuals: dict[str, float], remarks: list[str]) -> Values:
    steps = [step for _, step in traces.steps if step.rows and step.whole_us]
    if len(steps) < FEW:
        raise InvalidParameter(
            f"the traces: {len(steps)} steps of a verifier; expected at least {FEW}: the trace of pilotfish-cloud serve"
        )
    computed = [max(step.rows, step.padded) for step in steps]
    rows = np.array(computed, dtype=np.float64)
    places = knots(computed)
    matrix = np.hstack(
        [
            np.ones((len(steps), 1)),
            segments(rows, places),
            np.array([[step.sequences - 1, step.context / 1e3] for step in steps], dtype=np.float64),
        ]
    )
    fit = robust_fit(matrix, np.array([step.whole_us for step in steps]) / 1e3)
    between = _between(traces)
    curve = {places[0]: float(fit.coefficients[0]) + between}
    for low, high, slope in zip(places, places[1:], fit.coefficients[1:], strict=False):
        curve[high] = curve[low] + float(slope) * (high - low)
    residuals["step"] = round(fit.median_error, 4)
    sequence, context = fit.coefficients[-2:]
    return {
        "step_ms": {count: round(max(value, 0.001), 4) for count, value in curve.items()},
        "row_sizes": _row_sizes(steps),
        "sequence_us": round(float(sequence) * 1e3, 2),
        "context_us": round(float(context) * 1e3, 2),
        "spread": fit.spread(FACTORS),
        "max_num_seqs": 64,  # of `pilotfish-cloud serve`, by default
        "max_num_batched_tokens": 512,
    }


def _row_sizes(steps: Sequence[StepRecord]) -> list[int]:
    """Row counts to which steps were padded: all that were computed, up to the largest that was more than asked for."""
    largest = max((step.padded for step in steps if step.padded > step.rows), default=0)
    return sorted({step.padded for step in steps if step.padded <= largest})


def _between(traces: Traces) -> float:
    """Milliseconds between a step's end and the next one's begin where work is waiting."""
    gaps = [later - (earlier + step.whole_us / 1e6) for (earlier, step), (later, _) in itertools.pairwise(traces.steps)]
    near = [gap for gap in gaps if 0 <= gap < BACK_TO_BACK_S]
    return float(np.median(near)) * 1e3 if len(near) >= FEW else 0.0


def _opening(traces: Traces, two_way_ms: float, remarks: list[str]) -> float:
    """Milliseconds from question to first token that neither link nor steps explain. From streams that were alone."""
    times = [time for time, _ in traces.openings]
    late = []
    for client in traces.clients:
        if client.record.concurrency != 1 or client.record.rtt_ms is None:
            continue
        for one in client.generations:
            begin = bisect.bisect_left(times, one.began_s)
            end = bisect.bisect_right(times, one.began_s + one.record.first_us / 1e6)
            if end == begin + 1:
                inside = traces.openings[begin][1].first_us
                late.append((one.record.first_us - inside) / 1e3 - client.record.rtt_ms - two_way_ms)
    if not late:
        remarks.append(
            "target: no answer alone whose opening the verifier's trace has; opening is taken to cost nothing"
        )
        return 0.0
    return round(max(float(np.median(late)), 0.0), 4)
