"""What the device's core is told to do and asks for: its settings, its actions, its drafting tasks and counters."""

from __future__ import annotations

import dataclasses

from pilotfish_core.draft_policy import DraftPolicyConfig
from pilotfish_core.drafts import Commit, DraftRun, Finish, Origin, TokenLogprobs
from pilotfish_core.errors import PilotfishError
from pilotfish_core.messages import Ping
from pilotfish_core.modes import Arm, Hint, Mode, Objective
from pilotfish_core.offline import OfflineConfig
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.tuning import DraftTuning


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Who drafts, how far and how, and when the device worries about the link."""

    window: int = 16  # at most so many draft tokens beyond the last commit that the device knows
    adaptive: bool = True  # choose how many, when to send them, and whether to draft at all; False: always ``window``
    arm: Arm = Arm.AUTO  # who drafts, at what pace
    objective: Objective = Objective.LATENCY  # of AUTO
    tuning: DraftTuning = dataclasses.field(default_factory=DraftTuning)  # of the policy
    draft_chunk: int = 1  # tokens per draft task: small, so that a commit is noticed soon
    acknowledge_every: int = 32  # committed tokens; draft runs that open a branch acknowledge for free
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    ping_after_s: float = 5.0  # of silence, before Opened too; a verifier that computes or queues answers all the same
    ping_timeout_s: float = 5.0  # in which nothing at all is heard: then it hangs, or the link is gone
    measure_every_s: float = 0.5  # between pings that measure the round trip, while drafting
    offline: OfflineConfig | None = None  # None: while the link is away nothing is shown, and tries are counted

    @property
    def policy(self) -> DraftPolicyConfig:
        """What the policy is to know of it."""
        return DraftPolicyConfig(
            window=self.window, adaptive=self.adaptive, arm=self.arm, objective=self.objective, tuning=self.tuning
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Connect:
    """Open a new stream (the next address after a failure) and send Open with this attempt number and mode, and of the
    committed tokens those below position ``length``, which ``ticket`` proves where there is one.
    """

    attempt: int
    length: int
    mode: Mode = dataclasses.field(default_factory=Mode)
    ticket: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class SendDraft:
    """Send a draft run, with an acknowledgement riding along."""

    run: DraftRun
    acknowledged: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SendAcknowledge:
    """Send an acknowledgement."""

    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class SendPing:
    """Send a ping: nothing was heard for a while."""

    ping: Ping


@dataclasses.dataclass(frozen=True, slots=True)
class Deliver:
    """Hand committed tokens, the first one at ``position``, to the app. Of those that it was shown unverified the first
    ``confirmed`` are the same; ``withdrawn`` do not stand and are replaced by the rest; ``undecided`` are left.
    """

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    confirmed: int = 0
    withdrawn: int = 0
    undecided: int = 0
    position: int = 0

    @classmethod
    def of(
        cls, commit: Commit, known: int, position: int, confirmed: int, withdrawn: int, *, undecided: int
    ) -> Deliver:
        """What a commit adds at ``position``, whose first ``known`` tokens were here before."""
        return cls(
            commit.tokens[known:],
            tuple(commit.origin_of(index) for index in range(known, len(commit.tokens))),
            None if commit.logprobs is None else commit.logprobs[known:],
            confirmed,
            withdrawn,
            undecided,
            position,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ShowUnverified:
    """Hand draft tokens to the app, marked as what they are: the link is away."""

    position: int
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AskWhether:
    """Ask the app whether the ``tokens`` that it was shown are to be verified or kept, and bring the answer to
    ``answered`` with this ``number``.
    """

    number: int
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Unverified ``tokens`` are about to become output: note whose they are, then call ``kept``."""

    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """The generation is over: finished, or failed with an error. The driver closes stream and drafter."""

    finish: Finish | None
    error: PilotfishError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SendMode:
    """Tell the cloud how the device drafts from here on."""

    mode: Mode


@dataclasses.dataclass(frozen=True, slots=True)
class SendHint:
    """Tell the cloud what the app knows about the device."""

    hint: Hint


Action = (
    Connect
    | SendDraft
    | SendAcknowledge
    | SendPing
    | SendMode
    | SendHint
    | Deliver
    | ShowUnverified
    | AskWhether
    | Keep
    | End
)


@dataclasses.dataclass(frozen=True, slots=True)
class DraftTask:
    """Rewind the drafter to ``keep`` tokens, extend it by ``extend``, draft up to ``count``."""

    keep: int
    extend: tuple[int, ...]
    count: int

    @property
    def start(self) -> int:
        """Position of the first token to draft."""
        return self.keep + len(self.extend)


@dataclasses.dataclass(slots=True)
class DraftCounts:
    """Counters of one generation on the device."""

    drafted: int = 0
    sent: int = 0
    accepted: int = 0
    commits: int = 0
    bonus: int = 0
    recovered: int = 0
    cloud: int = 0
    rollbacks: int = 0
    reconnects: int = 0
    unverified: int = 0  # shown while the link was away
    confirmed: int = 0  # of those, by the target
    withdrawn: int = 0
    kept: int = 0

    def count(self, commit: Commit, known: int, *, confirmed: int, withdrawn: int) -> None:
        """A commit whose first ``known`` tokens were here before; of what was shown unverified so many were
        ``confirmed`` and ``withdrawn``.
        """
        self.commits += 1
        self.confirmed += confirmed
        self.withdrawn += withdrawn
        for index in range(known, len(commit.tokens)):
            match commit.origin_of(index):
                case Origin.ACCEPTED:
                    self.accepted += 1
                case Origin.BONUS:
                    self.bonus += 1
                case Origin.RECOVERED:
                    self.recovered += 1
                case _:
                    self.cloud += 1
