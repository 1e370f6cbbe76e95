"""Which rows each step computes: decode and verify rows first, then everyone's prefill in fair shares.

Pure Python without a clock; the engine and the simulator run the same code. One step's way::

    step = scheduler.schedule(now)               # rows chosen, blocks allocated, drafts taken from the cores
    ... one forward pass over step.rows ...      # the executor
    done = scheduler.complete(step, outcomes, now)  # tokens committed, KV accounted, full blocks offered to the cache
    advices = scheduler.look_ahead(done, now)    # holds chosen
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from pilotfish_core.cloud_core import CloudState
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Advice, CloudDraft
from pilotfish_core.own_draft import OwnDraft, OwnRecord
from pilotfish_core.scheduling.block_manager import BlockManager, IntegrityError
from pilotfish_core.scheduling.cloud_drafter import CloudDrafter
from pilotfish_core.scheduling.prefix_cache import PrefixCache, PrefixMatch, root_hash
from pilotfish_core.scheduling.row_policy import FixedRows, SpeculationPolicy, fair_shares, worth_saying
from pilotfish_core.scheduling.sequence import Sequence, SequenceStatus
from pilotfish_core.scheduling.step import BlockCopy, CompletedStep, Outcome, ScheduledRows, ScheduledStep


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one engine. Raises ValueError when a single sequence could never be served."""

    max_model_len: int
    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512  # rows of a step
    max_draft_rows: int = 16  # of one sequence in a step, beyond its decode row
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; expected at least one row for each "
                f"of max_num_seqs = {self.max_num_seqs} sequences"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} tokens cannot hold one sequence of "
                f"max_model_len = {self.max_model_len}"
            )
        if self.max_draft_rows < 0:
            raise ValueError(f"max_draft_rows is {self.max_draft_rows}; expected 0 or more")


@dataclasses.dataclass(slots=True)
class SchedulerCounts:
    """Totals since start; rows as scheduled."""

    steps: int = 0
    prefill_rows: int = 0
    decode_rows: int = 0
    draft_rows: int = 0
    preemptions: int = 0
    holds: int = 0


