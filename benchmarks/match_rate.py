"""How often a draft model's coupled choice is the target's: the acceptance rate, position by position.

    python -m benchmarks.match_rate [--target DIR] [--draft DIR] [--json OUT]

For each position of held-out sequences the target's token (coupled sampling on the torch target's logits)
is compared with the draft's best one and two candidates, under greedy choice and at temperatures 0.8 and
1.0. The draft runs as torch fp32 and as exported models, token by token as on a device; one for Core ML in the
reference interpreter where Apple's runtime is not.
Sequences: text of held-out standard library files (reference/corpus.py), and the target's own continuations
of prompts from them, which is what a draft meets in use. Run from the repository root; needs the extra
``export``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilotfish.bench.machine import machine
from pilotfish.drafters.model import ModelDrafter
from pilotfish.export import export_model
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.targets import target as target_of
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import coupled_candidates
from pilotfish_core.tokenizer import Tokenizer
from reference.corpus import documents

Rows = NDArray[np.float32]  # [positions, vocabulary]
TEMPERATURES = (0.0, 0.8, 1.0)
SEED = 17
PROMPT = 64  # tokens


def main() -> int:
    """Measure and print; returns the exit status."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    begin = time.monotonic()
    tokenizer = Tokenizer.load(arguments.target)
    target, draft = Checkpoint(arguments.target), Checkpoint(arguments.draft)
    size = tokenizer.vocab_size
    sources = _sources(tokenizer, arguments.sequences, arguments.length)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        drafts: dict[str, Callable[[list[int]], Rows]] = {"fp32 (torch)": lambda ids: draft.logits(ids)[:, :size]}
        for to, quant in (name.split("/") for name in arguments.formats):
            report = export_model(arguments.draft, Path(scratch) / to / quant, to=to, quant=quant)
            drafts[f"{quant} ({to})"] = _rows_of(target_of(to).open(report.folder).drafter, size)
        for text in ("held-out text", "own continuations"):
            for temperature in TEMPERATURES:
                params = SamplingParams(temperature=temperature, seed=SEED)
                sequences = sources
                if text == "own continuations":
                    sequences = [_continue(target, ids[:PROMPT], len(ids), params, size) for ids in sources]
                for found in _matches(target, drafts, sequences, params, size):
                    table.append({"text": text, "temperature": temperature, **found})
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.match_rate", *sys.argv[1:]]),
        "machine": machine(),
        "seconds": round(time.monotonic() - begin, 1),
        "table": table,
    }
    _print(result)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", type=Path, default=Path("reference/target"))
    parser.add_argument("--draft", type=Path, default=Path("reference/draft"))
    parser.add_argument("--formats", nargs="*", default=["onnx/int8", "onnx/int4"], metavar="RUNTIME/QUANT")
    parser.add_argument("--sequences", type=int, default=12, help="held-out files (default: 12)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each, prompt included (default: 256)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="OUT", help="write the result there as well")
    return parser.parse_args()


def _sources(tokenizer: Tokenizer, count: int, length: int) -> list[list[int]]:
    """The first ``length`` tokens of the first ``count`` held-out files that are long enough."""
    found: list[list[int]] = []
    for document in documents("heldout"):
        ids = tokenizer.encode(document.text[: 16 * length], add_special_tokens=False)[:length]
        if len(ids) == length:
            found.append(ids)
        if len(found) == count:
            return found
    if not found:
        raise SystemExit(f"no held-out file has {length} tokens")
    return found


def _rows_of(drafter: ModelDrafter, size: int) -> Callable[[list[int]], Rows]:
    def rows(ids: list[int]) -> Rows:
        context = drafter.open(SamplingParams(), 0)
        found = []
        for token in ids:
            context.extend([token])
            found.append(context.logits()[:size])
        context.close()
        return np.stack(found)

    return rows


def _continue(target: Checkpoint, ids: list[int], length: int, params: SamplingParams, size: int) -> list[int]:
    """The target's own output under ``params``, end tokens passed over, up to ``length`` tokens in all."""
    tokens, past, new = list(ids), None, list(ids)
    with torch.no_grad():
        while len(tokens) < length:
            output = target.model(torch.tensor([new]), past_key_values=past, use_cache=True)
            past = output.past_key_values
            new = coupled_candidates(output.logits[0, -1].numpy()[:size], params, len(tokens), 1)
            tokens += new
    return tokens


def _matches(
    target: Checkpoint,
    drafts: dict[str, Callable[[list[int]], Rows]],
    sequences: Sequence[list[int]],
    params: SamplingParams,
    size: int,
) -> Iterator[dict[str, Any]]:
    """For each draft, how often the target's token is its first, or one of its first two, candidates."""
    chosen = [_chosen(target.logits(ids)[:, :size], params, 1) for ids in sequences]
    for name, rows in drafts.items():
        first = second = positions = run = runs = 0
        for ids, wanted in zip(sequences, chosen, strict=True):
            for token, best in zip(wanted, _chosen(rows(ids), params, 2), strict=True):
                positions += 1
                first += best[:1] == token
                second += token[0] in best
                run += best[:1] == token
                runs += best[:1] != token
        yield {
            "draft": name,
            "positions": positions,
            "match": first / positions,
            "match_of_two": second / positions,
            "mean_run": run / max(runs, 1),
        }


def _chosen(rows: Rows, params: SamplingParams, count: int) -> list[list[int]]:
    """The best tokens at each position after the prompt (row i chooses position i + 1)."""
    return [coupled_candidates(rows[i], params, i + 1, count) for i in range(PROMPT - 1, len(rows) - 1)]


def _print(result: dict[str, Any]) -> None:
    print("machine:", ", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print("command:", result["command"], f"({result['seconds']} s)")
    print(f"{'text':<18} {'T':>4} {'draft':<16} {'positions':>9} {'one':>7} {'of two':>7} {'mean run':>9}")
    for row in result["table"]:
        print(
            f"{row['text']:<18} {row['temperature']:>4} {row['draft']:<16} {row['positions']:>9} "
            f"{row['match']:>7.1%} {row['match_of_two']:>7.1%} {row['mean_run']:>9.2f}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
