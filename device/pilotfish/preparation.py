"""What a client needs before its first answer: a drafter and a tokenizer that fit together."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path

from pilotfish.auto_draft import AutoDraft
from pilotfish.drafters import load_drafter
from pilotfish.tokenizer_cache import obtain_tokenizer
from pilotfish.transport import Transport
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import Cancelled, ModelLoadError, PilotfishError, TokenizerMismatch
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Preparation:
    """Obtains drafter and tokenizer once, for all who ask. What failed is tried again by the next who asks.

    ``drafter`` and ``tokenizer`` are both there once ``tokenizer`` is; a drafter may be None for good. ``auto`` knows
    what the verifier offers: what is not here yet is fetched while prompt lookup drafts.
    """

    def __init__(
        self,
        draft: str | Path | Drafter | None,
        tokenizer: str | Path | Tokenizer | None,
        model: str,
        executor: Executor,
        auto: AutoDraft | None = None,
    ) -> None:
        self.drafter: Drafter | None = None
        self.tokenizer: Tokenizer | None = None
        self._draft = draft
        self._tokenizer_source = tokenizer
        self._model = model
        self._executor = executor
        self._auto = auto
        self._folder: Path | None = None  # of the verifier's draft model, once that is in use
        self._replaced: list[Drafter] = []
        self._fetching: asyncio.Task[None] | None = None
        self._loaded = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, transport: Transport) -> None:
        """Obtain both. Raises ModelLoadError, TokenizerMismatch, and what the verifier answers."""
        if self.tokenizer is not None:
            if self._auto is not None and not self._auto.asked and (self._fetching is None or self._fetching.done()):
                self._fetching = asyncio.create_task(self._ask_again(self._auto, self.tokenizer))
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

    async def complete(self) -> None:
        """Wait for a draft model that is being fetched, after ``run``. That it fails is logged, nothing more: the
        answers do not depend on it.
        """
        if self._fetching is not None:
            await asyncio.wait([self._fetching])

    async def stop(self) -> None:
        """End what is under way."""
        for task in (self._task, self._fetching):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    def free(self) -> None:
        """Close the drafter, unless it belongs to the caller; the verifier's draft model is not in use any more."""
        drafter, self.drafter = self.drafter, None
        for old in (drafter, *self._replaced):
            if old is not None and old is not self._draft:
                try:
                    old.close()
                except Exception:
                    _log.exception("the drafter %s failed to close", old.name)
        if self._auto is not None:
            self._auto.release()

    async def _prepare(self, transport: Transport) -> None:
        loop = asyncio.get_running_loop()
        if not self._loaded:
            offered = None if self._auto is None else await self._auto.here()
            await loop.run_in_executor(self._executor, self._load, offered)
        source = self._draft if self._folder is None else self._folder
        tokenizer = await obtain_tokenizer(self._tokenizer_source, source, transport, self._model, self._executor)
        await loop.run_in_executor(self._executor, _check, self.drafter, tokenizer)
        self.tokenizer = tokenizer
        if self._auto is not None and self._folder is not None:
            await self._auto.used(self._folder)
        elif self._auto is not None and self._auto.wanted:
            self._fetching = asyncio.create_task(self._fetch(self._auto, tokenizer))

    def _load(self, offered: Path | None) -> None:
        """In the executor's thread, so that what it loads is kept even when nobody waits any more. ``offered``: the
        verifier's draft model, where it is here already.
        """
        if isinstance(self._draft, Drafter):
            self.drafter = self._draft
        elif self._draft != "auto":
            self.drafter = load_drafter(self._draft)
        else:
            self.drafter = None if offered is None or self._auto is None else _loaded(offered, self._auto)
            if self.drafter is None:
                self.drafter = load_drafter("ngram")
            else:
                self._folder = offered
        self._loaded = True

    async def _ask_again(self, auto: AutoDraft, tokenizer: Tokenizer) -> None:
        """The verifier could not say before what it offers."""
        await auto.here()
        if auto.asked and auto.wanted:
            await self._fetch(auto, tokenizer)

    async def _fetch(self, auto: AutoDraft, tokenizer: Tokenizer) -> None:
        """Bring the verifier's draft model, which later generations then use."""
        loop = asyncio.get_running_loop()
        try:
            while True:  # one that is of no use here is not on offer any more
                folder = await auto.fetch()
                if folder is None:
                    return
                drafter = await loop.run_in_executor(self._executor, _fitting, folder, auto, tokenizer)
                if drafter is not None:
                    break
            if self.drafter is not None:
                self._replaced.append(self.drafter)  # generations that run go on with it
            self.drafter, self._folder = drafter, folder
            await auto.used(folder)
        except PilotfishError as error:
            _log.warning("the verifier's draft model is not used: %s", error)
        except Exception:
            _log.exception("the verifier's draft model could not be fetched")

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # whoever waits gets it; without this one that nobody waits for is logged as lost


def _check(drafter: Drafter | None, tokenizer: Tokenizer) -> None:
    wanted = None if drafter is None else drafter.tokenizer_hash
    if drafter is not None and wanted is not None and wanted != tokenizer.hash:
        raise TokenizerMismatch(
            f"the drafter {drafter.name} was made for tokenizer {wanted[:12]}, the one in use is "
            f"{tokenizer.hash[:12]}: a draft model must share its target's vocabulary"
        )


def _loaded(folder: Path, auto: AutoDraft) -> Drafter | None:
    """The verifier's draft model, which was here already; None where it does not load."""
    try:
        return load_drafter(folder)
    except ModelLoadError as error:
        auto.unusable(folder, error)
        return None


def _fitting(folder: Path, auto: AutoDraft, tokenizer: Tokenizer) -> Drafter | None:
    """The verifier's draft model, as it was fetched; None where it does not load, or is of another vocabulary."""
    drafter = None
    try:
        drafter = load_drafter(folder)
        _check(drafter, tokenizer)
    except (ModelLoadError, TokenizerMismatch) as error:
        if drafter is not None:
            drafter.close()
        auto.unusable(folder, error)
        return None
    return drafter
