"""Runs one generation on the device alone: the draft model's own text, which no target has seen, marked so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, Final

from pilotfish.answer_text import AnswerText
from pilotfish.drafting import DraftDone, DraftWorker
from pilotfish.figures import Figures
from pilotfish.generation import ALONE, Generation
from pilotfish.result import Piece, Result
from pilotfish_core.device_actions import DraftCounts, DraftTask
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import Finish, FinishReason, Origin
from pilotfish_core.errors import LocalError, PilotfishError
from pilotfish_core.modes import Arm, Hint
from pilotfish_core.stops import StopChecker
from pilotfish_core.tokenizer import Tokenizer

log = logging.getLogger("pilotfish")

_POLICY: Final[Mapping[str, Any]] = {"arm": Arm.DEVICE_ONLY.value, "reason": "fixed", "paused": False}
CHUNK: Final = 4  # tokens at a time: soon enough for who reads along, and for a cancel


class LocalDriver:
    """As ``GenerationDriver``, without a verifier: pieces have origin UNVERIFIED.

    The generation remembers that these tokens were decided by ``device-only:<drafter>``. That is no verifier's
    fingerprint: to resume it on one needs ``allow_other_fingerprint``.
    """

    def __init__(self, generation: Generation, *, tokenizer: Tokenizer, drafter: Drafter, executor: Executor) -> None:
        self.generation = generation
        self.pieces: asyncio.Queue[Piece | Result | PilotfishError] = asyncio.Queue()
        self.outcome: asyncio.Future[Result | PilotfishError] = asyncio.get_running_loop().create_future()
        self._drafter = drafter
        self._done: asyncio.Queue[DraftDone] = asyncio.Queue()
        self._worker = DraftWorker(drafter, generation, tokenizer.vocab_size, executor, self._done.put_nowait)
        self._figures = Figures(generation, drafter.name)
        self._text = AnswerText(generation.params, tokenizer, generation.output)
        self._rule = StopChecker(
            generation.params, tokenizer, eos_token_ids=tokenizer.eos_token_ids, max_output=self._room()
        )
        self._stopped: asyncio.Future[PilotfishError | None] = asyncio.get_running_loop().create_future()
        self._kept = 0  # tokens that the drafter holds and that stand

    @property
    def draft_text(self) -> str:
        """There is none: what is drafted is the answer."""
        return ""

    @property
    def unverified_text(self) -> str:
        """Nothing that would be verified later."""
        return ""

    @property
    def away(self) -> bool:
        """There is no link to be away."""
        return False

    def explain(self) -> Mapping[str, Any]:
        """There is nothing to choose here."""
        return _POLICY

    def cancel(self) -> None:
        """End the generation; what is there stays, ``pieces`` closes with a Result (finish_reason abort)."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    def fail(self, error: PilotfishError) -> None:
        """End the generation with an error."""
        if not self._stopped.done():
            self._stopped.set_result(error)

    def hint(self, hint: Hint) -> None:
        """There is nothing to choose here."""

    async def run(self) -> None:
        """Drive to the end. Errors come out of ``pieces``, none is raised."""
        self._figures.start(asyncio.get_running_loop().time())
        try:
            finish = self._resumed()
            while finish is None and not self._stopped.done():
                finish = await self._next()
            if finish is None:
                error = self._stopped.result()
                self._close(error or self._result(Finish(FinishReason.ABORT)))
            else:
                self.generation.finish = finish
                self._close(self._result(finish))
        except PilotfishError as error:
            self._close(error)
        except Exception as error:
            log.exception("a generation failed unexpectedly")
            self._close(PilotfishError(f"the client failed unexpectedly: {error!r}"))
        finally:
            await self._worker.close()

    def _room(self) -> int:
        """Output tokens that the drafter's context has room for. Raises LocalError when there is none."""
        length, limit = len(self.generation.prompt), self._drafter.max_length
        if limit is None:
            return self.generation.params.max_tokens
        if limit <= length:
            raise LocalError(f"the prompt has {length} tokens; the draft model's context is {limit}")
        return limit - length

    def _resumed(self) -> Finish | None:
        finish = None
        for token in self.generation.output:
            finish = self._rule.push(token)
        return finish

    async def _next(self) -> Finish | None:
        """Draft some more tokens and hand them out."""
        generation = self.generation
        whole = (*generation.prompt, *generation.output)
        count = min(CHUNK, max(self._room() - len(generation.output), 1))
        self._worker.begin(DraftTask(self._kept, whole[self._kept :], count))
        done = asyncio.ensure_future(self._done.get())
        waited: list[asyncio.Future[Any]] = [done, self._stopped]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            done.cancel()
            return None
        tokens, error = done.result().tokens, done.result().error
        if error is not None:
            raise LocalError(f"the drafter {self._drafter.name} failed: {error}")
        if not tokens:
            raise LocalError(f"the drafter {self._drafter.name} has nothing to propose; a draft model is needed here")
        self._kept = len(whole) + len(tokens)
        return self._deliver(tokens)

    def _deliver(self, tokens: list[int]) -> Finish | None:
        taken, finish = list[int](), None
        for token in tokens:
            taken.append(token)
            finish = self._rule.push(token)
            if finish is not None:
                break
        self.generation.decided_under(ALONE + self._drafter.name)
        self.generation.output.extend(taken)
        self._figures.delivered(len(taken), asyncio.get_running_loop().time())
        shown = taken[:-1] if finish is not None and taken[-1] == finish.stop else taken
        self.pieces.put_nowait(Piece(self._text.push(shown), tuple(taken), Origin.UNVERIFIED))
        return finish

    def _result(self, finish: Finish) -> Result:
        rest = self._text.end(finish)
        if rest:
            self.pieces.put_nowait(Piece(rest, (), Origin.UNVERIFIED))
        return Result(
            text=self._text.whole,
            token_ids=tuple(self.generation.output),
            finish_reason=finish.reason,
            stop=finish.stop,
            metrics=self._figures.metrics(DraftCounts(), _POLICY, None),
            verified=self.generation.verified,
        )

    def _close(self, item: Result | PilotfishError) -> None:
        self.pieces.put_nowait(item)
        self.outcome.set_result(item)
