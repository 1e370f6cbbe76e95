"""What devices ask and get: cases with known answers, and the record of each answer as the app saw it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.chaos.disturbances import Event
from pilotfish.bench.prompts import PROMPTS
from pilotfish.client import AsyncClient
from pilotfish_core.errors import PilotfishError

if TYPE_CHECKING:
    from benchmarks.chaos.deployment import Deployment

LATE_S: Final = 0.5  # that tokens may still be on their way when what they came from is gone


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt and a seed; sampled, so that a token out of place shows in all that follow."""

    number: int
    max_tokens: int

    @property
    def prompt(self) -> str:
        """No two begin the same."""
        return f"# part {self.number}\n{PROMPTS[self.number % len(PROMPTS)]}"

    def params(self) -> dict[str, Any]:
        """Of the generation."""
        return {"max_tokens": self.max_tokens, "temperature": 0.8, "seed": self.number, "ignore_eos": True}


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A piece came; ``reconnects`` until then."""

    at: float
    tokens: int
    reconnects: int


@dataclasses.dataclass
class Answer:
    """One generation as its app saw it. Times on the event loop's clock. ``error``: what it ended with instead."""

    case: Case
    tenant: str
    link: int | None
    began: float
    moments: list[Moment] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ended: float = 0.0
    error: str = ""
    whole: bool = False  # the pieces make exactly the result

    @property
    def reconnects(self) -> int:
        """Streams that broke."""
        return self.moments[-1].reconnects if self.moments else 0

    def pauses(self) -> list[tuple[float, float]]:
        """From the last piece before a break to the next piece after it; begin and end."""
        first = Moment(self.began, 0, 0)
        pairs = itertools.pairwise([first, *self.moments])
        return [(before.at, after.at) for before, after in pairs if after.reconnects > before.reconnects]

    def intervals(self) -> list[float]:
        """Between pieces with no break between."""
        pairs = itertools.pairwise(self.moments)
        return [after.at - before.at for before, after in pairs if after.reconnects == before.reconnects]


async def ask(client: AsyncClient, case: Case, tenant: str, link: int | None = None) -> Answer:
    """One generation to its end, piece by piece."""
    loop = asyncio.get_running_loop()
    answer = Answer(case, tenant, link, loop.time())
    stream = await client.generate(case.prompt, **case.params())
    counts = stream._driver._core.counts  # type: ignore[union-attr]
    try:
        async for piece in stream:
            answer.moments.append(Moment(loop.time(), len(piece.token_ids), counts.reconnects))
            answer.token_ids += piece.token_ids
            answer.text += piece.text
        result = await stream.result()
        answer.whole = tuple(answer.token_ids) == result.token_ids and answer.text == result.text
        answer.cached_tokens = result.metrics.cached_tokens
    except PilotfishError as error:
        answer.error = f"{error.kind}: {error.message}"
    answer.prompt_tokens = len(stream.generation.prompt)
    answer.ended = loop.time()
    return answer


class Crowd:
    """Devices that ask one after the other, each over its link; every second one drafts from its prompt.

    ``measure``: first each case undisturbed, for what is right. Then ``begin``, and ``end`` after whatever happens.
    """

    def __init__(self, count: int, max_tokens: int) -> None:
        self.cases = [Case(number, max_tokens) for number in range(2 * count)]
        self.truth: dict[int, Answer] = {}
        self._count = count
        self._clients: list[tuple[AsyncClient, str, int]] = []
        self._over = asyncio.Event()
        self._running: list[asyncio.Task[list[Answer]]] = []

    async def measure(self, deployment: Deployment, stack: contextlib.AsyncExitStack) -> None:
        """Connect, and answer every case in peace."""
        names = list(deployment.keys)
        for number in range(self._count):
            link = number % len(deployment.links)
            drafting = {"draft": "ngram", "arm": "device-async"} if number % 2 else {}
            name = names[link % len(names)]
            client = await stack.enter_async_context(deployment.client(name, link, **drafting))
            self._clients.append((client, name, link))

        async def quiet(number: int) -> None:
            client, name, link = self._clients[number]
            for case in self.cases[number :: self._count]:
                self.truth[case.number] = await ask(client, case, name, link)

        await asyncio.gather(*(quiet(number) for number in range(self._count)))

    def begin(self) -> None:
        """All of them ask, again and again."""

        async def device(number: int) -> list[Answer]:
            client, name, link = self._clients[number]
            got = []
            for case in itertools.cycle(self.cases[number :: self._count]):
                got.append(await ask(client, case, name, link))
                if self._over.is_set():
                    break
            return got

        self._running = [asyncio.create_task(device(number)) for number in range(self._count)]

    async def end(self) -> list[Answer]:
        """What runs is answered to its end, nothing new is asked."""
        self._over.set()
        return [answer for got in await asyncio.gather(*self._running) for answer in got]

    def found(self, disturbed: Sequence[Answer]) -> dict[str, Any]:
        """How the answers came through."""
        errors = [answer.error for answer in disturbed if answer.error]
        return {
            "generations": len(disturbed),
            "ended": len(disturbed) - len(errors),
            "errors": errors,
            "tokens": sum(len(answer.token_ids) for answer in disturbed),
            "breaks": sum(answer.reconnects for answer in disturbed),
            **differences(disturbed, self.truth),
            "pause_of_any_break_s": spread([end - begin for answer in disturbed for begin, end in answer.pauses()]),
            "between_pieces_quiet_s": spread([time for answer in self.truth.values() for time in answer.intervals()]),
            "between_pieces_s": spread([interval for answer in disturbed for interval in answer.intervals()]),
        }


def unharmed(found: dict[str, Any]) -> bool:
    """Whether every answer ended as it must."""
    counts = ("differing_tokens", "changed_answers", "answers_with_lost_or_doubled_tokens")
    return found["ended"] == found["generations"] and not any(found[name] for name in counts)


def differences(answers: Iterable[Answer], truth: dict[int, Answer]) -> dict[str, int]:
    """Against undisturbed runs, by position; what one has more than the other differs too."""
    differing = changed = doubled = 0
    for answer in answers:
        right = truth[answer.case.number]
        pairs = itertools.zip_longest(answer.token_ids, right.token_ids)
        wrong = sum(one != other for one, other in pairs)
        differing += wrong
        changed += wrong > 0 or answer.text != right.text
        doubled += not answer.whole and not answer.error
    return {"differing_tokens": differing, "changed_answers": changed, "answers_with_lost_or_doubled_tokens": doubled}


def from_event(answers: Iterable[Answer], events: Sequence[Event], kind: str) -> list[float]:
    """Seconds from an event of ``kind`` to the next token, of every generation that it broke."""
    times = []
    for answer in answers:
        for begin, end in answer.pauses():
            causes = [event for event in events if begin - LATE_S <= event.at <= end and event.concerns(answer.link)]
            if causes and causes[0].kind == kind:
                times.append(end - causes[0].at)
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, p99 and the longest, in seconds."""
    if not times:
        return {"count": 0}
    ranked = sorted(times)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"count": len(ranked)} | {
        name: round(ranked[min(int(share * len(ranked)), len(ranked) - 1)], 3) for name, share in at.items()
    }
