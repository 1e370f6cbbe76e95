"""The demo's answers: each a real generation, recorded with the time at which every piece arrived."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from pilotfish.client import Client
from pilotfish.result import Piece, Result
from pilotfish_core.drafts import Origin
from pilotfish_core.errors import LocalError

Show = Callable[[Piece], None]


@dataclasses.dataclass(frozen=True, slots=True)
class TimedPiece:
    """A piece and the seconds from the start of its answer."""

    at_s: float
    text: str
    origin: Origin


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One generation of the demo. ``kind``: cloud, hybrid, failover or junk."""

    kind: str
    prompt: str
    pieces: tuple[TimedPiece, ...]
    result: Result


def answer(
    client: Client,
    kind: str,
    prompt: str,
    *,
    show: Show,
    max_tokens: int,
    temperature: float,
    seed: int,
    after_tokens: tuple[int, Callable[[], None]] | None = None,
) -> Answer:
    """Generate, handing each piece to ``show``. ``after_tokens`` (n, action): do something once n tokens are there."""
    started = time.monotonic()
    stream = client.generate(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed, ignore_eos=True)
    pieces: list[TimedPiece] = []
    count = 0
    for piece in stream:
        pieces.append(TimedPiece(time.monotonic() - started, piece.text, piece.origin))
        show(piece)
        count += len(piece.token_ids)
        if after_tokens is not None and count >= after_tokens[0]:
            after_tokens[1]()
            after_tokens = None
    if after_tokens is not None:
        raise LocalError(f"the answer ended after {count} tokens, before the demo's interruption")
    return Answer(kind, prompt, tuple(pieces), stream.result)
