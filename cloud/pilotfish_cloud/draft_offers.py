"""Draft models on offer: exported folders of the target's tokenizer, which devices fetch over HTTP."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, ModelLoadError
from pilotfish_core.proto.v1 import verifier_pb2 as pb

MANIFEST: Final = "manifest.json"
FORMAT: Final = "pilotfish-draft"  # of a folder that `pilotfish export` wrote; a device says what of it it can run
MAX_MANIFEST_BYTES: Final = 1024 * 1024
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file of a draft: where it lies here, its size in bytes and SHA-256."""

    path: Path
    size: int
    sha256: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One exported folder. ``files`` by the names that devices ask for, the manifest among them."""

    name: str
    runtime: str
    quant: str
    context_length: int
    match: Mapping[str, float]
    files: Mapping[str, OfferedFile]

    def message(self) -> pb.DraftOffer:
        """For the wire."""
        return pb.DraftOffer(
            name=self.name,
            runtime=self.runtime,
            quant=self.quant,
            context_length=self.context_length,
            match=dict(self.match),
            files=[
                pb.DraftFile(name=name, size=file.size, sha256=file.sha256) for name, file in sorted(self.files.items())
            ],
        )


class DraftOffers:
    """What is on offer, the best first. Read once: a folder that changes afterwards would not have its SHA-256 any
    more, and devices refuse that.
    """

    def __init__(self, drafts: Sequence[Draft] = ()) -> None:
        self.drafts = tuple(drafts)
        self._by_name = {draft.name: draft for draft in drafts}

    @classmethod
    def load(cls, folders: Sequence[Path], tokenizer_hash: str) -> DraftOffers:
        """Read and check each folder, or the exported folders in it. ``tokenizer_hash``: the target's.

        Raises InvalidParameter, ModelLoadError (folder and reason) for what no device could use.
        """
        drafts: list[Draft] = []
        for folder in folders:
            for exported in _exported(folder.expanduser()):
                draft = _read(exported, tokenizer_hash)
                if any(draft.name == other.name for other in drafts):
                    raise InvalidParameter.of("--drafts", str(exported), "folders of different names")
                drafts.append(draft)
        return cls(drafts)

    @property
    def names(self) -> tuple[str, ...]:
        """As the wire has them."""
        return tuple(draft.name for draft in self.drafts)

    def file(self, draft: str, name: str) -> OfferedFile | None:
        """Nothing but what a manifest lists can be had."""
        known = self._by_name.get(draft)
        return None if known is None else known.files.get(name)


def folders_of(option: str | None) -> tuple[Path, ...]:
    """``DIR[,DIR...]``."""
    return tuple(Path(part.strip()) for part in (option or "").split(",") if part.strip())


def _exported(folder: Path) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return [folder]
    inner = sorted(file.parent for file in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    if not inner:
        raise InvalidParameter.of(
            "--drafts", str(folder), f"a folder that `pilotfish export` wrote (with a {MANIFEST}), or a folder of such"
        )
    return inner


def _read(folder: Path, tokenizer_hash: str) -> Draft:
    file = folder / MANIFEST
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ModelLoadError(f"{file} has more than {MAX_MANIFEST_BYTES} bytes")
        value = json.loads(data)
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ModelLoadError(f"{file} does not describe an exported draft model")
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise InvalidParameter.of("--drafts", name, "a folder name of up to 64 letters, digits, '.', '_' and '-'")
    try:
        draft = _draft(folder, name, value, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{file} is damaged: {type(error).__name__}: {error}") from None
    if value.get("tokenizer_hash") != tokenizer_hash:
        raise ModelLoadError(
            f"{folder} was made for tokenizer {str(value.get('tokenizer_hash'))[:12]}, the target's is "
            f"{tokenizer_hash[:12]}: a draft model must share its target's vocabulary"
        )
    return draft


def _draft(folder: Path, name: str, value: Mapping[str, Any], manifest: bytes) -> Draft:
    files = {MANIFEST: OfferedFile(folder / MANIFEST, len(manifest), hashlib.sha256(manifest).digest())}
    for relative, entry in value["files"].items():
        files[relative] = _file(folder, relative, int(entry["size"]), bytes.fromhex(entry["sha256"]))
    return Draft(
        name=name,
        runtime=str(value["runtime"]),
        quant=str(value["quant"]),
        context_length=int(value["context_length"]),
        match={
            str(figure): float(number)
            for figure, number in value.get("match", {}).items()
            if isinstance(number, int | float) and math.isfinite(number)
        },
        files=files,
    )


def _file(folder: Path, name: str, size: int, sha256: bytes) -> OfferedFile:
    """Raises ModelLoadError for a file that is not what the manifest says."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or str(relative) != name or not all(_NAME.fullmatch(part) for part in relative.parts):
        raise ValueError(f"file name {name!r} is not a plain relative path")
    path = folder / name
    try:
        if path.stat().st_size != size:
            raise ModelLoadError(f"{path} has {path.stat().st_size} bytes, the manifest says {size}")
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").digest() != sha256:
                raise ModelLoadError(f"{path} is damaged: its SHA-256 is not the manifest's")
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from None
    return OfferedFile(path, size, sha256)
