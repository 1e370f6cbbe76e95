"""Distil the draft from the target, within a wall-clock budget.

    python -m reference.distill TARGET OUT --samples samples.npy --minutes 28

The draft starts with the target's embeddings, projected on their principal directions. It learns
the target's distribution (forward KL) on corpus windows and on the target's own samples, then more
and more the measure that counts: the coupled match rate at temperature 0.8 (see `matching`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import LlamaForCausalLM

from reference import models
from reference.corpus import Tokens, Windows, encode_documents
from reference.matching import match_loss, match_rate
from reference.tokenizer import MAX_LENGTH, load_tokenizer
from reference.training import (
    Budget,
    Optimisers,
    autocast,
    load_checkpoint,
    mean,
    pick_device,
    save_checkpoint,
)

TEMPERATURE = 0.8
"""The temperature at which the match rate is optimised."""

DistillLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SampleMixture:
    """Training batches: the target's own samples, corpus windows, and long corpus windows."""

    def __init__(
        self,
        windows: Windows,
        files: list[Path],
        samples_share: float,
        long_share: float,
        seed: int,
    ) -> None:
        """Give about `long_share` of the batches to long windows, `samples_share` of the others
        to rows of samples, the rest to short windows. Files of samples (count, length) that do not
        exist yet are picked up when they appear.
        """
        self._windows = windows
        self._waiting = list(files)
        self._samples: Tokens | None = None
        self._samples_share = samples_share
        self._long_share = long_share
        self._drawn = 0
        self._rng = np.random.default_rng([seed, 7])

    def batch(self, rows: int, length: int) -> torch.Tensor:
        """Token ids (rows, length), or as many in fewer rows of 2,048."""
        if self._drawn % 20 == 0:
            self._pick_up()
        self._drawn += 1
        if self._rng.random() < self._long_share:
            rows, length = max(1, rows * length // MAX_LENGTH), MAX_LENGTH
        elif self._samples is not None and self._rng.random() < self._samples_share:
            chosen = self._rng.integers(len(self._samples), size=rows)
            return torch.from_numpy(self._samples[chosen, :length].astype(np.int64))
        return torch.from_numpy(self._windows.batch(rows, length)[:, :length].copy())

    def _pick_up(self) -> None:
        """Load the files that have appeared."""
        ready = [file for file in self._waiting if file.is_file()]
        if ready:
            self._waiting = [file for file in self._waiting if file not in ready]
            known = [] if self._samples is None else [self._samples]
            self._samples = np.concatenate([*known, *(np.load(file) for file in ready)])


def project_embeddings(target: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    """Set the draft's (tied) embeddings to the target's on its principal directions."""
    with torch.no_grad():
        table = target.model.embed_tokens.weight.float()
        width = draft.config.hidden_size
        _, _, directions = torch.linalg.svd(table, full_matrices=False)
        draft.model.embed_tokens.weight.copy_(table @ directions[:width].T)


def make_loss(target: LlamaForCausalLM, draft: LlamaForCausalLM, compiled: bool) -> DistillLoss:
    """The loss of a batch (rows, length): (1 - weight) * KL(p || q) + weight * (1 - M)."""

    def teacher(inputs: torch.Tensor) -> torch.Tensor:
        hidden = target.model(input_ids=inputs, use_cache=False).last_hidden_state
        return F.linear(hidden, target.lm_head.weight).flatten(0, 1)

    def student(inputs: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        hidden = draft.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = F.linear(hidden, draft.lm_head.weight).flatten(0, 1).float()
        wanted = wanted.float()
        log_p = torch.log_softmax(wanted, dim=-1)
        log_q = torch.log_softmax(logits, dim=-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        missed = match_loss(wanted, logits, TEMPERATURE)
        return (1.0 - weight) * divergence + weight * missed

    if compiled:
        teacher = torch.compile(teacher, dynamic=False)
        student = torch.compile(student, dynamic=False)

    def loss(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(inputs)
        return student(inputs, wanted, weight)

    return loss


def warm_up(loss: DistillLoss, draft: LlamaForCausalLM, inputs: torch.Tensor) -> None:
    """Compile `loss` for one shape, so that the budget is spent on training alone."""
    with autocast(inputs.device):
        value = loss(inputs, torch.tensor(0.0, device=inputs.device))
    torch.autograd.backward(value)
    draft.zero_grad(set_to_none=True)


def heldout_match(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, docs: list[Tokens], length: int, limit: int
) -> float:
    """Mean exact match rate at 0.8 over the first `limit` windows of held-out text."""
    stream = torch.cat([torch.from_numpy(doc.astype("int64")) for doc in docs])
    device = next(draft.parameters()).device
    rates = []
    with torch.no_grad(), autocast(device):
        for index in range(min(limit, len(stream) // length)):
            ids = stream[index * length : (index + 1) * length].to(device)[None]
            p, q = (
                torch.softmax(model(input_ids=ids).logits[0].float() / TEMPERATURE, dim=-1) for model in (target, draft)
            )
            rates.append(float(match_rate(p, q).mean()))
    return mean(rates)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reference.distill", description=__doc__)
    parser.add_argument("target", type=Path, help="the target's folder")
    parser.add_argument("out", type=Path, help="folder for the finished draft")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help=".npy of token ids")
    parser.add_argument("--samples-share", type=float, default=0.6)
    parser.add_argument("--long-share", type=float, default=0.15, help="batches of 2,048 windows")
    parser.add_argument("--minutes", type=float, default=28.0, help="wall-clock budget")
    parser.add_argument("--match-from", type=float, default=0.3, help="budget share of pure KL")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--matrix-rate", type=float, default=0.01, help="Muon's peak rate")
    parser.add_argument("--other-rate", type=float, default=0.002, help="AdamW's peak rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--start", type=Path, help="draft folder to start from")
    parser.add_argument("--checkpoint", type=Path, help="file to save to and resume from")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--log", type=Path, help="JSON lines: step, tokens, loss, match rate")
    parser.add_argument("--snapshot-steps", type=int, default=0, help="write OUT every N steps")
    return parser.parse_args()


def match_weight(progress: float, start: float) -> float:
    """The match loss's weight: 0 until `start`, then rising over a fifth of the budget to 0.9."""
    return 0.9 * min(1.0, max(0.0, (progress - start) / 0.2))


def main() -> None:
    """Distil and write the draft's folder."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    tokenizer = load_tokenizer(arguments.target)
    windows = Windows(encode_documents(tokenizer, "train"), arguments.seed)
    heldout = encode_documents(tokenizer, "heldout")
    mixture = SampleMixture(
        windows,
        arguments.samples,
        arguments.samples_share,
        arguments.long_share,
        arguments.seed,
    )
    target = models.load(arguments.target).to(device).eval()
    draft = models.build("draft", arguments.seed).to(device)
    if arguments.start:
        draft = models.load(arguments.start).to(device)
    else:
        project_embeddings(target, draft)
    optimisers = Optimisers(draft, arguments.matrix_rate, arguments.other_rate)
    step, spent_s = 0, 0.0
    if arguments.checkpoint and arguments.checkpoint.is_file():
        state = load_checkpoint(arguments.checkpoint)
        draft.load_state_dict(state["model"])
        optimisers.load_state_dict(state["optimisers"])
        step, spent_s = state["step"], state["spent_s"]
    loss_of = make_loss(target, draft, compiled=not arguments.no_compile)
    warm_up(loss_of, draft, mixture.batch(arguments.rows, arguments.length).to(device))
    budget = Budget(arguments.minutes, spent_s, decay_share=0.6)
    bar = tqdm(total=100.0, bar_format="{l_bar}{bar}| {elapsed}{postfix}")
    smooth = math.nan

    def store() -> None:
        if not arguments.checkpoint:
            return
        state = {
            "model": draft.state_dict(), "optimisers": optimisers.state_dict(),
            "step": step, "spent_s": budget.spent_s,
        }  # fmt: skip
        save_checkpoint(arguments.checkpoint, state)

    def keep(windows_measured: int) -> None:
        models.save(draft, arguments.target, arguments.out, torch.bfloat16)
        rate = heldout_match(target, draft, heldout, 512, windows_measured)
        record = {
            "step": step, "tokens": step * arguments.rows * arguments.length,
            "minutes": round(budget.spent_s / 60, 2), "loss": round(smooth, 4),
            "heldout_match_0.8": round(rate, 4),
        }  # fmt: skip
        bar.write(json.dumps(record))
        if arguments.log:
            with arguments.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    while (progress := budget.progress) < 1.0:
        weight = torch.tensor(match_weight(progress, arguments.match_from), device=device)
        inputs = mixture.batch(arguments.rows, arguments.length).to(device)
        with autocast(device):
            loss = loss_of(inputs, weight)
        torch.autograd.backward(loss)
        optimisers.step(budget.factor(progress))
        step += 1
        value = float(loss.detach())
        smooth = value if math.isnan(smooth) else 0.97 * smooth + 0.03 * value
        bar.update(100.0 * progress - bar.n)
        bar.set_postfix_str(f"step {step} weight {float(weight):.2f} loss {smooth:.3f}")
        if step % arguments.save_every == 0:
            store()
        if arguments.snapshot_steps and step % arguments.snapshot_steps == 0:
            keep(8)
    bar.close()
    store()
    keep(40)


if __name__ == "__main__":
    main()
