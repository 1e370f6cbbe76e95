"""A device core's life in virtual time, between a real cloud core, a drafter of given quality and a link that breaks.

Everything follows from one number. What the device core is told and what it answers is written down as it happens.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, Final

from pilotfish_core.cloud_core import CloudCore, CloudLimits, CloudState
from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    DeviceConfig,
    DraftTask,
    Keep,
    SendAcknowledge,
    SendDraft,
    SendMode,
    SendPing,
)
from pilotfish_core.device_core import DeviceCore, DeviceState
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import EngineFailure, InvalidRequest, Overloaded, PilotfishError, Unavailable
from pilotfish_core.messages import Open, Opened, Pong, Ticket
from pilotfish_core.modes import Advice, Arm, CloudDraft, Hint, Objective
from pilotfish_core.offline import OfflineConfig, OnReconnect
from pilotfish_core.own_draft import OwnDraft, OwnRecord
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tickets import TicketLine, Tickets
from pilotfish_core.vectors.script_forms import action_form, event_form

VOCABULARY: Final = 50
END: Final = 49
MAX_EVENTS: Final = 400


class EndRule:
    """An answer ends with END or after so many tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.left = max_tokens

    def push(self, token: int) -> Finish | None:
        """See ``FinishRule``."""
        self.left -= 1
        if token == END:
            return Finish(FinishReason.STOP, END)
        return Finish(FinishReason.LENGTH) if self.left <= 0 else None


class Jitter(random.Random):
    """Remembers what it gave."""

    def __init__(self, seed: int) -> None:
        self.given: list[float] = []
        super().__init__(seed)

    def random(self) -> float:
        """As the base's."""
        self.given.append(super().random())
        return self.given[-1]


