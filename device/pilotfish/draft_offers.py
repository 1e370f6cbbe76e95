"""Draft models that a verifier offers for its target, and which of them this device takes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from pilotfish.addresses import Address
from pilotfish.drafters.manifest import MANIFEST_FILE
from pilotfish.transport import Transport
from pilotfish_core.errors import ProtocolViolation
from pilotfish_core.proto.v1 import verifier_pb2 as pb

RUNTIME: Final = "onnxruntime"  # the one that every installation has
MAX_BYTES: Final = 8 * 2**30  # of one draft: a device has no use for more
MAX_FILES: Final = 200
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class OfferedFile:
    """Size in bytes and SHA-256 (hex) that a file must have."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DraftOffer:
    """A draft model on offer. ``url`` is the folder of its files; ``match`` are figures that its exporter measured."""

    name: str
    runtime: str
    quant: str
    context_length: int
    match: Mapping[str, float]
    files: Mapping[str, OfferedFile]
    url: str

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """Of everything it consists of, as a name for it on this device."""
        return digest_of(self.files)


def digest_of(files: Mapping[str, OfferedFile]) -> str:
    """A name for files of these names and contents."""
    listed = "\n".join(f"{name} {file.size} {file.sha256}" for name, file in sorted(files.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


async def offered_drafts(transport: Transport, model: str) -> tuple[DraftOffer, ...]:
    """What is offered for a model (empty name: the first one), in the operator's order.

    Raises ProtocolViolation for an offer that makes no sense, and what the verifier answers.
    """
    address, described = await transport.describe_at()
    base = described.http_url.rstrip("/")
    if not base:
        port = address.port if address.websocket else described.http_port  # what was called is the HTTP port then
        if not port:
            return ()
        base = f"{'https' if address.secure else 'http'}://{address.host}:{port}"
    elif not _is_address(base):
        raise ProtocolViolation("the verifier names no HTTP address for its draft models")
    for entry in described.models:
        if model in ("", entry.name):
            return tuple(_offer(offer, base) for offer in entry.draft_offers)
    return ()


def usable_offers(offers: tuple[DraftOffer, ...], *, max_bytes: int = MAX_BYTES) -> tuple[DraftOffer, ...]:
    """Those that this device can run, the best first: the operator's order is by what suits the target. ``max_bytes``:
    that one may take here.
    """
    largest = min(max_bytes, MAX_BYTES)
    return tuple(offer for offer in offers if offer.runtime == RUNTIME and offer.size <= largest)


def may_send_key(url: str, addresses: tuple[Address, ...], *, insecure: bool) -> bool:
    """Whether a key that may go to ``addresses`` may go there: over TLS, or to the same host unencrypted, if that is
    how it goes there anyway or the caller is ``insecure``.
    """
    parts = urlsplit(url)
    return parts.scheme == "https" or any(
        (insecure or not address.secure) and address.host.strip("[]").lower() == parts.hostname for address in addresses
    )


def _is_address(url: str) -> bool:
    """Whether it is one that an HTTP client can be given."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises what the parts do not
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _offer(offer: pb.DraftOffer, base: str) -> DraftOffer:
    if not _NAME.fullmatch(offer.name) or not 0 < len(offer.files) <= MAX_FILES:
        raise ProtocolViolation("the verifier offers a draft model without a proper name or with no proper files")
    files: dict[str, OfferedFile] = {}
    for file in offer.files:
        parts = PurePosixPath(file.name).parts
        if not parts or "/".join(parts) != file.name or not all(_NAME.fullmatch(part) for part in parts):
            raise ProtocolViolation(f"the verifier's draft model {offer.name} has a file whose name is no plain path")
        if len(file.sha256) != 32 or file.name in files:
            raise ProtocolViolation(
                f"the verifier's draft model {offer.name} has a file without a SHA-256, or one twice"
            )
        files[file.name] = OfferedFile(file.size, file.sha256.hex())
    if MANIFEST_FILE not in files:
        raise ProtocolViolation(f"the verifier's draft model {offer.name} has no {MANIFEST_FILE}")
    return DraftOffer(
        name=offer.name,
        runtime=offer.runtime,
        quant=offer.quant,
        context_length=offer.context_length,
        match={name: value for name, value in offer.match.items() if math.isfinite(value)},
        files=files,
        url=f"{base}/v1/drafts/{offer.name}",
    )
