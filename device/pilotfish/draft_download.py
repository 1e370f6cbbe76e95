"""Fetches a draft model over HTTP: continues what was begun, and keeps nothing that is not what was announced."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pilotfish.credentials import Credentials
from pilotfish.draft_offers import DraftOffer, OfferedFile
from pilotfish.file_locks import locked
from pilotfish_core.errors import (
    Cancelled,
    LocalError,
    ModelLoadError,
    Overloaded,
    PermissionDenied,
    PilotfishError,
    Unauthenticated,
    Unavailable,
)

CHUNK: Final = 64 * 1024
TIMEOUT_S: Final = 30.0  # without a byte
TRIES: Final = 6  # of a file, in a row without a byte more
PAUSE_S: Final = 0.5  # before the second try, doubling
REPORT_EVERY_S: Final = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class DownloadProgress:
    """``received`` of ``size`` bytes of the draft model ``name`` are here, what was fetched earlier included."""

    name: str
    received: int
    size: int


Report = Callable[[DownloadProgress], None]


class DraftDownload:
    """One draft model's way into ``folder``. Blocks; ``stop`` ends it from another thread."""

    def __init__(
        self, offer: DraftOffer, folder: Path, credentials: Credentials, *, send_key: bool, report: Report
    ) -> None:
        """``send_key``: whether the API key may go to where the files are."""
        self._offer, self._folder = offer, folder
        self._credentials, self._send_key = credentials, send_key
        self._report = report
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._received = 0
        self._reported_at = 0.0
        self._ranges = True  # whether the server is thought to know them

    def stop(self) -> None:
        """Give up; what came stays for the next time."""
        self._stopped.set()
        connection = self._connection
        waiting = None if connection is None else connection.sock
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)  # whoever reads from it has its end

    def run(self) -> Path:
        """Returns ``folder``, which is then complete and as announced.

        Raises ModelLoadError for files that are not what was announced, fetched twice; Unavailable, Unauthenticated,
        PermissionDenied, Overloaded; LocalError when they cannot be kept here; Cancelled.
        """
        part = self._folder.with_name(f"{self._folder.name}.part")
        with self._kept():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._folder.with_name(f"{self._folder.name}.lock"), self._check_stopped):
                if not self._folder.is_dir():  # another process may have brought it meanwhile
                    part.mkdir(exist_ok=True)
                    for name, file in self._offer.files.items():
                        self._fetch(name, file, part / name)
                    part.replace(self._folder)
        return self._folder

    def _fetch(self, name: str, file: OfferedFile, path: Path) -> None:
        """One file, from where it ends; twice if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self._received
        for _ in range(2):
            self._received = before
            self._complete(name, file, path)
            if _sha256(path, file.size) == file.sha256:
                return
            path.unlink()
        raise ModelLoadError(
            f"{name} of the draft model {self._offer.name} is refused: its SHA-256 is not what the verifier announced"
        )

    def _complete(self, name: str, file: OfferedFile, path: Path) -> None:
        """Bring the file to its size, through connections that may break."""
        before, failures = self._received, 0
        while True:
            held = path.stat().st_size if path.exists() else 0
            if held > file.size:
                if _sha256(path, file.size) == file.sha256:  # written by two at once, say: it is all there
                    os.truncate(path, file.size)
                    held = file.size
                else:
                    path.unlink()
                    held = 0
            self._received = before + held
            self._tell(last=False)
            if held == file.size and path.exists():
                return
            try:
                self._append(name, file, path, held)
            except (http.client.HTTPException, OSError, Unavailable, Overloaded) as error:  # of the network
                failures = 1 if path.exists() and path.stat().st_size > held else failures + 1
                if failures >= TRIES:
                    if isinstance(error, PilotfishError):
                        raise
                    raise Unavailable(f"the draft model {self._offer.name} cannot be fetched: {error}") from None
                self._pause(PAUSE_S * 2 ** (failures - 1))

    def _append(self, name: str, file: OfferedFile, path: Path, held: int) -> None:
        """Ask for what is missing and write it as it comes."""
        with contextlib.closing(self._connect()) as connection:
            self._connection = connection
            headers = {"accept-encoding": "identity"}
            if self._send_key:
                headers |= dict(self._credentials.metadata)
            if held and self._ranges:
                headers |= {"range": f"bytes={held}-", "if-range": f'"{file.sha256}"'}
            connection.request("GET", f"{urlsplit(self._offer.url).path}/{name}", headers=headers)
            response = connection.getresponse()
            if response.status not in (200, 206):
                raise _refusal(response.status, f"{name} of the draft model {self._offer.name}")
            goes_on = response.status == 206 and (response.getheader("content-range") or "").startswith(
                f"bytes {held}-"
            )
            if response.status == 206 and not goes_on:
                self._ranges = False  # from here on it is asked for all of it
                raise http.client.HTTPException("the answer begins elsewhere than asked")
            if not goes_on:
                self._received, held = self._received - held, 0
            # What is here is written over only as far as the same comes again: the connection may break once more.
            with self._kept(), path.open("ab" if goes_on else "r+b" if path.exists() else "wb") as opened:
                while held < file.size:  # whatever more is sent is not read
                    self._check_stopped()
                    data = _read(response, min(CHUNK, file.size - held))
                    opened.write(data)
                    held += len(data)
                    self._received += len(data)
                    self._tell(last=self._received == self._offer.size)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Within, an OSError is of the disk. Raises LocalError."""
        try:
            yield
        except OSError as error:
            raise LocalError(
                f"the draft model {self._offer.name} cannot be kept in {self._folder.parent}: {error.strerror or error}"
            ) from None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._offer.url)
        if parts.scheme == "https":
            context = self._credentials.tls_context()
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def _tell(self, *, last: bool) -> None:
        now = time.monotonic()
        if last or now >= self._reported_at + REPORT_EVERY_S:
            self._reported_at = now
            self._report(DownloadProgress(self._offer.name, self._received, self._offer.size))

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("the download was given up")


def _sha256(path: Path, size: int) -> str:
    """Of the first ``size`` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while size > 0 and (data := opened.read(min(size, 2**20))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def _read(response: http.client.HTTPResponse, count: int) -> bytes:
    """Some bytes. Raises HTTPException where there are none, whatever the reason."""
    try:
        data = response.read1(count)  # what is there: none of it is lost when the next does not come
    except OSError as error:
        raise http.client.HTTPException(f"the connection broke: {error}") from None
    if not data:
        raise http.client.HTTPException("the connection ended early")
    return data


def _refusal(status: int, what: str) -> PilotfishError:
    match status:
        case 401:
            return Unauthenticated(f"the verifier asks for an API key for {what}")
        case 403:
            return PermissionDenied(f"the verifier does not hand out {what}")
        case 429:
            return Overloaded(f"the verifier is too busy to hand out {what}")
        case _ if status >= 500:
            return Unavailable(f"the verifier failed to hand out {what}: status {status}")
        case _:
            return ModelLoadError(f"the verifier does not have {what}: status {status}")