class ScriptWorld:
    """One generation. ``events`` are ``[name, arguments, now, actions or task, state]``, as JSON values."""

    def __init__(self, number: int, memory: PolicyMemory | None = None) -> None:
        self.chance = random.Random(f"script {number}")
        self.salt = number
        choose = self.chance.choice
        self.prompt = [self.chance.randrange(VOCABULARY - 1) for _ in range(self.chance.randint(1, 12))]
        self.max_tokens = self.chance.randint(1, 90)
        self.quality = choose((0.0, 0.5, 0.8, 0.95, 1.0))
        self.delay, self.draft_s = choose((0.0005, 0.01, 0.05)), choose((0.001, 0.004, 0.02))
        self.step_s, self.faults = choose((0.01, 0.03)), choose((0.0, 0.0, 0.02, 0.06))
        self.tickets = choose((None, None, Tickets(b"key", every=1), Tickets(b"key", every=16)))
        offline = choose((None, None, *(OfflineConfig(on_reconnect=each, after_s=0.4) for each in OnReconnect)))
        self.memory = memory or PolicyMemory()
        self.jitter = Jitter(number)
        self.drafting = self.chance.random() < 0.93
        self.config = DeviceConfig(
            window=self.chance.randint(1, 20),
            adaptive=self.chance.random() < 0.8,
            arm=choose((Arm.AUTO, Arm.AUTO, Arm.AUTO, Arm.ASYNC, Arm.LOCKSTEP, Arm.CLOUD, Arm.CO_LOCATED)),
            objective=choose((Objective.LATENCY, *Objective)),
            draft_chunk=choose((1, 1, 1, 3)),
            acknowledge_every=choose((2, 8, 32)),
            ping_after_s=choose((0.3, 5.0)),
            ping_timeout_s=choose((0.2, 5.0)),
            measure_every_s=choose((0.05, 0.5)),
            offline=offline if self.drafting else None,
        )
        again = self.config.offline is not None and self.chance.random() < 0.3
        self.restored = [self.chance.randrange(VOCABULARY) for _ in range(3)] if again else []
        self.limits = CloudLimits(max_draft_tokens=choose((4, 64)), max_unacknowledged=choose((6, 40, 512)))
        self.events: list[list[Any]] = []
        self.now = float(self.chance.randint(0, 1000))
        self.question = 0  # number of the app's last one
        self.stream = 0  # what was sent on an older one is lost
        self.dark = False  # whether the link swallows everything
        self.cloud: CloudCore | None = None
        self.line: TicketLine | None = None
        self.down_at = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.core = DeviceCore(
            prompt=self.prompt,
            output=[],
            max_tokens=self.max_tokens,
            config=self.config,
            drafting=self.drafting,
            jitter=self.jitter,
            memory=self.memory,
            hint=choose((None, None, Hint(battery_low=True), Hint(metered_network=True, prefer_fast=True))),
            finish_rule=lambda: EndRule(self.max_tokens),
            unverified=self.restored,
        )
        self.first_hint = self.core.policy.hint

    # -- the device -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """To the end, or until enough has happened."""
        self.tell("start", self.core.start)
        while not self.core.ended and len(self.events) < MAX_EVENTS:
            deadline = self.core.next_deadline()
            if self._heap and (deadline is None or self._heap[0][0] <= deadline):
                self.now, _, happen = heapq.heappop(self._heap)
                happen()
            elif deadline is not None:
                self.now = max(self.now, deadline)
                self.tell("expired", self.core.expired)
            else:
                break
            self.disturb()
        if not self.core.ended:
            self.tell("cancel", self.core.cancel)

    def tell(self, name: str, method: Callable[..., list[Action]], *arguments: Any, timed: bool = True) -> None:
        """An event, what it comes to, and then what the driver does next."""
        if self.core.ended and name not in ("drafted", "draft_task"):
            return
        actions = method(*arguments, self.now) if timed else method(*arguments)
        self.note(name, arguments, [action_form(action) for action in actions])
        for action in actions:
            self.act(action)
        if name == "take" and self.chance.random() < 0.9:
            self.tell("look_ahead", self.core.look_ahead)
        self.ask_for_draft()

    def note(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """Write it down, with the state that it leaves."""
        core, policy = self.core, self.core.policy
        state: list[Any] = [core.state.value, core.length, list(core.tail), core.next_deadline(), core.away]
        chosen: list[Any] = [policy.arm.value, policy.reason.value, policy.window, policy.gain]
        chosen += [policy.gather_s(3), policy.burst(2)]
        self.events.append([name, [event_form(value) for value in arguments], self.now, answer, state, chosen])

    def ask_for_draft(self) -> None:
        """What the drafter is asked, and when it will have answered."""
        task = self.core.draft_task(self.now)
        if task is None:
            return
        self.note("draft_task", (), [task.keep, list(task.extend), task.count])
        self.after(self.draft_s * task.count * self.chance.uniform(0.8, 1.4), lambda: self.drafted(task))

    def drafted(self, task: DraftTask) -> None:
        """The drafter's answer."""
        if self.chance.random() < 0.002:
            self.tell("drafter_failed", self.core.drafter_failed, timed=False)
            return
        context = [*self.prompt, *self.core.output, *self.core.tail][: task.start]
        tokens: list[int] = []
        for _ in range(task.count if self.chance.random() < 0.97 else 0):
            right = self.target([*context, *tokens])
            tokens.append(right if self.chance.random() < self.quality else self.chance.randrange(VOCABULARY - 1))
        self.tell("drafted", self.core.drafted, tokens)

    def act(self, action: Action) -> None:
        """As a driver does."""
        match action:
            case Connect():
                self.connect(action)
            case SendDraft(run, acknowledged):
                self.up(lambda cloud: self.received(cloud, run, acknowledged))
            case SendAcknowledge(length):
                self.up(lambda cloud: cloud.acknowledge(length, self.now))
            case SendMode(mode):
                self.up(lambda cloud: cloud.steer(mode, self.now))
            case SendPing(ping):
                self.up(lambda _: self.down("heard", lambda: (self.core.heard, Pong(ping.nonce))))
            case AskWhether(number, _):
                self.question = number
                choice = self.chance.choice((OnReconnect.VERIFY, OnReconnect.KEEP))
                wrong = self.chance.random() < 0.2
                self.after(self.chance.uniform(0, 0.5), lambda: self.answer(number - wrong, choice))
            case Keep():
                self.tell("kept", self.core.kept)

    def answer(self, number: int, choice: OnReconnect) -> None:
        """The app's; one to an older question is followed by the right one."""
        self.tell("answered", self.core.answered, number, choice)
        if self.core.state is DeviceState.ASKING:
            self.after(0.1, lambda: self.answer(self.question, choice))

    # -- what comes between -----------------------------------------------------------------------------------------

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let it happen later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, happen))

    def disturb(self) -> None:
        """Now and then something goes wrong, or the app says something."""
        if self.chance.random() < 0.01:
            hint = Hint(*(self.chance.random() < 0.3 for _ in range(3)))
            self.tell("hinted", self.core.hinted, hint)
        if self.chance.random() < 0.02 and self.cloud is not None:
            most = self.chance.choice((None, None, None, 0, 4))
            gain = self.chance.choice((0.0, 0.4, 2.0))
            advice = Advice(self.step_s, CloudDraft.MODEL, gain, 1 / (1 + gain), most, "full" if most == 0 else "")
            self.down("advised", lambda: (self.core.advised, advice))
        if self.chance.random() >= self.faults:
            return
        kind = self.chance.randrange(5)
        if kind == 0:
            self.dark = True
            self.after(self.chance.uniform(0.1, 2.5), self.lighten)
        elif kind == 1 and self.core.state is not DeviceState.WAITING:
            errors: tuple[PilotfishError, ...] = (
                Unavailable("cut"),
                Unavailable("drains", retry_after_s=0.2),
                Overloaded("full", retry_after_s=0.5),
                EngineFailure("computed nothing"),
            )
            error = self.chance.choice(errors) if self.chance.random() < 0.97 else InvalidRequest("no")
            self.stream += 1
            self.tell("lost", self.core.lost, error)

    def lighten(self) -> None:
        """The link is back; what was sent meanwhile never arrives, so that the stream has a gap."""
        self.dark = False

    def up(self, arrive: Callable[[CloudCore], object]) -> None:
        """Something on its way to the cloud."""
        stream, cloud = self.stream, self.cloud
        if self.dark or cloud is None:
            return

        def happen() -> None:
            if stream == self.stream and cloud.state is CloudState.RUNNING:
                arrive(cloud)

        self.after(self.delay, happen)

    def down(self, name: str, what: Callable[[], tuple[Callable[..., list[Action]], Any]]) -> None:
        """Something on its way to the device, in order."""
        stream = self.stream
        if self.dark:
            return
        self.down_at = max(self.down_at, self.now + self.delay)

        def happen() -> None:
            if stream == self.stream and not self.core.ended:
                method, message = what()
                self.tell(name, method, message, timed=name != "proved")

        self.after(self.down_at - self.now, happen)

    # -- the cloud --------------------------------------------------------------------------------------------------

    def target(self, context: list[int]) -> int:
        """The target's token behind ``context``: a function of its end."""
        value = random.Random(f"{context[-4:]} {len(context)} {self.salt}").randrange(VOCABULARY * 4)
        return END if value == 0 else value % (VOCABULARY - 1)

    def connect(self, connect: Connect) -> None:
        """A new stream, if the link is there."""
        self.stream += 1
        stream = self.stream
        if self.dark and self.chance.random() < 0.7:
            self.after(0.05, lambda: self.refused(stream))
            return
        output = self.core.output[: connect.length - len(self.prompt)]
        self.cloud = CloudCore(
            prompt_length=len(self.prompt),
            output=output,
            finish_rule=EndRule(self.max_tokens),
            vocabulary_size=VOCABULARY,
            max_output=self.max_tokens,
            limits=self.limits,
            now=self.now,
            mode=connect.mode,
        )
        params = SamplingParams(max_tokens=self.max_tokens, seed=1)
        opening = Open(
            model="m",
            tokenizer_hash="",
            generation_id=bytes(16),
            attempt=connect.attempt,
            prompt=tuple(self.prompt),
            params=params,
            output=tuple(output),
        )
        self.line = None if self.tickets is None else self.tickets.line("tenant", "m", opening)
        granted = Opened(
            model="m",
            fingerprint="f",
            max_model_len=len(self.prompt) + self.chance.choice((self.max_tokens, 1000)),
            max_draft_tokens=self.limits.max_draft_tokens,
            max_unacknowledged=self.limits.max_unacknowledged,
            cloud_draft=CloudDraft.MODEL,
        )
        cloud = self.cloud
        self.after(self.delay, lambda: self.open(stream, cloud, granted))

    def refused(self, stream: int) -> None:
        """Nobody answered."""
        if stream == self.stream and self.core.state is DeviceState.CONNECTING:
            self.stream += 1
            self.tell("lost", self.core.lost, Unavailable("nobody there"))

    def open(self, stream: int, cloud: CloudCore, granted: Opened) -> None:
        """In the cloud."""
        if stream != self.stream:
            return
        self.down("opened", lambda: (self.core.opened, granted))
        commit = cloud.open(self.now)
        if commit is not None:
            self.down("take", lambda: (self.core.take, commit))
        else:
            self.after(self.step_s, lambda: self.step(stream, cloud))

    def received(self, cloud: CloudCore, run: Any, acknowledged: int | None) -> None:
        """A frame with a run."""
        if acknowledged is not None:
            cloud.acknowledge(acknowledged, self.now)
        cloud.receive(run, self.now)

    def step(self, stream: int, cloud: CloudCore) -> None:
        """A step of the target, or a moment's wait for one."""
        if stream != self.stream or cloud.state is not CloudState.RUNNING:
            return
        if not cloud.runnable or cloud.held(self.now):
            self.after(0.004, lambda: self.step(stream, cloud))
            return
        if not cloud.buffered and cloud.mode.cloud_draft is not CloudDraft.NONE:
            cloud.own = cloud.own or OwnDraft(cloud.mode.cloud_draft, OwnRecord())
            context = [*self.prompt, *cloud.output]
            for _ in range(3):
                right = self.target(context)
                context.append(right if self.chance.random() < 0.7 else (right + 1) % VOCABULARY)
            cloud.own.propose(context[cloud.length :])
        elif cloud.mode.cloud_draft is CloudDraft.NONE:
            cloud.own = None
        drafts = cloud.draft(self.chance.choice((2, 8, 20)), self.now)
        context = [*self.prompt, *cloud.output]
        targets = [self.target([*context, *drafts[:row]]) for row in range(len(drafts) + 1)]
        self.after(self.step_s * self.chance.uniform(0.9, 1.2), lambda: self.stepped(stream, cloud, targets))

    def stepped(self, stream: int, cloud: CloudCore, targets: list[int]) -> None:
        """What the step decided."""
        commit = cloud.step(targets, self.now)
        if commit is None:
            return
        self.down("take", lambda: (self.core.take, commit))
        proof = None if self.line is None else self.line.commit(commit.tokens)
        if proof is not None:
            ticket = Ticket(proof, commit.end)
            self.down("proved", lambda: (self.core.proved, ticket))
        if commit.finish is None:
            self.after(0.0, lambda: self.step(stream, cloud))
