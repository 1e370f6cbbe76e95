"""Files that only the operator may read: checked when they are read, replaced whole when they are written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pilotfish_core.errors import FileFormatError

MAX_BYTES: Final = 16 * 1024 * 1024


def read_private(path: Path, what: str) -> bytes:
    """The contents of a file that nobody but its owner can read or change; one of root's may be readable by a group, as
    Kubernetes gives secrets to who is not root.

    Raises FileFormatError, naming the file as ``what`` it is, when it cannot be read or others could.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of what was opened, not of what the name means a moment later
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{what} {path} is not a regular file")
            if _open_to_others(status.st_mode, status.st_uid, os.geteuid()):
                raise FileFormatError(
                    f"{what} {path} can be read or changed by others (mode {stat.S_IMODE(status.st_mode):04o}); "
                    f"say: chmod 600 {path}"
                )
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{what} {path} has more than {MAX_BYTES} bytes")
    return data


def _open_to_others(mode: int, owner: int, reader: int) -> bool:
    """The rule of PostgreSQL's for keys: 0600 and ours, or 0640 and root's."""
    if owner == 0 != reader:
        return bool(mode & (stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO))
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO))


def write_private(path: Path, text: str, what: str) -> None:
    """Replace a file, atomically and with mode 0600 from the start. Raises FileFormatError."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".pilotfish-")  # 0600 by mkstemp's contract
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileFormatError(f"{what} {path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else who asks for the same changes files of this folder meanwhile. Raises FileFormatError."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FileFormatError(f"{folder} is not a folder to write in: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
