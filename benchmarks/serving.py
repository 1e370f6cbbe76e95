"""The verifier as a serving system: throughput of a full batch, the prefix cache, memory over many generations.

    python -m benchmarks.serving [--only throughput prefix soak] [--out benchmarks/results/serving.json]

*throughput*: tokens a second of 64 generations at once over those of one, on the reference target (float32) and on the
inflated one (bfloat16), taking turns. *prefix*: time to the first token of a prompt of 1,500 tokens, cold and with the
same tokens in the prefix cache, and of another tenant, whose hits must be none; over gRPC. *soak*: 10,000 short
generations, 64 at once, one in eight cut in the middle; resident memory of the engine's process at each tenth, and its
integrity at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.load import Load, loaded, prompts
from pilotfish.bench.machine import load, machine
from pilotfish.bench.statistics import paired_ratio
from pilotfish.client import AsyncClient
from pilotfish.demo.stage import VerifierProcess, find_reference, inflated_target
from pilotfish_cloud.engine.interface import CommitEvent, OpenedEvent

FULL: Final = 64
TURNS: Final = 6
SOAK: Final = 10_000
PARTS: Final = ("throughput", "prefix", "soak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--generations", type=int, default=SOAK, help="of the soak")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    given = parser.parse_args()
    reference = find_reference(None)
    small, large = reference / "target", inflated_target(reference, reference.parent / "build" / "demo")
    report: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    command = shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]])
    for part in given.only:
        where = machine()
        if part == "throughput":
            figures: dict[str, Any] = {
                "reference, float32": throughput(small, "float32"),
                "inflated, bfloat16": throughput(large, "bfloat16"),
            }
        elif part == "prefix":
            figures = asyncio.run(prefix(large)) | isolation(small)
        else:
            figures = soak(small, given.generations)
        report[part] = {"command": command, "machine": where, "load_at_end": load(), **figures}
        print(part, json.dumps(figures, indent=1), flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def throughput(model: Path, dtype: str) -> dict[str, Any]:
    """A full batch against one generation, each with the same number of steps, in turn."""
    with loaded(model, dtype=dtype, max_num_seqs=FULL) as running:
        some = prompts(running.engine.tokenizer, FULL)
        _rate(running, some, 16)
        pairs = []
        for turn in range(TURNS):
            sides = {count: _rate(running, some[:count], 64) for count in ((FULL, 1) if turn % 2 else (1, FULL))}
            pairs.append((sides[FULL], sides[1]))
    ratio = paired_ratio(pairs)
    return {
        "one_tokens_per_s": round(statistics.median(one for _, one in pairs), 1),
        "full_tokens_per_s": round(statistics.median(full for full, _ in pairs), 1),
        "ratio": round(ratio.value, 2),
        "interval": ratio.interval,
    }


def _rate(running: Load, some: Sequence[Sequence[int]], length: int) -> float:
    """Tokens a second, prompts included in the time."""
    began = time.perf_counter()
    keys = [running.open(prompt, max_tokens=length) for prompt in some]
    tokens = sum(len(answer) for answer in running.answers(keys).values())
    return tokens / (time.perf_counter() - began)


async def prefix(model: Path, *, length: int = 1500, repeats: int = 6) -> dict[str, Any]:
    """Time to the first token, cold and warm, through a client."""
    pairs, cached = [], 0
    with VerifierProcess(model, "--dtype", "bfloat16") as verifier:
        verifier.wait_ready()
        async with AsyncClient(verifier.address, draft=None, arm="cloud") as client:
            await client.prepare()
            text = "def add(first, second):\n    return first + second\n\n\n" * 200
            for number in range(repeats + 1):
                prompt = client.tokenizer.encode(f"# shared by all, {number}\n{text}")[:length]
                times = []
                for question in ("class Queue:", "class Stack:", "class Heap:"):
                    stream = await client.generate(
                        [*prompt, *client.tokenizer.encode(question)], max_tokens=2, seed=1, ignore_eos=True
                    )
                    metrics = (await stream.result()).metrics
                    times.append(metrics.ttft_s)
                    cached = metrics.cached_tokens
                if number:  # the first pays for kernels
                    pairs.append((times[0], statistics.mean(times[1:])))
    ratio = paired_ratio(pairs)
    return {
        "prompt_tokens": length,
        "cached_tokens": cached,
        "cold_ttft_ms": round(1e3 * statistics.median(cold for cold, _ in pairs), 2),
        "warm_ttft_ms": round(1e3 * statistics.median(warm for _, warm in pairs), 2),
        "ratio": round(ratio.value, 1),
        "interval": ratio.interval,
    }


def isolation(model: Path) -> dict[str, Any]:
    """Tokens of the same prompt found in the cache by its own tenant and by another one."""
    with loaded(model) as running:
        prompt = [5 + number % 200 for number in range(512)]
        found = {}
        for name, salt in (("first", b"a"), ("own_tenant", b"a"), ("other_tenant", b"b")):
            key = running.open(prompt, max_tokens=1, salt=salt)
            for event in running.events():
                if isinstance(event, OpenedEvent) and event.key == key:
                    found[name] = event.cached_tokens
    return {"hits": found}


def soak(model: Path, generations: int) -> dict[str, Any]:
    """Many short generations; the engine checks its integrity when it is closed."""
    chance = random.Random(3)
    memory: list[float] = []
    done = tokens = cut = opened = 0
    began = time.perf_counter()
    with loaded(model, max_num_seqs=FULL, max_model_len=256) as running:
        some = prompts(running.engine.tokenizer, 40)
        status = Path(f"/proc/{running.engine.pid}/status")
        to_cut: set[str] = set()

        def more() -> None:
            nonlocal opened
            while opened < generations and len(running.running) < FULL + 8:
                prompt = chance.choice(some) + tuple(chance.randrange(5, 4000) for _ in range(chance.randrange(24)))
                key = running.open(prompt, max_tokens=chance.randint(1, 16))
                opened += 1
                if chance.random() < 0.125:
                    to_cut.add(key)

        more()
        for event in running.events():
            if not isinstance(event, CommitEvent):
                continue
            tokens += len(event.commit.tokens)
            if event.commit.finish is not None:
                done += 1
            elif event.key in to_cut:
                running.abort(event.key)
                done, cut = done + 1, cut + 1
            to_cut.discard(event.key)
            if len(memory) * generations <= 10 * done:
                memory.append(_resident_mib(status))
            more()
        stats = running.engine.stats()
    return {
        "generations": done,
        "cut": cut,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - began, 1),
        "resident_mib": memory,
        "grown_after_the_first_tenth_mib": round(memory[-1] - memory[1], 1),
        "failures": stats.failures,
        "preemptions": stats.preemptions,
    }


def _resident_mib(status: Path) -> float:
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
