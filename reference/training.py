"""What the two training commands share: optimisers, the schedule, checkpoints, the device."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import Parameter
from transformers import LlamaForCausalLM

Batch = tuple[torch.Tensor, torch.Tensor]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" means CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """The bf16 autocast region of `device` (AMX on recent CPUs, tensor cores on GPUs)."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


class Optimisers:
    """Muon for the layers' matrices, AdamW for embeddings and norms, one schedule for both."""

    def __init__(self, model: LlamaForCausalLM, matrix_rate: float, other_rate: float) -> None:
        """Set peak learning rates: `matrix_rate` for Muon, `other_rate` for AdamW."""
        matrices: list[Parameter] = []
        vectors: list[Parameter] = []
        embeddings: list[Parameter] = []
        for key, weight in model.named_parameters():
            if "layers." in key and weight.ndim == 2:
                matrices.append(weight)
            elif weight.ndim == 2:
                embeddings.append(weight)
            else:
                vectors.append(weight)
        self._all = [*matrices, *vectors, *embeddings]
        self._muon = torch.optim.Muon(matrices, lr=matrix_rate, momentum=0.95, nesterov=True, weight_decay=0.05)
        groups: list[dict[str, Any]] = [
            {"params": embeddings, "lr": other_rate, "weight_decay": 0.01},
            {"params": vectors, "lr": other_rate, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10)
        self._peaks = [
            [float(group["lr"]) for group in optimiser.param_groups] for optimiser in (self._muon, self._adam)
        ]

    def step(self, factor: float) -> None:
        """Clip, update with the peak rates times `factor`, and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        optimisers: tuple[torch.optim.Optimizer, ...] = (self._muon, self._adam)
        for optimiser, peaks in zip(optimisers, self._peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


class Budget:
    """Wall-clock budget: how much of the training is done, 0 to 1, and the rate's factor there."""

    def __init__(self, minutes: float, spent_s: float = 0.0, decay_share: float = 0.45) -> None:
        """A budget of `minutes`, of which `spent_s` seconds went before (a resumed run)."""
        self._total_s = minutes * 60.0
        self._decay_share = decay_share
        self._start = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        """Seconds spent so far."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Share of the budget spent, at most 1."""
        return min(1.0, self.spent_s / self._total_s)

    def factor(self, progress: float) -> float:
        """Warm-up over 1%, then constant, then a half cosine down to 2% of the peak."""
        if progress < 0.01:
            return 0.05 + 0.95 * progress / 0.01
        start = 1.0 - self._decay_share
        if progress < start:
            return 1.0
        through = (progress - start) / self._decay_share
        return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * through))


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write a training checkpoint by rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote (tensors and plain values only)."""
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def mean(values: Iterable[float]) -> float:
    """The mean, NaN for nothing."""
    items = list(values)
    return sum(items) / len(items) if items else math.nan
