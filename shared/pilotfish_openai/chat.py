"""``POST /v1/chat/completions``: messages to a prompt, and how its answers are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotfish_core.errors import InvalidParameter, InvalidRequest
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai.answering import Question
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.choice import Choice, ScoredToken
from pilotfish_openai.conversation import plain_messages
from pilotfish_openai.forms import Form, best, bounded
from pilotfish_openai.schema import ChatBody


def question_of(body: ChatBody, tokenizer: Tokenizer, template: ChatTemplate | None, max_model_len: int) -> Question:
    """Raises InvalidRequest. Renders and tokenises, so a long conversation takes a while."""
    if template is None:
        raise InvalidRequest(
            "this model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "use /v1/completions"
        )
    messages = plain_messages([message.model_dump() for message in body.messages], template)
    text = template.render(messages, add_generation_prompt=body.add_generation_prompt, extra=body.chat_template_kwargs)
    prompt = tuple(tokenizer.encode(text, add_special_tokens=body.add_special_tokens))
    return Question(
        model=body.model,
        prompts=(prompt,),
        n=body.n or 1,
        params=body.sampling(max_tokens=_max_tokens(body, max_model_len - len(prompt)), logprobs=_logprobs(body)),
        expected=body.expected(tokenizer),
        unverified=body.offline == "draft",
    )


def _max_tokens(body: ChatBody, room: int) -> object:
    """The newer name goes first; neither: as far as the context reaches."""
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return max(room, 1) if given is None else given


def _logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter.of("top_logprobs", body.top_logprobs, "nothing unless logprobs is true")
    return (body.top_logprobs or 0) if body.logprobs else None


class ChatForm(Form):
    """``chat.completion`` and its chunks."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """The role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": choice.index, "message": message, "logprobs": self._scores(choice, scored)}

    def delta(self, choice: Choice, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A piece of a choice."""
        delta = {"content": text} if text else {}
        return {"index": choice.index, "delta": delta, "logprobs": self._scores(choice, scored)}

    def _scores(self, choice: Choice, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        count = choice.params.logprobs
        if count is None:
            return None
        return {
            "content": [
                self._score(entry.token, entry.logprobs.chosen)
                | {"top_logprobs": [self._score(token, value) for token, value in best(entry, count)]}
                for entry in scored
            ],
            "refusal": None,
        }

    def _score(self, token: int, logprob: float) -> dict[str, Any]:
        data = list(self._tokenizer.token_bytes(token))
        return {"token": self.token_text(token), "logprob": bounded(logprob), "bytes": data}
