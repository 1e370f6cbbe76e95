"""Runs one forward pass per step over the packed rows of all its sequences."""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pilotfish_cloud.engine.attention import AttentionStep
from pilotfish_cloud.engine.attention_plan import AttentionRule, Segment
from pilotfish_cloud.engine.kv_store import KVStore
from pilotfish_cloud.engine.linear import PackedLinear, pack_linears, packing_available
from pilotfish_cloud.engine.loading import LoadedModel
from pilotfish_cloud.engine.model_config import ModelShape
from pilotfish_cloud.engine.rope import pin_rope
from pilotfish_core.errors import EngineFailure
from pilotfish_core.scheduling import BlockCopy, ScheduledRows, ScheduledStep, Sequence


class StepLogits(NamedTuple):
    """Logits [yielding rows, vocabulary] in the order of the step's entries, and entries whose rows are not finite."""

    logits: Tensor
    broken: frozenset[str]  # sequence keys


class ModelRunner:
    """The model, its KV store and the shapes that it runs in.

    Not thread-safe: one worker thread owns it. ``row_sizes`` (ascending) are the packed row counts to which steps are
    padded; None: no padding.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_slots: int,
        num_blocks: int,
        block_size: int,
        max_len: int,
    ) -> None:
        parameter = next(loaded.model.parameters())
        self.device, self.dtype = parameter.device, loaded.dtype
        self.shape: ModelShape = loaded.shape
        self.max_len = max_len
        self.packed = packing_available(self.device, self.dtype)
        self.linears: list[PackedLinear] = pack_linears(loaded.model, packed=self.packed)
        self.rope_length = pin_rope(loaded.model, max_len)
        self._backbone: nn.Module = loaded.model.get_submodule("model")
        self.output_layer = next(linear for linear in self.linears if linear is loaded.model.get_submodule("lm_head"))
        self.lm_head: nn.Module = _Head(self.output_layer, self.shape.logit_softcap)
        self.rule = AttentionRule()
        self.row_sizes: tuple[int, ...] | None = None
        self.store = KVStore(
            num_slots=num_slots,
            num_blocks=num_blocks,
            block_size=block_size,
            max_len=max_len,
            num_layers=self.shape.num_layers,
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=self.shape.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def prepare(self, step: ScheduledStep) -> None:
        """Follow the scheduler: free arenas of the preempted, give arenas to the admitted, load cached blocks."""
        for sequence in step.preempted:
            self.detach(sequence)
        for sequence in step.admitted:
            sequence.slot = self.store.acquire()
        for copy in step.loads:
            self.store.load(_slot(copy.sequence), copy.index, copy.block)

    def detach(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """Free a sequence's arena, if it has one; ``wipe`` it when it may hold NaN."""
        if sequence.slot is not None:
            self.store.release(sequence.slot, wipe=wipe)
            sequence.slot = None

    def keep(self, stores: Seq[BlockCopy]) -> None:
        """Copy newly cached blocks out of the arenas; before any of their sequences is detached."""
        for copy in stores:
            self.store.store(_slot(copy.sequence), copy.index, copy.block)

    def check_integrity(self, slots: Seq[int | None]) -> None:
        """Raises IntegrityError unless exactly ``slots`` are in use."""
        self.store.check_integrity(slots)

    @torch.inference_mode()
    def forward(self, scheduled: Seq[ScheduledRows]) -> StepLogits:
        """Compute all rows of a step and the logits of those that yield. Writes KV; changes nothing else."""
        tokens: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for entry in scheduled:
            begin = len(tokens)
            tokens.extend(entry.token_ids)
            segments.append(Segment(_slot(entry.sequence), begin, len(tokens), entry.start))
            wanted.extend(range(len(tokens) - entry.yields, len(tokens)))
        hidden = self.hidden(tokens, segments)
        logits = self.lm_head(hidden if len(wanted) == len(tokens) else hidden[wanted])
        return StepLogits(logits, self._broken(scheduled, segments, hidden, logits))

    def hidden(self, tokens: Seq[int], segments: Seq[Segment]) -> Tensor:
        """Last hidden states [rows, hidden] of the packed rows (without padding). Call in inference mode."""
        rows = self.padded(len(tokens))
        context = AttentionStep(self.store, segments, rows, self.shape.group, self.rule)
        ids = torch.zeros(1, rows, dtype=torch.long)
        ids[0, : len(tokens)] = torch.tensor(tokens)
        positions = torch.zeros(1, rows, dtype=torch.long, device=self.device)
        positions[0, : len(tokens)] = context.positions
        output = self._backbone(
            input_ids=ids.to(self.device), position_ids=positions, use_cache=False, attention_step=context
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden[: len(tokens)]

    def padded(self, rows: int) -> int:
        """The rows that a step of so many computes. Raises ValueError for more than were announced."""
        if self.row_sizes is None:
            return rows
        index = bisect.bisect_left(self.row_sizes, rows)
        if index == len(self.row_sizes):
            raise ValueError(f"{rows} rows in a step; at most {self.row_sizes[-1]} were announced")
        return self.row_sizes[index]

    def _broken(
        self, scheduled: Seq[ScheduledRows], segments: Seq[Segment], hidden: Tensor, logits: Tensor
    ) -> frozenset[str]:
        """Keys of entries that have a NaN or infinity in a hidden state or a NaN in their logits."""
        rows_fine = hidden.sum(-1, dtype=torch.float32).isfinite()
        # max() is NaN when any logit is; minus infinity alone is fine.
        yields_fine = logits.amax(-1).isfinite() if len(logits) else logits.new_ones(0, dtype=torch.bool)
        if bool(rows_fine.all()) and bool(yields_fine.all()):
            return frozenset()
        broken, first = set(), 0
        for entry, segment in zip(scheduled, segments, strict=True):
            own = rows_fine[segment.begin : segment.end].all() & yields_fine[first : first + entry.yields].all()
            first += entry.yields
            if not bool(own):
                broken.add(entry.sequence.key)
        return frozenset(broken)


class _Head(nn.Module):
    """Hidden states [rows, hidden] to logits [rows, vocabulary], bounded to (-softcap, softcap) where a model is so."""

    def __init__(self, linear: nn.Module, softcap: float | None) -> None:
        super().__init__()
        self._linear, self._softcap = linear, softcap

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._linear(hidden)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise EngineFailure("the verifier lost track of a generation", private=f"{sequence!r} has no KV arena")
    return sequence.slot
