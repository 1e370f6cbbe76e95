"""``--trace FILE``: a trace of what a command did, for ``pilotfish-sim calibrate``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from pilotfish.files import check_replaceable
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.trace import TraceWriter


@contextlib.contextmanager
def tracing(path: str | None) -> Iterator[TraceWriter | None]:
    """A writer to a new file at ``path``, complete at the end; None for none. Raises InvalidParameter."""
    if path is None:
        yield None
        return
    check_replaceable("--trace", path)
    try:
        file = open(path, "w", encoding="ascii")  # noqa: SIM115 - closed below, whatever happens in between
    except OSError as error:
        raise InvalidParameter(f"--trace {path}: it cannot be written: {error.strerror or error}") from None
    with file:
        writer = TraceWriter(file.write, side="device", now=time.monotonic(), key=os.urandom(32))
        try:
            yield writer
        finally:
            writer.end()
