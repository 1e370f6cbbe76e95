"""Runs the cells: every arm answers the same prompts in turn, and what each answer measured is kept."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pilotfish.bench.plan import Cell, rotated, turns
from pilotfish.bench.progress import Progress
from pilotfish.client import AsyncClient
from pilotfish.result import Metrics, Result
from pilotfish_core.modes import Arm

Connect = Callable[[Arm, Cell], AsyncClient]
Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One counted answer. ``prompt`` is the prompt's index."""

    arm: Arm
    cell: Cell
    prompt: int
    repeat: int
    token_ids: Tokens
    metrics: Metrics


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """All prompts once by one arm, several at a time: the tokens of all answers, and the seconds from first to last."""

    arm: Arm
    cell: Cell
    repeat: int
    tokens: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.tokens / self.wall_s


@dataclasses.dataclass(slots=True)
class Measured:
    """Everything that was counted, in the order of time."""

    answers: list[Answer] = dataclasses.field(default_factory=list)
    rounds: list[Round] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every arm does in every cell. Prompts are token ids; ``warm_up`` is none of the others."""

    prompts: Sequence[Tokens]
    warm_up: Tokens
    sampling: Mapping[str, Any]
    repeats: int
    warmup: int
    timeout_s: float


class Runner:
    """Measures cells, one after the other, into ``measured``. ``connect`` makes an arm's client for a cell.

    A client lives as long as its cell: it remembers what its policy learned from the answers before.
    """

    def __init__(self, work: Work, connect: Connect, progress: Progress) -> None:
        self.measured = Measured()
        self._work = work
        self._connect = connect
        self._progress = progress

    async def run(self, cell: Cell, arms: Sequence[Arm]) -> None:
        """Measure one cell. Raises what ends an answer."""
        answers = len(arms) * len(self._work.prompts) * self._work.repeats
        self._progress.say(f"{cell}: {answers} answers by {', '.join(arms)}")
        async with contextlib.AsyncExitStack() as stack:
            clients: dict[Arm, AsyncClient] = {}
            for arm in arms:
                clients[arm] = await stack.enter_async_context(self._connect(arm, cell))
                await clients[arm].prepare()
            for arm, client in clients.items():
                self._progress.show(f"{cell}: warming up {arm}")
                for _ in range(self._work.warmup):
                    await _all([self._answer(client, self._work.warm_up) for _ in range(cell.concurrency)])
            if cell.concurrency == 1:
                await self._in_turns(cell, clients)
            else:
                await self._in_rounds(cell, clients)

    async def _in_turns(self, cell: Cell, clients: Mapping[Arm, AsyncClient]) -> None:
        """One stream at a time. The arms take turns at each prompt, so that what disturbs the machine disturbs all."""
        for turn in turns(tuple(clients), len(self._work.prompts), self._work.repeats):
            for arm in turn.arms:
                self._progress.show(f"{cell}: {self._place(turn.repeat, turn.prompt)}, {arm}")
                result = await self._answer(clients[arm], self._work.prompts[turn.prompt])
                self._keep(arm, cell, turn.prompt, turn.repeat, result)

    async def _in_rounds(self, cell: Cell, clients: Mapping[Arm, AsyncClient]) -> None:
        """Several streams at a time, all of one arm: arms that share the verifier would measure each other."""
        for repeat in range(self._work.repeats):
            for arm in rotated(tuple(clients), repeat):
                self._progress.show(f"{cell}: {self._place(repeat)}, {arm}")
                await self._round(arm, cell, repeat, clients[arm])

    async def _round(self, arm: Arm, cell: Cell, repeat: int, client: AsyncClient) -> None:
        waiting = iter(enumerate(self._work.prompts))
        tokens = 0

        async def work() -> None:
            nonlocal tokens
            for index, prompt in waiting:
                result = await self._answer(client, prompt)
                self._keep(arm, cell, index, repeat, result)
                tokens += len(result.token_ids)

        began = time.perf_counter()
        await _all([work() for _ in range(cell.concurrency)])
        self.measured.rounds.append(Round(arm, cell, repeat, tokens, time.perf_counter() - began))

    async def _answer(self, client: AsyncClient, prompt: Tokens) -> Result:
        return await answer(client, prompt, self._work.sampling, self._work.timeout_s)

    def _keep(self, arm: Arm, cell: Cell, prompt: int, repeat: int, result: Result) -> None:
        self.measured.answers.append(Answer(arm, cell, prompt, repeat, result.token_ids, result.metrics))

    def _place(self, repeat: int, prompt: int | None = None) -> str:
        parts = [f"repeat {repeat + 1} of {self._work.repeats}"] if self._work.repeats > 1 else []
        if prompt is not None:
            parts.append(f"prompt {prompt + 1} of {len(self._work.prompts)}")
        return ", ".join(parts) or f"{len(self._work.prompts)} prompts"


async def answer(client: AsyncClient, prompt: Tokens, sampling: Mapping[str, Any], timeout_s: float) -> Result:
    """One whole answer. Raises what ended it otherwise."""
    return await (await client.generate(prompt, timeout_s=timeout_s, **sampling)).result()


async def _all(parts: list[Any]) -> None:
    """Run them together; the first that fails ends the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
