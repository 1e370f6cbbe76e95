"""Files that a command writes: checked before the work that they are to hold, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

from pilotfish_core.errors import InvalidParameter

MAX_PROMPT_BYTES: Final = 16 * 1024 * 1024  # of a file with prompts: no target's context is as long


def check_replaceable(name: str, path: str | Path) -> None:
    """Raises InvalidParameter, naming the option ``name``, when ``replace_file`` would fail at ``path``.

    What is there already must be a regular file: a device or a pipe would be replaced, not written to.
    """
    target = Path(path).absolute()
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(target.stat().st_mode):
                raise InvalidParameter(f"{name} {path}: it is there already and not a regular file")
        if not target.parent.is_dir():
            raise InvalidParameter(f"{name} {path}: there is no folder {target.parent}")
        handle, temporary = _temporary(target)
        os.close(handle)
        Path(temporary).unlink()
    except OSError as error:
        raise InvalidParameter(f"{name} {path}: it cannot be written: {error.strerror or error}") from None


def check_folder(name: str, path: str | Path) -> None:
    """Make a folder to work in. Raises InvalidParameter, naming the option ``name``, when that cannot be had."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(Path(path) / "any")
        os.close(handle)
        Path(temporary).unlink()
    except OSError as error:
        raise InvalidParameter(f"{name} {path}: not a folder to write in: {error.strerror or error}") from None


def read_prompt(name: str, source: str | Path | BinaryIO) -> str:
    """The text of a file, or of a stream that is open already. Raises InvalidParameter, naming the option ``name``,
    also for one that is longer than any prompt: a device may never end.
    """
    try:
        with Path(source).open("rb") if isinstance(source, str | Path) else contextlib.nullcontext(source) as file:
            data = file.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise InvalidParameter(f"{name} cannot be read: it is longer than {MAX_PROMPT_BYTES} bytes")
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise InvalidParameter(f"{name} cannot be read: {error}") from None


def replace_file(path: str | Path, text: str) -> None:
    """Write ``text``, atomically: a crash leaves the old file or the new one. Raises OSError."""
    target = Path(path)
    handle, temporary = _temporary(target)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _temporary(target: Path) -> tuple[int, str]:
    """A new file beside ``target``; its name is short, that of ``target`` may be as long as names can be."""
    return tempfile.mkstemp(dir=target.parent, prefix=".pilotfish-")
