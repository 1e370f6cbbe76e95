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
from pilotfish.draft_offers import DraftOffer, chosen_offer, may_send_key, offered_drafts
from pilotfish.files import replace_file
from pilotfish.tokenizer_cache import cache_folder
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
    ) -> None:
        """``insecure``: the API key may cross a network unencrypted. ``report`` is called on the event loop."""
        self._transport, self._credentials, self._model = transport, credentials, model
        self._insecure, self._report = insecure, report
        self._asked = False
        self._offer: DraftOffer | None = None
        self._download: DraftDownload | None = None

    async def here(self) -> Path | None:
        """The folder of the draft model to use, if it is on this device already. Asks the verifier what it offers; one
        that cannot be reached is taken to offer what it did the last time.
        """
        try:
            self._offer = chosen_offer(await offered_drafts(self._transport, self._model))
            self._asked = True
        except PilotfishError as error:
            _log.info("the verifier does not say which draft models it offers: %s", error)
            return self._last()
        if self._offer is None:
            return None
        folder = _drafts() / self._offer.digest
        return folder if folder.is_dir() else None

    @property
    def asked(self) -> bool:
        """Whether the verifier has said what it offers."""
        return self._asked

    @property
    def wanted(self) -> bool:
        """Whether there is one to ``fetch``."""
        return self._offer is not None

    async def fetch(self) -> Path | None:
        """Bring what is offered here; None where nothing is. A cancelled download goes on the next time.

        Raises ModelLoadError for files that are not what was announced, LocalError, and what the verifier answers.
        """
        if self._offer is None:
            return None
        from pilotfish.draft_download import DraftDownload  # what it imports is of no use otherwise

        loop = asyncio.get_running_loop()

        def report(progress: DownloadProgress) -> None:
            if self._report is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._report, progress)

        self._download = DraftDownload(
            self._offer,
            _drafts() / self._offer.digest,
            self._credentials,
            send_key=may_send_key(self._offer.url, self._transport.addresses, insecure=self._insecure),
            report=report,
        )
        fetching = asyncio.create_task(in_daemon_thread(self._download.run, "pilotfish-download"))
        try:
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            self._download.stop()
            await asyncio.wait([fetching], timeout=GIVE_UP_S)  # rarely more than a moment
            if fetching.done():
                fetching.exception()
            else:
                fetching.cancel()
            raise

    async def used(self, folder: Path) -> None:
        """Remember it for when the verifier cannot be reached."""
        if self._asked:
            await asyncio.to_thread(self._remember, folder)

    def _remember(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # a read-only home only costs asking again
            replace_file(_drafts() / LAST, json.dumps(_remembered() | {self._verifier: folder.name}))

    def _last(self) -> Path | None:
        name = _remembered().get(self._verifier)
        if not name or len(name) != hashlib.sha256().digest_size * 2:
            return None
        folder = _drafts() / name
        return folder if folder.is_dir() else None

    @property
    def _verifier(self) -> str:
        return f"{','.join(str(address) for address in self._transport.addresses)} {self._model}"


def _drafts() -> Path:
    return cache_folder() / "drafts"


def _remembered() -> dict[str, str]:
    try:
        value = json.loads((_drafts() / LAST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: name for key, name in value.items() if isinstance(name, str) and name.isalnum()}
