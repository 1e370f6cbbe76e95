"""Which rows each step computes: decode rows first, then drafts and prefill, in fair shares of the tenants.

Pure Python without a clock; the engine and the simulator run the same code. One step's way::

    step = scheduler.schedule(now)               # rows chosen, blocks allocated, drafts taken from the cores
    ... one forward pass over step.rows ...      # the executor
    done = scheduler.complete(step, outcomes, now)  # tokens committed, KV accounted, full blocks offered to the cache
    advices = scheduler.look_ahead(done, now)    # holds chosen
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pilotfish_core.cloud_core import CloudState
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Advice, CloudDraft
from pilotfish_core.own_draft import OwnDraft, OwnRecord
from pilotfish_core.scheduling.block_manager import IntegrityError
from pilotfish_core.scheduling.cloud_drafter import CloudDrafter
from pilotfish_core.scheduling.fairness import TenantCounters
from pilotfish_core.scheduling.row_policy import FixedRows, SpeculationPolicy, advice_due, fair_shares, worth_saying
from pilotfish_core.scheduling.scheduler_config import SchedulerConfig, SchedulerCounts
from pilotfish_core.scheduling.seats import Seats
from pilotfish_core.scheduling.sequence import Sequence, SequenceStatus
from pilotfish_core.scheduling.step import CompletedStep, Outcome, ScheduledRows, ScheduledStep
from pilotfish_core.scheduling.waiting import WaitingList


class Scheduler:
    """Chooses rows for the sequences that have a seat (``Seats``), by what is fair to their tenants
    (``TenantCounters``) and what its policy says of drafts.

    A sequence that has a seat takes part in the next step; when rows are short the tenants share them, and within a
    tenant the least recently served come first, so nobody starves. When blocks are short the last in rank gives its
    blocks back and is computed again later: its committed tokens stay, nobody notices but the clock.
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
        self.counts = SchedulerCounts()
        self.counters = TenantCounters()
        self.seats = Seats(config, self.counters, self.counts)
        self.cache, self.blocks = self.seats.cache, self.seats.blocks
        self._short: set[str] = set()  # tenants that got less than they wanted of the last step
        self._together: list[Sequence] = []  # held, all that could run, until the last of them has its draft

    @property
    def running(self) -> list[Sequence]:
        """Those that have a seat, by rank."""
        return self.seats.running

    @property
    def waiting(self) -> WaitingList:
        """Those that have none. Its ``len`` and ``tokens`` may be read from any thread."""
        return self.seats.waiting

    def has_work(self, now: float) -> bool:
        """Whether a step could begin: a sequence is runnable, and no draft is waited for by all of them."""
        if self._together:
            # All are asked: a hold that is over must not stay anybody's next deadline, or an engine would spin on it.
            held = [sequence.core.held(now) for sequence in self._together if sequence.status is SequenceStatus.RUNNING]
            waited_for = any(held)
            others = [sequence for sequence in self.running if sequence not in self._together]
            if waited_for and not self.waiting.runnable(now) and not any(other.runnable(now) for other in others):
                return False
            self._together = []
        return any(sequence.runnable(now) for sequence in self.running) or self.waiting.runnable(now)

    def add(self, sequence: Sequence) -> None:
        """Take in a new sequence; it begins at the next step that has room for it. Raises ValueError for a weight that
        is not positive.
        """
        self.seats.add(sequence)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out between steps and free its blocks; ``keep`` its full blocks for the prefix cache."""
        self.seats.remove(sequence, keep=keep)
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
        self.seats.admit(step, now)
        active = [sequence for sequence in self.running if sequence.runnable(now)]
        self._draft(active)
        planned = self._plan(active, now)
        placed: set[Sequence] = set()
        for sequence in active:  # by rank: only those behind it are ever preempted for it
            if sequence.status is SequenceStatus.RUNNING and sequence in planned:
                self._place(step, placed, sequence, *planned[sequence], now)
        if not step.scheduled:
            return step if step.preempted or step.admitted else None
        for entry in step.scheduled:
            entry.sequence.last_step = self.counts.steps
        self.counts.steps += 1
        return step

    def complete(self, step: ScheduledStep, outcomes: Mapping[str, Outcome], now: float) -> CompletedStep:
        """Account a computed step, and charge the tenants for its rows.

        ``outcomes`` by sequence key; a chunk that yields nothing may be left out.

        Mutates: cores (commit), tokens, computed lengths, the prefix cache; ends what finished or failed.
        """
        done = CompletedStep()
        for entry in step.scheduled:
            sequence, outcome = entry.sequence, outcomes.get(entry.sequence.key)
            self.counters.charge(sequence.tenant, entry.rows)
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
            self.seats.offer_blocks(sequence, done.stores)
            if entry.yields and sequence.core.state is not CloudState.RUNNING:
                done.ended.append(sequence)
                self.remove(sequence)
        self.counters.settle(self._short)
        return done

    def look_ahead(self, done: CompletedStep, now: float) -> list[tuple[Sequence, Advice]]:
        """Let the policy hold sequences that have just committed, and advise their devices: the advice to be sent.

        To be called once between ``complete`` and the next ``schedule``; apart from it because commits should be on
        their way before anybody thinks about the next step.
        """
        committed = [
            sequence
            for sequence, commit in done.commits
            if commit.finish is None and sequence.status is SequenceStatus.RUNNING
        ]
        self._hold(committed, now)
        advices = [(sequence, self._advice(sequence)) for sequence in committed if advice_due(sequence)]
        return [(sequence, advice) for sequence, advice in advices if advice is not None]

    def abandon(self, step: ScheduledStep) -> None:
        """A step will not be computed: every sequence is as before it, blocks apart."""
        for entry in step.scheduled:
            entry.sequence.core.abandon_step()

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block is accounted for. Between steps only."""
        self.seats.check_integrity()

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
        """(committed rows, draft rows) for each sequence of the next step, within the row budget.

        Each that decodes has a row, which ``max_num_seqs`` leaves room for. Notes whose tenants are short.
        """
        served = sorted(active, key=lambda sequence: (sequence.last_step, sequence.arrival))
        decoding = [sequence for sequence in served if sequence.decoding]
        prefill = {sequence: sequence.uncomputed for sequence in served if not sequence.decoding}
        budget = self.config.max_num_batched_tokens - len(decoding)
        drafts = self._worthwhile(decoding, budget, now)
        self._short = {tenant for tenant in self.waiting.tenants if self.waiting.first(tenant, now) is not None}
        if sum(drafts.values()) + sum(prefill.values()) > budget:
            drafts, prefill = self._ration(drafts, prefill, budget, now)
        planned = {sequence: (1, rows) for sequence, rows in drafts.items()}
        return planned | {sequence: (rows, 0) for sequence, rows in prefill.items() if rows}

    def _worthwhile(self, decoding: list[Sequence], budget: int, now: float) -> dict[Sequence, int]:
        """The rows of drafts that pay; within the budget when one tenant has it to itself."""
        available = [
            min(sequence.core.draftable, sequence.max_len - sequence.committed_len - 1) for sequence in decoding
        ]
        if not any(available):
            return dict.fromkeys(decoding, 0)
        if len(self.counters) > 1:
            budget = max(budget, sum(available))
        return dict(zip(decoding, self.policy.draft_rows(decoding, available, budget, now), strict=True))

    def _ration(
        self, drafts: dict[Sequence, int], prefill: dict[Sequence, int], budget: int, now: float
    ) -> tuple[dict[Sequence, int], dict[Sequence, int]]:
        """Rows are short: ``budget`` is dealt to the tenants, and each one's to its own, a quarter to prefill first."""
        wanted: dict[str, int] = {}
        for sequence, rows in [*drafts.items(), *prefill.items()]:
            wanted[sequence.tenant] = wanted.get(sequence.tenant, 0) + rows
        decoding: dict[str, int] = {}
        for sequence in drafts:
            decoding[sequence.tenant] = decoding.get(sequence.tenant, 0) + 1
        shares = self.counters.divide(wanted, budget, decoding)
        for tenant, share in shares.items():
            if share == wanted[tenant]:
                continue
            self._short.add(tenant)
            prompts = {sequence: rows for sequence, rows in prefill.items() if sequence.tenant == tenant}
            reserved = min(sum(prompts.values()), max(share // 4, len(prompts)), share)
            own = [sequence for sequence in drafts if sequence.tenant == tenant]
            granted = [drafts[sequence] for sequence in own]
            if sum(granted) > share - reserved:
                granted = self.policy.draft_rows(own, granted, share - reserved, now)
            drafts |= zip(own, granted, strict=True)
            prefill |= zip(prompts, fair_shares(list(prompts.values()), share - sum(granted)), strict=True)
        return drafts, prefill

    def _place(
        self, step: ScheduledStep, placed: set[Sequence], sequence: Sequence, committed: int, drafts: int, now: float
    ) -> None:
        """Give a planned sequence its blocks, preempting those behind it if need be, and put it into the step."""
        start = sequence.computed_len
        if not self.seats.grow(sequence, start + committed + drafts, placed):
            while not self.seats.grow(sequence, start + committed, placed):
                if self.seats.give_way(step, placed) is sequence:
                    return
            room = len(sequence.block_table) * self.blocks.block_size - start - committed
            drafts = min(drafts, room)  # drafts never cost another sequence its KV
        placed.add(sequence)
        yields = start + committed == sequence.committed_len
        draft = sequence.core.draft(drafts, now) if yields else ()
        step.scheduled.append(ScheduledRows(sequence, start, committed, draft, 1 + len(draft) if yields else 0))
        if yields and sequence.decoding:
            self.counts.decode_rows += 1
            self.counts.draft_rows += len(draft)
        else:
            self.counts.prefill_rows += committed

    def _hold(self, committed: list[Sequence], now: float) -> None:
        """Let the policy hold those who have just committed; when all are held, they wait for each other."""
        taking_part = set(committed)
        busy = self.waiting.runnable(now) or any(
            sequence.runnable(now) for sequence in self.running if sequence not in taking_part
        )
        holds = self.policy.holds(committed, len(self.running) - 1, busy, now)
        for sequence, hold in zip(committed, holds, strict=True):
            if hold is not None:
                self.counts.holds += 1
                sequence.core.hold(now + hold.seconds, hold.tokens)
        self._together = committed if not busy and None not in holds else []

    def _advice(self, sequence: Sequence) -> Advice | None:
        source = self.cloud_draft
        own = sequence.core.own
        if source and (own is None or own.source is not source):  # it drafts with less now: by what others have shown
            own = OwnDraft(source, self.records[source])
        draft_seconds = (self.drafters[own.source].step_seconds or 0.0) if own is not None else 0.0
        advice = self.policy.advise(sequence, own, len(self.running) - 1, draft_seconds)
        if advice is None:
            return None
        if sequence.core.advised is not None and not worth_saying(advice, sequence):
            sequence.core.advised = (sequence.core.advised[0], sequence.committed_len)
            return None
        sequence.core.advised = (advice, sequence.committed_len)
        return advice
