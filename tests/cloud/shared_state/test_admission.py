"""Limits of several replicas, on one store; each has its link, as in a server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotfish_cloud.shared_state.admission import SharedAdmission
from pilotfish_cloud.shared_state.interface import Held, Limits, Report, StateTroubleError, Taken, View
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_cloud.shared_state.memory import MemoryState
from pilotfish_core.admission import Admission, Reservation, ServerLimits, TenantSettings
from pilotfish_core.errors import Cancelled, LocalError, Overloaded
from tests.cloud.shared_state.contract import until
from tests.core.admission_contract import AdmissionContract

LINE = {"model": "m", "fingerprint": "pf-a", "generations": 0, "draining": False}
TWO = TenantSettings(max_generations=2)
ONE_SLOW = TenantSettings(max_generations=1, rows_per_s=0.001, burst_s=100_000.0)  # 100 rows


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Nobody:
    """A store that cannot be asked."""

    replicas = 1

    async def take(self, *_: Any, **__: Any) -> None:
        return None

    def wake(self) -> None:
        pass


class TestSharedAdmissionAlone(AdmissionContract):
    """Without its store it is the only replica that there is."""

    def admission(self, limits: ServerLimits) -> Admission:
        return SharedAdmission(limits, Nobody(), replica="r1", clock=lambda: 0.0)


class FlakyState(MemoryState):
    """Fails as long as it is ``down``; ``lossy``: hears, and then fails; ``gate``: takes are not answered before."""

    down = lossy = False
    gate: asyncio.Event | None = None

    async def take(self, *arguments: Any, **options: Any) -> Taken:
        if self.down:
            raise StateTroubleError("down")
        taken = await super().take(*arguments, **options)
        if self.gate is not None:
            await self.gate.wait()
        return taken

    async def report(self, report: Report) -> View:
        if self.down:
            raise StateTroubleError("down")
        view = await super().report(report)
        if self.lossy:
            raise StateTroubleError("the answer was lost")
        return view


class Replica:
    def __init__(self, name: str, state: MemoryState, clock: Clock) -> None:
        self.link = StateLink(state, name, lambda: LINE, tick_s=0.005)
        self.admission = SharedAdmission(ServerLimits(), self.link, replica=name, clock=clock)
        self.link.admission = self.admission
        self._clock = clock
        self._names = itertools.count(1)

    async def begin(
        self, settings: TenantSettings, *, rows: int = 10, generation: bytes = b"", attempt: int = 1
    ) -> Reservation:
        generation = generation or f"{self.link.replica} {next(self._names)}".encode()
        claim = await self.admission.ask("a", settings, generation=generation, attempt=attempt, rows=rows)
        return self.admission.reserve("a", settings, rows=rows, output=5, now=self._clock(), claim=claim)

    def end(self, reservation: Reservation) -> None:
        self.admission.release(reservation, self._clock())

    async def reported(self) -> None:
        before = self.link.reports

        async def again() -> bool:
            return self.link.reports >= before + 2  # one that began after now

        await until(again)


@contextlib.asynccontextmanager
async def replicas(count: int = 3) -> AsyncIterator[tuple[FlakyState, Clock, list[Replica]]]:
    clock = Clock()
    state = FlakyState(clock)
    all_of_them = [Replica(f"r{number}", state, clock) for number in range(count)]
    for replica in all_of_them:
        await replica.link.start()
    for replica in all_of_them:
        await replica.reported()
    try:
        yield state, clock, all_of_them
    finally:
        for replica in all_of_them:
            await replica.link.close()


async def seen(state: MemoryState) -> tuple[str, Any]:
    """Of a tenant with the limits ONE_SLOW: whether another generation is refused, and the bucket's level."""
    limits = Limits(max_generations=1, rows_per_s=0.001, capacity=100)
    taken = await state.take("a", limits, Held("x", "r9/1", 0))
    return taken.refused, taken.level


async def test_places_of_all_replicas() -> None:
    async with replicas() as (_, _, (one, two, three)):
        first = await one.begin(TWO)
        await two.begin(TWO)
        with pytest.raises(Overloaded, match="2 generations of this key's owner run or wait; at most 2 may"):
            await three.begin(TWO)
        one.end(first)
        await one.begin(TWO)  # its own end comes first, reported or not
        with pytest.raises(Overloaded):
            await three.begin(TWO)


