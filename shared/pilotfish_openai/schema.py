"""The bodies of requests, and what of them becomes sampling parameters.

Fields that are unknown are ignored, as servers of this interface do, and named in the response header
``x-pilotfish-ignored``. Fields that are known, not supported and would change the answer are refused by name.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilotfish_core.errors import InvalidParameter, InvalidRequest, UnsupportedParameter
from pilotfish_core.parameters import MAX_SEED, SamplingParams
from pilotfish_core.prediction import ExpectedText
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai.conversation import text_of

IGNORED_HEADER: Final = "x-pilotfish-ignored"
MAX_CHOICES: Final = 128
SEED_BITS: Final = 53  # of a seed drawn here: every reader of JSON has the exact number
_HEADER_NAMES: Final = 16  # at most so many, each at most so long:
_HEADER_NAME_CHARS: Final = 40

# Field -> values that ask for nothing; None never does.
_REFUSED: Final[dict[str, tuple[object, ...]]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": (),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
_SAMPLING: Final = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "min_tokens", "ignore_eos", "stop", "stop_token_ids",
)  # fmt: skip


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class PredictedContent(BaseModel):
    """``prediction``: the text that the answer is expected to follow."""

    model_config = ConfigDict(strict=True)

    type: str
    content: Any


class RequestBody(BaseModel):
    """What both kinds of requests have. The sampling parameters are checked by ``SamplingParams``."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    prediction: PredictedContent | None = None
    offline: Literal["wait", "draft"] | None = None  # ours, for an endpoint on a device
    max_tokens: Any = None
    seed: Any = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    stop: Any = None
    stop_token_ids: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def ignored(self) -> list[str]:
        """Fields that mean nothing here."""
        return sorted(name for name in self.model_extra or {} if name not in _REFUSED)

    @property
    def ignored_header(self) -> dict[str, str]:
        """The response header that names them."""
        names = [name[:_HEADER_NAME_CHARS] for name in self.ignored if name.isascii() and name.isidentifier()]
        return {IGNORED_HEADER: ", ".join(names[:_HEADER_NAMES])} if names else {}

    def sampling(self, *, max_tokens: object, logprobs: int | None) -> SamplingParams:
        """Raises InvalidParameter."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        return SamplingParams.from_mapping(
            values | {"max_tokens": max_tokens, "logprobs": logprobs, "seed": self._seed()}
        )

    def expected(self, tokenizer: Tokenizer) -> ExpectedText | None:
        """What ``prediction`` expects. Raises InvalidParameter, UnsupportedParameter."""
        if self.prediction is None:
            return None
        if self.prediction.type != "content":
            raise InvalidParameter.of("prediction.type", self.prediction.type, "content")
        text = text_of(self.prediction.content, "prediction.content")
        return ExpectedText(tokenizer.encode(text, add_special_tokens=False))

    def _seed(self) -> object:
        """Negative seeds, which OpenAI allows, are those of 64 bits that they stand for."""
        if self.seed is None:
            return secrets.randbits(SEED_BITS)
        if isinstance(self.seed, int) and not isinstance(self.seed, bool) and -(2**63) <= self.seed < 0:
            return self.seed & MAX_SEED
        return self.seed

    def refuse_unsupported(self) -> None:
        """Raises UnsupportedParameter for a field that would change the answer and cannot be honoured."""
        for name, value in (self.model_extra or {}).items():
            if name in _REFUSED and value is not None and value not in _REFUSED[name]:
                raise UnsupportedParameter.of(name)


class CompletionBody(RequestBody):
    """``POST /v1/completions``."""

    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool = True


class ChatMessage(BaseModel):
    """One message; ``content`` is text or a list of text parts."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: Any = None
    name: str | None = None


class ChatBody(RequestBody):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: Any = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


Body = TypeVar("Body", bound=RequestBody)


def parse(kind: type[Body], data: bytes) -> Body:
    """Raises InvalidRequest for what is no JSON, InvalidParameter naming a wrong field, UnsupportedParameter."""
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        raise _told(error) from None
    body.refuse_unsupported()
    return body


def _told(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    match first["type"], first["loc"]:
        case "json_invalid", _:
            return InvalidRequest(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
        case _, ():
            return InvalidRequest("the body is JSON, but not an object")
    path = path_of(first["loc"])
    if first["type"] == "missing":
        missing = InvalidParameter(f"{path} is missing")
        missing.parameter = path
        return missing
    message = first["msg"]
    return InvalidParameter.of(path, first["input"], message.removeprefix("Input should be ").replace("Input", "it"))


def path_of(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` as ``messages[0].role``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"[not path :]
    return path
