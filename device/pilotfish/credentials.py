"""What this device shows to a verifier, and by what it knows one: API key, certificates."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfish_core.errors import InvalidParameter

if TYPE_CHECKING:
    import ssl

    from pilotfish.addresses import Address

KEY_VARIABLE: Final = "PILOTFISH_API_KEY"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """``api_key`` is sent with each call. ``ca``: authorities to trust instead of the usual ones; ``cert`` and ``key``:
    what the device itself shows for mutual TLS; all PEM.
    """

    api_key: str | None = dataclasses.field(default=None, repr=False)
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        *,
        api_key: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
    ) -> Credentials:
        """Read the files; a key that is not given is looked for in $PILOTFISH_API_KEY.

        Raises InvalidParameter, which never shows the key.
        """
        name, api_key = ("api_key", api_key) if api_key is not None else (KEY_VARIABLE, os.environ.get(KEY_VARIABLE))
        if api_key is not None:
            api_key = api_key.strip()
            if not _KEY.fullmatch(api_key):
                raise InvalidParameter(f"{name} is not an API key; expected up to 512 characters of ASCII, no spaces")
        if (cert is None) != (key is None):
            raise InvalidParameter("a client certificate and its key belong together; give both or neither")
        _check_pem(ca, cert, key)
        return cls(api_key=api_key, ca=_read("ca", ca), cert=_read("cert", cert), key=_read("key", key))

    def check_addresses(self, addresses: Iterable[Address], *, insecure: bool) -> None:
        """Raises InvalidParameter where the key would cross a network unencrypted and nobody said it may, and for
        certificates that would not be used.
        """
        for address in addresses:
            scheme = address.scheme
            if self.api_key is not None and not (address.secure or insecure or is_loopback(address.host)):
                raise InvalidParameter(
                    f"the API key would go to {address} unencrypted; use {scheme}s://{address}, or say that it may "
                    "(insecure=True, --insecure)"
                )
            if not address.secure and (self.ca is not None or self.cert is not None):
                raise InvalidParameter(f"certificates are of no use to {scheme}://{address}; say {scheme}s://{address}")

    def tls_context(self) -> ssl.SSLContext:
        """For what is not gRPC."""
        import ssl

        bundle = None if self.ca is None else self.ca.decode("ascii", "ignore")  # comments may be any
        context = ssl.create_default_context(cadata=bundle)
        if self.cert is not None and self.key is not None:
            with tempfile.TemporaryDirectory() as folder:  # ssl reads files only; nobody else may read this folder
                file = Path(folder) / "both.pem"
                file.write_bytes(self.cert + b"\n" + self.key)
                context.load_cert_chain(file)
        return context

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of each call."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidParameter(f"{name} {path} cannot be read: {error.strerror or error}") from None


def _check_pem(ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> None:
    """gRPC would say nothing but that it could not begin."""
    for name, path in (("ca", ca), ("cert", cert), ("key", key)):
        _read(name, path)
    if ca is None and cert is None:
        return
    import ssl  # takes some milliseconds that most devices need not spend

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(Path(ca).expanduser())
        except (OSError, ValueError):  # ssl.SSLError is the first
            raise InvalidParameter(f"ca {ca} holds no certificates in PEM") from None
    if cert is not None and key is not None:
        try:
            context.load_cert_chain(Path(cert).expanduser(), Path(key).expanduser(), password=lambda: "")
        except (OSError, ValueError) as error:
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                raise InvalidParameter(f"key {key} does not belong to cert {cert}") from None
            raise InvalidParameter(f"cert {cert} or key {key} is not PEM, or needs a password") from None