async def test_a_generation_that_moves_keeps_its_place() -> None:
    async with replicas() as (_, _, (one, two, three)):
        old = await one.begin(TWO, generation=b"g1")
        await one.begin(TWO)
        new = await two.begin(TWO, generation=b"g1", attempt=2)
        one.end(old)
        await one.reported()
        with pytest.raises(Overloaded):
            await three.begin(TWO)
        two.end(new)
        await two.reported()
        await three.begin(TWO)


async def test_an_attempt_that_comes_twice_gives_nothing_back() -> None:
    async with replicas() as (state, _, (one, _, _)):
        await one.begin(ONE_SLOW, rows=60, generation=b"g")
        for _ in range(3):
            one.admission.withdraw(await one.admission.ask("a", ONE_SLOW, generation=b"g", attempt=1, rows=60))
        await one.reported()
        assert await seen(state) == ("places", pytest.approx(40.0, abs=0.5))


async def test_calls_at_the_same_time_begin_once_and_are_charged_once() -> None:
    async with replicas(1) as (state, clock, (one,)):
        state.gate = asyncio.Event()
        begun: list[int] = []

        async def call(attempt: int) -> None:
            """As the gateway does: what is not newer than what runs is not begun."""
            claim = await one.admission.ask("a", ONE_SLOW, generation=b"g", attempt=attempt, rows=60)
            if attempt <= max(begun, default=0):
                one.admission.withdraw(claim)
                raise Cancelled("not newer")
            one.admission.reserve("a", ONE_SLOW, rows=60, output=5, now=clock(), claim=claim)
            begun.append(attempt)

        calls = [asyncio.create_task(call(1)) for _ in range(5)]
        await until(lambda: _true(sum(task.done() for task in calls) == 4))  # nobody waits with the first one
        state.gate.set()
        said = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in said] == [type(None)] + [Cancelled] * 4
        await one.reported()
        assert await seen(state) == ("places", pytest.approx(40.0, abs=0.5))


async def test_an_older_attempt_at_the_same_time_is_given_back() -> None:
    async with replicas(1) as (state, clock, (one,)):
        older, newer = [
            await one.admission.ask("a", ONE_SLOW, generation=b"g", attempt=attempt, rows=60) for attempt in (1, 2)
        ]
        one.admission.reserve("a", ONE_SLOW, rows=60, output=5, now=clock(), claim=newer)
        one.admission.withdraw(older)
        await one.reported()
        assert await seen(state) == ("places", pytest.approx(40.0, abs=0.5))


async def test_an_attempt_that_was_refused_is_charged_when_it_begins() -> None:
    async with replicas(1) as (state, _, (one,)):
        for _ in range(3):  # something else is wrong with it, as the gateway finds
            one.admission.withdraw(await one.admission.ask("a", ONE_SLOW, generation=b"g", attempt=1, rows=20))
        await one.begin(ONE_SLOW, rows=20, generation=b"g")
        await one.reported()
        assert await seen(state) == ("places", pytest.approx(80.0, abs=0.5))


async def test_what_is_refused_here_is_free_elsewhere() -> None:
    async with replicas() as (_, _, (one, two, _)):
        settings = TenantSettings(max_generations=1, rows_per_s=1.0, burst_s=100.0)
        claim = await one.admission.ask("a", settings, generation=b"g", attempt=1, rows=60)
        one.admission.withdraw(claim)
        await one.reported()
        await two.begin(settings, rows=100)


async def test_rows_of_all_replicas() -> None:
    settings = TenantSettings(rows_per_s=10.0, burst_s=10.0)
    async with replicas() as (state, clock, three):
        granted = 0
        for second in range(100):  # ten times what is allowed, at each replica in turn
            clock.now = float(second)
            for replica in three:
                for _ in range(3):
                    with contextlib.suppress(Overloaded):
                        reservation = await replica.begin(settings, rows=8)
                        replica.admission.charge(reservation, 2, clock())  # and what it commits
                        replica.end(reservation)
                        granted += 10
            for replica in three:
                await replica.reported()
        assert granted == pytest.approx(100 + 99 * 10, rel=0.05)
        assert state is not None


async def test_without_the_store_each_has_its_share() -> None:
    settings = TenantSettings(max_generations=4, rows_per_s=30.0, burst_s=1.0)
    async with replicas() as (state, clock, (one, two, _)):
        held = await one.begin(settings, rows=30)
        state.down = True
        await until(lambda: _true(not one.link.in_touch))
        clock.now = 1.0  # a third of what there is in a second, for each
        with pytest.raises(Overloaded, match="30 a second"):
            await one.begin(settings, rows=30)
        clock.now = 4.0
        await one.begin(settings, rows=30)
        with pytest.raises(Overloaded, match="2 generations"):  # 4 / 3, rounded up
            await one.begin(settings, rows=0)
        one.end(held)
        state.down = False
        await until(lambda: _true(one.link.in_touch and two.link.in_touch))
        assert one.link.failures["report"] > 0


