"""Which tokens end an answer for the verifier: they, not a draft folder's, end what the device writes offline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any, Final

from pilotfish.files import replace_file
from pilotfish.tokenizer_cache import cache_folder
from pilotfish.transport import Transport
from pilotfish_core.errors import PilotfishError

_log = logging.getLogger(__name__)
FILE: Final = "end_tokens.json"  # what each verifier said the last time, for when it cannot be asked
MAX_REMEMBERED: Final = 256  # verifiers


class EndTokens:
    """What one client knows of one served model. ``ids``: None as long as nothing is known."""

    def __init__(self, transport: Transport, model: str, tokenizer_hash: str) -> None:
        self.ids: tuple[int, ...] | None = None
        self._transport, self._hash = transport, tokenizer_hash
        self._key = f"{','.join(str(address) for address in transport.addresses)} {model}"
        self._model = model
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def learn(self) -> None:
        """Find out in the background, unless the verifier has said so. Nothing is raised."""
        if not self._asked and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._learn())

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _learn(self) -> None:
        if self.ids is None:
            self.ids = await asyncio.to_thread(self._remembered)
        try:
            digest, ids = await self._transport.fetch_end_tokens(self._model)
        except PilotfishError as error:
            _log.info("the verifier does not say which tokens end an answer: %s", error)
            return
        self._asked = True
        if digest == self._hash:  # of another vocabulary they would mean something else
            self.ids = ids
            await asyncio.to_thread(self._remember, ids)

    def _remembered(self) -> tuple[int, ...] | None:
        match _known().get(self._key):
            case {"tokenizer": self._hash, "ids": list(ids)} if all(type(token) is int for token in ids):
                return tuple(ids)
        return None

    def _remember(self, ids: tuple[int, ...]) -> None:
        known = _known()
        known.pop(self._key, None)
        known[self._key] = {"tokenizer": self._hash, "ids": list(ids)}
        kept = dict(list(known.items())[-MAX_REMEMBERED:])
        with contextlib.suppress(OSError):  # a read-only home only costs asking again
            cache_folder().mkdir(parents=True, exist_ok=True)
            replace_file(cache_folder() / FILE, json.dumps(kept))


def _known() -> dict[str, Any]:
    try:
        value = json.loads((cache_folder() / FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
