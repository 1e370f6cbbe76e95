"""``POST /v1/completions``: its prompts, and how its answers are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotfish_core.errors import InvalidParameter, UnsupportedParameter
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai.answering import Question
from pilotfish_openai.choice import Choice, ScoredToken
from pilotfish_openai.forms import Form, best, bounded
from pilotfish_openai.schema import MAX_CHOICES, CompletionBody

DEFAULT_MAX_TOKENS = 16  # as OpenAI's


def question_of(body: CompletionBody, tokenizer: Tokenizer) -> Question:
    """Raises InvalidParameter, UnsupportedParameter. Tokenises, so a long prompt takes a while."""
    if body.echo and body.logprobs is not None:
        raise UnsupportedParameter.of("echo with logprobs", "the prompt's tokens have no log probabilities here")
    prompts = tuple(_ids(prompt, tokenizer, body.add_special_tokens) for prompt in prompts_of(body.prompt))
    count = body.n or 1
    if len(prompts) * count > MAX_CHOICES:
        raise InvalidParameter.of("n", count, f"at most {MAX_CHOICES} answers in all; there are {len(prompts)} prompts")
    return Question(
        model=body.model,
        prompts=prompts,
        n=count,
        params=body.sampling(
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens, logprobs=body.logprobs
        ),
        expected=body.expected(tokenizer),
        unverified=body.offline == "draft",
    )


def prompts_of(value: object) -> list[str | tuple[int, ...]]:
    """A string, token ids, or a list of either. Raises InvalidParameter."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return [tuple(value)]
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, list) and item and all(_is_id(token) for token in item) for item in value):
            return [tuple(item) for item in value]
    raise InvalidParameter.of("prompt", value, "a string, a list of strings, token ids, or a list of lists of them")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(prompt: str | tuple[int, ...], tokenizer: Tokenizer, add_special_tokens: bool) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    return tuple(tokenizer.encode(prompt, add_special_tokens=add_special_tokens))


class CompletionForm(Form):
    """``text_completion``; ``echoes`` are the prompts' texts where they are asked for."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    echoes: Sequence[str] = ()

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """The prompt, if it is to be echoed."""
        if not self.echoes:
            return None
        return {"index": choice.index, "text": self._echo(choice), "logprobs": None, "finish_reason": None}

    def choice(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A whole choice."""
        return self.delta(choice, self._echo(choice) + text, scored)

    def delta(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A piece of a choice."""
        return {"index": choice.index, "text": text, "logprobs": self._logprobs(choice, scored)}

    def echo(self, body: CompletionBody) -> None:
        """Take over the prompts' texts, where ``body`` asks for them."""
        if body.echo:
            self.echoes = [
                prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
                for prompt in prompts_of(body.prompt)
            ]

    def _echo(self, choice: Choice) -> str:
        return self.echoes[choice.prompt_index] if self.echoes else ""

    def _logprobs(self, choice: Choice, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        count = choice.params.logprobs
        if count is None:
            return None
        return {
            "tokens": [self.token_text(entry.token) for entry in scored],
            "token_logprobs": [bounded(entry.logprobs.chosen) for entry in scored],
            "top_logprobs": [self._best(entry, count) for entry in scored] if count else None,
            "text_offset": [entry.offset for entry in scored],
        }

    def _best(self, entry: ScoredToken, count: int) -> dict[str, float]:
        """The most likely tokens, and the chosen one in any case. Of tokens with the same text the likeliest counts."""
        found: dict[str, float] = {}
        for token, value in [*best(entry, count), (entry.token, entry.logprobs.chosen)]:
            found.setdefault(self.token_text(token), bounded(value))
        return found
