"""What opens a stream, as the cores and drivers see it (``wire`` turns it into frames)."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from pilotfish_core.modes import CloudDraft, Hint, Mode, Pace
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import PromptPrefix

PROTOCOL_VERSION: Final = 1
GENERATION_ID_BYTES: Final = 16
MAX_ROUTES: Final = 8
ROUTE_KEY: Final = re.compile("[0-9A-Za-z._~-]{1,64}")  # what a peer's route key may be: it goes into metadata


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The device begins a generation, or continues one with the committed tokens that it holds.

    ``prompt`` are the ids after ``prefix``, which is named by its hash where the cloud may know it. ``tokenizer_hash``
    is hex. ``fingerprint`` is the one the generation began with, empty at first; a replica with
    another one refuses the resume unless ``allow_other_fingerprint``.
    """

    model: str
    tokenizer_hash: str
    generation_id: bytes
    attempt: int
    prompt: tuple[int, ...]
    params: SamplingParams
    output: tuple[int, ...] = ()
    fingerprint: str = ""
    allow_other_fingerprint: bool = False
    mode: Mode = dataclasses.field(default_factory=Mode)
    hint: Hint = dataclasses.field(default_factory=Hint)
    pace: Pace | None = None
    prefix: PromptPrefix | None = None
    ticket: bytes = b""  # proves ``output``, where the cloud gave one
    protocol_version: int = PROTOCOL_VERSION

    @property
    def prompt_length(self) -> int:
        """Tokens of the whole prompt."""
        return len(self.prompt) + (self.prefix.length if self.prefix is not None else 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The cloud's answer: what it grants. ``other_fingerprint`` marks a resume under other numerics."""

    model: str
    fingerprint: str
    max_model_len: int
    max_draft_tokens: int
    max_unacknowledged: int
    cached_tokens: int = 0
    other_fingerprint: bool = False
    drafts: tuple[str, ...] = ()
    cloud_draft: CloudDraft = CloudDraft.NONE  # the best that the cloud itself can draft with
    routes: tuple[str, ...] = ()  # opaque; for the next calls with this prompt
    protocol_version: int = PROTOCOL_VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledged:
    """The device holds the committed tokens below position ``length``."""

    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """Keeps proxies from closing an idle stream, and tells a half-open one."""

    nonce: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a Ping."""

    nonce: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """The cloud's proof that it committed the tokens below position ``length``; see ``tickets``."""

    value: bytes
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class PrefixUnknown:
    """The cloud does not know the prompt prefix that Open named by hash: send the ids."""
