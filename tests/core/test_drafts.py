"""The validity rule, by example: each case is a sentence of the design."""

from __future__ import annotations

import pytest

from pilotfish_core.drafts import DraftBuffer, DraftRun, RunFate
from pilotfish_core.errors import ProtocolViolation

PROMPT = 10


class Buffer:
    """A buffer over an output that the test grows."""

    def __init__(self, max_ahead: int = 8) -> None:
        self.output: list[int] = []
        self.buffer = DraftBuffer(PROMPT, self.output, max_ahead=max_ahead, vocabulary_size=100)

    def receive(self, branch: int, start: int, *tokens: int) -> RunFate:
        return self.buffer.receive(DraftRun(branch, start, tokens))

    def commit(self, *tokens: int) -> None:
        self.output.extend(tokens)
        self.buffer.committed()

    def draft(self) -> tuple[int, ...]:
        return self.buffer.peek(100)


def test_a_run_at_the_committed_length_is_verified_next() -> None:
    it = Buffer()
    assert it.receive(0, PROMPT, 1, 2, 3) is RunFate.KEPT
    assert it.draft() == (1, 2, 3)
    assert it.buffer.peek(2) == (1, 2)


def test_a_continuation_must_start_where_the_last_run_ended() -> None:
    it = Buffer()
    it.receive(0, PROMPT, 1)
    assert it.receive(0, PROMPT + 1, 2) is RunFate.KEPT
    assert it.receive(0, PROMPT + 1, 2) is RunFate.STALE  # a duplicate
    assert it.receive(0, PROMPT + 4, 5) is RunFate.STALE  # a gap
    assert it.draft() == (1, 2)


def test_a_higher_branch_replaces_whatever_is_held() -> None:
    it = Buffer()
    it.receive(0, PROMPT, 1, 2, 3)
    assert it.receive(1, PROMPT, 7) is RunFate.KEPT
    assert it.draft() == (7,)
    assert it.receive(0, PROMPT + 3, 4) is RunFate.STALE
    assert it.draft() == (7,)


def test_an_agreeing_commit_keeps_the_branch_and_a_differing_one_kills_it() -> None:
    it = Buffer()
    it.receive(0, PROMPT, 1, 2, 3)
    it.commit(1, 2)
    assert it.draft() == (3,)
    it.commit(9)
    assert it.draft() == ()
    assert it.receive(0, PROMPT + 3, 4) is RunFate.DEAD


def test_a_short_overlap_does_not_kill() -> None:
    """The cloud ran ahead of a draft that is still arriving, and agrees with it so far."""
    it = Buffer()
    it.receive(0, PROMPT, 1)
    it.commit(1, 2, 3)
    assert it.receive(0, PROMPT + 1, 2) is RunFate.KEPT
    assert it.draft() == ()
    assert it.receive(0, PROMPT + 2, 3, 4) is RunFate.KEPT
    assert it.draft() == (4,)


def test_an_overlap_is_compared_on_arrival() -> None:
    it = Buffer()
    it.receive(0, PROMPT, 1)
    it.commit(1, 2, 3)
    assert it.receive(0, PROMPT + 1, 8, 9, 9) is RunFate.DEAD
    assert it.draft() == ()
    assert it.receive(0, PROMPT + 4, 5) is RunFate.DEAD


def test_a_run_that_touches_the_buffers_end_is_not_thereby_valid() -> None:
    """Tried and wrong: accepting any run that fits the end of the buffer accepts stale ones."""
    it = Buffer()
    it.receive(0, PROMPT, 1, 2)
    it.receive(1, PROMPT, 5, 6)
    assert it.receive(0, PROMPT + 2, 3) is RunFate.STALE
    assert it.draft() == (5, 6)


@pytest.mark.parametrize(
    ("branch", "start", "tokens", "names"),
    [
        (0, PROMPT + 1, (1,), "beyond the committed length 10"),
        (0, PROMPT - 1, (1,), "prompt ends at 10"),
        (0, PROMPT, (100,), "draft token 100"),
        (0, PROMPT, (1,) * 9, "at most 8"),
    ],
)
def test_what_no_correct_device_sends_is_a_violation(
    branch: int, start: int, tokens: tuple[int, ...], names: str
) -> None:
    with pytest.raises(ProtocolViolation, match=names):
        Buffer().receive(branch, start, *tokens)
