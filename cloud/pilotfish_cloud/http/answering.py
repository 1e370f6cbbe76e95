"""From a request to its answers: opens a generation for each, follows them, and frees them whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from starlette.types import Receive

from pilotfish_cloud.engine.interface import CommitEvent, OpenedEvent
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.choice import Choice, Delta
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.stream import Stream
from pilotfish_core.errors import InvalidParameter, PromptTooLong
from pilotfish_core.messages import GENERATION_ID_BYTES, Open
from pilotfish_core.modes import Mode, Pacing
from pilotfish_core.noise import derive_seed
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prediction import ExpectedText, Prediction

DOOR: Final = "http"
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks for, in whichever of the two forms it came.

    Each prompt gets ``n`` answers; those of one prompt have sub-seeds of ``params.seed``, so an answer depends neither
    on the other prompts nor on ``n``. ``expected``: what the answers are expected to follow.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    n: int
    params: SamplingParams
    expected: ExpectedText | None = None


class Answering:
    """The answers to one question, from one caller."""

    def __init__(self, gateway: Gateway, principal: Principal, question: Question) -> None:
        """Raises UnknownModel, InvalidParameter and PromptTooLong, before any work."""
        gateway.check_model(question.model)
        info = gateway.engine.info
        for prompt in question.prompts:
            _check(prompt, info.vocabulary_size, info.max_model_len)
        self.question = question
        self.began = time.monotonic()
        self._gateway, self._principal = gateway, principal
        self.choices = [
            Choice(
                prompt_index * question.n + number,
                prompt_index,
                prompt,
                dataclasses.replace(question.params, seed=derive_seed(question.params.seed, number)),
                gateway.tokenizer,
                None
                if question.expected is None
                else Prediction(question.expected, prompt_length=len(prompt), window=info.max_draft_tokens),
            )
            for prompt_index, prompt in enumerate(question.prompts)
            for number in range(question.n)
        ]

    async def run(
        self, opened: Callable[[Choice], Awaitable[None]], deliver: Callable[[Choice, Delta], Awaitable[None]]
    ) -> None:
        """Follow all answers to their ends. ``deliver`` gets each one's deltas in order; what it has returned from
        counts as written, and only that is acknowledged: a caller who reads slowly pauses their own answers.

        Raises what refuses or ends any of them; the others are aborted then.
        """
        async with self._streams() as streams:
            try:
                async with asyncio.TaskGroup() as group:
                    for choice, stream in streams:
                        group.create_task(self._follow(choice, stream, opened, deliver))
            except BaseExceptionGroup as errors:
                raise _first(errors) from None

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[list[tuple[Choice, Stream]]]:
        streams: list[tuple[Choice, Stream]] = []
        try:
            for choice in self.choices:
                opening = self._opening(choice)
                claim = await self._gateway.ask(opening, self._principal, door=DOOR)
                streams.append((choice, self._gateway.open(opening, self._principal, claim=claim, door=DOOR)))
            yield streams
        finally:
            for _, stream in streams:
                self._gateway.close(stream)

    def _opening(self, choice: Choice) -> Open:
        info = self._gateway.engine.info
        return Open(
            model=self.question.model,
            tokenizer_hash=info.tokenizer_hash,
            generation_id=secrets.token_bytes(GENERATION_ID_BYTES),
            attempt=1,
            prompt=choice.prompt,
            params=choice.params,
            mode=Mode(Pacing.PAUSED, info.cloud_draft),  # who speaks HTTP has no drafter: the cloud drafts
        )

    async def _follow(
        self,
        choice: Choice,
        stream: Stream,
        opened: Callable[[Choice], Awaitable[None]],
        deliver: Callable[[Choice, Delta], Awaitable[None]],
    ) -> None:
        acknowledged = len(choice.prompt)
        every = max(1, self._gateway.max_unacknowledged // 4)
        if (run := choice.draft(None)) is not None:
            stream.push(run)
        async for event in stream:
            match event:
                case OpenedEvent(_, cached_tokens):
                    choice.cached_tokens = cached_tokens
                    await opened(choice)
                case CommitEvent(_, commit, _, counts):
                    if (run := choice.draft(commit)) is not None:
                        stream.push(run)
                    await deliver(choice, choice.take(commit, counts))
                    if commit.end >= acknowledged + every:
                        acknowledged = commit.end
                        stream.acknowledge(acknowledged)

    # -- figures ----------------------------------------------------------------------------------------------------

    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage``: a prompt counts once however many answers it got."""
        firsts = self.choices[:: self.question.n]
        prompt_tokens = sum(len(choice.prompt) for choice in firsts)
        completion_tokens = sum(choice.tokens for choice in self.choices)
        drafted = sum(choice.counts.draft_tokens for choice in self.choices)
        accepted = sum(choice.counts.accepted_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in firsts)},
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            },
        }

    def metrics(self) -> dict[str, Any]:
        """Our own figures of the whole request. Times in milliseconds, null where nothing could be measured.

        ``ttft_ms``: until the first token of any answer; ``tpot_ms``: for a token after each answer's first commit.
        ``steps`` of the target, ``drafted_tokens`` that it verified and ``accepted_tokens`` of them, whoever drafted.
        """
        answers = [(choice, choice.first_at) for choice in self.choices if choice.first_at is not None]
        later = sum(choice.tokens - choice.first_tokens for choice, _ in answers)
        spent = sum(choice.last_at - first for choice, first in answers)
        steps, tokens = (sum(getattr(choice, name) for choice in self.choices) for name in ("steps", "tokens"))
        counts = [choice.counts for choice in self.choices]
        return {
            "ttft_ms": _milliseconds(min(first for _, first in answers) - self.began) if answers else None,
            "tpot_ms": _milliseconds(spent / later) if later else None,
            "steps": steps,
            "mean_acceptance_length": round(tokens / steps, 3) if steps else None,
            "drafted_tokens": sum(entry.draft_tokens + entry.own_draft_tokens for entry in counts),
            "accepted_tokens": sum(entry.accepted_tokens + entry.own_accepted_tokens for entry in counts),
            "cached_tokens": sum(choice.cached_tokens for choice in self.choices),
            "seed": self.question.params.seed,
        }


class CallerGoneError(Exception):
    """The caller closed the connection."""


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """The result of ``work``, which is cancelled at once when the caller goes away. Raises CallerGoneError then.

    The request's body must have been read: whatever is received now is the end of the connection.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check(prompt: tuple[int, ...], vocabulary_size: int, max_model_len: int) -> None:
    """What the engine would refuse, said before an answer has begun."""
    if not prompt:
        raise InvalidParameter("the prompt is empty; expected at least one token")
    if len(prompt) >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(prompt)} tokens; the model's context is {max_model_len}, and one token at least "
            "must fit behind it"
        )
    bad = next((token for token in prompt if not 0 <= token < vocabulary_size), None)
    if bad is not None:
        raise InvalidParameter.of("prompt", bad, f"token ids in [0, {vocabulary_size})")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
