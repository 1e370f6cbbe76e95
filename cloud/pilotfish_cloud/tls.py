"""Certificates of the server: checked before anything starts, given to both doors, read again on SIGHUP."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import grpc

from pilotfish_core.errors import FileFormatError, PilotfishError

_log = logging.getLogger(__name__)

ALPN: Final = ["http/1.1"]  # what uvicorn speaks


class Certificates:
    """Certificate chain, key and, for mutual TLS, the authorities of clients.

    ``grpc_credentials`` follow a ``reload`` from the next handshake on, and so do contexts that ``http_context`` made;
    the latter keep the client authorities that they began with.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises FileFormatError for files that cannot be read, or do not belong together."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._contexts: list[ssl.SSLContext] = []
        self._lock = threading.Lock()
        self._changed = False
        self._current = self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``. gRPC asks from threads of its own whether there are newer ones."""
        newer = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._newer)  # None: unchanged, say its docs
        return grpc.dynamic_ssl_server_credentials(self._current, newer, self._client_ca is not None)

    def http_context(self) -> ssl.SSLContext:
        """For an HTTP server."""
        context = self._context()
        self._contexts.append(context)
        return context

    def reload(self) -> bool:
        """Read the files again. Returns whether they could be used; if not, the old ones stay in use."""
        try:
            current = self._read()
            for context in self._contexts:
                context.load_cert_chain(self._cert, self._key)
        except (PilotfishError, OSError) as error:
            _log.error("the old certificates stay in use: %s", error)
            return False
        with self._lock:
            self._current, self._changed = current, True
        return True

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            changed, self._changed = self._changed, False
            return self._current if changed else None

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN)
        try:
            # A password would be asked for on a terminal that a server does not have.
            context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise FileFormatError(f"the key {self._key} does not belong to the certificate {self._cert}") from None
            raise FileFormatError(
                f"the certificate {self._cert} or its key {self._key} is not PEM that can be used: "
                f"{error.reason or 'it cannot be read'}"
            ) from None
        except OSError as error:
            missing = next((file for file in (self._cert, self._key) if not file.is_file()), self._key)
            raise FileFormatError(f"{missing} cannot be read: {error.strerror or error}") from None
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:  # ssl.SSLError is one
                reason = getattr(error, "reason", None) or error.strerror or error
                raise FileFormatError(f"the client authorities {self._client_ca} cannot be used: {reason}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._context()  # says what is wrong, where gRPC would not
        try:
            authorities = None if self._client_ca is None else self._client_ca.read_bytes()
            pair = (self._key.read_bytes(), self._cert.read_bytes())
        except OSError as error:
            raise FileFormatError(f"{error.filename} cannot be read: {error.strerror or error}") from None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)
