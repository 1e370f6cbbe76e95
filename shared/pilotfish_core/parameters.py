"""Sampling parameters as users of vLLM, Hugging Face and OpenAI know them, validated once at construction."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, UnsupportedParameter

MAX_SEED: Final = 2**64 - 1
MAX_LOGPROBS: Final = 20  # as OpenAI's top_logprobs
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
MAX_LOGIT_BIAS: Final = 1024  # entries
MAX_STOP_TOKEN_IDS: Final = 256
MAX_TOKEN_ID: Final = 2**32 - 1  # what the wire can carry
MIN_TEMPERATURE: Final = 1e-12  # and 0; below, scaled logits leave the range of float32
MIN_REPETITION_PENALTY: Final = 0.01


def new_seed() -> int:
    """A random seed for a generation that was given none; it is reported so that the text can be had again."""
    return secrets.randbits(63)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when an answer ends.

    The filters apply in this order: logit_bias, repetition, presence and frequency penalties, temperature,
    min_p, top_k, top_p. Repetition counts prompt and output tokens, presence and frequency output tokens only (as
    vLLM does). ``temperature=0`` is arg-max after bias and penalties, ties to the lowest id.

    Raises InvalidParameter for any value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 256
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # None: none; k: of the chosen token and of the k best

    def __post_init__(self) -> None:
        self._number("temperature", MIN_TEMPERATURE, 100.0, or_zero=True)
        self._integer("top_k", 0, 2**31 - 1)
        self._number("top_p", 0.0, 1.0, open_low=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", MIN_REPETITION_PENALTY, 100.0)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._integer("seed", 0, MAX_SEED)
        self._integer("max_tokens", 1, 2**31 - 1)
        self._integer("min_tokens", 0, self.max_tokens)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidParameter.of("ignore_eos", self.ignore_eos, "true or false")
        if self.logprobs is not None:
            self._integer("logprobs", 0, MAX_LOGPROBS)
        self._check_stops()
        self._check_logit_bias()

    def _number(self, name: str, low: float, high: float, *, open_low: bool = False, or_zero: bool = False) -> None:
        value = getattr(self, name)
        expected = f"{'0 or ' * or_zero}a number in {'(' if open_low else '['}{low:g}, {high:g}]"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter.of(name, value, expected)
        inside = low < value <= high or (value == low and not open_low) or (value == 0 and or_zero)
        if not inside:  # as NaN is
            raise InvalidParameter.of(name, value, expected)

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidParameter.of(name, value, f"an integer in [{low}, {high}]")

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidParameter.of("stop", self.stop, f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidParameter.of("stop", text, f"strings of 1 to {MAX_STOP_STRING_CHARS} characters")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidParameter.of("stop", text, "text that can be encoded as UTF-8") from None
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            given = f"{len(self.stop_token_ids)} ids"
            raise InvalidParameter.of("stop_token_ids", given, f"at most {MAX_STOP_TOKEN_IDS}")
        for token in self.stop_token_ids:
            if not _is_token_id(token):
                raise InvalidParameter.of("stop_token_ids", token, f"token ids in [0, {MAX_TOKEN_ID}]")

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidParameter.of("logit_bias", f"{len(self.logit_bias)} entries", f"at most {MAX_LOGIT_BIAS}")
        for token, bias in self.logit_bias:
            if not _is_token_id(token):
                raise InvalidParameter.of("logit_bias", token, f"token ids in [0, {MAX_TOKEN_ID}] as keys")
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
                raise InvalidParameter.of("logit_bias", bias, "a bias in [-100, 100]")

    @property
    def has_penalties(self) -> bool:
        """Whether the token history changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def is_greedy(self) -> bool:
        """Whether tokens are chosen by arg-max."""
        return self.temperature == 0.0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Build from loosely typed values (JSON, keyword arguments).

        Accepts ``stop`` as one string, ``logit_bias`` as a mapping, ``top_k=-1`` for off and ``seed=None`` for a
        random one. Raises UnsupportedParameter for a name that is not ours, InvalidParameter for a bad value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UnsupportedParameter(
                f"unsupported sampling parameter{'s' * (len(unknown) > 1)}: {', '.join(unknown)}; "
                f"supported are {', '.join(sorted(known))}"
            )
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("top_k") == -1:
            given["top_k"] = 0
        given["seed"] = given["seed"] if "seed" in given else new_seed()
        stop = given.get("stop", ())
        given["stop"] = (stop,) if isinstance(stop, str) else _tuple("stop", stop)
        given["stop_token_ids"] = _tuple("stop_token_ids", given.get("stop_token_ids", ()))
        given["logit_bias"] = _bias_pairs(given.get("logit_bias", ()))
        return cls(**given)


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_ID


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidParameter.of(name, value, "a list")
    return tuple(value)


def _bias_pairs(value: object) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else _tuple("logit_bias", value)
    result = []
    for pair in pairs:
        try:
            token, bias = pair
            result.append((int(token), float(bias)))
        except (TypeError, ValueError, OverflowError):
            raise InvalidParameter.of("logit_bias", pair, "a mapping of token id to bias") from None
    return tuple(result)
