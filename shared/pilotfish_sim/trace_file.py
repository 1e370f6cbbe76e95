"""Reads traces that the real commands wrote with ``--trace``, plain or gzipped, all of a run together."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from pilotfish_core.errors import FileFormatError, InvalidParameter
from pilotfish_core.trace import (
    END,
    ClientRecord,
    CommitRecord,
    DraftRecord,
    FlushRecord,
    GenerationRecord,
    OpenedRecord,
    Record,
    RoundTripRecord,
    StepRecord,
    TraceFault,
    read_end,
    read_header,
    read_record,
)

MAX_LINE: Final = 4096  # characters
Owned = DraftRecord | FlushRecord | CommitRecord | RoundTripRecord  # by a generation


@dataclasses.dataclass(slots=True)
class Client:
    """A client of a device's trace, with its answers in the order in which they were asked for."""

    record: ClientRecord
    generations: list[Generation] = dataclasses.field(default_factory=list)

    @property
    def counted(self) -> list[Generation]:
        """Without warm-ups and failures."""
        return [one for one in self.generations[self.record.warmup :] if not one.record.error]


@dataclasses.dataclass(slots=True)
class Generation:
    """An answer and what belongs to it. ``began_s`` on the machine's clock."""

    record: GenerationRecord
    began_s: float
    drafts: list[DraftRecord] = dataclasses.field(default_factory=list)
    flushes: list[FlushRecord] = dataclasses.field(default_factory=list)
    commits: list[CommitRecord] = dataclasses.field(default_factory=list)
    round_trips: list[RoundTripRecord] = dataclasses.field(default_factory=list)

    @property
    def ended_s(self) -> float:
        """When its last token came."""
        return self.began_s + self.record.last_us / 1e6


@dataclasses.dataclass(slots=True)
class Traces:
    """All that several traces say. Steps and openings come with their time on the machine's clock, seconds."""

    clients: list[Client] = dataclasses.field(default_factory=list)
    steps: list[tuple[float, StepRecord]] = dataclasses.field(default_factory=list)
    openings: list[tuple[float, OpenedRecord]] = dataclasses.field(default_factory=list)


def read_traces(files: Sequence[Path]) -> Traces:
    """Read them all. Raises FileFormatError, by file, line, key and value; InvalidParameter for what is no file."""
    traces = Traces()
    for file in files:
        _read(file, traces)
    traces.steps.sort(key=lambda step: step[0])
    traces.openings.sort(key=lambda opening: opening[0])
    return traces


def _read(file: Path, traces: Traces) -> None:
    lines = _lines(file)
    number = 1
    try:
        _, clock_us = read_header(_object(next(lines, "")))
        clients: dict[int, Client] = {}
        owned: dict[int, list[Owned]] = {}
        for line in lines:
            number += 1
            values = _object(line)
            if values.get("r") == END:
                read_end(values, number - 2)
                if next(lines, None) is not None:
                    number += 1
                    raise TraceFault("r", "more", "nothing after the trace's end")
                break
            _keep(read_record(values), clock_us, clients, owned, traces)
        else:
            raise FileFormatError(f"{file}, line {number}: the trace ends early; expected its last line, r is '{END}'")
    except TraceFault as fault:
        raise FileFormatError(f"{file}, line {number}: {fault}") from None
    for client in clients.values():
        client.generations.sort(key=lambda generation: generation.began_s)
    traces.clients += clients.values()


def _keep(
    record: Record, clock_us: int, clients: dict[int, Client], owned: dict[int, list[Owned]], traces: Traces
) -> None:
    match record:
        case ClientRecord():
            clients[record.client] = Client(record)
        case StepRecord():
            traces.steps.append(((clock_us + record.at_us) / 1e6, record))
        case OpenedRecord():
            traces.openings.append(((clock_us + record.at_us) / 1e6, record))
        case GenerationRecord():
            client = clients.get(record.client)
            if client is None:
                raise TraceFault("client", record.client, "one that a record before named")
            generation = Generation(record, (clock_us + record.at_us) / 1e6)
            for one in owned.pop(record.generation, []):
                _give(generation, one)
            client.generations.append(generation)
        case _:
            owned.setdefault(record.generation, []).append(record)


def _give(generation: Generation, record: Owned) -> None:
    match record:
        case DraftRecord():
            generation.drafts.append(record)
        case FlushRecord():
            generation.flushes.append(record)
        case CommitRecord():
            generation.commits.append(record)
        case RoundTripRecord():
            generation.round_trips.append(record)


def _lines(file: Path) -> Iterator[str]:
    try:
        with _opened(file) as source:
            while line := source.readline(MAX_LINE + 1):
                yield line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidParameter.of("the trace", str(file), f"a file that --trace wrote ({error})") from None


def _opened(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def _object(line: str) -> dict[str, object]:
    if len(line) > MAX_LINE:
        raise TraceFault("the line", f"{line[:20]}...", f"at most {MAX_LINE} characters")
    if not line.endswith("\n"):
        raise TraceFault("the line", line[-40:], "a whole JSON object: the trace ends early")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise TraceFault("the line", line[:40].rstrip(), "a JSON object") from None
    if not isinstance(values, dict):
        raise TraceFault("the line", line[:40].rstrip(), "a JSON object")
    return values
