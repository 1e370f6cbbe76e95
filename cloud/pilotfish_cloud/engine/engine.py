"""The embedded engine: scheduler, model and sampler in one worker thread.

Messages wait in an inbox that is emptied before each step; what happened is told to the listener once per step. The
worker sleeps on a condition when there is nothing to run, until a message comes or a core's deadline passes.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.determinism import bits_of, calibrate
from pilotfish_cloud.engine.draft_model import DraftModel
from pilotfish_cloud.engine.engine_config import EngineConfig, scheduler_config, speculation_policy
from pilotfish_cloud.engine.fingerprint import fingerprint
from pilotfish_cloud.engine.interface import (
    AdviceEvent,
    CommitEvent,
    DeathListener,
    Engine,
    EngineEvent,
    EngineInfo,
    EngineStats,
    EventListener,
    FailedEvent,
    OpenedEvent,
    OpenRequest,
)
from pilotfish_cloud.engine.loading import LoadedModel, load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.opening import Opener
from pilotfish_cloud.engine.rule import normal_rule
from pilotfish_cloud.engine.slow_sizes import without_slow_sizes
from pilotfish_cloud.engine.step_sampler import StepSampler
from pilotfish_cloud.engine.step_times import step_times
from pilotfish_cloud.engine.step_trace import StepTrace
from pilotfish_core.cloud_core import CloudLimits, VerifyCounts
from pilotfish_core.drafts import DraftRun
from pilotfish_core.errors import EngineFailure, PilotfishError, Unavailable
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.scheduling import CloudDrafter, CloudNgram, ScheduledStep, Scheduler, Sequence
from pilotfish_core.thread_priority import step_back
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# Upper bounds of the histogram of step times, seconds.
STEP_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, math.inf)


class EmbeddedEngine(Engine):
    """See ``Engine``. ``tokenizer`` is the target's; ``info`` is complete before ``start``."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, draft: LoadedModel | None = None) -> None:
        """``draft``: a small model that drafts for devices that do not.

        Raises LocalError when deterministic mode was asked for and this machine fails its self-check,
        TokenizerMismatch for a draft model of another vocabulary.
        """
        torch.set_num_threads(config.threads)
        self.config = config
        self.tokenizer: Tokenizer = loaded.tokenizer
        max_len = min(config.max_model_len or loaded.shape.max_position, loaded.shape.max_position)
        scheduling = scheduler_config(loaded, config, max_len)
        self.runner = ModelRunner(
            loaded,
            num_slots=max(config.max_num_seqs, 2),  # the self-check takes two
            num_blocks=scheduling.num_blocks,
            block_size=config.block_size,
            max_len=max_len,
        )
        most = scheduling.max_num_batched_tokens
        if config.deterministic:
            rule = calibrate(self.runner, max_rows=most)
        else:
            rule = normal_rule(self.runner, max_rows=most)
            without_slow_sizes(rule, self.runner)
        drafters: list[CloudDrafter] = [CloudNgram()]
        if draft is not None:
            drafters.append(
                DraftModel(
                    draft,
                    target=self.tokenizer,
                    num_slots=config.max_num_seqs,
                    max_len=max_len,
                    max_tokens=scheduling.max_draft_rows,
                )
            )
        self.scheduler = Scheduler(scheduling, speculation_policy(config, self.runner.row_sizes or ()), drafters)
        for rows, load, seconds in step_times(self.runner, most=config.max_draft_rows + 1):
            self.scheduler.policy.observe(rows, seconds, load)
        self._sampler = StepSampler(self.tokenizer)
        self._trace: StepTrace | None = None
        self._verify = VerifyCounts()
        limits = CloudLimits(
            max_draft_tokens=config.max_draft_tokens,
            max_unacknowledged=config.max_unacknowledged,
            acknowledge_timeout_s=config.acknowledge_timeout_s,
        )
        self._opener = Opener(self.tokenizer, limits, max_model_len=max_len, totals=self._verify)
        facts = {
            "config": loaded.config,
            "tokenizer": self.tokenizer.hash,
            "eos": self.tokenizer.eos_token_ids,
            "dtype": loaded.dtype_name,
            "rule": str(rule),
            "bits": bits_of(self.runner) if config.deterministic else "",
            "packed": self.runner.packed,
            "rope_length": self.runner.rope_length,
            **StepSampler.facts(),
        }
        self.info = EngineInfo(
            model=loaded.folder.resolve().name,
            fingerprint=fingerprint(loaded.weight_files, facts, device=self.runner.device),
            tokenizer_hash=self.tokenizer.hash,
            vocabulary_size=self.tokenizer.vocab_size,
            max_model_len=max_len,
            max_draft_tokens=config.max_draft_tokens,
            deterministic=config.deterministic,
            dtype=loaded.dtype_name,
            cloud_draft=self.scheduler.cloud_draft,
        )
        self._listener: EventListener | None = None
        self._on_death: DeathListener | None = None
        self._inbox: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._worker: threading.Thread | None = None
        # The worker's own, touched by nobody else once it runs:
        self._sequences: dict[str, Sequence] = {}
        self._unopened: set[str] = set()
        self._events: list[EngineEvent] = []
        self._step_seconds = 0.0
        self._committed = self._failures = 0
        self._step_histogram = [0] * len(STEP_BUCKETS)

    @classmethod
    def load(cls, config: ServerConfig) -> EmbeddedEngine:
        """Load the model that a server was asked to serve. Raises ModelLoadError, LocalError."""
        torch.set_num_threads(config.threads)
        engine = cls(
            load_model(config.model, dtype=config.dtype, device=config.device),
            EngineConfig(
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
                max_draft_tokens=config.max_draft_tokens,
                speculation=config.speculation,
                hold_cap_s=config.hold_cap_ms / 1e3,
                max_unacknowledged=config.max_unacknowledged,
                deterministic=config.deterministic,
                threads=config.threads,
            ),
            draft=None
            if config.draft_model is None
            else load_model(config.draft_model, dtype=config.dtype, device=config.device),
        )
        if config.trace is not None:
            engine.trace(config.trace)
        return engine

    def trace(self, path: Path) -> None:
        """Write there when each step ran, until closed. Before ``start``. Raises LocalError when it cannot be begun."""
        self._trace = StepTrace(path)

    # -- any thread -------------------------------------------------------------------------------------------------

    def start(self, listener: EventListener, on_death: DeathListener | None = None) -> None:
        """Begin stepping. Raises RuntimeError when begun or closed before."""
        if self._worker is not None or self._closing:
            raise RuntimeError("the engine was started before")
        self._listener, self._on_death = listener, on_death
        self._worker = threading.Thread(target=self._run, name="pilotfish-engine", daemon=True)
        self._worker.start()

    def open(self, request: OpenRequest) -> None:
        """Begin or continue a generation; answered by OpenedEvent or FailedEvent."""
        if not self._post(lambda: self._on_open(request)) and self._listener is not None:
            self._listener([FailedEvent(request.key, Unavailable("this replica is shutting down"))])

    def push(self, key: str, run: DraftRun, *, now: float | None = None) -> None:
        """Draft tokens arrived, ``now``: not when a step in progress lets them in, for the policy learns the device's
        pace from it.
        """
        now = time.monotonic() if now is None else now
        self._post(lambda: self._on_message(key, lambda sequence: sequence.core.receive(run, now)))

    def acknowledge(self, key: str, length: int, *, now: float | None = None) -> None:
        """The device holds the committed tokens up to ``length``."""
        now = time.monotonic() if now is None else now
        self._post(lambda: self._on_message(key, lambda sequence: sequence.core.acknowledge(length, now)))

    def steer(self, key: str, mode: Mode, *, now: float | None = None) -> None:
        """The device drafts otherwise from here on."""
        now = time.monotonic() if now is None else now
        self._post(lambda: self._on_message(key, lambda sequence: sequence.core.steer(mode, now)))

    def hint(self, key: str, hint: Hint) -> None:
        """What the app knows about the device has changed."""
        self._post(lambda: self._on_message(key, lambda sequence: setattr(sequence.core, "hint", hint)))

    def abort(self, key: str) -> None:
        """End a generation and free what it holds."""
        self._post(lambda: self._on_abort(key))

    def close(self) -> None:
        """Stop stepping, fail what is running with Unavailable, join the worker. May be called again."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()
        if self._trace is not None:
            self._trace.close()

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        counts, blocks, cache = self.scheduler.counts, self.scheduler.blocks, self.scheduler.cache
        buckets = tuple(zip(STEP_BUCKETS, itertools.accumulate(self._step_histogram), strict=True))
        return EngineStats(
            steps=buckets[-1][1],
            step_seconds=self._step_seconds,
            step_buckets=buckets,
            prefill_rows=counts.prefill_rows,
            decode_rows=counts.decode_rows,
            draft_rows=counts.draft_rows,
            committed_tokens=self._committed,
            verify=copy.deepcopy(self._verify),
            holds=counts.holds,
            preemptions=counts.preemptions,
            failures=self._failures,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            waiting_tokens=self.scheduler.waiting.tokens,
            tenants=len(self.scheduler.counters),
            blocks_total=blocks.num_blocks,
            blocks_held=blocks.num_held,
            blocks_kept=blocks.num_kept,
            cache_hit_tokens=cache.hit_tokens,
            cache_miss_tokens={reason.value: count for reason, count in dict(cache.miss_tokens).items()},
        )

    def _post(self, message: Callable[[], None]) -> bool:
        with self._wake:
            if self._closing:
                return False
            self._inbox.append(message)
            self._wake.notify()
            return True

    # -- the worker -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # a defect: what is running would wait for ever
            _log.critical("the engine has stopped", exc_info=error)
            with self._wake:
                self._closing = True
            failure = EngineFailure("the verifier's engine has stopped; resume elsewhere", private=repr(error))
            self._events += [FailedEvent(key, failure) for key in self._sequences]
            self._tell()
            if self._on_death is not None:
                self._on_death(f"the engine has stopped: {error!r}")

    def _work(self) -> None:
        step_back()  # where both share a processor, commits and drafts must not wait for the next step
        torch.set_num_threads(self.config.threads)
        idle = True  # whether the last round found nothing to run
        while True:
            with self._wake:
                if idle and not self._inbox and not self._closing:
                    self._wake.wait(self._patience())
                messages, self._inbox = self._inbox, []
                if self._closing:
                    break
            self._receive(messages)
            self._expire(time.monotonic())
            idle = not self._step()
            self._tell()
        self._receive(messages)  # those posted before the end still get their answer, which is the end
        for sequence in list(self._sequences.values()):
            self._fail(sequence, Unavailable("this replica is shutting down; resume elsewhere"))
        self._tell()

    def _receive(self, messages: list[Callable[[], None]]) -> None:
        for message in messages:
            try:
                message()
            except Exception:  # the worker is everybody's: a defect in one message must not end it
                _log.exception("a message failed")

    def _patience(self) -> float | None:
        """Seconds until the first core's deadline; None: wait for a message."""
        deadlines = [sequence.core.next_deadline() for sequence in self._sequences.values()]
        first = min((deadline for deadline in deadlines if deadline is not None), default=None)
        return None if first is None else max(first - time.monotonic(), 0.0)

    def _expire(self, now: float) -> None:
        for sequence in list(self._sequences.values()):
            error = sequence.core.expired(now) if sequence.core.paused else None
            if error is not None:
                self._fail(sequence, error)

    def _step(self) -> bool:
        """One step, if there is anything to run. Whatever goes wrong in it ends what took part, and nothing else."""
        began = time.monotonic()
        if not self.scheduler.has_work(began):
            return False
        step: ScheduledStep | None = None
        try:
            step = self.scheduler.schedule(began)
            if step is None:
                return False
            self._execute(step, began)
        except Exception as error:
            _log.exception("a step failed")
            failure = EngineFailure("the verifier could not compute a step", private=repr(error))
            involved = [entry.sequence for entry in step.scheduled] if step is not None else []
            for sequence in involved or list(self._sequences.values()):
                if sequence.key in self._sequences:
                    self._fail(sequence, failure)
        seconds = time.monotonic() - began
        self._step_seconds += seconds
        self._step_histogram[bisect.bisect_left(STEP_BUCKETS, seconds)] += 1
        return True

    def _execute(self, step: ScheduledStep, scheduled_at: float) -> None:
        began = time.monotonic()  # after the cloud's own drafting, which is no part of a step's time
        self.runner.prepare(step)
        for sequence in step.admitted:
            if sequence.key in self._unopened:
                self._unopened.discard(sequence.key)
                self._events.append(OpenedEvent(sequence.key, sequence.cached_len))
        if not step.scheduled:
            return
        computed = self.runner.forward(step.scheduled)
        outcomes = self._sampler.sample(step.scheduled, computed)
        now = time.monotonic()
        if all(entry.committed == 1 and entry.yields for entry in step.scheduled):
            self.scheduler.policy.observe(step.num_rows, now - began, step.load)
        done = self.scheduler.complete(step, outcomes, now)
        self.runner.keep(done.stores)
        for sequence, commit in done.commits:
            self._committed += len(commit.tokens)
            self._sampler.committed(sequence.key, commit.tokens)
            counts = None if commit.finish is None else sequence.core.counts
            self._events.append(CommitEvent(sequence.key, commit, now, counts))
        for sequence, error in done.failures:
            self._failures += 1
            self._events.append(FailedEvent(sequence.key, error))
        failed = {sequence.key for sequence, _ in done.failures}
        for sequence in done.ended:
            self._forget(sequence, wipe=sequence.key in failed)
        self._tell()
        told = time.monotonic() if self._trace is not None else 0.0
        self._events += [AdviceEvent(sequence.key, advice) for sequence, advice in self.scheduler.look_ahead(done, now)]
        if self._trace is not None:
            ended = time.monotonic()
            padded = self.runner.padded(step.num_rows)
            self._trace.step(step, done, padded=padded, began=scheduled_at, took_s=now - began, told=told, ended=ended)

    def _tell(self) -> None:
        events, self._events = self._events, []
        if events and self._listener is not None:
            try:
                self._listener(events)
            except Exception:
                _log.exception("the engine's listener raised; its events are lost")

    def _on_open(self, request: OpenRequest) -> None:
        try:
            if request.key in self._sequences:
                raise EngineFailure("the verifier was given a generation twice", private=f"key {request.key}")
            sequence, finished = self._opener.open(request, time.monotonic())
        except PilotfishError as error:
            self._events.append(FailedEvent(request.key, error))
            return
        except Exception as error:
            _log.exception("a generation could not be opened")
            failure = EngineFailure("the verifier could not open the generation", private=repr(error))
            self._events.append(FailedEvent(request.key, failure))
            return
        if finished is not None:
            self._events += [OpenedEvent(request.key, 0), CommitEvent(request.key, finished, time.monotonic())]
            return
        self._sequences[request.key] = sequence
        self._unopened.add(request.key)
        self._sampler.opened(sequence)
        self.scheduler.add(sequence)
        if self._trace is not None:
            self._trace.asked(sequence, time.monotonic())

    def _on_message(self, key: str, message: Callable[[Sequence], object]) -> None:
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        try:
            message(sequence)
        except PilotfishError as error:
            self._fail(sequence, error)
        except Exception as error:
            _log.exception("a message to a generation failed")
            self._fail(sequence, EngineFailure("the verifier could not take a frame", private=repr(error)))

    def _on_abort(self, key: str) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None:
            sequence.core.cancel(time.monotonic())
            self.scheduler.remove(sequence)
            self._forget(sequence)

    def _fail(self, sequence: Sequence, error: PilotfishError) -> None:
        """End one generation with an error, between steps."""
        engine_fault = isinstance(error, EngineFailure)
        sequence.core.fail(time.monotonic())
        self.scheduler.remove(sequence, keep=not engine_fault)
        self._failures += 1
        self._events.append(FailedEvent(sequence.key, error))
        self._forget(sequence, wipe=engine_fault)

    def _forget(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """``wipe`` what it left in its arena: it may hold NaN."""
        self.runner.detach(sequence, wipe=wipe)
        self._sampler.ended(sequence.key)
        if self._trace is not None:
            self._trace.forgotten(sequence.key)
        self._unopened.discard(sequence.key)
        self._sequences.pop(sequence.key, None)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block and arena is accounted for. With the worker idle or closed."""
        self.scheduler.check_integrity()
        self.runner.check_integrity([sequence.slot for sequence in self.scheduler.running])
