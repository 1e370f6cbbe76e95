"""Our exported draft model against llama.cpp with the same weights: decoding, rollback, memory, and the logits first.

    python -m benchmarks.against_llama_cpp --llama-python /path/to/venv/bin/python [--out OUT.json]

The reference draft (1.2 M parameters) and the inflated reference target (111 M) as ``pilotfish export --quant int4``
writes them, against llama.cpp's Q4_0 of the same checkpoint (its own quantizer and recipe). Each side runs in a process
of its own, both with one thread on the first processor, and they take turns: a prompt of 128 tokens, then 128 greedy
decode steps are timed, context 128 to 256. The ratio is ours over llama.cpp's, median of the pairs with a 95% bootstrap
interval, by the clock and by processor time. Before that the logits of both in float32 must agree, or nothing is timed.
An environment for the other side: a new venv, ``pip install llama-cpp-python gguf`` (it is compiled for this machine).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pilotfish.bench.machine import load, machine
from pilotfish.bench.statistics import paired_ratio
from pilotfish.demo.stage import find_reference, inflated_target
from pilotfish.drafters.manifest import Manifest
from pilotfish.export import export_model
from pilotfish_core.tokenizer import Tokenizer
from reference.corpus import documents

LLAMA_SIDE: Final = Path(__file__).with_name("llama_side.py")
PROMPT, COUNT, CONTEXT = 128, 128, 512
TURNS: Final = 25
CHECKED: Final = 96  # positions whose logits are compared
AGREE: Final = 1e-4  # relative RMS in float32, of two orders of summation
MIB: Final = 2**20


class Side:
    """A process that answers lines of JSON, with one thread on the first processor."""

    def __init__(self, command: Sequence[str]) -> None:
        first = min(os.sched_getaffinity(0))
        self._process = subprocess.Popen(
            ["taskset", "-c", str(first), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._hear()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Ask and wait."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no standard input")
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _hear(self) -> dict[str, Any]:
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"a process has ended with exit code {self._process.wait()}")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """The same checkpoint for both: ``ours`` are exported folders, ``llama`` GGUF files, by rounding."""

    name: str
    ours: dict[str, Path]
    llama: dict[str, Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llama_cpp.json"))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--models", default="draft,inflated")
    given = parser.parse_args()
    reference = find_reference(None)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.against_llama_cpp", *sys.argv[1:]]),
        "machine": machine(),
        "llama-cpp-python": _version(given.llama_python),
        "models": [],
    }
    tokenizer = Tokenizer.load(reference / "draft")
    texts = (tokenizer.encode(document.text) for document in documents("heldout"))
    text = next(tokens for tokens in texts if len(tokens) >= CONTEXT)
    for name in given.models.split(","):
        source = reference / "draft"
        if name == "inflated":
            source = inflated_target(reference, reference.parent / "build" / "demo")
        with prepared(name, source, given.llama_python) as pair:
            cell = {"model": name, "agreement": agreement(pair, given.llama_python, text)}
            print(json.dumps(cell["agreement"]), flush=True)
            cell |= compared(pair, given.llama_python, text, given.turns)
        report["models"].append(cell)
        print(json.dumps(cell), flush=True)
    report["load_at_end"] = load()
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def prepared(name: str, source: Path, python: str) -> Iterator[Pair]:
    """Exports and GGUF files of a checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours = {quant: export_model(source, folder / quant, quant=quant).folder for quant in ("fp32", "int4")}
        np.savez(folder / "weights.npz", **_weights(source))
        side = [python, str(LLAMA_SIDE)]
        llama = {"fp32": folder / "f32.gguf", "int4": folder / "q4_0.gguf"}
        convert = [*side, "convert", str(source / "config.json"), str(folder / "weights.npz"), str(llama["fp32"])]
        subprocess.run(convert, check=True)
        (folder / "weights.npz").unlink()
        quantize = [*side, "quantize", str(llama["fp32"]), str(llama["int4"])]
        subprocess.run(quantize, check=True, stderr=subprocess.DEVNULL)
        yield Pair(name, ours, llama)


