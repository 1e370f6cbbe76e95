"""What the app has on its screen: the answer's text, and behind it what the device wrote while the link was away."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.answer_text import AnswerText
from pilotfish_core.drafts import Finish
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import Tokenizer


class ShownText:
    """``answer`` is the text of the output, which grows by ``push`` and ``end``; ``show`` adds what is unverified, and
    ``settle`` says how the screen becomes the answer again.
    """

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer, output: Sequence[int]) -> None:
        self._params, self._tokenizer = params, tokenizer
        self.answer = AnswerText(params, tokenizer, output)
        self._ahead: AnswerText | None = None
        self._screen = ""  # all of it, while something is unverified

    @property
    def unverified(self) -> str:
        """What is on the screen behind the answer's text."""
        return "" if self._ahead is None else self._screen[len(self.answer.whole) :]

    @property
    def unsettled(self) -> bool:
        """Whether anything unverified was shown since the last ``settle``."""
        return self._ahead is not None

    def show(self, output: Sequence[int], tokens: Sequence[int]) -> str:
        """Unverified ``tokens`` behind all those shown before, which are behind ``output``: the text that they add."""
        if self._ahead is None:
            self._ahead = AnswerText(self._params, self._tokenizer, output)
            self._ahead.push(())  # of a resumed answer all of the output is on the screen
            self._screen = self._ahead.whole
        self._ahead.push(tokens)
        text = self._ahead.whole[len(self._screen) :]
        self._screen += text
        return text

    def settle(self) -> tuple[int, str, str]:
        """Nothing is unverified any more. Returns where the screen differs from the answer, as an offset in characters,
        what is to be removed from there on, and what comes instead.
        """
        before, after = self._screen, self.answer.whole
        self._ahead, self._screen = None, ""
        offset = 0
        while offset < min(len(before), len(after)) and before[offset] == after[offset]:
            offset += 1
        return offset, before[offset:], after[offset:]

    def end(self, finish: Finish) -> str:
        """The answer ended: what of it was held back and may be shown after all."""
        return self.answer.end(finish)
