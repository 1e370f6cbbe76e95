"""What a client needs before its first answer: a drafter and a tokenizer that fit together."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path

from pilotfish.drafters import load_drafter
from pilotfish.tokenizer_cache import obtain_tokenizer
from pilotfish.transport import Transport
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import Cancelled, TokenizerMismatch
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Preparation:
    """Obtains drafter and tokenizer once, for all who ask. What failed is tried again by the next who asks.

    ``drafter`` and ``tokenizer`` are both there once ``tokenizer`` is; a drafter may be None for good.
    """

    def __init__(
        self,
        draft: str | Path | Drafter | None,
        tokenizer: str | Path | Tokenizer | None,
        model: str,
        executor: Executor,
    ) -> None:
        self.drafter: Drafter | None = None
        self.tokenizer: Tokenizer | None = None
        self._draft = draft
        self._tokenizer_source = tokenizer
        self._model = model
        self._executor = executor
        self._loaded = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, transport: Transport) -> None:
        """Obtain both. Raises ModelLoadError, TokenizerMismatch, and what the verifier answers."""
        if self.tokenizer is not None:
            return
        if self._task is None:
            self._task = asyncio.create_task(self._prepare(transport))
            self._task.add_done_callback(self._ended)
        task = self._task
        try:
            await asyncio.shield(task)  # a caller whose deadline passes must not take it from the others
        except asyncio.CancelledError:
            if task.cancelled():
                raise Cancelled("the client was closed") from None
            raise

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def free(self) -> None:
        """Close the drafter, unless it belongs to the caller."""
        drafter, self.drafter = self.drafter, None
        if drafter is not None and drafter is not self._draft:
            try:
                drafter.close()
            except Exception:
                _log.exception("the drafter %s failed to close", drafter.name)

    async def _prepare(self, transport: Transport) -> None:
        loop = asyncio.get_running_loop()
        if not self._loaded:
            await loop.run_in_executor(self._executor, self._load)
        tokenizer = await obtain_tokenizer(self._tokenizer_source, self._draft, transport, self._model, self._executor)
        await loop.run_in_executor(self._executor, self._check, tokenizer)
        self.tokenizer = tokenizer

    def _load(self) -> None:
        """In the executor's thread, so that what it loads is kept even when nobody waits any more."""
        if isinstance(self._draft, Drafter):
            self.drafter = self._draft
        else:
            self.drafter = load_drafter("ngram" if self._draft == "auto" else self._draft)
        self._loaded = True

    def _check(self, tokenizer: Tokenizer) -> None:
        wanted = None if self.drafter is None else self.drafter.tokenizer_hash
        if self.drafter is not None and wanted is not None and wanted != tokenizer.hash:
            raise TokenizerMismatch(
                f"the drafter {self.drafter.name} was made for tokenizer {wanted[:12]}, the one in use is "
                f"{tokenizer.hash[:12]}: a draft model must share its target's vocabulary"
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # whoever waits gets it; without this one that nobody waits for is logged as lost
