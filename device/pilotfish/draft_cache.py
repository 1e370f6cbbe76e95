"""Draft models that were fetched, each in a folder named by a digest of what it consists of. Bounded in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from pilotfish.draft_offers import DraftOffer, OfferedFile, digest_of
from pilotfish.file_locks import POLL_S, lock_of
from pilotfish.files import replace_file
from pilotfish.tokenizer_cache import cache_folder

DEFAULT_BYTES: Final = 4 * 2**30
BAD: Final = "bad.json"
MAX_BAD: Final = 256
PART: Final = ".part"
_NAME: Final = re.compile(r"[0-9a-f]{64}(\.part)?")
_log = logging.getLogger("pilotfish.draft")


class DraftCache:
    """One client's view of the folder, which it shares with others. ``limit``: bytes that all drafts may take.

    What a client uses is marked by a lock on ``DIGEST.use``, whose time is that of the last use; what is being fetched
    by one on ``DIGEST.lock``. Neither is ever removed to make room. Blocks: nothing for an event loop.
    """

    def __init__(self, folder: Path | None = None, *, limit: int = DEFAULT_BYTES) -> None:
        self.folder = cache_folder() / "drafts" if folder is None else folder
        self.limit = limit
        self._used: dict[str, BinaryIO] = {}

    def path(self, digest: str) -> Path:
        """Where a draft is, or would be."""
        return self.folder / digest

    def lock(self, digest: str) -> Path:
        """What is locked while it is fetched."""
        return self.folder / f"{digest}.lock"

    def find(self, digest: str) -> Path | None:
        """Its folder, where it is here; then it is in use until ``release``."""
        if not self.path(digest).is_dir():
            return None
        self.use(digest)
        return self.path(digest) if self.path(digest).is_dir() else None  # it may have had to go just before

    def use(self, digest: str) -> None:
        """It is in use from here on, even before it is here. On a disk that takes no locks nothing follows from it."""
        if digest in self._used:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{digest}.use"
            while (held := lock_of(file, shared=True)) is None:
                time.sleep(POLL_S)  # it is being removed
            os.utime(file)
            self._used[digest] = held

    def release(self) -> None:
        """Nothing is in use by this client any more."""
        while self._used:
            self._used.popitem()[1].close()

    def make_room(self, offer: DraftOffer) -> None:
        """Remove what was used the longest ago until ``offer`` fits too, which itself stays as far as it is here."""
        entries = {}
        with contextlib.suppress(OSError):
            entries = {path: _size(path) for path in self.folder.iterdir() if _NAME.fullmatch(path.name)}
        own = {self.path(offer.digest), self._part(offer.digest)}
        taken = sum(size for path, size in entries.items() if path not in own) + offer.size
        for path in sorted(entries.keys() - own, key=self._used_at):
            if taken <= self.limit:
                return
            if self._remove(path):
                _log.info("the draft model %s was removed to make room", path.name)
                taken -= entries[path]

    # -- what does not load -----------------------------------------------------------------------------------------

    def is_whole(self, digest: str) -> bool:
        """Whether all files are those that the digest was made of."""
        return digest_of(_listed(self.path(digest))) == digest

    def repair(self, offer: DraftOffer) -> None:
        """Of a draft that is damaged here, keep the files that are as announced: they are not fetched again."""
        folder, part = self.path(offer.digest), self._part(offer.digest)
        with contextlib.suppress(OSError):
            shutil.rmtree(part, ignore_errors=True)
            folder.replace(part)
            for name, file in _listed(part).items():
                if offer.files.get(name) != file:
                    (part / name).unlink()

    def refuse(self, digest: str, reason: str) -> None:
        """It is as it was announced and of no use here: it is removed, and remembered as such."""
        shutil.rmtree(self.path(digest), ignore_errors=True)
        bad = self._bad()
        bad.pop(digest, None)
        bad[digest] = {"reason": reason, "runtime": _runtime()}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / BAD, json.dumps(dict(list(bad.items())[-MAX_BAD:])))

    def refused(self, digest: str) -> str | None:
        """Why it is of no use here, as far as that is known. Another version of the runtime may do better."""
        match self._bad().get(digest):
            case {"reason": str(reason), "runtime": runtime} if runtime == _runtime():
                return reason
        return None

    def _bad(self) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / BAD).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    # -- removing ---------------------------------------------------------------------------------------------------

    def _part(self, digest: str) -> Path:
        return self.folder / f"{digest}{PART}"

    def _used_at(self, path: Path) -> float:
        try:
            return (self.folder / f"{path.name}.use" if path.suffix != PART else path).stat().st_mtime
        except OSError:
            return 0.0

    def _remove(self, path: Path) -> bool:
        """Whether it is gone; it stays while anybody uses or fetches it."""
        digest = path.name.removesuffix(PART)
        if digest in self._used:
            return False
        marks = (self.lock(digest), self.folder / f"{digest}.use")
        try:
            with contextlib.ExitStack() as held:
                for mark in marks:
                    lock = lock_of(mark)
                    if lock is None:
                        return False
                    held.enter_context(lock)
                gone = path.with_name(f".gone-{path.name}")
                shutil.rmtree(gone, ignore_errors=True)
                path.replace(gone)  # at once, so that nobody finds half of it
                shutil.rmtree(gone, ignore_errors=True)
        except OSError:
            return False
        return True


def _listed(folder: Path) -> Mapping[str, OfferedFile]:
    """All files as they are; none where they cannot be read."""
    found = {}
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                found[path.relative_to(folder).as_posix()] = OfferedFile(path.stat().st_size, digest)
    except OSError:
        return {}
    return found


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _runtime() -> str:
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return ""
