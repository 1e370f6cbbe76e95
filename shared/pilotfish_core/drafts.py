"""The protocol's words: draft runs, commits, and the cloud's buffer with its rule of which run is valid.

Positions are indices into prompt + output. A *branch* is one uninterrupted line of drafting: the device starts a
new one, numbered higher, whenever the target disagreed or went past what the device had drafted.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from pilotfish_core.errors import ProtocolViolation


class FinishReason(enum.StrEnum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"  # an end token, a stop token id or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # cancelled by the caller


class Origin(enum.StrEnum):
    """Where a token came from, as the app sees it."""

    ACCEPTED = "accepted"  # drafted by the device, equal to the target's choice
    RECOVERED = "recovered"  # the target's, where the draft differed
    BONUS = "bonus"  # the target's, after a fully accepted draft
    CLOUD = "cloud"  # the target's, in a step that had no draft
    UNVERIFIED = "unverified"  # the draft model's alone (device-only mode)


@dataclasses.dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer: why, and for ``stop`` which token id or string ended it."""

    reason: FinishReason
    stop: int | str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class DraftRun:
    """Consecutive draft tokens of one branch, the first at position ``start``."""

    branch: int
    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """Position just past the last token."""
        return self.start + len(self.tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities before filtering: of the chosen token, and of the best ones, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that the target has decided, the first at ``position``. They never change.

    The first ``accepted`` tokens were drafted; a token after them has ``origin`` RECOVERED, BONUS or CLOUD. An empty
    commit only carries a ``finish``.
    """

    position: int
    tokens: tuple[int, ...]
    accepted: int = 0
    origin: Origin = Origin.CLOUD
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def end(self) -> int:
        """Committed length after this commit."""
        return self.position + len(self.tokens)

    def origin_of(self, index: int) -> Origin:
        """Origin of the commit's token ``index``."""
        return Origin.ACCEPTED if index < self.accepted else self.origin


class RunFate(enum.Enum):
    """What became of a received run."""

    KEPT = "kept"
    STALE = "stale"  # of an older branch, or not at the end of what was received
    DEAD = "dead"  # its branch has been refuted by a committed token


class DraftBuffer:
    """Draft tokens of one stream that the target has not seen yet.

    The rule (DESIGN section 4): keep (branch, received_end, alive). A continuation needs the same live branch and
    start == received_end. A higher branch needs start <= committed length and replaces whatever is held. Tokens
    that overlap the committed prefix are compared on arrival and after each commit: a differing token kills the
    branch, a merely short overlap does not.

    ``output`` is the sequence's own list of committed output tokens, shared, never modified here.
    """

    def __init__(self, prompt_length: int, output: Sequence[int], *, max_ahead: int, vocabulary_size: int) -> None:
        self._prompt_length = prompt_length
        self._output = output
        self._max_ahead = max_ahead
        self._vocabulary_size = vocabulary_size
        self._branch = -1
        self._alive = False
        self._received_end = prompt_length
        self._tokens: list[int] = []  # those at [received_end - len, received_end), none below the committed length

    @property
    def _committed_length(self) -> int:
        return self._prompt_length + len(self._output)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def branch(self) -> int:
        """The highest branch seen, -1 before the first."""
        return self._branch

    @property
    def alive(self) -> bool:
        """Whether the branch agrees with the committed prefix, so far as both reach."""
        return self._alive

    def receive(self, run: DraftRun) -> RunFate:
        """Take in a run that arrived.

        Raises ProtocolViolation for what a correct device never sends: a branch that starts beyond the committed
        length or inside the prompt, ids outside the vocabulary, more tokens ahead than were agreed.
        """
        self._check(run)
        if run.branch > self._branch:
            if run.start > self._committed_length:
                raise ProtocolViolation(
                    f"branch {run.branch} starts at position {run.start}, beyond the committed length "
                    f"{self._committed_length}"
                )
            self._branch, self._alive = run.branch, True
            self._received_end = run.start
            self._tokens.clear()
        elif run.branch < self._branch or run.start != self._received_end:
            return RunFate.STALE
        elif not self._alive:
            return RunFate.DEAD
        self._received_end = run.end
        self._tokens.extend(run.tokens)
        self._compare()
        if len(self._tokens) > self._max_ahead:
            raise ProtocolViolation(
                f"{len(self._tokens)} draft tokens beyond the commit; at most {self._max_ahead} were agreed"
            )
        return RunFate.KEPT if self._alive else RunFate.DEAD

    def committed(self) -> None:
        """To be called after ``output`` grew."""
        if self._alive:
            self._compare()

    def peek(self, limit: int) -> tuple[int, ...]:
        """Up to ``limit`` valid draft tokens, the first at the committed length."""
        return tuple(self._tokens[:limit])

    def clear(self) -> None:
        """Forget the branch; what still arrives of it is dead."""
        self._alive = False
        self._tokens.clear()

    def _check(self, run: DraftRun) -> None:
        if run.start < self._prompt_length or run.branch < 0:
            raise ProtocolViolation(
                f"draft run at position {run.start} of branch {run.branch}; prompt ends at {self._prompt_length}"
            )
        if len(run.tokens) > self._max_ahead:
            raise ProtocolViolation(f"a run of {len(run.tokens)} draft tokens; at most {self._max_ahead} were agreed")
        for token in run.tokens:
            if not 0 <= token < self._vocabulary_size:
                raise ProtocolViolation(f"draft token {token} is outside the vocabulary of {self._vocabulary_size}")

    def _compare(self) -> None:
        """Compare what overlaps the committed prefix, drop it, and kill the branch where it differs."""
        first = self._received_end - len(self._tokens)
        overlap = min(self._committed_length, self._received_end) - first
        if overlap <= 0:
            return
        begin = first - self._prompt_length
        if self._tokens[:overlap] != list(self._output[begin : begin + overlap]):
            self.clear()
        else:
            del self._tokens[:overlap]
