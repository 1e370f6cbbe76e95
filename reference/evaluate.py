"""Measure the pair on the held-out files: losses, and how often the draft's token is the target's.

    python -m reference.evaluate --out evaluation.json

Two kinds of context: held-out text, and the target's own continuations of held-out prefixes, which
is what serving sees. Rates are means over positions. A coupled draw is argmax of log-probability
plus shared Gumbel noise; "of two" asks whether the target's token is among the draft's two best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import LlamaForCausalLM

from reference import models
from reference.corpus import Tokens, Windows, encode_documents
from reference.matching import match_rate, overlap
from reference.sampling import coupled_draw, gumbel, sample_batch
from reference.tokenizer import load_tokenizer
from reference.training import mean

TEMPERATURES = (0.8, 1.0)

LogitPair = tuple[torch.Tensor, torch.Tensor]


def pair_logits(target: LlamaForCausalLM, draft: LlamaForCausalLM, ids: torch.Tensor) -> LogitPair:
    """Both models' fp32 logits for one row of `ids` (1, length): two (length, vocabulary)."""
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits[0].float() for model in (target, draft))
    return first, second


def text_windows(docs: list[Tokens], length: int, limit: int) -> list[torch.Tensor]:
    """Up to `limit` windows (1, length) spread evenly over the joined documents."""
    stream = torch.cat([torch.from_numpy(doc.astype("int64")) for doc in docs])
    count = len(stream) // length
    chosen = range(0, count, max(1, -(-count // limit)))
    return [stream[index * length : (index + 1) * length][None] for index in chosen]


def own_windows(target: LlamaForCausalLM, docs: list[Tokens], temperature: float, rows: int, seed: int) -> torch.Tensor:
    """The target's continuations (rows, 256) of 64 held-out tokens; temperature 0 is greedy."""
    prompts = torch.from_numpy(Windows(docs, seed).batch(rows, 64)[:, 1:])
    heat = torch.full((rows, 1), max(temperature, 1e-5))
    generator = torch.Generator().manual_seed(seed)
    return sample_batch(target, prompts, 192, heat, generator)


def rates(pairs: Iterator[LogitPair], temperature: float, generator: torch.Generator) -> dict[str, float]:
    """Match figures over all positions of `pairs` at one temperature (0: greedy only)."""
    one: list[torch.Tensor] = []
    two: list[torch.Tensor] = []
    exact: list[torch.Tensor] = []
    best: list[torch.Tensor] = []
    for wanted, offered in pairs:
        noise = gumbel(tuple(wanted.shape), generator)
        token = coupled_draw(wanted, noise, temperature)
        hit = coupled_draw(offered, noise, temperature, count=2) == token
        one.append(hit[:, 0])
        two.append(hit.any(dim=-1))
        if temperature > 0.0:
            p, q = ((logits / temperature).softmax(-1) for logits in (wanted, offered))
            exact.append(match_rate(p, q))
            best.append(overlap(p, q))
    figures = {"one": one, "two": two, "expected_one": exact, "optimal_rejection": best}
    return {name: round(float(torch.cat(values).double().mean()), 4) for name, values in figures.items() if values}


def losses(models_by_name: dict[str, LlamaForCausalLM], docs: list[Tokens]) -> dict[str, float]:
    """Mean held-out loss in nats a token of each model, at windows of 512 and of 2,048 tokens."""
    result = {}
    for length, limit in ((512, 60), (2048, 15)):
        for name, model in models_by_name.items():
            values = []
            for ids in text_windows(docs, length + 1, limit):
                with torch.no_grad():
                    logits = model(input_ids=ids[:, :-1]).logits[0].float()
                values.append(float(F.cross_entropy(logits, ids[0, 1:])))
            result[f"{name}_{length}"] = round(mean(values), 4)
    return result


def evaluate(target_folder: Path, draft_folder: Path, rows: int, seed: int) -> dict[str, object]:
    """All figures of the pair as stored (weights as rounded on disk, computed in fp32)."""
    docs = encode_documents(load_tokenizer(target_folder), "heldout")
    target = models.load(target_folder).eval()
    draft = models.load(draft_folder).eval()
    generator = torch.Generator().manual_seed(seed)
    text = text_windows(docs, 512, rows)
    report: dict[str, object] = {
        "target_parameters": models.parameter_count(target),
        "draft_parameters": models.parameter_count(draft),
        "heldout_files": len(docs),
        "heldout_tokens": sum(len(doc) for doc in docs),
        "heldout_loss_nats_per_token": losses({"target": target, "draft": draft}, docs),
    }
    on_text: dict[str, dict[str, float]] = {}
    on_own: dict[str, dict[str, float]] = {}
    for temperature in tqdm((0.0, *TEMPERATURES), desc="temperatures"):
        name = f"temperature_{temperature}"
        pairs = (pair_logits(target, draft, ids) for ids in text)
        on_text[name] = rates(pairs, temperature, generator)
        own = own_windows(target, docs, temperature, rows, seed)
        continued = (
            (wanted[63:-1], offered[63:-1])
            for wanted, offered in (pair_logits(target, draft, row[None]) for row in own)
        )
        on_own[name] = rates(continued, temperature, generator)
    report["match_on_heldout_text"] = on_text
    report["match_on_own_continuations"] = on_own
    return report


def main() -> None:
    """Print the figures and write them as JSON."""
    folder = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="python -m reference.evaluate", description=__doc__)
    parser.add_argument("--target", type=Path, default=folder / "target")
    parser.add_argument("--draft", type=Path, default=folder / "draft")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rows", type=int, default=32, help="windows of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = evaluate(arguments.target, arguments.draft, arguments.rows, arguments.seed)
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
