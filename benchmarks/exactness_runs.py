"""Runs of the exactness benchmark: held-out prompts, a pair of verifier processes, answers through the real client."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.exactness_design import ORACLES, SAMPLINGS, Cell
from pilotfish.client import AsyncClient
from pilotfish.demo.stage import VerifierProcess
from pilotfish.drafters.junk import JunkDrafter
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.result import Metrics
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import FinishReason
from pilotfish_core.modes import Arm
from pilotfish_core.noise import derive_seed
from pilotfish_core.tokenizer import Tokenizer
from reference.corpus import documents

PROMPT_TOKENS: Final = (16, 448)  # shortest and longest; with 128 tokens of output some cross position 512
ANSWER_TIMEOUT_S: Final = 600.0
START_TIMEOUT_S: Final = 1800.0  # of a verifier: its self-check takes long on a busy machine
SHOWN: Final = 5  # differences of a cell that are kept in full
Answer = tuple[int, ...]
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A piece of a held-out file and the seed of its answer."""

    index: int
    source: str
    tokens: tuple[int, ...]
    seed: int


def held_out_prompts(tokenizer: Tokenizer, count: int, seed: int) -> list[Prompt]:
    """``count`` pieces of held-out files, of seeded lengths; a file's first piece is its beginning, others begin at
    lines. None is the beginning of another: an oracle tells answers apart by their prompts.
    """
    rng = random.Random(seed)
    files = list(documents("heldout"))
    rng.shuffle(files)
    prompts: list[Prompt] = []
    for attempt in range(100 * count):
        if len(prompts) == count:
            return prompts
        file = files[attempt % len(files)]
        lines = file.text.splitlines(keepends=True)
        begin = 0 if attempt < len(files) else rng.randrange(len(lines))
        length = rng.randint(*PROMPT_TOKENS)
        text = "".join(lines[begin : begin + length])[: 16 * length]
        tokens = tuple(tokenizer.encode(text, add_special_tokens=False)[:length])
        if len(tokens) == length and not any(overlap(tokens, other.tokens) for other in prompts):
            index = len(prompts)
            prompts.append(Prompt(index, f"{file.path}:{begin + 1}", tokens, derive_seed(seed, index + 1)))
    raise ValueError(f"the held-out files give only {len(prompts)} prompts; {count} are wanted")


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether one is the beginning of the other."""
    common = min(len(first), len(second))
    return first[:common] == second[:common]


class Verifiers:
    """Two verifier processes of the same model and settings. An async context manager; ``restart`` empties caches."""

    def __init__(self, target: Path, *, dtype: str, deterministic: bool) -> None:
        self._target = target
        # Fixed: every draft is verified, however bad it is; what is tested is that this changes nothing.
        fixed = ("--speculation", "fixed", "--threads", "1")
        self._arguments = ("--dtype", dtype, *fixed, *["--deterministic"] * deterministic)
        self._processes: list[VerifierProcess] = []
        self.starts = 0

    @property
    def addresses(self) -> list[str]:
        """Where they listen."""
        return [process.address for process in self._processes]

    @property
    def fingerprints(self) -> list[str]:
        """What they said they compute with."""
        return [process.fingerprint for process in self._processes]

    async def restart(self) -> None:
        """Begin, or end both and begin anew."""
        await asyncio.to_thread(self._restart)

    def _restart(self) -> None:
        self._stop()
        self._processes = [VerifierProcess(self._target, *self._arguments) for _ in range(2)]
        self.starts += 1
        for process in self._processes:
            process.start()
        for process in self._processes:
            process.wait_ready(START_TIMEOUT_S)

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.restart()
        except BaseException:
            await asyncio.to_thread(self._stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._stop)


@dataclasses.dataclass(slots=True, kw_only=True)
class Counts:
    """Sums over the answers of a cell. ``drafted_steps`` counts steps that verified a draft."""

    steps: int = 0
    drafted_steps: int = 0
    draft_tokens: int = 0
    sent_draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    rollbacks: int = 0
    reconnects: int = 0
    cached_tokens: int = 0
    resumes: int = 0

    def add(self, metrics: Metrics) -> None:
        """Count one run of one answer."""
        self.steps += metrics.steps
        self.drafted_steps += metrics.recovered_tokens + metrics.bonus_tokens
        self.draft_tokens += metrics.draft_tokens
        self.sent_draft_tokens += metrics.sent_draft_tokens
        self.accepted_draft_tokens += metrics.accepted_draft_tokens
        self.rollbacks += metrics.rollbacks
        self.reconnects += metrics.reconnects
        self.cached_tokens += metrics.cached_tokens


@dataclasses.dataclass(slots=True)
class Run:
    """Answers by prompt, where each was cut for a resume (0: not), and what it took."""

    answers: dict[int, Answer] = dataclasses.field(default_factory=dict)
    cuts: dict[int, int] = dataclasses.field(default_factory=dict)
    counts: Counts = dataclasses.field(default_factory=Counts)
    fingerprints: set[str] = dataclasses.field(default_factory=set)
    drafter_errors: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every run shares."""

    target: Path
    draft: Path  # exported
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    tokens: int
    seed: int

    def drafter(self, name: str, known: dict[int, Answer]) -> str | Path | Drafter | None:
        """What a cell names; ``known`` is what an oracle knows."""
        if name == "onnx int8":
            return self.draft
        if name == "junk":
            return JunkDrafter(self.tokenizer.vocab_size, seed=self.seed)
        if name in ORACLES:
            whole = [[*prompt.tokens, *known[prompt.index]] for prompt in self.prompts]
            return OracleDrafter(whole, vocab_size=self.tokenizer.vocab_size, accuracy=ORACLES[name], seed=self.seed)
        return None if name == "none" else name

    def draft_model(self, drafter: str) -> str | None:
        """The exported model behind a drafter, if there is one."""
        return self.draft.name if drafter.startswith("onnx") else None

    def digest(self) -> str:
        """Names the questions: prompts, seeds and length of the answers."""
        text = repr([(prompt.tokens, prompt.seed) for prompt in self.prompts]) + f" {self.tokens}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