async def test_a_tenant_that_is_first_seen_without_the_store_has_a_share() -> None:
    settings = TenantSettings(rows_per_s=30.0, burst_s=1.0)
    async with replicas() as (state, clock, (one, two, _)):
        state.down = True
        await until(lambda: _true(not one.link.in_touch))
        await one.begin(settings, rows=10)
        with pytest.raises(Overloaded) as caught:
            await one.begin(settings, rows=20)
        assert caught.value.retry_after_s == pytest.approx(2.0)  # at a third of the rate
        clock.now = 1.0
        await one.begin(settings, rows=10)
        faster = TenantSettings(rows_per_s=60.0, burst_s=1.0)
        with pytest.raises(Overloaded) as caught:
            await one.begin(faster, rows=20)
        assert caught.value.retry_after_s == pytest.approx(1.0)
        state.down = False
        await until(lambda: _true(one.link.in_touch and two.link.in_touch))
        clock.now = 2.0  # what there is fills by the whole rate again
        await one.reported()
        await one.begin(faster, rows=50)


async def test_what_ended_long_ago_is_not_kept_for_a_store_that_is_away() -> None:
    async with replicas(1) as (state, clock, (one,)):
        held = await one.begin(TWO)
        state.down = True
        await until(lambda: _true(not one.link.in_touch))
        one.end(held)
        for number in range(3000):
            clock.now = number / 1000
            one.end(await one.begin(TWO))
        assert len(one.admission.collect()["a"].released) == 1000  # the newest
        one.end(await one.begin(TWO))
        clock.now += 11.0  # its place has expired by now
        last = await one.begin(TWO, generation=b"last")
        one.end(last)
        assert [free.place for free in one.admission.collect()["a"].released] == [b"last".hex()]


async def _true(value: bool) -> bool:
    return value


async def test_answers_that_are_lost_count_once() -> None:
    settings = TenantSettings(rows_per_s=0.001, burst_s=100_000.0)  # 100 rows
    async with replicas(1) as (state, clock, (one,)):
        reservation = await one.begin(settings, rows=10)
        state.lossy = True
        await until(lambda: _true(not one.link.in_touch))
        one.admission.charge(reservation, 40, clock())
        failures = one.link.failures["report"]
        await until(lambda: _true(one.link.failures["report"] > failures))
        state.lossy = False
        await until(lambda: _true(one.link.in_touch))
        await one.reported()
        taken = await state.take("a", Limits(max_generations=None, rows_per_s=0.001, capacity=100), Held("x", "y", 0))
        assert taken.level == pytest.approx(50, abs=0.5)


async def test_a_store_that_must_be_there() -> None:
    state = FlakyState()
    state.down = True
    with pytest.raises(LocalError, match="--redis-required"):
        await StateLink(state, "r", lambda: LINE).start(required=True)
    link = StateLink(state, "r", lambda: LINE)
    await link.start()
    assert (link.in_touch, link.replicas) == (False, 1)
    await link.close()


async def test_lines_of_replicas_are_checked() -> None:
    async with replicas(2) as (state, _, (one, two)):
        hostile = ["", "[]", "{}", "nan", "[" * 5000, '{"model": 1}', "x" * 10_000]
        for number, line in enumerate(hostile):
            await state.report(Report(replica=f"h{number}", source=f"h{number}", number=1, beat=line))
        await one.reported()
        await two.reported()
        assert [line.name for line in one.link.lines] == ["r0", "r1"]
        assert one.link.lines[0].model == "m"


async def test_a_caller_that_goes_away_while_it_is_asked_leaves_nothing() -> None:
    class Slow(MemoryState):
        entered = asyncio.Event()

        async def take(self, *arguments: Any, **options: Any) -> Taken:
            taken = await super().take(*arguments, **options)
            self.entered.set()
            await asyncio.Event().wait()
            return taken

    clock = Clock()
    state = Slow(clock)
    one, two = Replica("r1", state, clock), Replica("r2", MemoryState(clock), clock)
    two.link.state = state
    await one.link.start()
    asking = asyncio.create_task(one.begin(TenantSettings(max_generations=1)))
    await state.entered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await one.reported()
    limits = Limits(max_generations=1, rows_per_s=None)
    assert (await MemoryState.take(state, "a", limits, Held("other", "r2/1"))).refused == ""
    await one.link.close()
