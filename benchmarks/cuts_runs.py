"""Answers that are disturbed in one way or another, and what must be true of each."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.cutting_proxy import CuttingProxy
from pilotfish.answer_text import AnswerText
from pilotfish.bench.prompts import PROMPTS
from pilotfish.client import AsyncClient
from pilotfish.generation import Generation
from pilotfish.result import Piece, Result, Revised
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Arm
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.tokenizer import Tokenizer

MAX_TOKENS: Final = 160
SAMPLING: Final[tuple[dict[str, Any], ...]] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 11},
    {"temperature": 1.0, "seed": 12, "top_p": 0.95},
)
# A cut costs a pause of some hundred milliseconds by gRPC's own backoff; ours should not add much to it.
PATIENT: Final = RetryPolicy(max_attempts=1000, max_first_attempts=1000, base_s=0.02, cap_s=0.1)
OFFLINE_TOKENS: Final = 64
OFFLINE_AFTER_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 300.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What is asked: a prompt and its parameters."""

    prompt: str
    params: dict[str, Any]


@dataclasses.dataclass(slots=True)
class Tally:
    """What was seen in one kind of disturbance. ``failures``: what was wrong, in words; ``counts``: what there was."""

    name: str
    answers: int = 0
    tokens: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)

    def count(self, name: str, number: int) -> None:
        """Add to one of the counts."""
        self.counts[name] = self.counts.get(name, 0) + number

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return dataclasses.asdict(self) | {"identical": not self.failures}


class Answers:
    """The undisturbed answers, each computed once by the target alone."""

    def __init__(self, results: dict[int, Result], asks: Sequence[Ask], tokenizer: Tokenizer) -> None:
        self.asks, self.results, self.tokenizer = asks, results, tokenizer

    @classmethod
    async def undisturbed(cls, server: str, *, prompts: int = 6, max_tokens: int = MAX_TOKENS) -> Answers:
        """Ask the target alone, over the plain link."""
        common = {"max_tokens": max_tokens, "ignore_eos": True}
        asks = [Ask(prompt, params | common) for prompt in PROMPTS[:prompts] for params in SAMPLING]
        async with AsyncClient(server, draft=None) as client:
            results = {
                index: await (await client.generate(ask.prompt, **ask.params)).result()
                for index, ask in enumerate(asks)
            }
            return cls(results, asks, client.tokenizer)

    def endless(self, source: random.Random) -> Iterator[int]:
        """Their numbers, shuffled again and again."""
        while True:
            yield from source.sample(range(len(self.asks)), len(self.asks))


class App:
    """Shows what comes, as an app would, and says what is wrong with it. ``screen``: the text on it."""

    def __init__(self, expected: Result, prompt_tokens: int) -> None:
        self.screen, self.verified_text = "", ""
        self.tokens: list[int] = []
        self.unverified = self.revisions = 0
        self.wrong: list[str] = []
        self._expected, self._prompt_tokens = expected, prompt_tokens

    def take(self, piece: Piece) -> None:
        """One piece more."""
        if isinstance(piece, Revised):
            self.revisions += 1
            self._check(piece.position == self._prompt_tokens + len(self.tokens), "a revision at another position")
            self._check(self.screen[piece.offset :] == piece.removed, "a revision removes what is not on the screen")
            self.screen = self.screen[: piece.offset]
        self.screen += piece.text
        self.verified_text += piece.verified_text
        if not piece.verified:
            self.unverified += len(piece.token_ids)
            return
        self.tokens += piece.token_ids
        self._check(
            tuple(self.tokens) == self._expected.token_ids[: len(self.tokens)], "a verified token is not the target's"
        )

    def end(self, result: Result) -> None:
        """The answer is over."""
        self._check(result.token_ids == self._expected.token_ids, "other tokens than undisturbed")
        self._check(result.text == self._expected.text, "another text than undisturbed")
        self._check(self.screen == result.text, "the screen is not the text")
        self._check(self.verified_text == result.text, "the verified pieces are not the text")
        self._check(tuple(self.tokens) == result.token_ids, "a delta was lost or doubled")
        self._check(result.verified, "the answer counts as unverified")

    def _check(self, right: bool, wrong: str) -> None:
        if not right:
            self.wrong.append(wrong)


async def cut_answers(server: str, draft: Path, answers: Answers, source: random.Random, cuts: int) -> Tally:
    """Through connections that are reset after a random number of bytes, until there were so many cuts."""
    tally = Tally("cuts")

    def until_cut() -> int:
        early = source.random() < 0.2  # within the handshake or the opening; otherwise within the answer
        return source.randrange(0, 1000) if early else source.randrange(1000, 7000)

    async with CuttingProxy(server, until_cut) as proxy:
        config = DeviceConfig(retry=PATIENT)
        clients = [
            AsyncClient(proxy.address, draft=drafter, arm=arm, config=config, tokenizer=answers.tokenizer)
            for drafter, arm in ((None, None), ("ngram", Arm.ASYNC), (draft, Arm.ASYNC), (draft, Arm.LOCKSTEP))
        ]
        turns = zip(answers.endless(source), itertools.cycle(clients), strict=False)
        for index, client in turns:
            if proxy.cuts >= cuts:
                break
            before = proxy.cuts
            await _one(client, answers, index, tally)
            tally.count("answers that were cut", int(proxy.cuts > before))
        for client in clients:
            await client.aclose()
        tally.counts["cuts"] = proxy.cuts
    return tally


