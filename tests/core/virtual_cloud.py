"""The real scheduler, cores and policy in virtual time: a target that is a step-time model, devices that are a pace and
an acceptance rate. Everything is deterministic.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.drafts import DraftRun, Finish, FinishReason
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.scheduling import Sampled, ScheduledStep, Scheduler, Sequence, SequenceStatus

VOCABULARY = 1000
StepModel = Callable[[int, int], float]  # (rows, KV tokens read) -> seconds


class Length:
    """Ends after so many tokens."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def push(self, token: int) -> Finish | None:
        self.limit -= 1
        return Finish(FinishReason.LENGTH) if self.limit == 0 else None


class Stream:
    """One generation with its device: right with probability ``acceptance(position)``, it answers a refutation after
    ``response`` and drafts a token every ``gap`` seconds, up to ``window`` beyond what is committed. Window 0: none.
    """

    def __init__(
        self,
        key: str,
        *,
        prompt: int = 8,
        tokens: int = 64,
        tenant: str = "",
        weight: float = 1.0,
        acceptance: float | Callable[[int], float] = 0.0,
        response: float = 0.02,
        gap: float = 0.002,
        window: int = 8,
    ) -> None:
        core = CloudCore(
            prompt_length=prompt,
            output=(),
            finish_rule=Length(tokens),
            vocabulary_size=VOCABULARY,
            max_output=tokens,
            limits=CloudLimits(max_unacknowledged=10**9),
            now=0.0,
        )
        ids = [random.Random(f"{key}/{position}").randrange(VOCABULARY) for position in range(prompt)]
        self.sequence = Sequence(
            key, ids, core, SamplingParams(), max_len=prompt + tokens, tenant=tenant, weight=weight
        )
        self.response, self.gap, self.window = response, gap, window
        self._right = acceptance if callable(acceptance) else lambda position: acceptance
        self._first = zlib.crc32(key.encode())
        self._chance = random.Random(key)
        self._branch = -1
        self._start = 0  # of the branch
        self._drafted: list[int] = []  # its tokens, the first so many of them sent
        self._sent = 0
        self._at = 0.0  # when the next one arrives

    @property
    def key(self) -> str:
        return self.sequence.key

    def target(self, position: int) -> int:
        """The target's token at a position."""
        return (self._first + 7919 * position) % (VOCABULARY - 1)

    def next_arrival(self) -> float | None:
        """When the next draft token arrives, if one is on its way."""
        if not self.window or self._branch < 0 or self.sequence.status is not SequenceStatus.RUNNING:
            return None
        return self._at if self._start + self._sent < self.sequence.core.length + self.window else None

    def deliver(self, now: float) -> None:
        """What has arrived by ``now``."""
        while (at := self.next_arrival()) is not None and at <= now:
            if self._sent == len(self._drafted):
                self._draft()
            token = self._drafted[self._sent]
            self.sequence.core.receive(DraftRun(self._branch, self._start + self._sent, (token,)), at)
            self._sent += 1
            self._at = at + self.gap

    def committed(self, now: float) -> None:
        """A commit goes out at ``now``. The device begins a new branch if it refutes the draft or goes past what is
        drafted until the device hears of it.
        """
        length = self.sequence.core.length
        while self._start + len(self._drafted) < length and self._branch >= 0:
            if self._at + self.gap * (len(self._drafted) - self._sent) > now + self.response:
                break
            self._draft()
        known = self._drafted[: length - self._start]
        right = [self.target(self._start + index) for index in range(len(known))]
        if self._branch < 0 or len(known) < length - self._start or known != right:
            self._branch += 1
            self._start, self._drafted, self._sent, self._at = length, [], 0, now + self.response
        elif self._at <= now:  # the window was full
            self._at = now + self.response

    def _draft(self) -> None:
        position = self._start + len(self._drafted)
        right = self._chance.random() < self._right(position)
        self._drafted.append(self.target(position) if right else VOCABULARY - 1)


class VirtualCloud:
    """Runs streams on a scheduler; ``now`` is virtual seconds."""

    def __init__(self, scheduler: Scheduler, step_model: StepModel, *, noise: float = 0.0) -> None:
        self.scheduler = scheduler
        self.step_model = step_model
        self.now = 0.0
        self.streams: dict[str, Stream] = {}
        self.tokens: dict[str, int] = {}
        self._noise = noise
        self._chance = random.Random(5)

    def add(self, *streams: Stream) -> None:
        for stream in streams:
            self.streams[stream.key] = stream
            self.tokens[stream.key] = 0
            self.scheduler.add(stream.sequence)

    def steps(self, until: float) -> Iterator[ScheduledStep]:
        """Each step before it is computed; the clock goes on between them. Ends when nothing is left to do. Not to be
        left before its end: the last step would never be computed.
        """
        while self.now < until:
            self._deliver()
            step = self.scheduler.schedule(self.now) if self.scheduler.has_work(self.now) else None
            if step is None:
                if not self._wait():
                    return
                continue
            yield step
            if step.scheduled:
                self._compute(step)

    def run(self, until: float) -> float:
        """Tokens a second."""
        began, before = self.now, sum(self.tokens.values())
        for _ in self.steps(until):
            pass
        return (sum(self.tokens.values()) - before) / (self.now - began)

    def _deliver(self) -> None:
        for stream in self.streams.values():
            stream.deliver(self.now)

    def _wait(self) -> bool:
        """Go on to what happens next."""
        times = [stream.next_arrival() for stream in self.streams.values()]
        times += [stream.sequence.core.next_deadline() for stream in self.streams.values()]
        later = [time for time in times if time is not None and time > self.now]
        if later:
            self.now = min(later)
        return bool(later)

    def _compute(self, step: ScheduledStep) -> None:
        seconds = self.step_model(step.num_rows, step.load.context)
        seconds *= 1.0 + self._noise * abs(self._chance.gauss())
        self.now += seconds
        self._deliver()
        outcomes = {}
        for entry in step.scheduled:
            stream = self.streams[entry.sequence.key]
            first = entry.sequence.committed_len
            outcomes[stream.key] = Sampled([stream.target(first + row) for row in range(entry.yields)])
        done = self.scheduler.complete(step, outcomes, self.now)
        for sequence, commit in done.commits:
            self.tokens[sequence.key] += len(commit.tokens)
            if commit.finish is None:
                self.streams[sequence.key].committed(self.now)
        if all(entry.committed == 1 and entry.yields for entry in step.scheduled):  # as the engine does
            self.scheduler.policy.observe(step.num_rows, seconds, step.load)
        self.scheduler.look_ahead(done, self.now)
        for sequence in done.ended:
            del self.streams[sequence.key]
