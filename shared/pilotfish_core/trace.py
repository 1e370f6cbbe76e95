"""Traces of real runs, and of simulated ones: what ``pilotfish-sim calibrate`` fits its models to. No I/O, no clock.

A trace is a text file of one JSON object a line (JSON lines). The first is the header, the last the end, which counts
the records before it: a trace without one ended early. ``r`` names the kind of record, the other keys are the fields of
the classes below. Times are whole microseconds: ``at_us`` from the header's beginning, others durations. No token,
text, name or address is in a trace; ``prompt`` tells equal prompts apart within one trace by a hash with a key that is
thrown away.

A device writes client, generation, draft, flush, commit and round_trip records; a verifier opened and step records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from pilotfish_core.drafts import Commit

VERSION: Final = 1
HEADER: Final = "trace"
END: Final = "end"
SIDES: Final = ("device", "cloud")
MAX_NUMBER: Final = 2**53


class TraceFault(ValueError):
    """A record is not one: ``key``, ``value``, and what was ``expected``."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} is {value!r}; expected {expected}")
        self.key, self.value, self.expected = key, value, expected


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """A client and the conditions it works under. ``warmup``: of its first generations, so many do not count."""

    kind: ClassVar[str] = "client"

    client: int
    arm: str
    rtt_ms: float | None = None  # of the link, where somebody set it
    concurrency: int = 1
    warmup: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """An answer, written at its end. ``first_us`` and ``last_us``: from the question to its tokens."""

    kind: ClassVar[str] = "generation"

    generation: int
    client: int
    at_us: int
    first_us: int
    last_us: int
    prompt: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    open_bytes: int
    bytes_up: int
    bytes_down: int
    sent: int
    accepted: int
    reconnects: int
    arm: str  # at its end
    reason: str
    error: str = ""  # its kind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DraftRecord:
    """A task of the drafter, when its result is known. ``took_us`` computing, ``asked_us`` from the asking on."""

    kind: ClassVar[str] = "draft"

    generation: int
    at_us: int
    took_us: int
    asked_us: int
    tokens: int
    taken_in: int  # tokens decided elsewhere, taken in before
    opened: bool = False  # whether the drafter began the answer with it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlushRecord:
    """A run of draft tokens was sent."""

    kind: ClassVar[str] = "flush"

    generation: int
    at_us: int
    start: int  # output position
    tokens: int
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A commit was received. Of its tokens the device had drafted the first ``agreed`` so, the next otherwise if
    ``refuted``.
    """

    kind: ClassVar[str] = "commit"

    generation: int
    at_us: int
    position: int  # in the output
    tokens: int
    agreed: int
    refuted: bool
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundTripRecord:
    """A ping was answered."""

    kind: ClassVar[str] = "round_trip"

    generation: int
    at_us: int
    took_us: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRecord:
    """A generation in the engine, written at its first commit. Durations from ``at_us``, when the engine was asked."""

    kind: ClassVar[str] = "opened"

    at_us: int
    first_us: int
    prompt_tokens: int
    cached_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step of the engine. ``took_us``: forward pass and sampling; ``whole_us``: from scheduling to telling."""

    kind: ClassVar[str] = "step"

    at_us: int
    took_us: int
    whole_us: int
    rows: int
    padded: int  # rows that were computed for them
    sequences: int
    context: int  # KV tokens read, each sequence's once
    drafts: int  # rows that verified drafts
    committed: int  # tokens


Record = (
    ClientRecord
    | GenerationRecord
    | DraftRecord
    | FlushRecord
    | CommitRecord
    | RoundTripRecord
    | OpenedRecord
    | StepRecord
)
_KINDS: Final[dict[str, type[Any]]] = {one.kind: one for one in typing.get_args(Record)}
_TYPES: Final[dict[str, dict[str, Any]]] = {
    kind: {name: hint for name, hint in typing.get_type_hints(one).items() if name != "kind"}
    for kind, one in _KINDS.items()
}