async def offline_answers(server: str, draft: Path, answers: Answers, source: random.Random, count: int) -> Tally:
    """The link goes down in mid-answer until so many unverified tokens were shown."""
    tally = Tally("offline")
    async with CuttingProxy(server) as proxy:
        config = DeviceConfig(retry=PATIENT)
        async with AsyncClient(
            proxy.address, draft=draft, config=config, tokenizer=answers.tokenizer, offline="draft",
            offline_after_s=OFFLINE_AFTER_S,
        ) as client:  # fmt: skip
            for index in itertools.islice(answers.endless(source), count):
                down_at = source.randrange(0, MAX_TOKENS - OFFLINE_TOKENS - 8)
                await _one(client, answers, index, tally, proxy=proxy, down_at=down_at)
    return tally


async def _one(
    client: AsyncClient,
    answers: Answers,
    index: int,
    tally: Tally,
    *,
    proxy: CuttingProxy | None = None,
    down_at: int | None = None,
) -> None:
    """One answer, into the tally. ``down_at``: after so many verified tokens the link goes down."""
    ask, expected = answers.asks[index], answers.results[index]
    app = App(expected, expected.metrics.prompt_tokens)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            if down_at == 0 and proxy is not None:
                proxy.go_down()
            stream = await client.generate(ask.prompt, **ask.params)
            async for piece in stream:
                app.take(piece)
                if proxy is not None and down_at is not None:
                    if len(app.tokens) >= down_at and not app.unverified:
                        proxy.go_down()
                    if app.unverified >= OFFLINE_TOKENS:
                        proxy.come_up()
            result = await stream.result()
        app.end(result)
        tally.tokens += len(result.token_ids)
        tally.count("reconnects", result.metrics.reconnects)
        if proxy is not None:
            tally.count("unverified", result.metrics.unverified_tokens)
            tally.count("confirmed", result.metrics.confirmed_tokens)
            tally.count("withdrawn", result.metrics.withdrawn_tokens)
            tally.count("revisions", app.revisions)
            if app.unverified < OFFLINE_TOKENS:
                app.wrong.append(f"only {app.unverified} unverified tokens were shown")
    except (PilotfishError, TimeoutError) as error:
        app.wrong.append(f"{type(error).__name__}: {error}")
    finally:
        if proxy is not None:
            proxy.come_up()
    tally.answers += 1
    tally.failures += [f"answer {index}: {wrong}" for wrong in app.wrong]


async def killed_answers(
    server: str, draft: Path, answers: Answers, source: random.Random, kills: int, folder: Path
) -> Tally:
    """Processes of the command, killed with -9 until there were so many kills; the last one of each answer ends."""
    tally = Tally("kills", counts={"kills": 0, "resumed after output": 0})
    for number, index in enumerate(answers.endless(source)):
        if tally.counts["kills"] >= kills:
            break
        await asyncio.to_thread(_killed, server, draft, answers, index, source, tally, folder / f"{number}.json")
    return tally


def _killed(
    server: str, draft: Path, answers: Answers, index: int, source: random.Random, tally: Tally, file: Path
) -> None:
    ask, expected = answers.asks[index], answers.results[index]
    drafter = source.choice(["none", "ngram", str(draft)])
    common = ["--server", server, "--draft", drafter, "--save", str(file)]
    wrong: list[str] = []
    for left in range(source.choice([2, 3, 4]), -1, -1):
        held = Generation.load(file) if file.exists() else None
        begin = 0 if held is None else len(_text(held, answers.tokenizer))
        command = [*common, *(["--resume", str(file)] if held is not None else _asking(ask))]
        output, killed = _run(command, source if left else None, len(expected.text) - begin)
        tally.counts["kills"] += killed
        tally.counts["resumed after output"] += held is not None and len(held.output) > 0
        text = output.removesuffix("\n") if not killed else output
        if expected.text[begin : begin + len(text)] != text:
            wrong.append(f"a process wrote {text[:40]!r} where {expected.text[begin : begin + 40]!r} goes on")
        if not killed:
            break
    result = Generation.load(file)
    if tuple(result.output) != expected.token_ids or not result.finished:
        wrong.append(f"{len(result.output)} tokens are saved, not the undisturbed ones")
    if begin + len(text) != len(expected.text):
        wrong.append("the last process did not write the rest")
    tally.answers += 1
    tally.tokens += len(result.output)
    tally.failures += [f"answer {index}: {entry}" for entry in wrong]


def _text(held: Generation, tokenizer: Tokenizer) -> str:
    """What a process that resumes counts as shown."""
    text = AnswerText(held.params, tokenizer, held.output)
    text.push(())
    return text.whole


def _asking(ask: Ask) -> list[str]:
    options = ["--prompt", ask.prompt]
    for name, value in ask.params.items():
        flag = f"--{name.replace('_', '-')}"
        options += [flag] if value is True else [flag, str(value)]
    return options


def _run(arguments: list[str], source: random.Random | None, room: int) -> tuple[str, bool]:
    """Its output, and whether it was killed before its end: after a random number of characters, perhaps none."""
    command = [sys.executable, "-m", "pilotfish", "generate", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    kill_at = None if source is None else source.randrange(0, max(room, 1))
    seen = b""
    while kill_at is None or len(seen) < kill_at:
        part = os.read(process.stdout.fileno(), 64)
        if not part:
            break
        seen += part
    if kill_at is not None:
        process.kill()
    rest, errors = process.communicate()
    if process.returncode not in (0, -9):
        raise RuntimeError(json.dumps(arguments[:1]) + errors.decode(errors="replace")[-1000:])
    return (seen + rest).decode(errors="ignore"), process.returncode == -9
