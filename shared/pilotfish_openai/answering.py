"""From a request to its answers: what is asked, what is counted of the answers, and callers who go away."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from pilotfish_core.errors import InvalidParameter, PromptTooLong
from pilotfish_core.noise import derive_seed
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prediction import ExpectedText
from pilotfish_openai.choice import Choice, Delta, Seat

Result = TypeVar("Result")
Opened = Callable[[Choice], Awaitable[None]]
Deliver = Callable[[Choice, Delta], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks for, in whichever of the two forms it came.

    Each prompt gets ``n`` answers; those of one prompt have sub-seeds of ``params.seed``, so an answer depends neither
    on the other prompts nor on ``n``. ``expected``: what the answers are expected to follow. ``unverified``: while the
    link to the verifier is away a device may go on alone, with text that nobody will verify.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    n: int
    params: SamplingParams
    expected: ExpectedText | None = None
    unverified: bool = False

    def check(self, vocabulary_size: int, max_model_len: int) -> None:
        """What the target would refuse, said before an answer has begun. Raises InvalidParameter, PromptTooLong."""
        for prompt in self.prompts:
            if not prompt:
                raise InvalidParameter("the prompt is empty; expected at least one token")
            if len(prompt) >= max_model_len:
                raise PromptTooLong(
                    f"the prompt has {len(prompt)} tokens; the model's context is {max_model_len}, and one token at "
                    "least must fit behind it"
                )
            bad = next((token for token in prompt if not 0 <= token < vocabulary_size), None)
            if bad is not None:
                raise InvalidParameter.of("prompt", bad, f"token ids in [0, {vocabulary_size})")

    def seats(self) -> Iterator[Seat]:
        """The answers asked for, in order."""
        for prompt_index, prompt in enumerate(self.prompts):
            for number in range(self.n):
                params = dataclasses.replace(self.params, seed=derive_seed(self.params.seed, number))
                yield Seat(prompt_index * self.n + number, prompt_index, prompt, params)


class Answering(abc.ABC):
    """The answers to one question, from one caller. ``fingerprint``: of the numerics that decide them."""

    def __init__(self, question: Question, choices: Sequence[Choice], fingerprint: str) -> None:
        self.question = question
        self.fingerprint = fingerprint
        self.choices = choices
        self.began = time.monotonic()

    @abc.abstractmethod
    async def run(self, opened: Opened, deliver: Deliver) -> None:
        """Follow all answers to their ends. ``deliver`` gets each one's deltas in order, and returns when they are
        written. Raises what refuses or ends any of them; the others are aborted then.
        """

    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage``: a prompt counts once however many answers it got."""
        firsts = self.choices[:: self.question.n]
        prompt_tokens = sum(len(choice.prompt) for choice in firsts)
        completion_tokens = sum(choice.tokens for choice in self.choices)
        predicted = sum(choice.predicted for choice in self.choices)
        rightly = sum(choice.rightly_predicted for choice in self.choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in firsts)},
            "completion_tokens_details": {
                "accepted_prediction_tokens": rightly,
                "rejected_prediction_tokens": predicted - rightly,
            },
        }

    def metrics(self) -> dict[str, Any]:
        """Our own figures of the whole request. Times in milliseconds, null where nothing could be measured.

        ``ttft_ms``: until the first token of any answer; ``tpot_ms``: for a token after each answer's first ones.
        ``steps`` of the target, ``drafted_tokens`` that it verified and ``accepted_tokens`` of them, whoever drafted.
        """
        answers = [(choice, choice.first_at) for choice in self.choices if choice.first_at is not None]
        later = sum(choice.tokens - choice.first_tokens for choice, _ in answers)
        spent = sum(choice.last_at - first for choice, first in answers)
        steps, tokens = (sum(getattr(choice, name) for choice in self.choices) for name in ("steps", "tokens"))
        return {
            "ttft_ms": _milliseconds(min(first for _, first in answers) - self.began) if answers else None,
            "tpot_ms": _milliseconds(spent / later) if later else None,
            "steps": steps,
            "mean_acceptance_length": round(tokens / steps, 3) if steps else None,
            "drafted_tokens": sum(choice.drafted for choice in self.choices),
            "accepted_tokens": sum(choice.accepted for choice in self.choices),
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


async def all_of(followers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them together; the first that fails ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for follower in followers:
                group.create_task(follower)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
