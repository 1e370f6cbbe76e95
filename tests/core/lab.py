"""A device and a cloud under a virtual clock: the real cores, scheduler and policies; only what costs time is made up.

One generation at a time over a link without jitter. How well drafts do changes along the text, the same for whoever
drafts, as it does where device and cloud run the same draft model.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.device_actions import (
    Action,
    Connect,
    DeviceConfig,
    DraftTask,
    End,
    SendAcknowledge,
    SendDraft,
    SendMode,
    SendPing,
)
from pilotfish_core.device_core import DeviceCore
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.messages import Opened, Pong
from pilotfish_core.modes import Arm, CloudDraft, Mode, Pace
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.scheduling import Goodput, Sampled, ScheduledStep, Scheduler, SchedulerConfig, Sequence
from tests.core.test_scheduler import Length

PROMPT = (1, 2, 3, 4)
MAX_DRAFT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """Times in seconds. ``quality``: how often a draft token is right, in each of the text's moods."""

    rtt_s: float = 0.001
    step_s: float = 0.028
    row_s: float = 0.0004  # more for each further row of a step
    draft_s: float = 0.004  # a token on the device
    cloud_draft_s: float = 0.0045  # in the cloud, for which the target waits
    quality: tuple[float, float] = (0.9, 0.55)
    mood_tokens: float = 12.0  # mean length of a mood
    cloud_model: bool = True


class Text:
    """An answer: its tokens are their positions, a wrong draft token is another one."""

    def __init__(self, lab: Lab, seed: int, length: int) -> None:
        generator, self.right, mood = random.Random(seed), list[bool](), 0
        for _ in range(length + 64):
            if generator.random() < 1 / lab.mood_tokens:
                mood = 1 - mood
            self.right.append(generator.random() < lab.quality[mood])

    def draft(self, context: Seq[int], count: int) -> list[int]:
        """After a wrong token nothing is right any more."""
        tokens, good = list(context), all(token == place for place, token in enumerate(context[4:], 4))
        for _ in range(count):
            place = len(tokens)
            good = good and self.right[place]
            tokens.append(place if good else 10**6)
        return tokens[len(context) :]


class LabDrafter:
    """The cloud's own draft model."""

    source = CloudDraft.MODEL

    def __init__(self, lab: Lab) -> None:
        self.step_seconds = lab.cloud_draft_s
        self.text: Text
        self.drafted = 0

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> Mapping[str, tuple[int, ...]]:
        self.drafted += max(count for _, count in wanted)
        return {sequence.key: tuple(self.text.draft(sequence.tokens, count)) for sequence, count in wanted}

    def forget(self, sequence: Sequence) -> None:
        pass


class World:
    """One cloud and one client that lives through several answers."""

    def __init__(self, lab: Lab, arm: Arm, *, window: int = 16) -> None:
        self.lab, self.now = lab, 0.0
        self.memory = PolicyMemory()
        self.config = DeviceConfig(arm=arm, window=window)
        self.drafter = LabDrafter(lab)
        self.scheduler = Scheduler(
            SchedulerConfig(max_model_len=4096, num_blocks=512, block_size=16, max_draft_rows=MAX_DRAFT),
            Goodput(MAX_DRAFT),
            [self.drafter] if lab.cloud_model else [],
        )
        self.tokens_by_arm: dict[Arm, int] = {}

    def answer(self, seed: int, length: int) -> float:
        """Tokens a second."""
        return _Answer(self, Text(self.lab, seed, length), length).run()


