"""The co-located draft model: the verifier itself drafts, with a small model, for generations whose device does not.

A draft token at position t is the coupled choice (DESIGN section 3) on the draft model's logits, under the same
parameters, noise, penalties and bans that the target's token at t will have. That is what makes the two agree often;
whether they do decides when tokens arrive, never which.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence as Seq
from typing import Final

import torch

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.loading import LoadedModel
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.rule import normal_rule, row_ladder
from pilotfish_cloud.engine.sampler import Sampler, SequenceRows
from pilotfish_cloud.engine.slow_sizes import without_slow_sizes
from pilotfish_core.errors import TokenizerMismatch
from pilotfish_core.estimators import Average
from pilotfish_core.modes import CloudDraft
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory
from pilotfish_core.scheduling import Sequence
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

MAX_ROWS: Final = 512  # of a forward: what a long prompt may delay the other drafts at a time
_DRAFTING_ROWS: Final = 2  # of a sequence that only drafts: after a fully accepted draft its last token and the bonus
_GAIN: Final = 0.1  # of the measured time of a forward


@dataclasses.dataclass(slots=True)
class _Held:
    """What is kept of one generation between calls: an arena, and the tokens whose keys and values lie there."""

    slot: int
    params: SamplingParams  # without logprobs, which cost more than the token and are nobody's
    banned: tuple[int, ...]  # below min_tokens
    ends: frozenset[int]  # tokens after which the target decides nothing more
    tokens: list[int] = dataclasses.field(default_factory=list)
    committed: int = 0  # how many of them were the committed prefix when last drafted for
    history: TokenHistory | None = None  # of that prefix; with penalties only

    def agreed(self, tokens: Seq[int]) -> int:
        """How many leading ``tokens`` it holds."""
        # The committed prefix only grows: one comparison of lists instead of a loop over a long prompt in each call.
        length = self.committed if self.tokens[: self.committed] == tokens[: self.committed] else 0
        while length < min(len(self.tokens), len(tokens)) and self.tokens[length] == tokens[length]:
            length += 1
        return length

    def follow(self, sequence: Sequence) -> None:
        """Keep what agrees with the committed prefix, but for its last token, whose logits are needed."""
        tokens, prompt_len = sequence.tokens, sequence.prompt_len
        agreed = self.agreed(tokens)
        if self.params.has_penalties:
            if self.history is None or agreed < self.committed:
                self.history = TokenHistory(tokens[:prompt_len])
            self.history.extend(tokens[prompt_len + self.history.length :])
        del self.tokens[min(agreed, len(tokens) - 1) :]
        self.committed = len(tokens)


@dataclasses.dataclass(slots=True)
class _Job:
    """One generation in one call."""

    sequence: Sequence
    held: _Held
    count: int  # draft tokens wanted, at least one
    pending: list[int]  # inputs that wait for their forward; empty: done
    draft: list[int] = dataclasses.field(default_factory=list)

    def rows(self) -> SequenceRows:
        """How the next draft token is chosen."""
        sequence, held, position = self.sequence, self.held, self.sequence.committed_len + len(self.draft)
        # As StepSampler has it: an end token may come as output token number min_tokens (from one) at the earliest.
        early = position - sequence.prompt_len + 1 < held.params.min_tokens
        return SequenceRows(
            params=held.params,
            position=position,
            history=held.history,
            banned=held.banned,
            banned_rows=int(early),
        )

    def take(self, token: int) -> None:
        """``token`` is the next of the draft; it is computed only when another one is to follow."""
        self.draft.append(token)
        if self.held.history is not None:
            self.held.history.push(token)
        if len(self.draft) < self.count and token not in self.held.ends:
            self.pending.append(token)


class DraftModel:
    """Drafts for many generations together; keeps for each the KV of what it has seen. ``name`` is the folder's.

    ``target`` is the target's tokenizer, ``num_slots`` the generations held at a time, ``max_len`` the longest prompt
    + output in tokens, ``max_tokens`` the longest draft. Raises TokenizerMismatch when ids mean other text to the
    draft model. Owns ``loaded``, whose layers it replaces.

    Not thread-safe: one worker thread owns it. Reads sequences, never changes them.
    """

    source = CloudDraft.MODEL

    def __init__(
        self, loaded: LoadedModel, *, target: Tokenizer, num_slots: int, max_len: int, max_tokens: int
    ) -> None:
        self.name = loaded.folder.resolve().name
        if loaded.tokenizer.hash != target.hash:
            raise TokenizerMismatch(
                f"the draft model {self.name} has another tokenizer than the target: its tokens would mean other text",
                private=f"{loaded.folder}: {loaded.tokenizer.hash}, target: {target.hash}",
            )
        self._max_tokens = max_tokens
        self._max_len = min(max_len, loaded.shape.max_position)
        self._vocab_size = target.vocab_size
        self._eos = tuple(token for token in target.eos_token_ids if token < target.vocab_size)
        self._sampler = Sampler(target.vocab_size)
        # The pool of cached blocks is of no use here, but cannot be empty.
        self._runner = ModelRunner(loaded, num_slots=num_slots, num_blocks=1, block_size=1, max_len=self._max_len)
        without_slow_sizes(normal_rule(self._runner, max_rows=MAX_ROWS), self._runner)
        self._held: dict[str, _Held] = {}  # by key, the least recently used first
        self._failed: set[str] = set()
        self._seconds = Average(_GAIN)
        self._warm_up(_DRAFTING_ROWS * num_slots)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of one forward for one more token of every draft, sampling included; None before the first.

        Measured as it runs, exponentially weighted. Forwards that also compute a prompt do not count.
        """
        return self._seconds.value

    def missing(self, sequence: Sequence) -> int:
        """Committed tokens it would have to compute before the first draft token: 1 or 2 while drafting, more for a
        generation that is new, was evicted or went on without drafts."""
        held = self._held.get(sequence.key)
        agreed = held.agreed(sequence.tokens) if held is not None else 0
        return max(sequence.committed_len - agreed, 1)

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> dict[str, tuple[int, ...]]:
        """Draft tokens that follow each sequence's committed prefix, by key: at most as many as wanted, perhaps none.

        Fewer come at the end of either context, after a token that ends the answer, and where more sequences are
        wanted than there are slots. A sequence that cannot be drafted for (NaN, any failure) gets none from then on
        until it is forgotten, and one line in the log; nothing is raised.
        """
        entries = {sequence.key: (sequence, count) for sequence, count in wanted}
        jobs: list[_Job] = []
        for sequence, count in entries.values():
            # The target's last row always yields one more token: a draft of that one would be for nothing.
            room = min(self._max_len - sequence.committed_len, sequence.max_len - sequence.committed_len - 1)
            count = min(count, self._max_tokens, room)
            held = self._hold(sequence, entries) if count > 0 and sequence.key not in self._failed else None
            if held is not None:
                held.follow(sequence)
                jobs.append(_Job(sequence, held, count, sequence.tokens[len(held.tokens) :]))
        self._run(jobs)
        drafts: dict[str, tuple[int, ...]] = dict.fromkeys(entries, ())
        for job in jobs:
            drafts[job.sequence.key] = tuple(job.draft)
            if job.held.history is not None:
                job.held.history.rewind(job.sequence.committed_len - job.sequence.prompt_len)
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """Free what is held for a sequence, if anything."""
        self._failed.discard(sequence.key)
        self._release(sequence.key)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every arena is accounted for. Between calls."""
        self._runner.check_integrity([held.slot for held in self._held.values()])

    def _hold(self, sequence: Sequence, wanted: dict[str, tuple[Sequence, int]]) -> _Held | None:
        """What is held of a sequence, now the most recently used; None when all arenas are others' of this call."""
        held = self._held.pop(sequence.key, None)
        if held is None:
            if not self._runner.store.num_free_slots:
                victim = next((key for key in self._held if key not in wanted), None)
                if victim is None:
                    return None
                self._release(victim)
            params = sequence.params
            stops = tuple(token for token in params.stop_token_ids if token < self._vocab_size)
            stops += () if params.ignore_eos else self._eos
            quiet = dataclasses.replace(params, logprobs=None)
            held = _Held(self._runner.store.acquire(), quiet, stops, frozenset(stops))
        self._held[sequence.key] = held
        return held

    def _release(self, key: str, *, wipe: bool = False) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._runner.store.release(held.slot, wipe=wipe)

    def _run(self, jobs: list[_Job]) -> None:
        """Draft for all jobs, or give up those that fail."""
        while jobs:
            try:
                jobs = self._forward(jobs)
            except Exception as error:
                if len(jobs) == 1:
                    self._give_up(jobs[0], error)
                else:  # whose fault it was shows when each runs alone
                    for job in jobs:
                        self._run([job])
                return

    @torch.inference_mode()
    def _forward(self, jobs: list[_Job]) -> list[_Job]:
        """One packed forward, the next draft token of each job that it completes, and the jobs still to go on.

        Changes no job before all is computed, so that a failed forward can be repeated.
        """
        began = time.perf_counter()
        tokens: list[int] = []
        segments: list[Segment] = []
        batch: list[tuple[_Job, int]] = []
        ready: list[_Job] = []
        last: list[int] = []  # row of each that is ready
        for job in sorted(jobs, key=lambda job: len(job.pending)):  # drafts first, prompts take what is left
            inputs = job.pending[: MAX_ROWS - len(tokens)]
            if not inputs:
                break
            begin = len(tokens)
            tokens += inputs
            segments.append(Segment(job.held.slot, begin, len(tokens), len(job.held.tokens)))
            batch.append((job, len(inputs)))
            if len(inputs) == len(job.pending):
                ready.append(job)
                last.append(len(tokens) - 1)
        hidden = self._runner.hidden(tokens, segments)
        logits = self._runner.lm_head(hidden if len(last) == len(tokens) else hidden[last])
        sampled = self._sampler.sample(logits, [job.rows() for job in ready])
        for job, count in batch:
            job.held.tokens += job.pending[:count]
            del job.pending[:count]
        for job, result in zip(ready, sampled, strict=True):
            if result.error is not None:
                self._give_up(job, result.error)
            else:
                job.take(result.token_ids[0])
        if len(tokens) <= _DRAFTING_ROWS * len(batch):
            self._seconds.observe(time.perf_counter() - began)
        return [job for job in jobs if job.pending]

    def _give_up(self, job: _Job, error: Exception) -> None:
        """No drafts for this generation any more: the same tokens would fail again. Its arena may hold NaN."""
        key = job.sequence.key
        _log.warning("the draft model fails for generation %s, which goes on without: %r", key, error)
        self._failed.add(key)
        self._release(key, wipe=True)
        job.draft.clear()
        job.pending.clear()

    @torch.inference_mode()
    def _warm_up(self, most: int) -> None:
        """Kernels for up to ``most`` rows; what preparing them takes would make drafting look dear for a long while."""
        slot = self._runner.store.acquire()
        for rows in row_ladder(min(most, MAX_ROWS)):
            self._runner.lm_head(self._runner.hidden([0] * rows, [Segment(slot, 0, rows, 0)]))
        self._runner.store.release(slot, wipe=True)
