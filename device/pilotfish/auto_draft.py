"""``draft="auto"``: the draft model that the verifier offers for its target, fetched once and kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfish.credentials import Credentials
from pilotfish.daemon import in_daemon_thread
from pilotfish.draft_cache import DEFAULT_BYTES, DraftCache
from pilotfish.draft_offers import DraftOffer, may_send_key, offered_drafts, usable_offers
from pilotfish.files import replace_file
from pilotfish.transport import Transport
from pilotfish_core.errors import PilotfishError

if TYPE_CHECKING:
    from pilotfish.draft_download import DownloadProgress, DraftDownload

_log = logging.getLogger("pilotfish.draft")
GIVE_UP_S: Final = 2.0  # that closing waits for a download which was told to stop
LAST: Final = "last.json"  # what each verifier offered the last time, for when it cannot be asked


class AutoDraft:
    """What one client knows of the drafts on offer. ``model``: of the target, empty for the only one."""

    def __init__(
        self,
        transport: Transport,
        credentials: Credentials,
        model: str,
        *,
        insecure: bool = False,
        report: Callable[[DownloadProgress], None] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """``insecure``: the API key may cross a network unencrypted. ``report`` is called on the event loop.
        ``cache_bytes``: that all drafts together may take on this device; None for the usual.
        """
        self._transport, self._credentials, self._model = transport, credentials, model
        self._insecure, self._report = insecure, report
        self._asked = False
        self._cache = DraftCache(limit=DEFAULT_BYTES if cache_bytes is None else cache_bytes)
        self._offers: tuple[DraftOffer, ...] = ()  # that may be of use here, the best first
        self._checked = ""  # the digest that was fetched, and checked
        self._download: DraftDownload | None = None

    async def here(self) -> Path | None:
        """The folder of the draft model to use, if it is on this device already. Asks the verifier what it offers; one
        that cannot be reached is taken to offer what it did the last time.
        """
        try:
            offers = await offered_drafts(self._transport, self._model)
            self._asked = True
        except PilotfishError as error:
            _log.info("the verifier does not say which draft models it offers: %s", error)
            return await asyncio.to_thread(self._last)
        usable = usable_offers(offers, max_bytes=self._cache.limit)
        if offers and not usable:
            _log.warning("none of the verifier's draft models is of use here: of another runtime, or too large")
        self._offers = await asyncio.to_thread(self._not_refused, usable)
        return await asyncio.to_thread(self._found, self._offers[0]) if self._offers else None

    @property
    def asked(self) -> bool:
        """Whether the verifier has said what it offers."""
        return self._asked

    @property
    def wanted(self) -> bool:
        """Whether there is one to ``fetch``."""
        return bool(self._offers)

    async def fetch(self) -> Path | None:
        """Bring what is offered here; None where nothing is. A cancelled download goes on the next time.

        Raises ModelLoadError for files that are not what was announced, LocalError, and what the verifier answers.
        """
        if not self._offers:
            return None
        from pilotfish.draft_download import DraftDownload  # what it imports is of no use otherwise

        loop = asyncio.get_running_loop()

        def report(progress: DownloadProgress) -> None:
            if self._report is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._report, progress)

        offer = self._offers[0]
        folder = await asyncio.to_thread(self._found, offer)
        if folder is not None:
            return folder
        self._download = DraftDownload(
            offer,
            self._cache.path(offer.digest),
            self._credentials,
            send_key=may_send_key(offer.url, self._transport.addresses, insecure=self._insecure),
            report=report,
        )
        fetching = asyncio.create_task(in_daemon_thread(self._download.run, "pilotfish-download"))
        try:
            folder = await asyncio.shield(fetching)
            self._checked = offer.digest
            return folder
        except asyncio.CancelledError:
            self._download.stop()
            await asyncio.wait([fetching], timeout=GIVE_UP_S)  # rarely more than a moment
            if fetching.done():
                fetching.exception()
            else:
                fetching.cancel()
            raise

    def unusable(self, folder: Path, error: PilotfishError) -> None:
        """It does not load. What is as it was announced is not taken again, but the next on offer, if there is one; of
        what was damaged here the damaged files are fetched again. Blocks.
        """
        if folder.name == self._checked or self._cache.is_whole(folder.name):
            self._cache.refuse(folder.name, str(error))
            _log.warning("the verifier's draft model %s cannot be used here: %s", folder.name[:12], error)
            self._offers = self._not_refused(self._offers)
            return
        _log.warning("a draft model that was fetched earlier is damaged, and fetched again: %s", error)
        for offer in self._offers:
            if offer.digest == folder.name:
                self._cache.repair(offer)

    def release(self) -> None:
        """Nothing of the cache is in use any more."""
        self._cache.release()

    async def used(self, folder: Path) -> None:
        """Remember it for when the verifier cannot be reached."""
        if self._asked:
            await asyncio.to_thread(self._remember, folder)

    def _remember(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # a read-only home only costs asking again
            known = self._remembered() | {self._verifier: folder.name}
            replace_file(self._cache.folder / LAST, json.dumps(known))

    def _last(self) -> Path | None:
        name = self._remembered().get(self._verifier)
        if not name or len(name) != hashlib.sha256().digest_size * 2 or self._cache.refused(name) is not None:
            return None
        return self._cache.find(name)

    def _found(self, offer: DraftOffer) -> Path | None:
        """Where it is, if it is here; in any case it is in use from here on, and others go where it would not fit."""
        self._cache.use(offer.digest)
        self._cache.make_room(offer)
        return self._cache.find(offer.digest)

    def _not_refused(self, offers: tuple[DraftOffer, ...]) -> tuple[DraftOffer, ...]:
        """Without those that were found to be of no use here, which is said."""
        left = []
        for offer in offers:
            reason = self._cache.refused(offer.digest)
            if reason is None:
                left.append(offer)
            else:
                _log.warning("the verifier's draft model %s was found to be of no use here: %s", offer.name, reason)
        return tuple(left)

    def _remembered(self) -> dict[str, str]:
        try:
            value = json.loads((self._cache.folder / LAST).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(value, dict):
            return {}
        return {key: name for key, name in value.items() if isinstance(name, str) and name.isalnum()}

    @property
    def _verifier(self) -> str:
        return f"{','.join(str(address) for address in self._transport.addresses)} {self._model}"
