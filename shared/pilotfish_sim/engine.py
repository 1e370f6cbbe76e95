"""The verifier's engine in virtual time: the real Scheduler, CloudCore and policy over a model of a step's cost.

With ``cloud_draft`` the only file of the simulator that knows the scheduler. What happens in the worker thread of
``pilotfish_cloud.engine.engine.EmbeddedEngine``, here happens on the virtual clock, in the same order: messages wait
for the end of the step in progress, commits leave before the next step is thought about.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Final

from pilotfish_core.cloud_core import CloudCore, CloudLimits, VerifyCounts
from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.errors import PilotfishError
from pilotfish_core.estimators import Load
from pilotfish_core.messages import Open
from pilotfish_core.modes import Advice, CloudDraft, Hint, Mode
from pilotfish_core.scheduling import (
    CloudDrafter,
    CloudNgram,
    CompletedStep,
    FixedRows,
    Goodput,
    Sampled,
    ScheduledStep,
    Scheduler,
    SchedulerConfig,
    Sequence,
    SpeculationPolicy,
)
from pilotfish_core.stops import StopChecker
from pilotfish_core.trace import OpenedRecord, StepRecord, TraceWriter
from pilotfish_sim.clock import LAST, Alarm, Clock
from pilotfish_sim.cloud_draft import DraftModelCost
from pilotfish_sim.study import load_class
from pilotfish_sim.target_model import Target
from pilotfish_sim.text import Text

MEASURED_CONTEXT: Final = 64  # KV tokens of the steps that are timed at start, as in production
LONG_CONTEXTS: Final = (512, 2048)  # of those that show what a token of context costs


@dataclasses.dataclass(slots=True)
class EngineFigures:
    """Totals of one replica."""

    steps: int = 0
    rows: int = 0
    busy_s: float = 0.0
    committed: int = 0
    failures: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Listener:
    """Who hears of one generation."""

    opened: Callable[[int], object]  # with the tokens found in the prefix cache
    committed: Callable[[Commit], object]
    advised: Callable[[Advice], object]
    failed: Callable[[PilotfishError], object]


class VirtualEngine:
    """One replica's engine. Raises InvalidParameter for a policy that cannot be loaded."""

    def __init__(self, clock: Clock, target: Target, number: int = 0, trace: TraceWriter | None = None) -> None:
        self._trace = trace
        self._asked: dict[str, float] = {}  # of the trace: opened, not yet committed
        self._spread, self._random = target.spread, random.Random(f"steps {number}")
        self.figures = EngineFigures()
        self.verify = VerifyCounts()
        self._clock = clock
        self._seconds, self._padded = target.step_time(), target.padded
        self._texts: dict[str, Text] = {}
        self._listeners: dict[str, Listener] = {}
        self._sequences: dict[str, Sequence] = {}
        self._unopened: set[str] = set()
        self._inbox: list[Callable[[], None]] = []
        self._computing: tuple[ScheduledStep, float] | None = None  # and its seconds
        self._alarm = Alarm(clock, lambda _: self._work())
        self._max_model_len, self._vocabulary = target.max_model_len, 2**31
        self._limits = CloudLimits(max_draft_tokens=target.max_draft_tokens)
        drafters: list[CloudDrafter] = [CloudNgram()]
        self._draft_model: DraftModelCost | None = None
        if target.draft_step_ms is not None:
            self._draft_model = DraftModelCost(target.draft_step_ms / 1e3, self._texts)
            drafters.append(self._draft_model)
        config = SchedulerConfig(
            max_model_len=target.max_model_len,
            num_blocks=min(target.num_blocks, -(-target.max_model_len // target.block_size) * target.max_num_seqs * 2),
            block_size=target.block_size,
            max_num_seqs=target.max_num_seqs,
            max_num_batched_tokens=target.max_num_batched_tokens,
            max_draft_rows=min(target.max_draft_rows, target.max_draft_tokens),
            prefix_cache=target.prefix_cache,
        )
        self.scheduler = Scheduler(config, speculation_policy(target), drafters)
        for rows, context in _measured(target):
            self._observe(rows, self._seconds(rows, context + rows), Load(context + rows, rows * (context + rows)))

    @property
    def cloud_draft(self) -> CloudDraft:
        """The best source that drafts in the cloud."""
        return self.scheduler.cloud_draft

    @property
    def load(self) -> int:
        """Generations that it has."""
        return len(self._sequences)

    @property
    def max_draft_tokens(self) -> int:
        """Granted to a device."""
        return self._limits.max_draft_tokens

    @property
    def max_unacknowledged(self) -> int:
        """Committed tokens beyond the last acknowledgement."""
        return self._limits.max_unacknowledged

    @property
    def max_model_len(self) -> int:
        """The target's context."""
        return self._max_model_len

    def open(self, key: str, opening: Open, text: Text, listener: Listener) -> None:
        """Begin or continue a generation."""
        self._post(lambda: self._open(key, opening, text, listener))

    def push(self, key: str, run: DraftRun) -> None:
        """Draft tokens arrived: now, whenever a step in progress lets them in."""
        now = self._clock.now
        self._post(lambda: self._tell(key, lambda core: core.receive(run, now)))

    def acknowledge(self, key: str, length: int) -> None:
        """The device holds the committed tokens up to ``length``."""
        now = self._clock.now
        self._post(lambda: self._tell(key, lambda core: core.acknowledge(length, now)))

    def steer(self, key: str, mode: Mode) -> None:
        """The device drafts otherwise from here on."""
        now = self._clock.now
        self._post(lambda: self._tell(key, lambda core: core.steer(mode, now)))

    def hint(self, key: str, hint: Hint) -> None:
        """What the app knows about the device has changed."""
        self._post(lambda: self._tell(key, lambda core: setattr(core, "hint", hint)))

    def abort(self, key: str) -> None:
        """End it and free what it holds."""
        self._post(lambda: self._abort(key))

    def _post(self, message: Callable[[], None]) -> None:
        if self._computing is not None:
            self._inbox.append(message)
        else:
            message()
            self._work()

    # -- steps ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Begin the next step, or rest until something happens."""
        if self._computing is not None:
            return
        now = self._clock.now
        while True:
            self._expire(now)
            if not self.scheduler.has_work(now):
                break
            step = self.scheduler.schedule(now)
            if step is None:
                break
            for sequence in step.admitted:
                if sequence.key in self._unopened:
                    self._unopened.discard(sequence.key)
                    self._listeners[sequence.key].opened(sequence.cached_len)
            if step.scheduled:
                self._begin(step, now)
                return
        deadlines = [sequence.core.next_deadline() for sequence in self._sequences.values()]
        self._alarm.set(min((deadline for deadline in deadlines if deadline is not None), default=None))

    def _begin(self, step: ScheduledStep, now: float) -> None:
        rows = context = 0
        for entry in step.scheduled:
            rows += entry.rows
            context += entry.start + entry.rows
        seconds = self._seconds(rows, context, len(step.scheduled))
        if self._spread:
            seconds *= self._random.choice(self._spread)
        drafting = 0.0 if self._draft_model is None else self._draft_model.take_seconds()
        self.figures.steps += 1
        self.figures.rows += rows
        self.figures.busy_s += seconds + drafting
        self._computing = (step, seconds)
        self._clock.at(now + drafting + seconds, self._end, priority=LAST)

    def _end(self, _: None) -> None:
        if self._computing is None:
            raise RuntimeError("a step ended that was not begun")
        (step, seconds), self._computing = self._computing, None
        now = self._clock.now
        outcomes = {entry.sequence.key: self._sampled(entry.sequence, entry.yields) for entry in step.scheduled}
        if all(entry.committed == 1 and entry.yields for entry in step.scheduled):
            self._observe(step.num_rows, seconds, step.load)
        done = self.scheduler.complete(step, outcomes, now)
        for sequence, commit in done.commits:
            self.figures.committed += len(commit.tokens)
            self._listeners[sequence.key].committed(commit)
        if self._trace is not None:
            self._record(self._trace, step, done, seconds)
        for sequence, error in done.failures:
            self.figures.failures += 1
            self._listeners[sequence.key].failed(error)
        for sequence in done.ended:
            self._forget(sequence.key)
        for sequence, advice in self.scheduler.look_ahead(done, now):
            self._listeners[sequence.key].advised(advice)
        messages, self._inbox = self._inbox, []
        for message in messages:
            message()
        self._work()

    def _record(self, trace: TraceWriter, step: ScheduledStep, done: CompletedStep, seconds: float) -> None:
        now, took_us = self._clock.now, round(seconds * 1e6)
        for sequence, _ in done.commits:
            asked = self._asked.pop(sequence.key, None)
            if asked is not None:
                trace.add(
                    OpenedRecord(
                        at_us=trace.at(asked),
                        first_us=round((now - asked) * 1e6),
                        prompt_tokens=sequence.core.prompt_length,
                        cached_tokens=sequence.cached_len,
                    )
                )
        trace.add(
            StepRecord(
                at_us=trace.at(now - seconds),
                took_us=took_us,
                whole_us=took_us,
                rows=step.num_rows,
                padded=self._padded(step.num_rows),
                sequences=len(step.scheduled),
                context=step.load.context,
                drafts=sum(entry.yields - 1 for entry in step.scheduled if entry.yields),
                committed=sum(len(commit.tokens) for _, commit in done.commits),
            )
        )

    def _observe(self, rows: int, seconds: float, load: Load) -> None:
        self.scheduler.policy.observe(rows, seconds, load)

    def _sampled(self, sequence: Sequence, count: int) -> Sampled:
        begin = len(sequence.core.output)
        return Sampled(self._texts[sequence.key].output[begin : begin + count])

    # -- messages ---------------------------------------------------------------------------------------------------

    def _open(self, key: str, opening: Open, text: Text, listener: Listener) -> None:
        now = self._clock.now
        length = len(opening.prompt)
        max_output = min(opening.params.max_tokens, self._max_model_len - length)
        core = CloudCore(
            prompt_length=length,
            output=opening.output,
            finish_rule=StopChecker(opening.params, max_output=max_output),
            vocabulary_size=self._vocabulary,
            max_output=max_output,
            limits=self._limits,
            now=now,
            mode=opening.mode,
            hint=opening.hint,
            pace=opening.pace,
            totals=self.verify,
        )
        finished = core.open(now)
        if finished is not None:
            listener.opened(0)
            listener.committed(finished)
            return
        sequence = Sequence(key, [*opening.prompt, *opening.output], core, opening.params, max_len=length + max_output)
        self._texts[key], self._listeners[key], self._sequences[key] = text, listener, sequence
        self._unopened.add(key)
        if self._trace is not None:
            self._asked[key] = now
        self.scheduler.add(sequence)

    def _tell(self, key: str, message: Callable[[CloudCore], object]) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None:
            message(sequence.core)

    def _abort(self, key: str) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None:
            sequence.core.cancel(self._clock.now)
            self.scheduler.remove(sequence)
            self._forget(key)

    def _expire(self, now: float) -> None:
        for sequence in list(self._sequences.values()):
            error = sequence.core.expired(now) if sequence.core.paused else None
            if error is not None:
                self.scheduler.remove(sequence)
                self._listeners[sequence.key].failed(error)
                self._forget(sequence.key)

    def _forget(self, key: str) -> None:
        self._unopened.discard(key)
        self._asked.pop(key, None)
        for kept in (self._texts, self._listeners, self._sequences):
            kept.pop(key, None)


def _measured(target: Target) -> list[tuple[int, int]]:
    """Rows and context of the steps that a verifier times at its start."""
    most = max(1, min(target.max_draft_rows + 1, target.max_model_len - 1))
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    room = target.max_model_len - most
    steps = [(rows, min(MEASURED_CONTEXT, room)) for rows in counts]
    return steps + [(rows, min(context, room)) for context in LONG_CONTEXTS for rows in sorted({1, most})]


def speculation_policy(target: Target) -> SpeculationPolicy:
    """What decides about rows and holds. Raises InvalidParameter for a class under study that cannot be loaded."""
    if target.policy:
        policy: SpeculationPolicy = load_class("target.policy", target.policy)(target.max_draft_rows)
        return policy
    if target.speculation == "fixed":
        return FixedRows(target.max_draft_rows)
    return Goodput(
        target.max_draft_rows, hold_cap=target.hold_cap_ms / 1e3, row_sizes=target.row_sizes, tuning=target.tuning
    )