class _Answer:
    def __init__(self, world: World, text: Text, length: int) -> None:
        self.world, self.text, self.length = world, text, length
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.began = world.now
        self.stepping = self.over = False
        self.sequence: Sequence | None = None
        world.drafter.text = text
        self.output: list[int] = []
        self.device = DeviceCore(
            prompt=PROMPT,
            output=self.output,
            max_tokens=length,
            config=world.config,
            drafting=True,
            jitter=random.Random(0),
            memory=world.memory,
        )

    def run(self) -> float:
        self.act(self.device.start(self.world.now))
        while not self.over:
            deadlines = [self.device.next_deadline()]
            if self.sequence is not None and not self.stepping:
                deadlines.append(self.sequence.core.next_deadline())
            due = min((at for at in deadlines if at is not None), default=float("inf"))
            if self.events and self.events[0][0] <= due:
                self.world.now, _, event = heapq.heappop(self.events)
                event()
            else:
                self.world.now = max(self.world.now, due)
                self.act(self.device.expired(self.world.now))
            self.go_on()
        assert self.output == list(range(len(PROMPT), len(PROMPT) + self.length)), "the text changed"
        return self.length / (self.world.now - self.began)

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.world.now + seconds, next(self.order), event))

    # -- the device -------------------------------------------------------------------------------------------------

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect(attempt=_, mode=mode):
                    pace = self.device.policy.pace
                    self.up(lambda mode=mode, pace=pace: self.open(mode, pace))  # type: ignore[misc]
                case SendDraft(run, acknowledged):
                    at = 0 if acknowledged is None else acknowledged
                    self.up(lambda run=run, at=at: self.run_came(run, at))  # type: ignore[misc]
                case SendAcknowledge(length):
                    self.up(lambda length=length: self.core.acknowledge(length, self.world.now))  # type: ignore[misc]
                case SendMode(mode):
                    self.up(lambda mode=mode: self.core.steer(mode, self.world.now))  # type: ignore[misc]
                case SendPing(ping):
                    self.up(lambda ping=ping: self.down(self.device.heard, Pong(ping.nonce)))  # type: ignore[misc]
                case End():
                    self.over = True

    def go_on(self) -> None:
        task = self.device.draft_task(self.world.now)
        if task is not None:
            self.after(task.count * self.world.lab.draft_s, lambda: self.drafted(task))
        self.step()

    def drafted(self, task: DraftTask) -> None:
        held = [*PROMPT, *self.output, *self.device.tail]
        context = [*held[: task.keep], *task.extend] if task.keep <= len(held) else held
        self.act(self.device.drafted(self.text.draft(context, task.count), self.world.now))

    # -- the link ---------------------------------------------------------------------------------------------------

    def up(self, event: Callable[[], None]) -> None:
        self.after(self.world.lab.rtt_s / 2, event)

    def down(self, take: Callable[..., list[Action]], message: Any) -> None:
        def arrive() -> None:
            if take == self.device.committed:
                arm = self.device.policy.arm
                by_arm = self.world.tokens_by_arm
                by_arm[arm] = by_arm.get(arm, 0) + len(message.tokens)
            self.act(take(message, self.world.now))

        self.after(self.world.lab.rtt_s / 2, arrive)

    # -- the cloud --------------------------------------------------------------------------------------------------

    @property
    def core(self) -> CloudCore:
        assert self.sequence is not None
        return self.sequence.core

    def open(self, mode: Mode, pace: Pace | None) -> None:
        limits = CloudLimits(max_draft_tokens=MAX_DRAFT)
        core = CloudCore(
            prompt_length=len(PROMPT),
            output=(),
            finish_rule=Length(self.length),
            vocabulary_size=10**6 + 1,
            max_output=self.length,
            limits=limits,
            now=self.world.now,
            mode=mode,
            pace=pace,
        )
        self.sequence = Sequence("a", list(PROMPT), core, SamplingParams(), max_len=4096)
        self.world.scheduler.add(self.sequence)
        opened = Opened(
            model="m",
            fingerprint="f",
            max_model_len=4096,
            max_draft_tokens=limits.max_draft_tokens,
            max_unacknowledged=limits.max_unacknowledged,
            cloud_draft=self.world.scheduler.cloud_draft,
        )
        self.down(self.device.opened, opened)

    def run_came(self, run: Any, acknowledged: int) -> None:
        self.core.acknowledge(acknowledged, self.world.now)
        self.core.receive(run, self.world.now)

    def step(self) -> None:
        world = self.world
        if self.stepping or self.sequence is None or not world.scheduler.has_work(world.now):
            return
        drafted = world.drafter.drafted
        step = world.scheduler.schedule(world.now)
        if step is None or not step.scheduled:
            return
        own = (world.drafter.drafted - drafted) * world.lab.cloud_draft_s
        seconds = world.lab.step_s + (step.num_rows - 1) * world.lab.row_s
        self.stepping = True
        self.after(own + seconds, lambda: self.stepped(step, seconds))

    def stepped(self, step: ScheduledStep, seconds: float) -> None:
        world = self.world
        self.stepping = False
        if all(entry.committed == 1 and entry.yields for entry in step.scheduled):
            world.scheduler.policy.observe(step.num_rows, seconds)
        outcomes = {}
        for entry in step.scheduled:
            first = entry.sequence.committed_len
            outcomes[entry.sequence.key] = Sampled(list(range(first, first + entry.yields)))
        done = world.scheduler.complete(step, outcomes, world.now)
        for _, commit in done.commits:
            self.down(self.device.committed, commit)
        for _, advice in world.scheduler.look_ahead(done, world.now):
            self.down(self.device.advised, advice)


def compare(
    lab: Lab, arms: Seq[Arm], *, seeds: int = 3, answers: int = 5, length: int = 96
) -> tuple[dict[Arm, float], dict[Arm, dict[Arm, int]]]:
    """Mean tokens a second of each arm over the same answers, and which arms their tokens came in.

    As ``pilotfish bench`` does: the arms take turns, each a client of its own that remembers what it learned, with a
    cloud that knows its own draft model. The first answer of each client does not count.
    """
    speeds: dict[Arm, list[float]] = {arm: [] for arm in arms}
    shares: dict[Arm, dict[Arm, int]] = {arm: {} for arm in arms}
    for seed in range(seeds):
        world = World(lab, Arm.CO_LOCATED)
        for index in range(3):
            world.answer(10**6 + 100 * seed + index, length)
        memories = {arm: PolicyMemory() for arm in arms}
        for index in range(answers):
            for arm in arms:
                world.config = DeviceConfig(arm=arm, window=world.config.window)
                world.memory, world.tokens_by_arm = memories[arm], shares[arm]
                speed = world.answer(1000 * seed + index, length)
                if index:
                    speeds[arm].append(speed)
    return {arm: sum(values) / len(values) for arm, values in speeds.items()}, shares