class TraceWriter:
    """Writes a trace through ``write``, which takes whole lines. Belongs to one thread."""

    def __init__(self, write: Callable[[str], object], *, side: str, now: float, key: bytes) -> None:
        """``now``: seconds of the monotonic clock that all ``now`` are of. ``key``: random bytes, for prompts."""
        self._write, self._began, self._key = write, now, key
        self._records = self._clients = self._generations = 0
        self._line({"r": HEADER, "version": VERSION, "side": side, "clock_us": round(now * 1e6)})

    def at(self, now: float) -> int:
        """``now`` as a record has it."""
        return max(round((now - self._began) * 1e6), 0)

    def add(self, record: Record) -> None:
        """Append a record."""
        values = {name: getattr(record, name) for name in _TYPES[record.kind]}
        self._line({"r": record.kind, **values})
        self._records += 1

    def client(self, arm: str, *, rtt_ms: float | None = None, concurrency: int = 1, warmup: int = 0) -> ClientTrace:
        """A client begins."""
        number, self._clients = self._clients, self._clients + 1
        self.add(ClientRecord(client=number, arm=arm, rtt_ms=rtt_ms, concurrency=concurrency, warmup=warmup))
        return ClientTrace(self, number)

    def number(self) -> int:
        """Of the next generation."""
        number, self._generations = self._generations, self._generations + 1
        return number

    def prompt(self, tokens: Sequence[int]) -> str:
        """What tells a prompt apart from others of this trace, and nothing else."""
        return hashlib.blake2s(repr(tuple(tokens)).encode(), key=self._key[:32], digest_size=4).hexdigest()

    def end(self) -> None:
        """The trace is complete."""
        self._line({"r": END, "records": self._records})

    def _line(self, values: dict[str, Any]) -> None:
        self._write(json.dumps(values, separators=(",", ":")) + "\n")


@dataclasses.dataclass(frozen=True, slots=True)
class ClientTrace:
    """What the generations of one client write to."""

    writer: TraceWriter
    client: int

    def generation(self, prompt: Sequence[int]) -> GenerationTrace:
        """An answer begins."""
        return GenerationTrace(self.writer, self.client, prompt)


