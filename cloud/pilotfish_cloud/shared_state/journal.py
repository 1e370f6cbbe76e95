"""Usage of which the shared state has not heard, in a file: the next process tells what a killed one could not.

Lines of JSON, each written with one call before the tokens it counts leave the process; a killed process loses none of
them, since what the system has been given to write stays (a machine that loses its power may lose some). A line is the
name of a process (``source``), a count, or the number of the report that takes all counts since the last one along.

A file that can no longer be written is emptied: its counts are told from memory, and nothing could say so in it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from pilotfish_cloud.shared_state.interface import COUNTERS, UsageKey
from pilotfish_core.errors import LocalError

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)

Usage = dict[UsageKey, int]
LAST: Final = 2**40  # number of the report of what a killed process had not reported: after all of its own
MAX_APPENDED: Final = 2**20  # bytes, after which counts are added up in a new file


class UsageJournal:
    """``source``: this process's name in its reports. Not for threads.

    ``left`` is what earlier processes did not bring home: their names, numbers of reports and usage, oldest first.

    Raises LocalError for a file that cannot be written, or that another process has.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._source = source
        self._since: collections.Counter[UsageKey] = collections.Counter()  # the last report
        self._appended = 0  # bytes, since it was last rewritten
        try:
            self._file: int | None = _opened(path)
            self._unheard = _read(path)
            self.left = tuple((name, number, dict(usage)) for (name, number), usage in self._unheard.items())
            self._rewrite()
        except BlockingIOError:
            raise LocalError(f"--usage-journal {path}: another process has it; each replica needs its own") from None
        except OSError as error:
            raise LocalError(f"--usage-journal {path} cannot be used: {error.strerror}") from None

    def count(self, usage: Mapping[UsageKey, int]) -> None:
        """Before what it counts is sent to anybody."""
        self._since.update(usage)
        if self._appended < MAX_APPENDED:
            self._write([_counted(usage)])
        else:
            self._try(self._rewrite)

    def reported(self, number: int) -> None:
        """All that was counted since the last time goes with this report."""
        if self._since:
            self._unheard[self._source, number] = dict(self._since)
            self._since.clear()
            self._write([{"report": number}])

    def heard(self, source: str, number: int) -> None:
        """The shared state has that report."""
        if self._unheard.pop((source, number), None) is not None:
            self._try(self._rewrite)

    def close(self) -> None:
        """Let go of the file; what was not heard stays in it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, lines: Iterable[dict[str, object]]) -> None:
        def write() -> None:
            if self._file is not None:
                self._appended += _append(self._file, lines)

        self._try(write)

    def _try(self, work: Callable[[], None]) -> None:
        """A full disk must not end generations: it costs what a journal is there for, and the log says so. What stands
        in the file is told from memory, and the next process must not tell it again.
        """
        try:
            work()
        except OSError as error:
            _log.error("--usage-journal %s: %s; usage is kept in memory only from now on", self._path, error.strerror)
            if self._file is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, 0)
            self.close()

    def _rewrite(self) -> None:
        """Without what was heard: a new file in the place of the old one, whole at any time."""
        if self._file is None:
            return
        lines: list[dict[str, object]] = []
        for (source, number), usage in self._unheard.items():
            lines += [{"source": source}, _counted(usage), {"report": number}]
        lines.append({"source": self._source})
        if self._since:
            lines.append(_counted(self._since))
        fresh = self._path.with_name(self._path.name + ".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            _lock(file)
            _append(file, lines)
            os.replace(fresh, self._path)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file = file
        self._appended = 0


def _opened(path: Path) -> int:
    """The file, locked. Raises BlockingIOError where another process has it."""
    while True:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            os.close(file)
            raise
        os.close(file)  # whoever had it put a new one in its place meanwhile


def _lock(file: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _append(file: int, lines: Iterable[dict[str, object]]) -> int:
    """Returns bytes."""
    data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    length = len(data)
    while data:
        data = data[os.write(file, data) :]
    return length


def _counted(usage: Mapping[UsageKey, int]) -> dict[str, object]:
    return {"count": [[*key, count] for key, count in usage.items()]}


def _read(path: Path) -> dict[tuple[str, int], Usage]:
    """What was not heard, by source and number; counts of no report are those of the source's next one."""
    found: dict[tuple[str, int], Usage] = {}
    source = ""
    since: collections.Counter[UsageKey] = collections.Counter()

    def take(told: int) -> None:
        if since and source:
            found[source, told] = dict(since)
        since.clear()

    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            match entry:
                case {"source": str(name)}:
                    take(LAST)
                    source = name
                case {"report": int(told)}:
                    take(told)
                case {"count": list(counts)}:
                    since.update({_key(*parts): int(count) for *parts, count in counts})
                case _:
                    raise ValueError
        except (ValueError, TypeError, RecursionError):
            _log.warning("--usage-journal %s: a line that cannot be read was left out", path)  # cut off by a full disk
    take(LAST)
    return found


def _key(day: str, tenant: str, counter: str) -> UsageKey:
    if counter not in COUNTERS:
        raise ValueError
    return UsageKey(str(day), str(tenant), counter)
