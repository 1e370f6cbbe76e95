"""Train the target from scratch on the corpus, within a wall-clock budget.

    python -m reference.pretrain OUT --minutes 50

Most of the budget goes to short windows, the last part to windows of the full context length, so
that the model stays usable there. The run can be stopped and resumed (`--checkpoint`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import LlamaForCausalLM

from reference import models
from reference.corpus import Tokens, Windows, documents, encode_documents
from reference.tokenizer import save_tokenizer, train_tokenizer
from reference.training import (
    Batch,
    Budget,
    Optimisers,
    autocast,
    load_checkpoint,
    mean,
    pick_device,
    save_checkpoint,
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """From `start` (share of the budget) on, a step takes rows x length tokens."""

    start: float
    rows: int
    length: int


def stages(tokens_per_step: int) -> list[Stage]:
    """Windows of 256 tokens first, then 512, and of 2,048 for the last tenth."""
    return [
        Stage(start, max(1, tokens_per_step // length), length)
        for start, length in ((0.0, 256), (0.3, 512), (0.9, 2048))
    ]


def make_loss(model: LlamaForCausalLM, compiled: bool) -> Loss:
    """Mean cross-entropy in nats over a batch of inputs and labels, both (rows, length)."""

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.reshape(-1))

    return torch.compile(loss, dynamic=False) if compiled else loss


def heldout_loss(model: LlamaForCausalLM, docs: list[Tokens], device: torch.device, length: int, limit: int) -> float:
    """Mean loss in nats a token over the first `limit` windows of the joined held-out documents."""
    stream = torch.cat([torch.from_numpy(doc.astype("int64")) for doc in docs])
    count = min(limit, (len(stream) - 1) // length)
    losses = []
    loss = make_loss(model, compiled=False)
    with torch.no_grad(), autocast(device):
        for index in range(count):
            piece = stream[index * length : (index + 1) * length + 1].to(device)[None]
            losses.append(float(loss(piece[:, :-1], piece[:, 1:])))
    return mean(losses)


def to_batch(windows: Windows, stage: Stage, device: torch.device) -> Batch:
    """The next inputs and labels, each (rows, length) on `device`."""
    tokens = torch.from_numpy(windows.batch(stage.rows, stage.length)).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def warm_up(loss: Loss, model: LlamaForCausalLM, stage: Stage, device: torch.device) -> None:
    """Compile `loss` for the first stage, so that the budget is spent on training alone."""
    ids = torch.zeros((stage.rows, stage.length), dtype=torch.long, device=device)
    with autocast(device):
        value = loss(ids, ids)
    torch.autograd.backward(value)
    model.zero_grad(set_to_none=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reference.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the finished target")
    parser.add_argument("--minutes", type=float, default=50.0, help="wall-clock budget")
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--micro-tokens", type=int, default=4096, help="tokens a forward pass")
    parser.add_argument("--matrix-rate", type=float, default=0.008, help="Muon's peak rate")
    parser.add_argument("--other-rate", type=float, default=0.0015, help="AdamW's peak rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="file to save to and resume from")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--log", type=Path, help="JSON lines: step, tokens, loss, held-out loss")
    parser.add_argument("--snapshot-steps", type=int, default=0, help="write OUT every N steps")
    return parser.parse_args()


def main() -> None:
    """Train and write the target's folder."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    tokenizer_folder = arguments.out.with_name(arguments.out.name + "-tokenizer")
    tokenizer = train_tokenizer(document.text for document in documents("train"))
    save_tokenizer(tokenizer, tokenizer_folder)
    windows = Windows(encode_documents(tokenizer, "train"), arguments.seed)
    heldout = encode_documents(tokenizer, "heldout")
    model = models.build("target", arguments.seed).to(device)
    optimisers = Optimisers(model, arguments.matrix_rate, arguments.other_rate)
    step, tokens, spent_s = 0, 0, 0.0
    if arguments.checkpoint and arguments.checkpoint.is_file():
        state = load_checkpoint(arguments.checkpoint)
        model.load_state_dict(state["model"])
        optimisers.load_state_dict(state["optimisers"])
        step, tokens, spent_s = state["step"], state["tokens"], state["spent_s"]
        windows.restore(state["windows"])
    loss_of = make_loss(model, compiled=not arguments.no_compile)
    plan = stages(arguments.micro_tokens)
    warm_up(loss_of, model, plan[0], device)
    budget = Budget(arguments.minutes, spent_s)
    parts = max(1, arguments.tokens_per_step // arguments.micro_tokens)
    bar = tqdm(total=100.0, bar_format="{l_bar}{bar}| {elapsed}{postfix}")
    smooth = math.nan

    def store() -> None:
        if not arguments.checkpoint:
            return
        state = {
            "model": model.state_dict(), "optimisers": optimisers.state_dict(),
            "step": step, "tokens": tokens, "spent_s": budget.spent_s, "windows": windows.state(),
        }  # fmt: skip
        save_checkpoint(arguments.checkpoint, state)

    def keep(finished: bool) -> None:
        models.save(model, tokenizer_folder, arguments.out, torch.bfloat16)
        value = heldout_loss(model, heldout, device, 512 if not finished else 1024, 80)
        record = {
            "step": step, "tokens": tokens, "minutes": round(budget.spent_s / 60, 2),
            "epochs": round(tokens / windows.total, 3), "loss": round(smooth, 4),
            "heldout": round(value, 4), "finished": finished,
        }  # fmt: skip
        bar.write(json.dumps(record))
        if arguments.log:
            with arguments.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    while (progress := budget.progress) < 1.0:
        stage = next(stage for stage in reversed(plan) if progress >= stage.start)
        total = 0.0
        for _ in range(parts):
            inputs, labels = to_batch(windows, stage, device)
            with autocast(device):
                loss = loss_of(inputs, labels) / parts
            torch.autograd.backward(loss)
            total += float(loss.detach())
        optimisers.step(budget.factor(progress))
        step += 1
        tokens += parts * stage.rows * stage.length
        smooth = total if math.isnan(smooth) else 0.95 * smooth + 0.05 * total
        bar.update(100.0 * progress - bar.n)
        bar.set_postfix_str(f"step {step} tokens {tokens / 1e6:.2f}M loss {smooth:.3f}")
        if step % arguments.save_every == 0:
            store()
        if arguments.snapshot_steps and step % arguments.snapshot_steps == 0:
            keep(finished=False)
    bar.close()
    store()
    keep(finished=True)


if __name__ == "__main__":
    main()