class GenerationTrace:
    """One answer's records."""

    def __init__(self, writer: TraceWriter, client: int, prompt: Sequence[int]) -> None:
        self._writer, self._client = writer, client
        self._number, self._prompt, self._prompt_tokens = writer.number(), writer.prompt(prompt), len(prompt)
        self._open_bytes = 0
        self._pings: dict[int, float] = {}  # sent when, by nonce

    def opening(self, size: int) -> None:
        """An Open of ``size`` bytes was sent."""
        self._open_bytes += size

    def drafted(
        self, now: float, *, tokens: int, taken_in: int, took_s: float, asked_s: float, opened: bool = False
    ) -> None:
        """A task of the drafter is done."""
        self._writer.add(
            DraftRecord(
                generation=self._number,
                at_us=self._writer.at(now),
                took_us=round(took_s * 1e6),
                asked_us=round(asked_s * 1e6),
                tokens=tokens,
                taken_in=taken_in,
                opened=opened,
            )
        )

    def flushed(self, now: float, *, start: int, tokens: int, size: int) -> None:
        """A run left. ``start``: its position in prompt and output."""
        at_us, start = self._writer.at(now), start - self._prompt_tokens
        self._writer.add(
            FlushRecord(generation=self._number, at_us=at_us, start=max(start, 0), tokens=tokens, bytes=size)
        )

    def committed(self, now: float, commit: Commit, *, length: int, tail: Sequence[int], size: int) -> None:
        """A commit came; before it the device held ``length`` committed tokens, and ``tail`` drafted beyond."""
        fresh = commit.tokens[max(length - commit.position, 0) :]
        if not fresh or commit.position > length:
            return
        compared = min(len(fresh), len(tail))
        agreed = next((place for place in range(compared) if fresh[place] != tail[place]), compared)
        self._writer.add(
            CommitRecord(
                generation=self._number,
                at_us=self._writer.at(now),
                position=length - self._prompt_tokens,
                tokens=len(fresh),
                agreed=agreed,
                refuted=agreed < compared,
                bytes=size,
            )
        )

    def pinged(self, now: float, nonce: int) -> None:
        """A ping was sent."""
        self._pings = {nonce: now}

    def heard(self, now: float, nonce: int) -> None:
        """A ping was answered."""
        sent = self._pings.pop(nonce, None)
        if sent is not None:
            at_us, took_us = self._writer.at(now), max(round((now - sent) * 1e6), 0)
            self._writer.add(RoundTripRecord(generation=self._number, at_us=at_us, took_us=took_us))

    def ended(
        self,
        *,
        began: float,
        first: float,
        last: float,
        cached_tokens: int,
        tokens: int,
        bytes_up: int,
        bytes_down: int,
        sent: int,
        accepted: int,
        reconnects: int,
        arm: str,
        reason: str,
        error: str = "",
    ) -> None:
        """The answer is over. ``began``, ``first`` and ``last``: when it was asked for and had its tokens."""
        self._writer.add(
            GenerationRecord(
                generation=self._number,
                client=self._client,
                at_us=self._writer.at(began),
                first_us=max(round((first - began) * 1e6), 0),
                last_us=max(round((last - began) * 1e6), 0),
                prompt=self._prompt,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=cached_tokens,
                tokens=tokens,
                open_bytes=self._open_bytes,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
                sent=sent,
                accepted=accepted,
                reconnects=reconnects,
                arm=arm,
                reason=reason,
                error=error,
            )
        )


def read_header(values: dict[str, Any]) -> tuple[str, int]:
    """Side and clock of a trace's first line. Raises TraceFault for another version, or no header."""
    if values.get("r") != HEADER:
        raise TraceFault("r", values.get("r"), f'"{HEADER}": the header of a trace')
    if values.get("version") != VERSION:
        raise TraceFault("version", values.get("version"), str(VERSION))
    if values.get("side") not in SIDES:
        raise TraceFault("side", values.get("side"), " or ".join(SIDES))
    return str(values["side"]), _value("clock_us", values.get("clock_us"), int)


def read_end(values: dict[str, Any], records: int) -> None:
    """Check the last line of a trace of so many records. Raises TraceFault."""
    if values.get("records") != records:
        raise TraceFault("records", values.get("records"), f"{records}, as many as stand before it")


def read_record(values: dict[str, Any]) -> Record:
    """A record of one line's object. Raises TraceFault; keys that are not known are ignored."""
    kind = values.get("r")
    if kind not in _KINDS:
        raise TraceFault("r", kind, f"one of {', '.join(_KINDS)}")
    defaults = {field.name: field.default for field in dataclasses.fields(_KINDS[kind])}
    fields: dict[str, Any] = {}
    for name, hint in _TYPES[kind].items():
        if name in values:
            fields[name] = _value(name, values[name], hint)
        elif defaults[name] is dataclasses.MISSING:
            raise TraceFault(name, None, f"a value: a record of kind {kind} has one")
    record: Record = _KINDS[kind](**fields)
    return record


def _value(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = float
    if hint is bool:
        if not isinstance(value, bool):
            raise TraceFault(name, value, "true or false")
        return value
    if hint is str:
        if not isinstance(value, str) or len(value) > 100:
            raise TraceFault(name, value, "text of at most 100 characters")
        return value
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and isinstance(value, float):
        number = math.isfinite(value)
    if not number or not 0 <= value <= MAX_NUMBER:
        raise TraceFault(name, value, "a whole number from 0 on" if hint is int else "a number from 0 on")
    return value
