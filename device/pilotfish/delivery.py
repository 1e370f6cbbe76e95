"""Makes pieces of what a core delivers: text in step with tokens, and what becomes of unverified text."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from pilotfish.generation import Generation
from pilotfish.result import Confirmed, Piece, Result, Revised
from pilotfish.shown_text import ShownText
from pilotfish_core.device_actions import Deliver, ShowUnverified
from pilotfish_core.drafts import Finish, FinishReason, Origin
from pilotfish_core.errors import PilotfishError
from pilotfish_core.tokenizer import Tokenizer


class Delivery:
    """The app's end of one generation. ``pieces`` are what it iterates; the driver closes them."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self.pieces: asyncio.Queue[Piece | Result | PilotfishError] = asyncio.Queue()
        self.text = ShownText(generation.params, tokenizer, generation.output)
        self._generation = generation
        self._last_origin = Origin.CLOUD

    def deliver(self, deliver: Deliver, finish: Finish | None) -> None:
        """Committed tokens. ``finish``: the answer ends with the last ones that are delivered now."""
        tokens = deliver.tokens
        with_text = len(tokens) - _hidden(tokens, finish)
        begin = 0
        for (origin, confirmed), group in itertools.groupby(
            (origin, index < deliver.confirmed) for index, origin in enumerate(deliver.origins)
        ):
            end = begin + len(list(group))
            text = self.text.answer.push(tokens[begin : min(end, with_text)])
            logprobs = None if deliver.logprobs is None else deliver.logprobs[begin:end]
            piece = Piece(text, tokens[begin:end], origin, logprobs)
            self._last_origin = origin
            if confirmed:
                self.pieces.put_nowait(Confirmed("", piece.token_ids, origin, logprobs, confirmed_text=text))
            elif self.text.unsettled:
                self._settle(piece, deliver.position + begin, revised=deliver.withdrawn > 0)
            else:
                self.pieces.put_nowait(piece)
            begin = end
        if self.text.unsettled and not deliver.undecided:
            rest = "" if finish is None else self.text.end(finish)
            piece = Piece(rest, (), self._last_origin)
            self._settle(piece, deliver.position + len(tokens), revised=deliver.withdrawn > 0)

    def show(self, shown: ShowUnverified, finish: Finish | None) -> None:
        """Draft tokens, marked as unverified; ``finish``: the answer may be complete with them."""
        with_text = len(shown.tokens) - _hidden(shown.tokens, finish)
        text = self.text.show(self._generation.output, shown.tokens[:with_text])
        self.pieces.put_nowait(Piece(text, shown.tokens, Origin.UNVERIFIED))

    def keep(self, tokens: Sequence[int], finish: Finish | None) -> None:
        """What was shown is a part of the answer from here on. To be called before it is in the output."""
        self.text.answer.push(tokens[: len(tokens) - _hidden(tokens, finish)])
        if self.text.unsettled:
            self.text.settle()
        self._last_origin = Origin.UNVERIFIED

    def end(self, finish: Finish) -> None:
        """What was held back of the text."""
        if self.text.unsettled and finish.reason is FinishReason.ABORT:
            # What was held back stays so: it is not known to be on the screen, and a resume shows it again.
            return
        rest = self.text.end(finish)
        if rest:
            self.pieces.put_nowait(Piece(rest, (), self._last_origin))

    def _settle(self, piece: Piece, position: int, *, revised: bool) -> None:
        """``piece`` is the last of what decides the unverified text; what it adds to the screen is to be found out."""
        offset, removed, new = self.text.settle()
        if revised or removed:
            self.pieces.put_nowait(
                Revised(
                    new,
                    piece.token_ids,
                    piece.origin,
                    piece.logprobs,
                    position=position,
                    offset=offset,
                    removed=removed,
                    confirmed_text=piece.text,
                )
            )
        elif piece.token_ids or new:
            self.pieces.put_nowait(Piece(new, piece.token_ids, piece.origin, piece.logprobs))


def _hidden(tokens: Sequence[int], finish: Finish | None) -> int:
    """1 where the last one is the end token: it is in the tokens, not in the text."""
    return int(finish is not None and tuple(tokens[-1:]) == (finish.stop,))
