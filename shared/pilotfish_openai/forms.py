"""How answers are written: the shape common to both endpoints, and log probabilities."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from pilotfish_core.drafts import Finish
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai.answering import Answering
from pilotfish_openai.choice import Choice, Delta, ScoredToken

LEAST_LOGPROB: Final = -9999.0  # JSON has no infinity


class Form(abc.ABC):
    """One response: its identity, and how choices and deltas look in it."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, answering: Answering, tokenizer: Tokenizer, *, model: str) -> None:
        self.id = f"{self.id_prefix}-{secrets.token_hex(16)}"
        self._answering = answering
        self._tokenizer = tokenizer
        self._model = model
        self._created = int(time.time())

    def whole(self, parts: Sequence[Sequence[Delta]]) -> dict[str, Any]:
        """The body of a response that is not streamed. ``parts``: the deltas of each choice."""
        choices = []
        for choice, deltas in zip(self._answering.choices, parts, strict=True):
            text = "".join([delta.text for delta in deltas])
            scored = [entry for delta in deltas for entry in delta.scored]
            verified = all(delta.verified for delta in deltas)
            choices.append(self.choice(choice, text, scored) | _ending(choice.finish) | _marked(verified))
        return self._object(self.whole_object, choices) | {
            "usage": self._answering.usage(),
            "metrics": self._answering.metrics(),
        }

    def chunk(self, choices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """One event of a stream."""
        return self._object(self.chunk_object, choices) | more

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """What a choice's stream begins with, before any token."""
        return None

    def next(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """A choice's part of a chunk."""
        return self.delta(choice, delta.text, delta.scored) | _ending(delta.finish) | _marked(delta.verified)

    @abc.abstractmethod
    def choice(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A whole choice, but for why it ended."""

    @abc.abstractmethod
    def delta(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A piece of a choice, but for why it ended."""

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._answering.fingerprint,
            "choices": choices,
        }

    def token_text(self, token: int) -> str:
        """A token as its own text; one that is no whole character as OpenAI writes it: ``bytes:\\xe2\\x80``."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def bounded(logprob: float) -> float:
    """As a number that JSON has."""
    return max(logprob, LEAST_LOGPROB)


def best(scored: ScoredToken, count: int) -> Iterable[tuple[int, float]]:
    """The ``count`` most likely tokens at a place."""
    return scored.logprobs.top[:count]


def _marked(verified: bool) -> dict[str, Any]:
    """Of text that no target has decided this is said; otherwise the answer looks as everybody's."""
    return {} if verified else {"verified": False}


def _ending(finish: Finish | None) -> dict[str, Any]:
    """``stop_reason``, as vLLM has it: the stop string or the token id that ended the answer."""
    if finish is None:
        return {"finish_reason": None}
    return {"finish_reason": finish.reason.value, "stop_reason": finish.stop}
