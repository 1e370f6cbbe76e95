"""Who answers what and when, with scripted verifiers; drafts at a chosen pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from pilotfish.bench.paced import PacedDrafter
from pilotfish.bench.plan import Cell
from pilotfish.bench.progress import Progress
from pilotfish.bench.runner import Runner, Work
from pilotfish.client import AsyncClient
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import DeadlineExceeded, FileFormatError, UnknownModel
from pilotfish_core.messages import Opened
from pilotfish_core.modes import Arm
from pilotfish_core.parameters import SamplingParams
from tests.device.verifiers import (
    LENGTH,
    TOKENIZER,
    ListDrafter,
    Script,
    ScriptedStream,
    ScriptedTransport,
    ids,
    opened,
)

ARMS = (Arm.CLOUD, Arm.LOCKSTEP, Arm.ASYNC)
WARM_UP = ids("w")


def work(prompts: str, *, repeats: int = 1, warmup: int = 1, timeout_s: float = 30.0) -> Work:
    return Work(
        prompts=[ids(prompt) for prompt in prompts],
        warm_up=WARM_UP,
        sampling={"max_tokens": 3, "seed": 1},
        repeats=repeats,
        warmup=warmup,
        timeout_s=timeout_s,
    )


class Stand:
    """A verifier for each arm. Keeps who was asked for what, and how many answers were under way at once."""

    def __init__(self, script: Script | None = None) -> None:
        self.asked: list[tuple[Arm, str]] = []
        self.clients: list[AsyncClient] = []
        self.now = self.most = 0
        self._script = script

    def connect(self, arm: Arm, cell: Cell) -> AsyncClient:
        async def answers(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
            self.asked.append((arm, TOKENIZER.decode(stream.opening.prompt)))
            self.now += 1
            self.most = max(self.most, self.now)
            yield opened()
            await asyncio.sleep(0)  # the others get their turn, where they are at it, too
            await asyncio.sleep(0)
            self.now -= 1
            yield Commit(position=len(stream.opening.prompt), tokens=ids("xyz"), finish=LENGTH)

        client = AsyncClient("scripted:1", draft=None, tokenizer=TOKENIZER)
        client._transport = ScriptedTransport(self._script or answers)
        self.clients.append(client)
        return client


async def test_the_arms_take_turns() -> None:
    stand = Stand()
    runner = Runner(work("abc", repeats=2), stand.connect, Progress())
    await runner.run(Cell(0, 1), ARMS)
    assert stand.asked[:3] == [(arm, "w") for arm in ARMS]
    assert stand.asked[3:9] == [
        (Arm.CLOUD, "a"), (Arm.LOCKSTEP, "a"), (Arm.ASYNC, "a"),
        (Arm.LOCKSTEP, "b"), (Arm.ASYNC, "b"), (Arm.CLOUD, "b"),
    ]  # fmt: skip
    answers = runner.measured.answers
    assert len(answers) == 3 * 3 * 2
    assert {(answer.arm, answer.prompt, answer.repeat) for answer in answers} == {
        (arm, prompt, repeat) for arm in ARMS for prompt in range(3) for repeat in range(2)
    }
    assert {answer.token_ids for answer in answers} == {ids("xyz")}
    assert runner.measured.rounds == []
    assert stand.most == 1
    assert all(client._closed for client in stand.clients)


async def test_a_client_lives_as_long_as_its_cell() -> None:
    stand = Stand()
    runner = Runner(work("ab", warmup=0), stand.connect, Progress())
    for cell in (Cell(0, 1), Cell(20, 1)):
        await runner.run(cell, ARMS)
    assert len(stand.clients) == 2 * len(ARMS)
    assert [answer.cell.rtt_ms for answer in runner.measured.answers] == [0] * 6 + [20] * 6


async def test_several_streams_at_once_are_all_of_one_arm() -> None:
    stand = Stand()
    runner = Runner(work("abcd", repeats=2), stand.connect, Progress())
    await runner.run(Cell(0, 2), ARMS)
    assert stand.most == 2
    assert stand.asked[:6] == [(arm, "w") for arm in ARMS for _ in range(2)]
    assert [arm for arm, _ in stand.asked[6:]] == [
        arm for arm in (*ARMS, *ARMS[1:], ARMS[0]) for _ in range(4)
    ]  # the second repeat begins with another arm
    rounds = runner.measured.rounds
    assert [(one.arm, one.repeat, one.tokens) for one in rounds] == [
        *((arm, 0, 12) for arm in ARMS),
        *((arm, 1, 12) for arm in (*ARMS[1:], ARMS[0])),
    ]
    assert all(one.wall_s > 0 and one.tokens_per_s == one.tokens / one.wall_s for one in rounds)
    assert len(runner.measured.answers) == 24


async def fails(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()
    raise UnknownModel("gone")


async def hangs(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()


@pytest.mark.parametrize("streams", [1, 3])
async def test_an_answer_that_fails_ends_the_run(streams: int) -> None:
    stand = Stand(fails)
    runner = Runner(work("abc", warmup=0), stand.connect, Progress())
    with pytest.raises(UnknownModel, match="gone"):
        await runner.run(Cell(0, streams), ARMS)
    assert all(client._closed for client in stand.clients)
    assert runner.measured.answers == []


async def test_an_answer_that_does_not_come_ends_the_run() -> None:
    with pytest.raises(DeadlineExceeded):
        await Runner(work("ab", timeout_s=0.01), Stand(hangs).connect, Progress()).run(Cell(0, 2), ARMS)


def test_a_paced_drafter_takes_its_time() -> None:
    inner = ListDrafter([4, 5, 6], tokenizer_hash="abc")
    drafter = PacedDrafter(inner, 0.02)
    assert (drafter.name, drafter.tokenizer_hash, drafter.max_length) == ("list-20ms", "abc", None)
    context = drafter.open(SamplingParams(), 0)
    context.extend([1, 2])
    context.rewind(1)
    assert context.length == 1
    began = time.monotonic()
    assert context.draft(3) == [4, 5, 6]
    assert time.monotonic() - began >= 0.06
    assert context.length == 4
    context.close()
    drafter.close()
    assert inner.closed
    with pytest.raises(ValueError, match="pace"):
        PacedDrafter(inner, -1.0)


def test_what_fails_inside_comes_out() -> None:
    class Broken(ListDrafter):
        def open(self, params: SamplingParams, prompt_length: int) -> None:  # type: ignore[override]
            raise FileFormatError("broken")

    with pytest.raises(FileFormatError):
        PacedDrafter(Broken(), 1.0).open(SamplingParams(), 0)
