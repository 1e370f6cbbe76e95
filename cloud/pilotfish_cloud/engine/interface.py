"""The engine interface: asynchronous messages in, events out. The same shape for a thread, a process and vLLM.

An engine owns each generation's ``CloudCore``: draft runs reach the scheduler without passing through the service's
event loop twice, and an engine in another process needs no shared state.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence

from pilotfish_core.cloud_core import VerifyCounts
from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Advice, CloudDraft, Hint, Mode, Pace
from pilotfish_core.parameters import SamplingParams


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the service tells devices about the target."""

    model: str  # the folder's name
    fingerprint: str  # hash of everything that decides the bits (DESIGN section 1, promise 1)
    tokenizer_hash: str
    vocabulary_size: int  # the tokenizer's: ids from here on are masked
    max_model_len: int  # prompt + output
    max_draft_tokens: int
    deterministic: bool
    dtype: str
    cloud_draft: CloudDraft = CloudDraft.NONE  # the best that the engine itself can draft with


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A generation to begin, or to continue from what the device holds.

    ``key`` names the stream within the engine: unique, never used again. ``output`` are the committed tokens of a
    resume. ``cache_salt`` separates tenants in the prefix cache; the server derives it, never the client. ``tenant``
    and its ``weight`` decide who shares rows, seats and memory with whom; the server's to set too.
    """

    key: str
    prompt: tuple[int, ...]
    params: SamplingParams
    output: tuple[int, ...] = ()
    cache_salt: bytes = b""
    tenant: str = ""
    weight: float = 1.0  # of the tenant; the last one given counts
    mode: Mode = dataclasses.field(default_factory=Mode)
    hint: Hint = dataclasses.field(default_factory=Hint)
    pace: Pace | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedEvent:
    """The generation was admitted. ``cached_tokens`` of its prompt + output came from the prefix cache."""

    key: str
    cached_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class CommitEvent:
    """Tokens were committed; a commit with a finish is the last event of its key."""

    key: str
    commit: Commit
    step_ended: float  # time.monotonic() seconds, for the service's delay metric
    counts: VerifyCounts | None = None  # with a finish: those of the whole generation


@dataclasses.dataclass(frozen=True, slots=True)
class AdviceEvent:
    """What the device should know for its choice of who drafts."""

    key: str
    advice: Advice


@dataclasses.dataclass(frozen=True, slots=True)
class FailedEvent:
    """The generation ended without a finish; the last event of its key. An abort by the caller yields none."""

    key: str
    error: PilotfishError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Totals since start, and what is held now. A snapshot; the engine goes on. Rows as computed, tokens otherwise."""

    steps: int
    step_seconds: float
    step_buckets: tuple[tuple[float, int], ...]  # (seconds, steps that took at most so long), the last one infinity
    prefill_rows: int
    decode_rows: int
    draft_rows: int  # the device's and the cloud's own
    committed_tokens: int
    verify: VerifyCounts  # of all generations, by draft position
    holds: int
    preemptions: int
    failures: int
    running: int
    waiting: int
    waiting_tokens: int  # of their prompts, and what was committed of those that were preempted
    tenants: int  # with unfinished generations
    blocks_total: int
    blocks_held: int
    blocks_kept: int
    cache_hit_tokens: int
    cache_miss_tokens: dict[str, int]  # by reason


EngineEvent = OpenedEvent | CommitEvent | AdviceEvent | FailedEvent

# Called from the engine's own thread with all events of one step; must not block nor raise.
EventListener = Callable[[Sequence[EngineEvent]], None]

# Called once, from the engine's own thread, when it cannot go on at all; with the reason.
DeathListener = Callable[[str], None]


class Engine(abc.ABC):
    """Verifies drafts with the target. Methods may be called from any thread and never block on a step.

    Messages for a key that is unknown or has ended are dropped: the device cannot know yet.
    """

    info: EngineInfo

    @abc.abstractmethod
    def start(self, listener: EventListener, on_death: DeathListener | None = None) -> None:
        """Begin stepping. ``listener`` receives every event; ``on_death`` hears that no more will come."""

    @abc.abstractmethod
    def open(self, request: OpenRequest) -> None:
        """Begin or continue a generation; answered by OpenedEvent or FailedEvent."""

    @abc.abstractmethod
    def push(self, key: str, run: DraftRun) -> None:
        """Draft tokens arrived; a run that breaks the protocol fails its own generation only."""

    @abc.abstractmethod
    def acknowledge(self, key: str, length: int) -> None:
        """The device holds the committed tokens up to ``length``."""

    @abc.abstractmethod
    def steer(self, key: str, mode: Mode) -> None:
        """The device drafts otherwise from here on."""

    @abc.abstractmethod
    def hint(self, key: str, hint: Hint) -> None:
        """What the app knows about the device has changed."""

    @abc.abstractmethod
    def abort(self, key: str) -> None:
        """End a generation and free what it holds. No further events for its key after those already sent."""

    @abc.abstractmethod
    def check_integrity(self) -> None:
        """Raises IntegrityError unless all memory is accounted for. With nothing running."""

    @abc.abstractmethod
    def stats(self) -> EngineStats:
        """A snapshot of the counters, at most some seconds old."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop stepping, fail what is running with Unavailable, join the worker."""
