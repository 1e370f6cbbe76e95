"""Who asks for what, and when: closed loops, rounds, Poisson arrivals, or a recorded trace."""

from __future__ import annotations

import csv
import dataclasses
import enum
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.fields import Section, Wrong, checked, choice, integer, number, text

MAX_LENGTH: Final = 10**6  # tokens
_LENGTH: Final = "tokens: a number, {min: 64, max: 256}, or {median: 200, sigma: 0.8, max: 2000} (log-normal)"


class WorkloadKind(enum.StrEnum):
    """How answers are asked for."""

    CLOSED = "closed"  # each device asks for its next answer when it has the last one
    ROUNDS = "rounds"  # when all devices have the last one: all ask at once, as ``pilotfish bench`` does
    POISSON = "poisson"  # at random times, whether or not others are done
    TRACE = "trace"  # at the times of a file


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens: fixed (``low`` is ``high``), uniform, or log-normal (``sigma`` > 0, ``low`` its median)."""

    low: int
    high: int
    sigma: float = 0.0

    def draw(self, random: np.random.Generator) -> int:
        """At least 1."""
        if self.sigma:
            return max(1, min(self.high, round(self.low * math.exp(self.sigma * random.standard_normal()))))
        return self.low if self.low == self.high else int(random.integers(self.low, self.high + 1))


def _length(value: Any) -> Length:
    if isinstance(value, Length):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"min": value, "max": value}
    if not isinstance(value, Mapping):
        raise Wrong(_LENGTH)
    given = {}
    for name, one in value.items():
        if isinstance(one, bool) or not isinstance(one, int | float):
            raise Wrong(_LENGTH)
        given[name] = one
    if set(given) == {"min", "max"} and 1 <= given["min"] <= given["max"] <= MAX_LENGTH:
        return Length(int(given["min"]), int(given["max"]))
    log_normal = set(given) == {"median", "sigma", "max"} and 0 < given["sigma"] <= 5
    if log_normal and 1 <= given["median"] <= given["max"] <= MAX_LENGTH:
        return Length(int(given["median"]), int(given["max"]), float(given["sigma"]))
    raise Wrong(_LENGTH)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for. ``at`` in seconds; in a closed loop when the device has nothing else to do.

    The first ``shared`` tokens of the prompt are those of system prompt number ``prefix``.
    """

    number: int
    device: int
    at: float
    prompt_tokens: int
    output_tokens: int
    prefix: int = 0
    shared: int = 0
    measured: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(Section):
    """``devices`` in all. Closed, rounds: ``answers`` of each, after ``warmup`` that do not count, ``think_s`` between
    them (exponential); with ``duration_s`` as many as begin before it. Poisson: ``rate_per_s`` over all devices for
    ``duration_s``, each answer on the next device in turn. Trace: ``file``. What begins before ``warmup_s`` does not
    count. A run ends when all that has begun is done.

    ``prefix_tokens`` of each prompt are one of ``prefixes`` system prompts. ``repetition``: the share of output tokens
    that lie in copies of earlier text, which prompt lookup finds.
    """

    section: ClassVar[str] = "workload"

    kind: WorkloadKind = choice(WorkloadKind.CLOSED, WorkloadKind)
    devices: int = integer(1, 1, 10**6)
    answers: int = integer(8, 1, 10**6)
    warmup: int = integer(1, 0, 10**6)
    think_s: float = number(0.0, 0.0, 1e6, "seconds")
    rate_per_s: float | None = number(None, 0.0, 1e6, "answers a second", above=True)
    duration_s: float | None = number(None, 0.0, 1e6, "seconds", above=True)
    warmup_s: float = number(0.0, 0.0, 1e6, "seconds")
    file: str = text("")
    prompt_tokens: Length = checked(Length(64, 64), _length)
    output_tokens: Length = checked(Length(128, 128), _length)
    prefix_tokens: int = integer(0, 0, MAX_LENGTH, "tokens")
    prefixes: int = integer(1, 1, 10**6)
    repetition: float = number(0.0, 0.0, 0.95)
    vocabulary: int = integer(151_936, 64, 2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        poisson = self.kind is WorkloadKind.POISSON
        if poisson != (self.rate_per_s is not None):
            expected = "answers a second" if poisson else f"nothing with workload.kind {self.kind.value}"
            raise self.wrong("rate_per_s", self.rate_per_s, expected)
        if poisson and self.duration_s is None:
            raise self.wrong("duration_s", None, "seconds, with workload.kind poisson")
        if (self.kind is WorkloadKind.TRACE) != bool(self.file):
            raise self.wrong("file", self.file, "a file with workload.kind trace, and only there")
        if self.duration_s is not None and self.warmup_s >= self.duration_s:
            raise self.wrong("warmup_s", self.warmup_s, f"less than workload.duration_s, {self.duration_s:g}")
        if self.kind is not WorkloadKind.TRACE and self.prefix_tokens >= self.prompt_tokens.low:
            shortest = self.prompt_tokens.low
            if self.prompt_tokens.sigma == 0.0:
                raise self.wrong("prefix_tokens", self.prefix_tokens, f"less than the shortest prompt, {shortest}")

    @property
    def longest(self) -> int:
        """Prompt and output together, at the most. Raises InvalidParameter for a bad trace."""
        if self.kind is WorkloadKind.TRACE:
            return max(request.prompt_tokens + request.output_tokens for request in self._recorded())
        return self.prompt_tokens.high + self.output_tokens.high

    @property
    def closed(self) -> bool:
        """Whether devices ask when they, or all, have their last answer: see ``loop``; else see ``requests``."""
        return self.kind in (WorkloadKind.CLOSED, WorkloadKind.ROUNDS)

    def loop(self, device: int, seed: int) -> Iterator[Request]:
        """What one device of a closed loop asks, one after the other; ``at`` is how long it thinks before. Endless with
        ``duration_s``.
        """
        random = np.random.default_rng((seed, 3, device))
        for index in itertools.count():
            if self.duration_s is None and index >= self.warmup + self.answers:
                return
            think = float(random.exponential(self.think_s)) if self.think_s else 0.0
            yield self._request(index * self.devices + device, device, think, random, measured=index >= self.warmup)

    def requests(self, seed: int) -> Iterator[Request]:
        """All that is asked at given times. Raises InvalidParameter for a bad trace."""
        return iter(self._recorded()) if self.file else self._poisson(np.random.default_rng((seed, 1)))

    def _poisson(self, random: np.random.Generator) -> Iterator[Request]:
        number, at = 0, 0.0
        while (at := at + random.exponential(1.0 / (self.rate_per_s or 1.0))) < (self.duration_s or 0.0):
            yield self._request(number, number % self.devices, at, random, measured=at >= self.warmup_s)
            number += 1

    def _request(self, number: int, device: int, at: float, random: np.random.Generator, *, measured: bool) -> Request:
        prompt = self.prompt_tokens.draw(random)
        return Request(
            number=number,
            device=device,
            at=at,
            prompt_tokens=prompt,
            output_tokens=self.output_tokens.draw(random),
            prefix=int(random.integers(self.prefixes)),
            shared=min(self.prefix_tokens, prompt - 1),
            measured=measured,
        )

    def _recorded(self) -> list[Request]:
        """A CSV with a line of names: arrival_s, prompt_tokens, output_tokens, and if there, prefix, prefix_tokens."""
        expected = "a CSV file with columns arrival_s, prompt_tokens, output_tokens (and prefix, prefix_tokens)"
        requests: list[Request] = []
        try:
            with Path(self.file).open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(file)):
                    at = float(row["arrival_s"])
                    request = Request(
                        number=number,
                        device=number % self.devices,
                        at=at,
                        prompt_tokens=int(row["prompt_tokens"]),
                        output_tokens=int(row["output_tokens"]),
                        prefix=int(row.get("prefix") or 0),
                        shared=int(row.get("prefix_tokens") or 0),
                        measured=at >= self.warmup_s,
                    )
                    if request.prompt_tokens < 1 or request.output_tokens < 1 or not 0 <= at < math.inf:
                        raise ValueError(f"line {number + 2}: lengths from 1 on and a time from 0 on")
                    if not 0 <= request.shared < request.prompt_tokens:
                        raise ValueError(f"line {number + 2}: prefix_tokens must be less than prompt_tokens")
                    requests.append(request)
        except KeyError as error:
            raise self.wrong("file", self.file, f"{expected}; {error} is missing") from None
        except (OSError, ValueError, TypeError) as error:
            raise self.wrong("file", self.file, f"{expected} ({error})") from None
        if not requests or not any(request.measured for request in requests):
            raise InvalidParameter.of("workload.file", self.file, f"{expected}, with an answer after workload.warmup_s")
        if self.duration_s is not None and requests[-1].at < self.duration_s:
            raise self.wrong(
                "file", self.file, f"arrivals until {self.duration_s:g} s; it ends at {requests[-1].at:g} s"
            )
        return requests