def agreement(pair: Pair, python: str, text: Sequence[int]) -> dict[str, float]:
    """Relative RMS of logits: ours against llama.cpp's in float32, and of each one's four bits against its float32.

    Raises SystemExit when both do not compute the same model.
    """
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/rows.npy"
        for quant in ("fp32", "int4"):
            for who in ("ours", "llama"):
                with side_of(pair, who, quant, python, kv="f32" if quant == "fp32" else "f16") as side:
                    side.ask("logits", tokens=list(text[:CHECKED]), out=out)
                rows[who, quant] = np.load(out).astype(np.float64)
    width = min(array.shape[1] for array in rows.values())
    rows = {key: array[:, :width] for key, array in rows.items()}
    found = {
        "fp32_ours_llama": _relative(rows["ours", "fp32"], rows["llama", "fp32"]),
        "int4_ours_fp32": _relative(rows["ours", "int4"], rows["ours", "fp32"]),
        "q4_0_llama_fp32": _relative(rows["llama", "int4"], rows["llama", "fp32"]),
    }
    if found["fp32_ours_llama"] > AGREE:
        raise SystemExit(f"{pair.name}: the two do not compute the same model: {found}")
    return found


def compared(pair: Pair, python: str, text: Sequence[int], turns: int) -> dict[str, Any]:
    """Decoding in turns, the first of each not counted; rollback; memory."""
    seen: dict[str, list[dict[str, Any]]] = {"ours": [], "llama": []}
    loads = [load()]
    with side_of(pair, "ours", "int4", python) as ours, side_of(pair, "llama", "int4", python) as llama:
        sides = {"ours": ours, "llama": llama}
        for turn in range(turns + 1):
            prompt = list(text[turn : turn + PROMPT])
            for who in ("ours", "llama") if turn % 2 else ("llama", "ours"):
                answer = sides[who].ask("decode", prompt=prompt, count=COUNT)
                if turn:
                    seen[who].append(answer)
            loads.append(load())
        prompt, other = list(text[:PROMPT]), list(text[300:310])
        result: dict[str, Any] = {"tokens_per_s": {}, "ratio": {}, "rollback_bit_exact": {}, "memory_mib": {}}
        for who, side in sides.items():
            rates = [COUNT / answer["seconds"] for answer in seen[who]]
            result["tokens_per_s"][who] = round(statistics.median(rates), 1)
            result["rollback_bit_exact"][who] = side.ask("rollback", prompt=prompt, other=other)["equal"]
            result["memory_mib"][who] = memory(pair, who, side.ask("memory"))
    for kind in ("seconds", "cpu_s"):
        pairs = [(theirs[kind], mine[kind]) for mine, theirs in zip(seen["ours"], seen["llama"], strict=True)]
        ratio = paired_ratio(pairs)  # of speeds, ours over llama.cpp's
        result["ratio"][kind] = {"value": round(ratio.value, 3), "interval": ratio.interval}
    equal = [mine["tokens"] == theirs["tokens"] for mine, theirs in zip(seen["ours"], seen["llama"], strict=True)]
    busy = [entry for entry in loads if entry is not None]
    return {
        **result,
        "turns": turns,
        "same_text": sum(equal),
        "load": [min(busy, default=0), max(busy, default=0)],
    }


def memory(pair: Pair, who: str, resident: dict[str, int]) -> dict[str, Any]:
    """Of the process: what the model has added, and all of it, against 1.5 times weights and KV, plus 80 MiB."""
    kv = Manifest.read(pair.ours["int4"]).kv.bytes_per_position * CONTEXT
    weights = (pair.ours["int4"] / "model.onnx").stat().st_size
    if who == "llama":
        weights, kv = pair.llama["int4"].stat().st_size, kv // 2  # float16
    bound = 1.5 * (weights + kv) + 80 * MIB
    sizes = {"weights": weights, "kv": kv, "bound": bound, "added": resident["now"] - resident["before"]}
    whole = {"before": resident["before"], "process": resident["now"]}
    return {name: round(size / MIB, 1) for name, size in (sizes | whole).items()}


@contextlib.contextmanager
def side_of(pair: Pair, who: str, quant: str, python: str, kv: str = "f16") -> Iterator[Side]:
    """A process with one model."""
    if who == "ours":
        side = Side([sys.executable, "-m", "benchmarks.onnx_side", str(pair.ours[quant])])
    else:
        side = Side([python, str(LLAMA_SIDE), "serve", str(pair.llama[quant]), kv])
    try:
        yield side
    finally:
        side.close()


def _weights(source: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors = load_file(source / "model.safetensors")
    return {name: tensor.float().numpy() for name, tensor in tensors.items() if name != "lm_head.weight"}


def _relative(one: Any, other: Any) -> float:
    return float(f"{np.sqrt(np.mean((one - other) ** 2) / np.mean(other**2)):.3g}")


def _version(python: str) -> str:
    command = [python, "-c", "import importlib.metadata as m; print(m.version('llama-cpp-python'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
