"""The text of one answer, as its tokens come: what may be shown, and what the end hides."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish_core.drafts import Finish
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.stops import StopTextFilter
from pilotfish_core.tokenizer import Tokenizer


class AnswerText:
    """Text of an answer that begins with the ``output`` held already, which counts as shown.

    The cloud alone says where an answer ends: the end ids of this device's tokenizer folder, which may name others
    or none, end nothing here. The end token's text is hidden when the finish names it.
    """

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer, output: Sequence[int]) -> None:
        self._filter = StopTextFilter(params, tokenizer, eos_token_ids=())
        self._shown = [self._filter.push(token) for token in output[:-1]]
        # A resume may be told that what it holds was complete: only then is the last token known to be the end token.
        self._last_held = tuple(output[-1:])

    @property
    def whole(self) -> str:
        """All that was shown so far."""
        return "".join(self._shown)

    def push(self, tokens: Sequence[int]) -> str:
        """Take in the next tokens; returns the text that is safe to show now, perhaps none."""
        self._take_held()
        return self._show("".join([self._filter.push(token) for token in tokens]))

    def end(self, finish: Finish) -> str:
        """The answer ended: what was held back and may be shown after all."""
        if self._last_held != (finish.stop,):
            self._take_held()
        return self._show(self._filter.flush())

    def _take_held(self) -> None:
        held, self._last_held = self._last_held, ()
        for token in held:
            self._show(self._filter.push(token))

    def _show(self, text: str) -> str:
        self._shown.append(text)
        return text
