"""Milliseconds per row of coupled sampling at a full vocabulary, one thread.

    python -m benchmarks.sampling [--vocab 151936] [--rows 8] [--repeats 20] [--json]

``core`` is what a drafter pays a token (numpy; one candidate). ``cloud`` is the verifier's sampler per row for a
step of ``--rows`` rows: its CPU way (numpy) and its batched torch way, on CPU here unless ``--device cuda``.
``plain`` is the specification without any of the short cuts (full sort, noise for every token).
Medians of the thread's CPU time (wall time with ``--device cuda``): a busy neighbour moves it less, but still moves it,
so the load is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilotfish.bench.machine import machine
from pilotfish_cloud.engine.sampler import Sampler, SequenceRows
from pilotfish_core.noise import gumbel_row, words_row
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_candidates, coupled_token, filtered_logits

CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "T 1": SamplingParams(),
    "T 0.8 top_p 0.95 top_k 50": SamplingParams(temperature=0.8, top_p=0.95, top_k=50),
    "T 0.8 top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "T 1 min_p 0.05": SamplingParams(min_p=0.05),
    "T 0.8 top_k 50, penalties": SamplingParams(temperature=0.8, top_k=50, repetition_penalty=1.1),
}


def logit_sets(vocab: int) -> dict[str, NDArray[np.float32]]:
    """Normal with standard deviation 2 and 3; peaked (40 tokens 8 to 18 above such a bulk); hostile: almost flat."""
    random = np.random.default_rng(0)
    peaked = random.standard_normal(vocab) * 2.5
    peaked[random.integers(0, vocab, 40)] += random.uniform(8, 18, 40)
    sets = {
        "normal, std 2": random.standard_normal(vocab) * 2,
        "normal, std 3": random.standard_normal(vocab) * 3,
        "peaked": peaked,
        "flat (hostile)": random.standard_normal(vocab) * 0.01,
    }
    return {name: values.astype(np.float32) for name, values in sets.items()}


def median_ms(call: Callable[[int], object], repeats: int, clock: Callable[[], float] = time.thread_time) -> float:
    """Median time of ``call(i)``, milliseconds, after two calls to warm up."""
    times = []
    for i in range(repeats + 2):
        start = clock()
        call(i)
        times.append((clock() - start) * 1e3)
    return statistics.median(times[2:])


def measure(vocab: int, rows: int, repeats: int, device: str) -> list[dict[str, Any]]:
    history = TokenHistory(range(0, 2000, 3), range(300))
    sets, results = logit_sets(vocab), []
    for logits_name, values in sets.items():
        for name, params in CASES.items():
            result: dict[str, Any] = {"logits": logits_name, "parameters": name}
            result |= measure_core(values, params, history, repeats)
            result |= measure_cloud(np.stack([values] * rows), [params] * rows, history, max(3, repeats // 4), device)
            results.append(result)
    mixed = list(CASES.values()) * 2
    result = {"logits": "peaked", "parameters": f"mixed, {len(mixed)} rows"}
    result |= measure_cloud(np.stack([sets["peaked"]] * len(mixed)), mixed, history, max(3, repeats // 4), device)
    return [*results, result]


def measure_core(
    values: NDArray[np.float32], params: SamplingParams, history: TokenHistory, repeats: int
) -> dict[str, float]:
    def plain(position: int) -> None:
        scores = filtered_logits(values, params, history=history)
        if not params.is_greedy:
            scores = scores + gumbel_row(params.seed, position, values.size)
        scores.argmax()

    return {
        "core_ms": median_ms(lambda i: coupled_token(values, params, i, history=history), repeats),
        "core_4_candidates_ms": median_ms(lambda i: coupled_candidates(values, params, i, 4, history=history), repeats),
        "plain_ms": median_ms(plain, 3),
    }


def measure_cloud(
    logits: NDArray[np.float32], params: list[SamplingParams], history: TokenHistory, repeats: int, device: str
) -> dict[str, float]:
    """Per row, of a step that holds one row per entry of ``params``."""
    rows, vocab = logits.shape
    on_cpu = torch.from_numpy(logits)
    on_device = on_cpu.to(device)

    def step(sampler: Sampler, tensor: torch.Tensor, position: int) -> None:
        chosen = [SequenceRows(params=p, position=position + 1000 * j, history=history) for j, p in enumerate(params)]
        sampler.sample(tensor, chosen)

    numpy_way, torch_way = Sampler(vocab, backend="numpy"), Sampler(vocab, backend="torch")
    clock = time.thread_time if device == "cpu" else time.perf_counter
    return {
        "cloud_numpy_ms": median_ms(lambda i: step(numpy_way, on_cpu, i), repeats) / rows,
        "cloud_torch_ms": median_ms(lambda i: step(torch_way, on_device, i), repeats, clock) / rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step for the cloud's sampler")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="where the torch way runs: cpu or cuda")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    noise_ms = median_ms(lambda i: words_row(1, i, given.vocab), given.repeats)
    results = measure(given.vocab, given.rows, given.repeats, given.device)
    report = {
        "command": f"python -m benchmarks.sampling --vocab {given.vocab} --rows {given.rows} "
        f"--repeats {given.repeats} --device {given.device}",
        "machine": machine(),
        "row_of_words_ms": noise_ms,
        "results": results,
    }
    if given.json:
        print(json.dumps(report, indent=1))
        return
    print(report["command"])
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"vocabulary {given.vocab}, one thread, ms per row; all words of a row: {noise_ms:.2f} ms\n")
    columns = ["core_ms", "core_4_candidates_ms", "cloud_numpy_ms", "cloud_torch_ms", "plain_ms"]
    titles = ["core", "core, 4 best", "cloud numpy", "cloud torch", "plain"]
    print(f"{'logits':16}{'parameters':28}" + "".join(f"{title:>14}" for title in titles))
    for result in results:
        cells = "".join(f"{result[name]:14.2f}" if name in result else f"{'':14}" for name in columns)
        print(f"{result['logits']:16}{result['parameters']:28}{cells}")


if __name__ == "__main__":
    main()
