"""Both protocol cores against each other under arbitrary delays, duplicates, cuts and resumes."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilotfish_core.cloud_core import CloudCore, CloudLimits, CloudState
from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    Deliver,
    DeviceConfig,
    DraftTask,
    End,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
    ShowUnverified,
)
from pilotfish_core.device_core import DeviceCore, DeviceState
from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import Acknowledged, Open, Opened, Ping, Pong, Ticket
from pilotfish_core.modes import Advice, Arm, CloudDraft, Hint, Mode
from pilotfish_core.offline import OfflineConfig, OnReconnect
from pilotfish_core.own_draft import OwnDraft, OwnRecord
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.tickets import TicketLine, Tickets

VOCABULARY = 4
END = 3


def target_token(context: tuple[int, ...], salt: int) -> int:
    """A target: any deterministic function of the context."""
    return random.Random(repr((context[-5:], len(context), salt))).choices(range(VOCABULARY), (4, 4, 4, 1))[0]


class EndRule:
    def __init__(self, max_tokens: int) -> None:
        self.count = 0
        self.max_tokens = max_tokens

    def push(self, token: int) -> Finish | None:
        self.count += 1
        if token == END:
            return Finish(FinishReason.STOP, END)
        return Finish(FinishReason.LENGTH) if self.count >= self.max_tokens else None


def target_alone(prompt: tuple[int, ...], max_tokens: int, salt: int) -> list[int]:
    rule, output = EndRule(max_tokens), list[int]()
    while True:
        output.append(target_token((*prompt, *output), salt))
        if rule.push(output[-1]) is not None:
            return output


@dataclasses.dataclass
class Link:
    """One stream: two ordered queues, and what the specification needs to know about it."""

    cloud: CloudCore
    up: list[DraftRun | Acknowledged | Ping | Mode | Hint]
    down: list[Opened | Commit | Ticket | Pong | Advice]
    received: list[DraftRun]
    verified: set[tuple[int, int]]
    tickets: TicketLine | None


class ProtocolMachine(RuleBasedStateMachine):
    @initialize(
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
        max_tokens=st.integers(1, 40),
        window=st.integers(1, 12),
        chunk=st.integers(1, 5),
        salt=st.integers(0, 10**6),
        quality=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        max_draft=st.integers(1, 12),
        max_unacknowledged=st.integers(1, 20),
        acknowledge_every=st.integers(1, 40),
        adaptive=st.booleans(),
        tick=st.sampled_from([0.0001, 0.01, 0.3]),
        arm=st.sampled_from([Arm.AUTO, Arm.ASYNC, Arm.LOCKSTEP, Arm.CLOUD, Arm.CO_LOCATED]),
        ticket_every=st.sampled_from([None, None, 1, 4, 16]),
        offline=st.sampled_from([None, OnReconnect.VERIFY, OnReconnect.ASK]),
    )
    def begin(
        self,
        prompt: list[int],
        max_tokens: int,
        window: int,
        chunk: int,
        salt: int,
        quality: float,
        max_draft: int,
        max_unacknowledged: int,
        acknowledge_every: int,
        adaptive: bool,
        tick: float,
        arm: Arm,
        ticket_every: int | None,
        offline: OnReconnect | None,
    ) -> None:
        self.tickets = None if ticket_every is None else Tickets(b"key", every=ticket_every)
        self.prompt, self.max_tokens, self.salt, self.quality = tuple(prompt), max_tokens, salt, quality
        self.reference = target_alone(self.prompt, max_tokens, salt)
        self.limits = CloudLimits(max_draft_tokens=max_draft, max_unacknowledged=max_unacknowledged)
        self.window = window
        self.ticking = tick
        self.now = 0.0
        self.link: Link | None = None
        self.task: DraftTask | None = None
        self.drafter: list[int] = []
        self.delivered: list[int] = []
        self.shown: list[int] = []  # that the app was shown behind what was delivered, unverified
        self.question: AskWhether | None = None
        self.ends: list[End] = []
        self.draft_random = random.Random(salt)
        self.device = DeviceCore(
            prompt=prompt,
            output=[],
            max_tokens=max_tokens,
            config=DeviceConfig(
                window=window,
                draft_chunk=chunk,
                adaptive=adaptive,
                arm=arm,
                acknowledge_every=acknowledge_every,
                retry=RetryPolicy(max_attempts=10**6, max_first_attempts=10**6),
                offline=None if offline is None else OfflineConfig(on_reconnect=offline),
            ),
            drafting=True,
            jitter=random.Random(salt),
            finish_rule=lambda: EndRule(max_tokens),
        )
        self.act(self.device.start(self.now))

    # -- the driver -------------------------------------------------------------------------------------------------

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect():
                    self.connect(action)
                case SendMode(mode):
                    assert self.link is not None
                    self.link.up.append(mode)
                case SendHint(hint):
                    assert self.link is not None
                    self.link.up.append(hint)
                case SendDraft(run, acknowledged):
                    assert self.link is not None
                    if acknowledged is not None:
                        self.link.up.append(Acknowledged(acknowledged))
                    self.link.up.append(run)
                case SendAcknowledge(length):
                    assert self.link is not None
                    self.link.up.append(Acknowledged(length))
                case SendPing(ping):
                    assert self.link is not None
                    self.link.up.append(ping)
                case Deliver():
                    self.delivered_to_app(action)
                case ShowUnverified(position, tokens):
                    assert self.device.away
                    assert position == len(self.prompt) + len(self.delivered) + len(self.shown)
                    self.shown.extend(tokens)
                    assert len(self.delivered) + len(self.shown) <= self.max_tokens
                case AskWhether(_, tokens):
                    assert list(tokens) == self.shown != []
                    self.question = action
                case End():
                    self.ends.append(action)

    def delivered_to_app(self, deliver: Deliver) -> None:
        """What was shown stands as far as it is the target's, and nothing of the rest stays on the screen."""
        agreed = 0
        while agreed < min(len(self.shown), len(deliver.tokens)) and self.shown[agreed] == deliver.tokens[agreed]:
            agreed += 1
        assert deliver.confirmed == agreed
        self.delivered.extend(deliver.tokens)
        self.shown = self.shown[agreed:]
        assert deliver.withdrawn in (0, len(self.shown))
        if deliver.withdrawn:
            self.shown.clear()
        assert not self.shown or agreed == len(deliver.tokens)

    def connect(self, connect: Connect) -> None:
        output = self.device.output[: connect.length - len(self.prompt)]
        opening = Open(
            model="m",
            tokenizer_hash="",
            generation_id=bytes(16),
            attempt=connect.attempt,
            prompt=self.prompt,
            params=SamplingParams(max_tokens=self.max_tokens, seed=1),
            output=tuple(output),
            ticket=connect.ticket,
        )
        if self.tickets is None:
            assert output == self.device.output
        else:
            self.tickets.check("tenant", "m", opening)
        cloud = CloudCore(
            prompt_length=len(self.prompt),
            output=output,
            finish_rule=EndRule(self.max_tokens),
            vocabulary_size=VOCABULARY,
            max_output=self.max_tokens,
            limits=self.limits,
            now=self.now,
            mode=connect.mode,
        )
        line = None if self.tickets is None else self.tickets.line("tenant", "m", opening)
        self.link = Link(cloud, [], [], [], set(), line)
        self.link.down.append(
            Opened(
                model="m",
                fingerprint="f",
                max_model_len=10**6,
                max_draft_tokens=self.limits.max_draft_tokens,
                max_unacknowledged=self.limits.max_unacknowledged,
                cloud_draft=CloudDraft.MODEL,
            )
        )
        commit = cloud.open(self.now)
        if commit is not None:
            self.link.down.append(commit)

    def tick(self) -> None:
        self.now += self.ticking

    @property
    def running(self) -> bool:
        return self.link is not None and not self.device.ended

    # -- rules ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.running and self.link.up)
    @rule(duplicate=st.booleans())
    def deliver_up(self, duplicate: bool) -> None:
        assert self.link is not None
        self.tick()
        message = self.link.up.pop(0)
        if isinstance(message, Ping):
            self.link.down.append(Pong(message.nonce))
            return
        if isinstance(message, Mode):
            self.link.cloud.steer(message, self.now)
            return
        if isinstance(message, Hint):
            return
        for _ in range(1 + duplicate):
            if isinstance(message, Acknowledged):
                self.link.cloud.acknowledge(message.length, self.now)
            else:
                self.link.cloud.receive(message, self.now)
                self.link.received.append(message)

    @precondition(lambda self: self.running and self.link.down)
    @rule(duplicate=st.booleans(), apart=st.booleans())
    def deliver_down(self, duplicate: bool, apart: bool = False) -> None:
        assert self.link is not None
        self.tick()
        message = self.link.down.pop(0)
        if isinstance(message, Opened):
            self.act(self.device.opened(message, self.now))
            return
        if isinstance(message, Pong):
            self.act(self.device.heard(message, self.now))
            return
        if isinstance(message, Advice):
            self.act(self.device.advised(message, self.now))
            return
        assert isinstance(message, Commit)
        link = self.link
        for _ in range(1 + duplicate):
            if self.link is link and not self.device.ended:
                self.act((self.device.take if apart else self.device.committed)(message, self.now))
        following = link.down[0] if link.down else None
        if isinstance(following, Ticket):  # in the same frame
            link.down.pop(0)
            self.act(self.device.proved(following))

    @precondition(lambda self: self.device._looking or self.device._taken)
    @rule()
    def look_ahead(self) -> None:
        """A while after a commit was taken."""
        self.act(self.device.look_ahead(self.now))

    @precondition(lambda self: self.running)
    @rule(
        gain=st.sampled_from([0.0, 0.5, 5.0]), most=st.sampled_from([None, 0, 4]), step_s=st.sampled_from([0.001, 0.04])
    )
    def advise(self, gain: float, most: int | None, step_s: float) -> None:
        assert self.link is not None
        if self.link.cloud.state is CloudState.RUNNING:
            self.link.down.append(Advice(step_s, CloudDraft.MODEL, gain, 1 / (1 + gain), most))

    @precondition(lambda self: not self.device.ended)
    @rule(low=st.booleans(), fast=st.booleans())
    def hint(self, low: bool, fast: bool) -> None:
        self.act(self.device.hinted(Hint(battery_low=low, prefer_fast=fast), self.now))

    def propose(self, count: int) -> None:
        """The cloud drafts itself, where the device allows it and has nothing."""
        assert self.link is not None
        cloud = self.link.cloud
        if cloud.mode.cloud_draft is CloudDraft.NONE:
            cloud.own = None
            return
        cloud.own = cloud.own or OwnDraft(cloud.mode.cloud_draft, OwnRecord())
        context = [*self.prompt, *cloud.output]
        for _ in range(count):
            wrong = self.draft_random.random() >= self.quality
            context.append((target_token(tuple(context), self.salt) + wrong) % VOCABULARY)
        cloud.own.propose(context[cloud.length :])

    @precondition(lambda self: self.running and self.link.cloud.runnable and not self.link.cloud.held(self.now))
    @rule(limit=st.integers(0, 12), own=st.integers(0, 4))
    def begin_step(self, limit: int, own: int) -> None:
        assert self.link is not None
        self.tick()
        cloud = self.link.cloud
        if not cloud.buffered:
            self.propose(own)
        if not cloud.buffered and cloud.own is not None and cloud.own.tokens:
            room = max(self.max_tokens - len(cloud.output) - 1, 0)
            assert cloud.draft(limit, self.now) == cloud.own.tokens[: min(limit, room)]
            return
        drafts = cloud.draft(limit, self.now)
        expected = self.specified_draft(self.link)
        room = max(self.max_tokens - len(cloud.output) - 1, 0)
        assert drafts == expected[: min(limit, room)]
        for offset in range(len(drafts)):
            row = (self.link.received[-1].branch, cloud.length + offset)
            assert row not in self.link.verified, "a draft token was verified twice"
            self.link.verified.add(row)

    @precondition(lambda self: self.running and self.link.cloud._verifying is not None)
    @rule()
    def end_step(self) -> None:
        assert self.link is not None
        self.tick()
        cloud = self.link.cloud
        context = (*self.prompt, *cloud.output)
        drafts = cloud._verifying
        assert drafts is not None
        targets = [target_token((*context, *drafts[:row]), self.salt) for row in range(len(drafts) + 1)]
        commit = cloud.step(targets, self.now)
        assert commit is not None
        self.link.down.append(commit)
        ticket = None if self.link.tickets is None else self.link.tickets.commit(commit.tokens)
        if ticket is not None:
            self.link.down.append(Ticket(ticket, commit.end))

    @precondition(lambda self: self.task is None and not self.device.ended)
    @rule()
    def begin_draft(self) -> None:
        self.tick()
        self.task = self.device.draft_task(self.now)
        if self.task is None:
            return
        assert self.task.keep <= len(self.drafter)
        del self.drafter[self.task.keep :]
        self.drafter.extend(self.task.extend)
        context = [*self.prompt, *self.device.output, *self.device.tail]
        assert self.drafter == context, "the drafter was synchronised to something else"

    @precondition(lambda self: self.task is not None)
    @rule(short=st.booleans())
    def end_draft(self, short: bool) -> None:
        assert self.task is not None
        self.tick()
        tokens = []
        for _ in range(max(self.task.count - short, 0)):
            good = target_token(tuple(self.drafter), self.salt)
            wrong = self.draft_random.random() >= self.quality
            tokens.append((good + 1) % VOCABULARY if wrong else good)
            self.drafter.append(tokens[-1])
        self.task = None
        self.act(self.device.drafted(tokens, self.now))

    @precondition(lambda self: self.device.state is DeviceState.ASKING)
    @rule(late=st.booleans())
    def answer(self, late: bool) -> None:
        """The app says that what it was shown is to be verified; an answer to an earlier question says nothing."""
        assert self.question is not None
        if late:
            assert self.device.answered(self.question.number - 1, OnReconnect.KEEP, self.now) == []
        self.act(self.device.answered(self.question.number, OnReconnect.VERIFY, self.now))

    @precondition(lambda self: self.running)
    @rule()
    def wait(self) -> None:
        """Until the device's next deadline: it sends what it has gathered, asks whether the link lives, or gives up."""
        self.reach_deadline()
        while self.device.state is DeviceState.WAITING:
            self.link = None
            self.reach_deadline()

    @precondition(lambda self: self.running and self.device._config.offline is not None)
    @rule(tokens=st.integers(1, 30), tries=st.integers(0, 2))
    def write_alone(self, tokens: int, tries: int) -> None:
        """The link is away for a while, some streams are opened in vain, and the device goes on."""
        self.link = None
        self.act(self.device.lost(Unavailable("away"), self.now))
        while not self.device.away or tries:
            if self.device.state is DeviceState.CONNECTING and self.device.away:
                tries -= 1
                self.act(self.device.lost(Unavailable("away"), self.now))
            self.reach_deadline()
        for _ in range(tokens):
            if self.task is None:
                self.begin_draft()
            if self.task is None:
                break
            self.end_draft(False)
        while self.device.state is DeviceState.WAITING:
            self.reach_deadline()

    def reach_deadline(self) -> None:
        deadline = self.device.next_deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.act(self.device.expired(self.now))

    @precondition(lambda self: self.running)
    @rule()
    def cut(self) -> None:
        """Everything in flight is lost; another replica goes on from what the device holds."""
        self.tick()
        self.link = None
        self.act(self.device.lost(Unavailable("cut"), self.now))
        while self.device.state is DeviceState.WAITING:
            self.reach_deadline()

    @precondition(lambda self: self.running)
    @rule(events=st.integers(5, 60))
    def go_on(self, events: int) -> None:
        """Undisturbed for a while: what comes later is disturbed in the middle of an answer."""
        for _ in range(events):
            if not self.running:
                return
            self.move()

    @precondition(lambda self: self.device.ended)
    @rule()
    def late(self) -> None:
        """What arrives after the end changes nothing."""
        late = Commit(position=len(self.prompt), tokens=(0,))
        assert self.device.committed(late, self.now) == []
        assert self.device.lost(Unavailable("late"), self.now) == []
        assert self.device.draft_task(self.now) is None
        assert self.device.next_deadline() is None

    # -- the specification ------------------------------------------------------------------------------------------

    @staticmethod
    def specified_draft(link: Link) -> tuple[int, ...]:
        """What is valid, recomputed from everything that arrived: the newest branch's tokens, if they agree."""
        drafted: dict[int, int] = {}
        newest = max((run.branch for run in link.received), default=-1)
        for run in link.received:
            if run.branch == newest:
                drafted.update(zip(range(run.start, run.end), run.tokens, strict=True))
        prompt_length = link.cloud.prompt_length
        for position, token in drafted.items():
            if position < link.cloud.length and link.cloud.output[position - prompt_length] != token:
                return ()
        result: list[int] = []
        while link.cloud.length + len(result) in drafted:
            result.append(drafted[link.cloud.length + len(result)])
        return tuple(result)

    @invariant()
    def committed_is_the_targets(self) -> None:
        if not hasattr(self, "device"):
            return
        assert self.device.output == self.reference[: len(self.device.output)]
        assert self.delivered == self.device.output
        assert self.shown == self.device.unverified.tokens
        if self.link is not None:
            assert self.link.cloud.output == self.reference[: len(self.link.cloud.output)]

    @invariant()
    def buffers_are_bounded(self) -> None:
        if not hasattr(self, "device"):
            return
        assert len(self.device.tail) <= (self.max_tokens if self.device.away else self.window)
        if self.link is not None:
            assert self.link.cloud.buffered <= self.limits.max_draft_tokens
            assert len(self.link.cloud.output) - len(self.device.output) <= self.limits.max_unacknowledged + 13

    def move(self) -> None:
        """One event of an undisturbed run."""
        assert self.link is not None
        if self.task is not None:
            self.end_draft(False)
        elif self.device.state is DeviceState.ASKING:
            self.answer(False)
        elif self.device._looking:
            self.look_ahead()
        elif self.link.up:
            self.deliver_up(False)
        elif self.link.down:
            self.deliver_down(False)
        elif self.link.cloud._verifying is not None:
            self.end_step()
        else:
            self.begin_draft()
            if self.link.cloud.runnable and not self.link.cloud.held(self.now):
                self.begin_step(3, 2)
            elif self.link.cloud.held(self.now) and not self.link.up and self.task is None:
                deadline = self.link.cloud.next_deadline()  # in lockstep, when the device's run was lost as stale
                assert deadline is not None
                self.now = max(self.now, deadline)
            elif self.task is None:
                self.wait()

    def teardown(self) -> None:
        """Left to themselves with everything delivered, they end, with the target's text."""
        if not hasattr(self, "device"):
            return
        for _ in range(50 * self.max_tokens + 200):
            if self.device.ended:
                break
            self.move()
        assert self.device.state is DeviceState.FINISHED
        assert self.device.output == self.reference
        assert not self.shown
        assert len(self.ends) == 1
        assert self.ends[0].finish is not None
        expected = FinishReason.STOP if self.reference[-1] == END else FinishReason.LENGTH
        assert self.ends[0].finish.reason is expected
        assert self.link is not None
        assert self.link.cloud.state is CloudState.FINISHED


ProtocolMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestProtocol = ProtocolMachine.TestCase