async def run_alone(bench: Bench, verifiers: Verifiers, sampling: str, progress: Progress) -> Run:
    """The target alone, one generation at a time in each process; each process answers half of the prompts."""
    cell = Cell(draft="none", window=1, sampling=sampling, batch=1, resume=False, dtype="", cache="")
    return await run_cell(bench, verifiers, cell, {}, progress)


async def warm(bench: Bench, verifiers: Verifiers) -> None:
    """Let both processes see every prompt, so that their prefix caches hold it."""
    async with _clients(bench, verifiers, None, 1) as clients:
        for client in clients:
            for prompt in bench.prompts:
                await (await client.generate(prompt.tokens, max_tokens=1, timeout_s=ANSWER_TIMEOUT_S)).result()


async def run_cell(bench: Bench, verifiers: Verifiers, cell: Cell, known: dict[int, Answer], progress: Progress) -> Run:
    """All prompts through one configuration. Each process has ``cell.batch`` places, a resumed answer changes from a
    place in one to a place in the other; half of the answers begin in each.
    """
    run, began = Run(), time.monotonic()
    places = [asyncio.Semaphore(cell.batch) for _ in range(2)]
    queues = [list(reversed(bench.prompts[home::2])) for home in range(2)]
    async with _clients(bench, verifiers, bench.drafter(cell.draft, known), cell.window) as clients:

        async def work(home: int) -> None:
            while queues[home]:
                await _answer(bench, run, cell, clients, places, queues[home].pop(), home)
                progress(len(run.answers))

        async with asyncio.TaskGroup() as group:
            for home in (0, 1):
                for _ in range(cell.batch):
                    group.create_task(work(home))
    run.seconds = time.monotonic() - began
    return run


async def _answer(
    bench: Bench,
    run: Run,
    cell: Cell,
    clients: Sequence[AsyncClient],
    places: Sequence[asyncio.Semaphore],
    prompt: Prompt,
    home: int,
) -> None:
    sampling = SAMPLINGS[cell.sampling]
    cut = random.Random(f"{cell.key} {prompt.seed}").randint(1, max(bench.tokens * 3 // 4, 1)) if cell.resume else 0
    async with places[home]:
        stream = await clients[home].generate(
            prompt.tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=prompt.seed,
            max_tokens=bench.tokens,
            ignore_eos=True,
            timeout_s=ANSWER_TIMEOUT_S,
        )
        async for _ in stream:
            if cut and len(stream.generation.output) >= cut:
                stream.cancel()
        result = await stream.result()
        await stream.aclose()
    _take(run, result.metrics)
    if cut and result.finish_reason is FinishReason.ABORT:
        run.cuts[prompt.index] = len(result.token_ids)
        async with places[1 - home]:
            stream = await clients[1 - home].resume(stream.generation, timeout_s=ANSWER_TIMEOUT_S)
            result = await stream.result()
            await stream.aclose()
        _take(run, result.metrics)
        run.counts.resumes += 1
    run.answers[prompt.index] = result.token_ids


def _take(run: Run, metrics: Metrics) -> None:
    run.counts.add(metrics)
    run.fingerprints.update(metrics.fingerprints)
    if metrics.drafter_error is not None:
        run.drafter_errors.append(metrics.drafter_error)


@contextlib.asynccontextmanager
async def _clients(
    bench: Bench, verifiers: Verifiers, draft: str | Path | Drafter | None, window: int
) -> AsyncIterator[list[AsyncClient]]:
    config = DeviceConfig(window=window, adaptive=False, arm=Arm.CLOUD if draft is None else Arm.ASYNC)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            AsyncClient(address, draft=draft, tokenizer=bench.tokenizer, config=config)
            for address in verifiers.addresses
        ]
        for client in clients:
            await stack.enter_async_context(client)
            await client.prepare()
        yield clients


def compare(bench: Bench, run: Run, expected: dict[int, Answer]) -> dict[str, Any]:
    """How a run's answers differ from those of the target alone.

    ``flips`` are answers' first differences, ``compared`` the tokens up to and including them: after a difference the
    rest of an answer is another text.
    """
    answers = tokens = flips = compared = 0
    shown: list[dict[str, Any]] = []
    for prompt in bench.prompts:
        found, wanted = run.answers[prompt.index], expected[prompt.index]
        tokens += sum(a != b for a, b in zip(found, wanted, strict=False)) + abs(len(found) - len(wanted))
        if found == wanted:
            compared += len(wanted)
            continue
        answers += 1
        first = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
        at = min(len(found), len(wanted)) if first is None else first
        flips += 1
        compared += at + 1
        if len(shown) < SHOWN:
            shown.append(
                {
                    "prompt": prompt.index,
                    "source": prompt.source,
                    "prompt_tokens": len(prompt.tokens),
                    "seed": prompt.seed,
                    "output_index": at,
                    "cut": run.cuts.get(prompt.index),
                    "found": list(found[at : at + 4]),
                    "expected": list(wanted[at : at + 4]),
                }
            )
    return {
        "answers": len(bench.prompts),
        "tokens": sum(len(expected[prompt.index]) for prompt in bench.prompts),
        "differing_answers": answers,
        "differing_tokens": tokens,
        "flips": flips,
        "compared": compared,
        "differences": shown,
    }
