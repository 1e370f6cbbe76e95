"""Samples of a model in batches, and the coupled (Gumbel-max) draws that evaluation needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaForCausalLM

from reference import models
from reference.corpus import Split, Windows, encode_documents
from reference.tokenizer import load_tokenizer
from reference.training import autocast, pick_device


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel variates (fp32, on the generator's device)."""
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    return -torch.log(-torch.log(uniform.clamp(1e-10, 1.0 - 1e-7)))


def coupled_draw(logits: torch.Tensor, noise: torch.Tensor, temperature: float, count: int = 1) -> torch.Tensor:
    """The `count` best ids of log p + noise for each row.

    `logits` and `noise` are (rows, vocabulary); the answer is (rows, count), best first. Its first
    column is an exact sample of the row's distribution at `temperature` (0: greedy, no noise).
    """
    scores = logits.float()
    if temperature > 0.0:
        scores = scores / temperature + noise
    return scores.topk(count, dim=-1).indices


def sample_batch(
    model: LlamaForCausalLM,
    prompts: torch.Tensor,
    new_tokens: int,
    temperatures: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Continue `prompts` (rows, length) by `new_tokens` ids each: (rows, length + new_tokens).

    `temperatures` is (rows, 1), above 0. Rows do not stop at the end token: like the corpus, they
    go on with the next document.
    """
    device = prompts.device
    cache = DynamicCache(config=model.config)
    columns = [prompts]
    step = prompts
    with torch.no_grad(), autocast(device):
        for _ in range(new_tokens):
            output: Any = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores = output.logits[:, -1].float() / temperatures
            noise = gumbel(tuple(scores.shape), generator).to(device)
            step = (scores + noise).argmax(dim=-1, keepdim=True)
            columns.append(step)
    return torch.cat(columns, dim=1)


def corpus_samples(
    model: LlamaForCausalLM,
    windows: Windows,
    batches: int,
    rows: int,
    prompt_tokens: int,
    new_tokens: int,
    temperatures: tuple[float, ...],
    seed: int,
) -> npt.NDArray[np.uint16]:
    """The model's own continuations of corpus windows: (batches * rows, prompt + new tokens).

    The temperatures alternate from row to row.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    cycle = torch.tensor(temperatures, device=device).repeat(rows)[:rows, None]
    pieces = []
    for _ in tqdm(range(batches), desc="sampling", unit="batch"):
        tokens = torch.from_numpy(windows.batch(rows, prompt_tokens)[:, 1:]).to(device)
        sampled = sample_batch(model, tokens, new_tokens, cycle, generator)
        pieces.append(sampled.cpu().numpy().astype(np.uint16))
    return np.concatenate(pieces)


def main() -> None:
    """Write the model's own samples to an .npy file of token ids."""
    parser = argparse.ArgumentParser(prog="python -m reference.sampling", description=__doc__)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("out", type=Path, help=".npy file to write")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=480)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.8, 1.0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    split: Split = arguments.split
    docs = encode_documents(load_tokenizer(arguments.model), split)
    samples = corpus_samples(
        models.load(arguments.model).to(device).eval(),
        Windows(docs, arguments.seed),
        arguments.batches,
        arguments.rows,
        arguments.prompt_tokens,
        arguments.new_tokens,
        tuple(arguments.temperatures),
        arguments.seed,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_suffix(".partial.npy")
    np.save(partial, samples)
    partial.replace(arguments.out)
    sys.stdout.write(f"{samples.shape[0]} samples of {samples.shape[1]} tokens -> {arguments.out}\n")


if __name__ == "__main__":
    main()
