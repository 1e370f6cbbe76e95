"""The manifest of an exported draft model: what the folder holds, for which vocabulary, and whether whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Final

from pilotfish_core.errors import ModelLoadError

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "pilotfish-draft"
VERSION: Final = 1
MAX_SIZE: Final = 2**31 - 1  # what the graph's int32 positions can count
HASHED_UP_TO: Final = 64 * 2**20  # bytes; larger files are checked by size only when a drafter is loaded


def is_plain(name: str) -> bool:
    """Whether ``name`` is a file of the folder itself or, with ``/``, of one inside it, on every system."""
    return all(part not in ("", ".", "..") and PureWindowsPath(part).name == part for part in name.split("/"))


def is_export(folder: Path) -> bool:
    """Whether the folder was made by an exporter of ours, of this version or another one."""
    try:
        value = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the folder: size in bytes and SHA-256 (hex)."""

    size: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> FileEntry:
        """Measured from the file itself. Raises OSError."""
        with file.open("rb") as handle:
            return cls(file.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest())


@dataclasses.dataclass(frozen=True, slots=True)
class KvShape:
    """Shape of the KV cache: per layer two tensors ``[1, heads, positions, head_size]`` of ``dtype``."""

    layers: int
    heads: int
    head_size: int
    dtype: str = "float32"

    @property
    def bytes_per_position(self) -> int:
        """Memory of one position over all layers, keys and values."""
        return 2 * self.layers * self.heads * self.head_size * (4 if self.dtype == "float32" else 2)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says. ``vocab_size`` is the tokenizer's; logits from there on are padding.

    ``files`` are by name, ``/`` in those of folders inside. ``template_hash`` is the SHA-256 of the chat template
    that the model came with. ``match`` are figures that the exporter measured, for people and policies (see
    ``export.check``), and ``checked_with`` says in what.
    """

    model: str
    architecture: str
    runtime: str
    quant: str
    tokenizer_hash: str
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    kv: KvShape
    files: Mapping[str, FileEntry]
    match: Mapping[str, float] = dataclasses.field(default_factory=dict)
    template_hash: str | None = None
    checked_with: str = ""

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``; the last file of an export, since a folder without it is not complete."""
        value = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and validate; unknown fields are ignored. Raises ModelLoadError (file and reason)."""
        file = folder / MANIFEST_FILE
        try:
            value = json.loads(file.read_bytes())
        except OSError as error:
            raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise ModelLoadError(f"{file} is not JSON: {error}") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ModelLoadError(f"{file} does not describe an exported draft model")
        if value.get("version") != VERSION:
            raise ModelLoadError(
                f"{file} has format version {value.get('version')!r}, this Pilotfish reads {VERSION}; "
                "run `pilotfish export` again"
            )
        try:
            return cls._of(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelLoadError(f"{file} is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _of(cls, value: Mapping[str, Any]) -> Manifest:
        manifest = cls(
            model=str(value["model"]),
            architecture=str(value["architecture"]),
            runtime=str(value["runtime"]),
            quant=str(value["quant"]),
            tokenizer_hash=str(value["tokenizer_hash"]),
            vocab_size=_size("vocab_size", value["vocab_size"]),
            context_length=_size("context_length", value["context_length"]),
            eos_token_ids=tuple(int(token) for token in value["eos_token_ids"]),
            kv=KvShape(
                **{name: _size(f"kv.{name}", value["kv"][name]) for name in ("layers", "heads", "head_size")},
                dtype=str(value["kv"]["dtype"]),
            ),
            files={
                str(name): FileEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in value["files"].items()
            },
            match={str(name): float(figure) for name, figure in value.get("match", {}).items()},
            template_hash=None if value.get("template_hash") is None else str(value["template_hash"]),
            checked_with=str(value.get("checked_with", "")),
        )
        for name in manifest.files:
            if not is_plain(name):
                raise ValueError(f"file name {name!r} is not a plain name")
        return manifest

    def verify(self, folder: Path, *, hashed_up_to: int = HASHED_UP_TO) -> None:
        """Compare the files with the manifest: all sizes, and SHA-256 of files up to ``hashed_up_to`` bytes.

        Raises ModelLoadError naming the first file that is missing, short or changed.
        """
        for name, entry in self.files.items():
            file = folder / name
            try:
                size = file.stat().st_size
                if size != entry.size:
                    raise ModelLoadError(f"{file} has {size} bytes, the manifest says {entry.size}")
                if size <= hashed_up_to and FileEntry.of(file) != entry:
                    raise ModelLoadError(f"{file} is damaged: its SHA-256 is not the manifest's")
            except OSError as error:
                raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None


def _size(name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise ValueError(f"{name} is {value!r:.80}: not positive, or no size")
    return value
