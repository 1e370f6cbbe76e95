"""Who has a seat, that is takes part in steps, and who holds which block of KV: admission and preemption.

**Rank.** A sequence's rank is how many running ones of its tenant were admitted before it, over the tenant's weight;
of equal ranks the one admitted first is *senior*. Blocks are given in this order and taken in the reverse one, so a
tenant's oldest gives way only after everybody's second. When it is first admitted a sequence gets a number, which it
keeps when it is preempted: only finitely many are ever senior to it, so it is not evicted forever.

**Admission.** The tenant with the lowest counter comes first, within it those that were preempted, then by arrival.
Whoever does not fit for want of blocks makes those behind wait too, or long prompts would never get in. A tenant that
wants a seat or blocks takes them from another one that was served no less and has more generations running, but only
as far as it is not left with more than that one: then nothing would be won, and they would take turns at recomputing.
Whoever begins as a running one does that is still being prefilled lets the others pass until the common part is in the
prefix cache: it would be computed twice, and neither would have its first token earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from pilotfish_core.scheduling.block_manager import BlockManager, IntegrityError
from pilotfish_core.scheduling.fairness import TenantCounters
from pilotfish_core.scheduling.prefix_cache import PrefixCache, PrefixMatch, root_hash
from pilotfish_core.scheduling.scheduler_config import SchedulerConfig, SchedulerCounts
from pilotfish_core.scheduling.sequence import Sequence, SequenceStatus
from pilotfish_core.scheduling.step import BlockCopy, ScheduledStep
from pilotfish_core.scheduling.waiting import WaitingList

COMMON_BLOCKS: Final = 4  # that somebody else is about to compute are worth a step's wait
MOST_PASSED: Final = 32  # of a tenant's that are looked at in one step; each look costs a comparison of prompts


class Seats:
    """See the module. ``running`` is in the order of rank. Only this class changes ``status`` and block tables."""

    def __init__(self, config: SchedulerConfig, counters: TenantCounters, counts: SchedulerCounts) -> None:
        self.config = config
        self.counters = counters
        self.counts = counts
        self.cache = PrefixCache(config.block_size, enabled=config.prefix_cache)
        self.blocks = BlockManager(config.num_blocks, config.block_size, on_reuse=self.cache.reused)
        self.waiting = WaitingList()
        self.running: list[Sequence] = []
        self._arrivals = self._admissions = 0

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits for a seat. Raises ValueError for a weight that is not positive."""
        self.counters.join(sequence.tenant, sequence.weight)
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out between steps and free its blocks; ``keep`` its full blocks for the prefix cache."""
        if sequence.status is SequenceStatus.ENDED:
            return
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self._rank()
        else:
            self.waiting.remove(sequence)
        self._release_blocks(sequence, keep=keep)
        sequence.status = SequenceStatus.ENDED
        self.counters.leave(sequence.tenant)

    def admit(self, step: ScheduledStep, now: float) -> None:
        """Give seats to waiting sequences, see the module. Mutates ``step``: who was admitted, who preempted."""
        ahead: dict[str, float] = {}  # what those admitted here will be charged, or one tenant would get all seats
        followers: dict[str, set[Sequence]] = {}
        while self.waiting:
            full = len(self.running) >= self.config.max_num_seqs
            if full and len(self.counters) == 1 and self._paused() is None:
                return
            sequence = self._next(ahead, now, followers, full=full)
            if sequence is not None and self._follows(sequence, now):
                followers.setdefault(sequence.tenant, set()).add(sequence)
                continue
            if sequence is None or (full and not self._vacate(sequence, step)):
                return
            match = self._room_for(sequence, step)
            if match is None:
                return
            self._seat(sequence, match, step)
            tenant = sequence.tenant
            ahead[tenant] = ahead.get(tenant, 0.0) + sequence.uncomputed / self.counters.weight(tenant)

    def grow(self, sequence: Sequence, num_tokens: int, placed: Collection[Sequence]) -> bool:
        """Give a running sequence blocks for ``num_tokens`` positions, if there are any free, or any that those behind
        it that are not ``placed`` in the step took for drafts and hold without need.
        """
        missing = self.blocks.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        for other in reversed(self.running):
            if missing <= self.blocks.num_free or other is sequence:
                break
            if other not in placed:
                self._trim(other)
        blocks = self.blocks.allocate(missing)
        if blocks is None:
            return False
        sequence.block_table.extend(blocks)
        return True

    def _trim(self, sequence: Sequence) -> None:
        """Free its blocks beyond what is committed: nothing that is worth anything is in them."""
        needed = self.blocks.blocks_for(sequence.committed_len)
        for block in reversed(sequence.block_table[needed:]):
            self.blocks.release(block, keep=False)
        del sequence.block_table[needed:]

    def give_way(self, step: ScheduledStep, placed: Collection[Sequence]) -> Sequence:
        """Preempt the last in rank, a paused one first, but none of those ``placed`` in the step; returns it."""
        victim = self._paused() or next(one for one in reversed(self.running) if one not in placed)
        self._preempt(victim, step)
        return victim

    def offer_blocks(self, sequence: Sequence, stores: list[BlockCopy]) -> None:
        """Hash the blocks that became full and wholly computed, and offer them to the prefix cache."""
        size = self.blocks.block_size
        for index in range(len(sequence.block_hashes), sequence.computed_len // size):
            parent = sequence.block_hashes[-1] if index else root_hash(sequence.cache_salt)
            tokens = sequence.tokens[index * size : (index + 1) * size]
            digest, new = self.cache.insert(parent, tokens, sequence.block_table[index])
            sequence.block_hashes.append(digest)
            if new:
                stores.append(BlockCopy(sequence, index, sequence.block_table[index]))

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block and every waiting token is accounted for. Between steps only."""
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
        waiting = (sum(1 for _ in self.waiting), sum(sequence.committed_len for sequence in self.waiting))
        if waiting != (len(self.waiting), self.waiting.tokens):
            raise IntegrityError(f"(sequences, tokens) waiting are {waiting}, not as counted")

    def _rank(self) -> None:
        self.running.sort(key=lambda sequence: sequence.seniority)
        if len(self.counters) < 2:
            return
        seats: dict[str, int] = {}
        ranks: dict[Sequence, float] = {}
        for sequence in self.running:
            senior = seats.get(sequence.tenant, 0)
            ranks[sequence] = senior / self.counters.weight(sequence.tenant)
            seats[sequence.tenant] = senior + 1
        self.running.sort(key=ranks.__getitem__)

    def _follows(self, sequence: Sequence, now: float) -> bool:
        """Whether a running one is about to compute a good part of what the cache lacks of a waiting one."""
        for other in self.running if self.cache.enabled else ():
            common = other.computed_len + COMMON_BLOCKS * self.blocks.block_size
            if (
                common < min(sequence.committed_len, other.committed_len)
                and sequence.cache_salt == other.cache_salt
                and sequence.tokens[:common] == other.tokens[:common]
                and other.runnable(now)
            ):
                return True
        return False

    def _next(
        self, ahead: Mapping[str, float], now: float, followers: Mapping[str, Collection[Sequence]], *, full: bool
    ) -> Sequence | None:
        """Whose turn it is, apart from ``followers``: of the tenant with the lowest counter; when all seats are taken,
        of those to whom another tenant owes one.
        """
        seats: dict[str, int] = {}
        for sequence in self.running if full else ():
            seats[sequence.tenant] = seats.get(sequence.tenant, 0) + 1
        spare = [
            ((count - 1) / self.counters.weight(tenant), self.counters.counter(tenant))
            for tenant, count in seats.items()
            if count > 1
        ]
        best: tuple[tuple[float, int], Sequence] | None = None
        for tenant in self.waiting.tenants if spare or not full or self._paused() else ():
            passed = followers.get(tenant, ())
            head = self.waiting.first(tenant, now, passed) if len(passed) < MOST_PASSED else None
            if head is None:
                continue
            counter = self.counters.counter(tenant) + ahead.get(tenant, 0.0)
            if full and not self._paused():
                after = (seats.get(tenant, 0) + 1) / self.counters.weight(tenant)
                if not any(left >= after and theirs >= counter for left, theirs in spare):
                    continue
            key = (counter, head.arrival)
            if best is None or key < best[0]:
                best = (key, head)
        return None if best is None else best[1]

    def _paused(self) -> Sequence | None:
        return next((sequence for sequence in reversed(self.running) if sequence.core.paused), None)

    def _seats_of(self, tenant: str) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.tenant == tenant]

    def _seat(self, sequence: Sequence, match: PrefixMatch, step: ScheduledStep) -> None:
        self.waiting.remove(sequence)
        if sequence.seniority < 0:
            sequence.seniority = self._admissions
            self._admissions += 1
        for block in match.blocks:
            self.blocks.share(block)
        fresh = self.blocks.blocks_for(sequence.committed_len) - len(match.blocks)
        sequence.block_table = [*match.blocks, *(self.blocks.allocate(fresh) or ())]
        sequence.block_hashes = list(match.hashes)
        sequence.computed_len = len(match.blocks) * self.blocks.block_size
        sequence.status = SequenceStatus.RUNNING
        self.running.append(sequence)
        self._rank()
        if sequence.last_step < 0:
            sequence.cached_len = sequence.computed_len
        self.cache.count(match, sequence.committed_len)
        step.admitted.append(sequence)
        step.loads.extend(BlockCopy(sequence, index, block) for index, block in enumerate(match.blocks))

    def _vacate(self, sequence: Sequence, step: ScheduledStep) -> bool:
        """Free a seat for a waiting sequence, if somebody owes it one."""
        victim = self._paused() or next(self._owing(sequence, blocks=0), None)
        if victim is None:
            return False
        self._preempt(victim, step)
        return True

    def _owing(self, sequence: Sequence, *, blocks: int) -> Iterator[Sequence]:
        """Those whose seats the waiting ``sequence`` may take, which needs so many ``blocks``: of other tenants that
        were served no less and keep at least as many seats, and blocks, for their weight as its own will have.
        """
        counters, own = self.counters, self._seats_of(sequence.tenant)
        weight = counters.weight(sequence.tenant)
        seats = (len(own) + 1) / weight
        size = (sum(len(one.block_table) for one in own) + blocks) / weight
        left: dict[str, tuple[int, int]] = {}
        for one in self.running:
            count, total = left.get(one.tenant, (0, 0))
            left[one.tenant] = (count + 1, total + len(one.block_table))
        for victim in reversed(self.running):
            if counters.counter(victim.tenant) < counters.counter(sequence.tenant) or victim.tenant == sequence.tenant:
                continue
            count, total = left[victim.tenant]
            count, total = count - 1, total - len(victim.block_table)
            theirs = counters.weight(victim.tenant)
            if count / theirs >= seats and (not blocks or total / theirs >= size):
                left[victim.tenant] = (count, total)
                yield victim

    def _room_for(self, sequence: Sequence, step: ScheduledStep) -> PrefixMatch | None:
        """What the cache has of it, when the rest fits too and leaves each running sequence a block to grow."""
        while True:
            match = self.cache.match(sequence.tokens, sequence.cache_salt)
            needed = self.blocks.blocks_for(sequence.committed_len)
            fresh = needed - len(match.blocks)
            revived = sum(self.blocks.references(block) == 0 for block in match.blocks)
            short = fresh + revived + len(self.running) - self.blocks.num_free
            if short <= 0:
                return match
            victim = self._paused() or self._debtor(sequence, needed, short)
            if victim is None:
                return None
            self._preempt(victim, step)

    def _debtor(self, sequence: Sequence, needed: int, short: int) -> Sequence | None:
        """The first to give blocks to a waiting sequence, when all that owe it any have enough together."""
        if len(self.counters) < 2:
            return None
        first: Sequence | None = None
        for victim in self._owing(sequence, blocks=needed):
            first = first or victim
            alone = sum(self.blocks.references(block) == 1 for block in victim.block_table)
            short -= alone + 1  # and the block that it need not be left to grow
            if short <= 0:
                return first
        return None

    def _preempt(self, sequence: Sequence, step: ScheduledStep) -> None:
        self.counts.preemptions += 1
        self.running.remove(sequence)
        self._rank()
        self._release_blocks(sequence, keep=True)
        sequence.status = SequenceStatus.WAITING
        self.waiting.add(sequence)
        if sequence in step.admitted:
            step.admitted.remove(sequence)
            step.loads = [copy for copy in step.loads if copy.sequence is not sequence]
        else:
            step.preempted.append(sequence)

    def _release_blocks(self, sequence: Sequence, *, keep: bool) -> None:
        """Tail first, so that the head of a prefix, which more prompts share, is evicted last."""
        for block in reversed(sequence.block_table):
            if not keep and block in self.cache and self.blocks.references(block) == 1:
                self.cache.drop(block)
            self.blocks.release(block, keep=block in self.cache)
        sequence.block_table = []
        sequence.block_hashes = []
        sequence.computed_len = 0
