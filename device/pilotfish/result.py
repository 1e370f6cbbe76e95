"""What an app gets: pieces of text while they come, and the whole with its figures at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pilotfish_core.drafts import FinishReason, Origin, TokenLogprobs


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Text that has been decided, with the tokens it came from, all of one ``origin``.

    ``text`` may be empty where a token ends inside a character, or may still become a stop string. A piece of origin
    UNVERIFIED is the draft model's own text (offline, or without a cloud): the tokens of the verified ones, one after
    the other, are those of the result, and so is their ``verified_text``.
    """

    text: str
    token_ids: tuple[int, ...]
    origin: Origin
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def verified(self) -> bool:
        """Whether the target decided these tokens."""
        return self.origin is not Origin.UNVERIFIED

    @property
    def verified_text(self) -> str:
        """The text of verified tokens, as it comes when the link is never away."""
        return self.text if self.verified else ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed(Piece):
    """The link is back, and these tokens, whose text was shown unverified, are the target's: ``text`` is empty."""

    confirmed_text: str

    @property
    def verified_text(self) -> str:
        """The text that stands now."""
        return self.confirmed_text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Revised(Piece):
    """The link is back, and the target went elsewhere than the unverified text: all shown from character ``offset`` of
    the answer on, which is ``removed``, gives way to ``text``. ``position``: of the first token that differs, in prompt
    and output.
    """

    position: int
    offset: int
    removed: str
    confirmed_text: str

    @property
    def verified_text(self) -> str:
        """Of these tokens, whatever was shown before."""
        return self.confirmed_text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Figures of one answer, from this device's point of view. Times in seconds, payload in bytes of protobuf.

    ``steps`` are the target's forward passes seen as commits in this run; ``mean_acceptance_length`` is committed
    tokens per step and includes the bonus token. ``tokens_per_s`` counts from the start of the call, prefill included;
    ``tpot_s`` is the mean time per token after the first. ``fingerprints``: of all that decided tokens of the answer.
    ``unverified_tokens`` were shown while the link was away, and then confirmed, withdrawn or kept.
    """

    model: str
    drafter: str
    seed: int
    fingerprints: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    elapsed_s: float
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    steps: int
    steps_per_token: float
    mean_acceptance_length: float
    draft_tokens: int
    sent_draft_tokens: int
    accepted_draft_tokens: int
    recovered_tokens: int
    bonus_tokens: int
    cloud_tokens: int
    rollbacks: int
    reconnects: int
    bytes_up: int
    bytes_down: int
    unverified_tokens: int = 0
    confirmed_tokens: int = 0
    withdrawn_tokens: int = 0
    kept_tokens: int = 0
    drafter_error: str | None = None
    policy: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the numbers behind the last choice


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole answer. ``token_ids`` keep an end token, ``text`` does not.

    ``verified``: whether the target decided all of it. ``unverified_text`` was shown behind ``text`` and is undecided:
    the answer was cancelled while the link was away.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: int | str | None
    metrics: Metrics
    verified: bool = True
    unverified_text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"finish_reason": self.finish_reason.value}
