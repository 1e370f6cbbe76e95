"""Where the device gets its tokenizer from: given, beside the draft model, or the verifier's, kept on disk."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from concurrent.futures import Executor
from pathlib import Path

from pilotfish.served_model import served_model
from pilotfish.transport import Transport
from pilotfish_core.errors import ModelLoadError, TokenizerMismatch
from pilotfish_core.tokenizer import Tokenizer


def cache_folder() -> Path:
    """``$PILOTFISH_CACHE``, else ``$XDG_CACHE_HOME/pilotfish``, else ``~/.cache/pilotfish``."""
    own = os.environ.get("PILOTFISH_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pilotfish"


async def obtain_tokenizer(
    given: str | Path | Tokenizer | None, draft: object, transport: Transport, model: str, executor: Executor
) -> Tokenizer:
    """The tokenizer for a client. Raises ModelLoadError for a bad file, and what the verifier answers."""
    loop = asyncio.get_running_loop()
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return await loop.run_in_executor(executor, lambda: Tokenizer.load(Path(given).expanduser()))
    beside = _beside(draft)
    if beside is not None:
        return await loop.run_in_executor(executor, Tokenizer.load, beside)
    return await _of_verifier(transport, model, executor)


def _beside(draft: object) -> Path | None:
    """The folder of the draft model, where it holds a tokenizer."""
    if not isinstance(draft, str | Path):
        return None
    folder = Path(draft).expanduser()
    return folder if (folder / "tokenizer.json").is_file() else None


async def _of_verifier(transport: Transport, model: str, executor: Executor) -> Tokenizer:
    loop = asyncio.get_running_loop()
    chosen = await served_model(transport, model)
    digest = chosen.tokenizer_hash
    folder = cache_folder() / "tokenizers" / digest
    cached = await loop.run_in_executor(executor, _load_cached, folder, digest)
    if cached is not None:
        return cached
    data, end_token_ids = await transport.fetch_tokenizer(chosen.name)
    tokenizer = await loop.run_in_executor(
        executor, lambda: Tokenizer(data, eos_token_ids=end_token_ids, source="the verifier's tokenizer")
    )
    if tokenizer.hash != digest:
        raise TokenizerMismatch("the tokenizer that the verifier sent is not the one that it announced")
    await loop.run_in_executor(executor, _store, folder, data, end_token_ids)
    return tokenizer


def _load_cached(folder: Path, digest: str) -> Tokenizer | None:
    try:
        end_token_ids = json.loads((folder / "end_token_ids.json").read_text())
        tokenizer = Tokenizer((folder / "tokenizer.json").read_bytes(), eos_token_ids=end_token_ids)
    except (OSError, ValueError, TypeError, ModelLoadError):
        return None  # fetched again and written over
    return tokenizer if tokenizer.hash == digest else None


def _store(folder: Path, data: bytes, end_token_ids: tuple[int, ...]) -> None:
    """Best effort: a read-only home only costs fetching again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "tokenizer.json", data)
        _write(folder / "end_token_ids.json", json.dumps(list(end_token_ids)).encode())
    except OSError:
        return


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).replace(path)