class Scheduler:
    """Owns the waiting and running sequences and their blocks.

    A sequence that has joined takes part in the next step; least recently served first when rows are short, so nobody
    starves. When blocks are short the youngest running sequence gives its blocks back and is computed again later: its
    committed tokens stay, nobody notices but the clock.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: SpeculationPolicy | None = None,
        drafters: Iterable[CloudDrafter] = (),
    ) -> None:
        self.config = config
        self.drafters = {drafter.source: drafter for drafter in drafters}
        self.records = {source: OwnRecord() for source in self.drafters}
        self.policy: SpeculationPolicy = policy or FixedRows(config.max_draft_rows)
        self.cache = PrefixCache(config.block_size, enabled=config.prefix_cache)
        self.blocks = BlockManager(config.num_blocks, config.block_size, on_reuse=self.cache.reused)
        self.counts = SchedulerCounts()
        self.waiting: list[Sequence] = []  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self._arrivals = 0

    def has_work(self, now: float) -> bool:
        """Whether ``schedule`` would find a runnable sequence."""
        return any(sequence.runnable(now) for sequence in self.running) or any(
            sequence.runnable(now) for sequence in self.waiting
        )

    def add(self, sequence: Sequence) -> None:
        """Take in a new sequence; it begins at the next step that has room for it."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out between steps and free its blocks; ``keep`` its full blocks for the prefix cache."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        self._release_blocks(sequence, keep=keep)
        sequence.status = SequenceStatus.ENDED
        for drafter in self.drafters.values():
            drafter.forget(sequence)

    @property
    def cloud_draft(self) -> CloudDraft:
        """The best source that drafts in the cloud."""
        return max(self.drafters, default=CloudDraft.NONE)

    def schedule(self, now: float) -> ScheduledStep | None:
        """Choose the rows of the next step; None when nothing can run.

        Mutates: blocks, statuses, and the cores of sequences that yield (``draft`` begun). Every step returned must be
        given to ``complete`` or ``abandon``.
        """
        step = ScheduledStep([], [], [], [])
        self._admit(step, now)
        active = [sequence for sequence in self.running if sequence.runnable(now)]
        self._draft(active)
        planned = self._plan(active, now)
        for sequence in active:  # oldest first: only younger ones, not yet placed, are ever preempted for it
            if sequence.status is SequenceStatus.RUNNING and sequence in planned:
                self._place(step, sequence, *planned[sequence], now)
        if not step.scheduled:
            return step if step.preempted or step.admitted else None
        for entry in step.scheduled:
            entry.sequence.last_step = self.counts.steps
        self.counts.steps += 1
        return step

    def complete(self, step: ScheduledStep, outcomes: Mapping[str, Outcome], now: float) -> CompletedStep:
        """Account a computed step. ``outcomes`` by sequence key; a chunk that yields nothing may be left out.

        Mutates: cores (commit), tokens, computed lengths, the prefix cache; ends what finished or failed.
        """
        done = CompletedStep()
        for entry in step.scheduled:
            sequence, outcome = entry.sequence, outcomes.get(entry.sequence.key)
            if isinstance(outcome, PilotfishError):
                sequence.core.abandon_step()
                sequence.core.fail(now)
                done.failures.append((sequence, outcome))
                done.ended.append(sequence)
                self.remove(sequence, keep=False)
                continue
            sequence.computed_len = entry.start + entry.committed
            if entry.yields:
                if outcome is None:
                    raise IntegrityError(f"{sequence!r} yielded {entry.yields} tokens but has no outcome")
                commit = sequence.core.step(outcome.tokens, now, outcome.logprobs)
                if commit is None:  # cancelled while the step ran
                    done.ended.append(sequence)
                    self.remove(sequence)
                    continue
                sequence.tokens.extend(commit.tokens)
                # The last token's own KV is not computed: its slot still holds a rejected draft's, if any.
                sequence.computed_len = sequence.committed_len - 1
                done.commits.append((sequence, commit))
            self._offer_blocks(sequence, done.stores)
            if entry.yields and sequence.core.state is not CloudState.RUNNING:
                done.ended.append(sequence)
                self.remove(sequence)
        return done

    def look_ahead(self, done: CompletedStep, now: float) -> list[tuple[Sequence, Advice]]:
        """Let the policy hold sequences that have just committed, and advise their devices: the advice to be sent.

        To be called once between ``complete`` and the next ``schedule``; apart from it because commits should be on
        their way before anybody thinks about the next step.
        """
        advices: list[tuple[Sequence, Advice]] = []
        for sequence, commit in done.commits:
            if commit.finish is None and sequence.status is SequenceStatus.RUNNING:
                self._hold(sequence, now)
                advice = self._advice(sequence)
                if advice is not None:
                    advices.append((sequence, advice))
        return advices

    def abandon(self, step: ScheduledStep) -> None:
        """A step will not be computed: every sequence is as before it, blocks apart."""
        for entry in step.scheduled:
            entry.sequence.core.abandon_step()

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block is accounted for. Between steps only."""
        self.blocks.check_integrity()
        self.cache.check_integrity(self.blocks)
        held: dict[int, int] = {}
        for sequence in self.running:
            if sequence.status is not SequenceStatus.RUNNING:
                raise IntegrityError(f"{sequence!r} is among the running")
            if len(sequence.block_table) < self.blocks.blocks_for(sequence.computed_len):
                raise IntegrityError(f"{sequence!r} has {len(sequence.block_table)} blocks")
            for block in sequence.block_table:
                held[block] = held.get(block, 0) + 1
        for sequence in self.waiting:
            if sequence.status is not SequenceStatus.WAITING or sequence.block_table or sequence.computed_len:
                raise IntegrityError(f"{sequence!r} waits but holds blocks")
        for block in range(self.blocks.num_blocks):
            if self.blocks.references(block) != held.get(block, 0):
                raise IntegrityError(
                    f"block {block} has {self.blocks.references(block)} references, {held.get(block, 0)} holders"
                )

    def _admit(self, step: ScheduledStep, now: float) -> None:
        """Let waiting sequences in, by arrival, while there are seats and blocks for all their committed tokens."""
        for sequence in [sequence for sequence in self.waiting if sequence.runnable(now)]:
            if len(self.running) >= self.config.max_num_seqs and not self._preempt_paused(step):
                break
            match = self._room_for(sequence, step)
            if match is None:
                break  # those behind wait too, or long prompts would never get in
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.status = SequenceStatus.RUNNING
            for block in match.blocks:
                self.blocks.share(block)
            fresh = self.blocks.blocks_for(sequence.committed_len) - len(match.blocks)
            sequence.block_table = [*match.blocks, *(self.blocks.allocate(fresh) or ())]
            sequence.block_hashes = list(match.hashes)
            sequence.computed_len = len(match.blocks) * self.blocks.block_size
            if sequence.last_step < 0:
                sequence.cached_len = sequence.computed_len
            self.cache.count(match, sequence.committed_len)
            step.admitted.append(sequence)
            step.loads.extend(BlockCopy(sequence, index, block) for index, block in enumerate(match.blocks))
        self.running.sort(key=lambda sequence: sequence.arrival)

    def _room_for(self, sequence: Sequence, step: ScheduledStep) -> PrefixMatch | None:
        """What the cache has of it, when the rest fits too and leaves each running sequence a block to grow."""
        while True:
            match = self.cache.match(sequence.tokens, sequence.cache_salt)
            fresh = self.blocks.blocks_for(sequence.committed_len) - len(match.blocks)
            revived = sum(self.blocks.references(block) == 0 for block in match.blocks)
            if fresh + revived + len(self.running) <= self.blocks.num_free:
                return match
            if not self._preempt_paused(step):
                return None

    def _draft(self, active: list[Sequence]) -> None:
        """Let the cloud's own sources draft for those whose device has nothing and allows it."""
        wanted: dict[CloudDraft, list[tuple[Sequence, int]]] = {}
        decoding = [sequence for sequence in active if sequence.decoding]
        for sequence in decoding:
            own = self._source_of(sequence)
            if own is None or sequence.core.buffered:
                continue
            drafter = self.drafters[own.source]
            count = self.policy.own_rows(own, len(decoding) - 1, drafter.step_seconds or 0.0)
            count = min(count, sequence.max_len - sequence.committed_len - 1)
            if count > 0:
                wanted.setdefault(own.source, []).append((sequence, count))
        for source, sequences in wanted.items():
            proposals = self.drafters[source].propose(sequences)
            for sequence, _ in sequences:
                if sequence.core.own is not None:
                    sequence.core.own.propose(proposals.get(sequence.key, ()))

    def _source_of(self, sequence: Sequence) -> OwnDraft | None:
        """What drafts for a sequence in the cloud: the best source up to the one that its device named."""
        allowed = [source for source in self.drafters if source <= sequence.core.mode.cloud_draft]
        own = sequence.core.own
        if not allowed:
            sequence.core.own = None
        elif own is None or own.source is not max(allowed):
            sequence.core.own = OwnDraft(max(allowed), self.records[max(allowed)])
        return sequence.core.own

    def _plan(self, active: list[Sequence], now: float) -> dict[Sequence, tuple[int, int]]:
        """(committed rows, draft rows) for each sequence of the next step, within the row budget."""
        budget = self.config.max_num_batched_tokens
        served = sorted(active, key=lambda sequence: (sequence.last_step, sequence.arrival))
        decoding = [sequence for sequence in served if sequence.decoding]
        prefilling = [sequence for sequence in served if not sequence.decoding]
        budget -= len(decoding)  # max_num_seqs rows always fit, and leave one for each that prefills
        wanted = [sequence.uncomputed for sequence in prefilling]
        reserved = min(sum(wanted), max(budget // 4, len(prefilling)))
        available = [
            min(sequence.core.draftable, sequence.max_len - sequence.committed_len - 1) for sequence in decoding
        ]
        drafts = [0] * len(decoding)
        if any(available):
            drafts = self.policy.draft_rows(decoding, available, budget - reserved, now)
        planned = {sequence: (1, rows) for sequence, rows in zip(decoding, drafts, strict=True)}
        shares = fair_shares(wanted, budget - sum(drafts))
        planned |= {sequence: (rows, 0) for sequence, rows in zip(prefilling, shares, strict=True) if rows}
        return planned

    def _place(self, step: ScheduledStep, sequence: Sequence, committed: int, drafts: int, now: float) -> None:
        """Give a planned sequence its blocks, preempting younger ones if need be, and put it into the step."""
        start = sequence.computed_len
        if not self._grow(sequence, start + committed + drafts):
            drafts = 0  # drafts never cost another sequence its KV
            while not self._grow(sequence, start + committed):
                victim = self._victim()
                self._preempt(victim, step)
                if victim is sequence:
                    return
        yields = start + committed == sequence.committed_len
        draft = sequence.core.draft(drafts, now) if yields else ()
        step.scheduled.append(ScheduledRows(sequence, start, committed, draft, 1 + len(draft) if yields else 0))
        if yields and sequence.decoding:
            self.counts.decode_rows += 1
            self.counts.draft_rows += len(draft)
        else:
            self.counts.prefill_rows += committed

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        missing = self.blocks.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        blocks = self.blocks.allocate(missing)
        if blocks is None:
            return False
        sequence.block_table.extend(blocks)
        return True

    def _victim(self) -> Sequence:
        """A paused sequence if there is one, else the youngest running."""
        return max(self.running, key=lambda sequence: (sequence.core.paused, sequence.arrival))

    def _preempt_paused(self, step: ScheduledStep) -> bool:
        victim = self._victim() if self.running else None
        if victim is None or not victim.core.paused:
            return False
        self._preempt(victim, step)
        return True

    def _preempt(self, sequence: Sequence, step: ScheduledStep) -> None:
        self.counts.preemptions += 1
        self.running.remove(sequence)
        self._release_blocks(sequence, keep=True)
        sequence.status = SequenceStatus.WAITING
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda sequence: sequence.arrival)
        if sequence in step.admitted:
            step.admitted.remove(sequence)
            step.loads = [copy for copy in step.loads if copy.sequence is not sequence]
        else:
            step.preempted.append(sequence)

    def _hold(self, sequence: Sequence, now: float) -> None:
        hold = self.policy.hold(sequence, len(self.running) - 1, now)
        if hold is not None:
            self.counts.holds += 1
            sequence.core.hold(now + hold.seconds, hold.tokens)

    def _advice(self, sequence: Sequence) -> Advice | None:
        source = self.cloud_draft
        own = sequence.core.own
        if source and (own is None or own.source is not source):  # it drafts with less now: by what others have shown
            own = OwnDraft(source, self.records[source])
        draft_seconds = (self.drafters[own.source].step_seconds or 0.0) if own is not None else 0.0
        advice = self.policy.advise(sequence, own, len(self.running) - 1, draft_seconds)
        if advice is None or not worth_saying(advice, sequence):
            return None
        sequence.core.advised = (advice, sequence.committed_len)
        return advice

    def _offer_blocks(self, sequence: Sequence, stores: list[BlockCopy]) -> None:
        """Hash the blocks that became full and wholly computed, and offer them to the prefix cache."""
        size = self.blocks.block_size
        for index in range(len(sequence.block_hashes), sequence.computed_len // size):
            parent = sequence.block_hashes[-1] if index else root_hash(sequence.cache_salt)
            tokens = sequence.tokens[index * size : (index + 1) * size]
            digest, new = self.cache.insert(parent, tokens, sequence.block_table[index])
            sequence.block_hashes.append(digest)
            if new:
                stores.append(BlockCopy(sequence, index, sequence.block_table[index]))

    def _release_blocks(self, sequence: Sequence, *, keep: bool) -> None:
        """Tail first, so that the head of a prefix, which more prompts share, is evicted last."""
        for block in reversed(sequence.block_table):
            if not keep and block in self.cache and self.blocks.references(block) == 1:
                self.cache.drop(block)
            self.blocks.release(block, keep=block in self.cache)
        sequence.block_table = []
        sequence.block_hashes = []
        sequence.computed_len = 0
